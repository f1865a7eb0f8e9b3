"""Makes the screenshots of the docs again, from the real app over the bundled models and corpus.

    python -m docs.screenshots [--out docs/figures] [NAME …]

Records the bundled corpus first, as a first start of the app does, and an earlier checkpoint to compare with, and then
opens every page in chromium. The pictures have 256 colours, so that each is small.
"""

import argparse
import io
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.pages.browser import App, Visitor, browsing, serving
from workbench.recordings.recording import Recording

EARLIER = "tiny-moe@step-226"


@dataclass(frozen=True)
class Shot:
    """A page to be pictured.

    Attributes:
        path: Its address.
        last: The figure that is drawn last; none for a page without one.
        dark: Whether the page is dark.
        height: Of the window.
    """

    path: str
    last: str = ""
    dark: bool = False
    height: int = 900


_ASIDE = (
    "of%3Ddemo%26analysis%3Dexpert_load%26names%3Dload_map%7Cof%3Ddemo%26analysis%3Ddomain_load%26names%3Dinformation"
)
SHOTS = {
    "app_models": Shot("/?model=qwen2-57b-a14b", height=800),
    "app_record": Shot("/record", height=800),
    "app_tokens": Shot("/tokens?recording=demo&document=english-05&layer=2&token=40", "token_routing-layer_token_map"),
    "app_utilization": Shot(
        "/utilization?recording=demo&layer=0&expert=10", "expert_card-by_token", dark=True, height=1000
    ),
    "app_load_balance": Shot("/load_balance?recording=demo&layer=0", "load_balance-measures"),
    "app_specialization": Shot("/specialization?recording=demo&layer=2", "domain_load-domain_map"),
    "app_structure": Shot("/structure?recording=demo&layer=2", "coactivation-pair_map"),
    "app_attention": Shot("/attention?recording=demo&layer=1&head=2", "attention_profile-head", height=1000),
    "app_compare": Shot("/compare?recording=demo&against=earlier", "differences-by_layer"),
    "app_efficiency": Shot("/efficiency", "crossover-map", height=1000),
    "app_export": Shot(f"/export?recording=demo&aside={_ASIDE}", height=1000),
}


def main() -> None:
    """Writes a PNG for each of the shots, or for those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("names", nargs="*", metavar="NAME")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as app, browsing() as browser:
        _wait_for_the_first_recording(browser, app)
        _record_earlier(app)
        for name in asked.names or SHOTS:
            picture = asked.out / f"{name}.png"
            picture.write_bytes(_taken(browser, app, SHOTS[name]))
            print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


def _taken(browser, app: App, shot: Shot) -> bytes:
    visitor = Visitor(browser, app, dark=shot.dark, width=1280, height=shot.height)
    visitor.open(shot.path)
    if shot.last:
        visitor.chart(shot.last)
    visitor.settle()
    visitor.page.wait_for_timeout(1000)  # figures take their width a moment later
    visitor.settle()
    picture = Image.open(io.BytesIO(visitor.page.screenshot())).convert("RGB")
    assert visitor.troubles == [], visitor.troubles
    visitor.close()
    small = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


def _wait_for_the_first_recording(browser, app: App) -> None:
    Visitor(browser, app).open("/")  # the first visitor sets it off
    manifest = app.data / "recordings" / "demo" / "manifest.json"
    while not manifest.exists() or '"status": "closed"' not in manifest.read_text():
        time.sleep(0.5)
    Recording.open(manifest.parent)


def _record_earlier(app: App) -> None:
    """Records an earlier checkpoint over the same corpus."""
    from workbench.capture.record import record
    from workbench.models.loading import load

    record(load(EARLIER, device="cpu"), "demo", app.data / "recordings" / "earlier")


if __name__ == "__main__":
    main()
