"""How long a visitor waits for the app, in chromium.

    python -m tests.benchmarks.pages [--folder FOLDER] [--rounds 3]

Each round starts the app anew over a synthetic recording (28 layers, 64 experts, top-8) of a million tokens and, ten
seconds later, opens one page in it in a new browser profile: the app has asked by itself what pages show first, and the
browser has cached nothing.
The first draw counts from the request of the page to the last change of it. Then the layer alone is changed, several
times: at once, a second after the last change of the page; and by a visitor who looks at each for some seconds, in
which the app makes other layers ahead (`components/prefetch.py`). At last a prompt is typed over the bundled model,
loaded before, and timed from the click to the coloured tokens.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser

from tests.benchmarks.synthetic import make
from tests.pages.browser import Visitor, browsing, serving

PAGES = {"/tokens": "token_routing-layer_token_map", "/utilization": "expert_card-by_token",
         "/load_balance": "load_balance-documents", "/specialization": "domain_load-domain_map",
         "/structure": "coactivation-pair_map"}  # fmt: skip
LAYERS = (3, 9, 20, 26, 11)
LOOKED_LAYERS = (12, 6, 17, 23, 8)
LOOK_S = 5.0
WATCH = """
window.changedAt = performance.now();
new MutationObserver(() => { window.changedAt = performance.now(); })
    .observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
"""


def seconds_until_drawn(visitor: Visitor, act: Callable[[], None], last: str) -> float:
    """From an action to the last change of the page, once nothing runs and nothing changes for a second."""
    started = visitor.page.evaluate("performance.timeOrigin + performance.now()")
    act()
    while True:
        visitor.settle()
        visitor.chart(last)
        changed, now = visitor.page.evaluate("[performance.timeOrigin + window.changedAt, Date.now()]")
        if now - changed > 1000:
            return float((changed - started) / 1000)
        visitor.page.wait_for_timeout(100)


def page_times(browser: Browser, data: Path, path: str, last: str) -> tuple[float, float, list[float], list[float]]:
    """Seconds from the app's start to its first answer, of the first draw, and of redraws: at once, looked at."""
    with serving(data) as app:
        time.sleep(10)  # the start itself is timed apart
        visitor = Visitor(browser, app)
        visitor.page.add_init_script(WATCH)
        first = seconds_until_drawn(visitor, lambda: visitor.open(path), last)
        redraws = []
        for layer, look_s in [*((each, 0.0) for each in LAYERS), *((each, LOOK_S) for each in LOOKED_LAYERS)]:
            time.sleep(look_s)
            chooser = visitor.page.get_by_role("combobox", name="Layer")
            chooser.click()
            chooser.fill(str(layer))
            redraws.append(seconds_until_drawn(visitor, lambda: visitor.page.keyboard.press("Enter"), last))
            assert f"layer={layer}" in visitor.address()
        assert visitor.troubles == [], visitor.troubles
        visitor.close()
        return app.started_s, first, redraws[: len(LAYERS)], redraws[len(LAYERS) :]


def prompt_times(browser: Browser, rounds: int) -> list[float]:
    """Seconds from the click on Record to the coloured tokens, the model being loaded."""
    times = []
    with tempfile.TemporaryDirectory() as data, serving(Path(data)) as app:
        visitor = Visitor(browser, app)
        for round_ in range(rounds + 1):
            visitor.open("/record")
            visitor.page.get_by_label("Prompt", exact=True).fill(f"How long does answer number {round_} take?")
            visitor.page.keyboard.press("Control+Enter")
            visitor.settle()
            started = time.monotonic()
            visitor.page.get_by_role("button", name="Record").click()
            visitor.page.wait_for_url("**/tokens?*recording=tiny-moe-prompt-*", timeout=120_000)
            visitor.chart("token_routing-strip_expert")
            times.append(time.monotonic() - started)
            if round_ == 0:  # the first start's recording of the bundled corpus may still be under way
                while '"closed"' not in (Path(data) / "recordings" / "demo" / "manifest.json").read_text():
                    time.sleep(0.5)
    return times[1:]


def say(what: str, seconds: list[float], wanted: float) -> None:
    """Prints one line."""
    print(
        f"{what}: median {statistics.median(seconds):.2f} s ({min(seconds):.2f}–{max(seconds):.2f}, "
        f"{len(seconds)} times), wanted ≤ {wanted:g} s",
        flush=True,
    )


def main() -> None:
    """Prints a line per page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="data folder for the synthetic recording; temporary unless given")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with browsing() as browser, tempfile.TemporaryDirectory() as temporary:
        data = asked.folder or Path(temporary)
        make(data / "recordings" / "synthetic", n_tokens=1_000_000)
        starts = []
        for path, last in PAGES.items():
            rounds = [page_times(browser, data, path, last) for _ in range(asked.rounds)]
            starts += [start for start, *_ in rounds]
            say(f"{path} first draw", [first for _, first, *_ in rounds], 3)
            say(f"{path} redraw at another layer, at once", [one for *_, at_once, _ in rounds for one in at_once], 0.7)
            say(f"{path} the same, each looked at for {LOOK_S:g} s", [one for *_, late in rounds for one in late], 0.7)
        say("first request after the start", starts, 3)
        say("typed prompt to coloured tokens", prompt_times(browser, max(5, asked.rounds)), 3)
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    main()
