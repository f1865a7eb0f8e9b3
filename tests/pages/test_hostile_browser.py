"""Hostile text through the whole app in a browser: no script runs, no file appears elsewhere, nothing breaks."""

import json
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.hostile import HOSTILE, MARKUP
from tests.pages.browser import ROOT, Visitor
from tests.pages.test_browser import letters, record, tokens_drawn

BROWSABLE = {kind: text for kind, text in HOSTILE.items() if kind not in ("malformed", "oversize")}
SHOWN = 120  # characters of each class in a document


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A corpus that is hostile in text, id, domain, source and name."""
    file = tmp_path / f"{MARKUP.replace('/', '')[:100]}.jsonl"
    with file.open("w") as lines:
        for n in range(3):
            for text in BROWSABLE.values():
                named = {"id": f"{text[:SHOWN]} {n}", "domain": text[:SHOWN], "source": text[:SHOWN]}
                lines.write(json.dumps({**named, "text": f"{text[:SHOWN]} {n}"}) + "\n")
    return file


def strangers(data: Path) -> list[Path]:
    """Files where the hostile paths lead to: out of the data folder, and where the app was started."""
    places = [Path("/tmp"), data.parent, ROOT, *ROOT.parents]
    return [file for place in set(places) for file in place.glob("*canary*")] + sorted(data.parent.iterdir())


def refuse_scripts(visitor: Visitor) -> None:
    page = visitor.page
    assert page.evaluate("window.__canary") is None, visitor.address()
    links = page.locator("img[src=x], a[href^='javascript'], a[href*='evil.example']")
    assert links.evaluate_all("all => all.map(each => each.outerHTML)") == [], visitor.address()
    assert page.locator("strong, em, b, i", has_text="bold").count() == 0, visitor.address()
    assert page.locator("[data-testid=stException]").count() == 0, visitor.address()
    assert "that nobody foresaw" not in visitor.heard(), visitor.address()


@pytest.mark.rest
def test_hostile_text_passes_through_every_page_as_letters(visitor, corpus):
    before = strangers(visitor.app.data)
    record(visitor, MARKUP)
    assert letters(tokens_drawn(visitor)) == letters(MARKUP)
    visitor.click_token("token_routing-strip_expert", 2)
    refuse_scripts(visitor)

    visitor.open("/record")
    visitor.page.get_by_text("Corpus", exact=True).first.click()
    visitor.settle()
    visitor.page.locator("input[type=file]").set_input_files(corpus)
    visitor.settle()
    visitor.page.get_by_role("button", name="Record").click()
    visitor.page.wait_for_url("**/tokens?*recording=*", timeout=90_000)
    visitor.settle()
    recording = visitor.address()
    links = visitor.page.get_by_test_id("stSidebarNav").get_by_role("link")
    names = [name.split("\n")[-1] for name in links.all_inner_texts()]
    assert len(names) >= 10
    for name in names:
        visitor.go(name)
        refuse_scripts(visitor)
    visitor.open(recording.replace("/tokens", "/specialization") + f"&document={quote(MARKUP)}")
    visitor.page.get_by_text("What a limit on each expert would drop").click()
    visitor.settle()
    refuse_scripts(visitor)

    for place in ("model", "recording", "layer", "expert", "token", "document", "against", "statistic"):
        path = {"model": "/", "against": "/compare", "statistic": "/attention"}.get(place, "/utilization")
        visitor.open(f"{path}?{place}={quote(MARKUP)}")
        refuse_scripts(visitor)
    assert strangers(visitor.app.data) == before
