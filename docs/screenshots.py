"""Makes the README's screenshots again, from the real app over the bundled model and corpus.

    python -m docs.screenshots [--out docs/figures]

Records the bundled corpus first, as a first start of the app does, and then opens pages in chromium.
"""

import argparse
import tempfile
import time
from pathlib import Path

from tests.pages.browser import App, Visitor, browsing, serving
from workbench.recording import Recording

SHOTS = {
    "app_tokens": ("/tokens?document=english-05&layer=2&token=40", "token_routing-layer_token_map", False, 900),
    "app_utilization": ("/utilization?layer=0&expert=10", "expert_card-by_token", True, 1000),
}


def main() -> None:
    """Writes a PNG for each of the shots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as app, browsing() as browser:
        _wait_for_the_first_recording(browser, app)
        for name, (path, last, dark, height) in SHOTS.items():
            visitor = Visitor(browser, app, dark=dark, width=1280, height=height)
            visitor.open(path)
            visitor.chart(last)
            visitor.settle()
            visitor.page.screenshot(path=out / f"{name}.png")
            assert visitor.troubles == [], visitor.troubles
            print(out / f"{name}.png")


def _wait_for_the_first_recording(browser, app: App) -> None:
    Visitor(browser, app).open("/")  # the first visitor sets it off
    manifest = app.data / "recordings" / "demo" / "manifest.json"
    while not manifest.exists() or '"status": "closed"' not in manifest.read_text():
        time.sleep(0.5)
    Recording.open(manifest.parent)


if __name__ == "__main__":
    main()
