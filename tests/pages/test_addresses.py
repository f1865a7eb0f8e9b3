"""Odd addresses of every page: whatever one says, the page is drawn, and is no longer stuck when it is gone."""

import random
from urllib.parse import urlencode

import pytest
from streamlit.testing.v1 import AppTest

from tests.hostile import HOSTILE
from tests.pages.test_pages import NAMES, PAGES, app, data, said
from tests.tiers import often

__all__ = ("app", "data")  # fixtures

CHOICES = (
    "recording", "layer", "expert", "document", "token", "from", "head", "against", "pin", "untrained", "ceiling",
    "phase", "open", "aside", "width", "analysis", "model", "beside", "device", "measurement", "least", "colour",
    "statistic", "tokens", "experts", "kind", "prompt", "page", "embed", "written", "chosen", "new_page",
)  # fmt: skip
VALUES = (
    "", " ", "0", "1", "2", "-1", "+1", "1.0", "1e9", "0x1", "1_0", "٣", "²", "9" * 20, "9" * 5_000, "nan", "inf",
    "None", "True", "shared", "second", "truncated", "unfinished", "garbled", ".", "..", "../shared", "/", "d7", "d0",
    "L0 E1",
    "L2 E5", "L9 E999", "same", "matched", "auto", "prefill", "decode", "text", "column", "tiny-moe", "tiny-dense",
    "qwen2-57b-a14b", "iso-active", "iso-total", "h200", "2xh200", "loss", "entropy", "tables", "expert_load",
    "differences", "saturation", "roofline", "throughput", "_batch", "load_balance,", "a" * 10_000, "%", "%00",
    "\ufeff", "\u0000",
    *(text for kind, text in HOSTILE.items() if kind != "malformed"),
)  # fmt: skip
ANALYSES = (
    "expert_load",
    "load_balance",
    "domain_load",
    "expert_card",
    "differences",
    "roofline",
    "throughput",
    "x",
    "",
)
SETTINGS = (
    "experts", "against", "recording", "name", "settings", "self", "layer", "expert", "min_count", "ceiling",
    "untrained", "document", "first", "last", "statistic", "head", "n_permutations", "seed", "level", "", "\u0000",
)  # fmt: skip


PARTS = (
    "tables", "the-place", "flow-to-the-next-layer", "what-each-expert-adds", "x" * 300, "expert_load-tables",
    "how-alike-the-experts-of-the-layer-are", "map-of-this-head-on-one-text", "layer-by-layer",
    "two-occurrences-of-one-token", "the-published-claim-and-published-quality-beside-cost",
    "what-was-left-out-and-the-machine",
)  # fmt: skip


def aside_of(random_: random.Random) -> str:
    """What is put aside: sometimes as the app writes it, mostly not."""
    if random_.random() < 0.1:
        return random_.choice(VALUES)
    pairs = [
        ("of", random_.choice(("shared", "shared", "second", "nowhere", "../shared", ""))),
        ("analysis", random_.choice(ANALYSES)),
        ("names", random_.choice(("load_map", "layers,experts", ",", "x"))),
    ]
    for key in ("against", "experts", "phase", "of"):
        if random_.random() < 0.3:
            pairs.append((key, random_.choice(("second", "same", "prefill", *VALUES))))
    for _ in range(random_.choice((0, 1, 1, 2, 4))):
        equals = random_.choice(("=", "=", "=", "", "=="))
        value = random_.choice((*VALUES[:15], *VALUES)) if random_.random() < 0.8 else "entropy"
        pairs.append(("set", f"{random_.choice(SETTINGS)}{equals}{value}"))
    random_.shuffle(pairs)
    return random_.choice(("|", "||", "&")).join([urlencode(pairs, errors="replace")] * random_.choice((1, 1, 2)))


def odd_address(seed: int) -> tuple[str, dict[str, str]]:
    random_ = random.Random(seed)
    address = {name: random_.choice(VALUES) for name in random_.sample(CHOICES, random_.choice((1, 3, 6, 12)))}
    if random_.random() < 0.4:
        address["open"] = ",".join(random_.sample(PARTS, 3))
    if random_.random() < 0.5:
        address["aside"] = aside_of(random_)
    if "recording" in address and random_.random() < 0.7:
        address["recording"] = "shared"
    return random_.choice(NAMES), address


def check(seed: int) -> None:
    """Opens an odd address in a new session, and then another page without it."""
    page, address = odd_address(seed)
    app = AppTest.from_file(str(PAGES / "app.py"), default_timeout=60)
    for name, value in address.items():
        app.query_params[name] = value
    app.switch_page(f"{page}.py").run()
    trouble = [f"{each.message} {each.stack_trace}"[:3_000] for each in app.exception]
    assert not trouble, (seed, page, trouble)
    assert app.title and len(said(app)) < 20_000, (seed, page)
    if {"model", "beside"} & address.keys():  # the harness cannot send back what its options do not have
        return
    app.query_params.clear()
    app.switch_page("load_balance.py" if page != "load_balance" else "tokens.py").run()
    assert app.title and not app.exception, (seed, page)


@pytest.mark.rest
def test_an_odd_address_is_a_page(app):
    for seed in range(25):
        check(seed)


@pytest.mark.slow
def test_many_odd_addresses_are_pages(app):
    for seed in range(25, 1_000):
        check(seed)


@pytest.mark.parametrize("key", often(["experts", "against", "recording", "name", "settings", "self"], ["recording"]))
def test_a_setting_of_any_name_leaves_the_page_whole(app, key):
    app.query_params["aside"] = f"of=shared&analysis=expert_load&names=load_map&set={key}%3Dsame"
    app.run()
    app.switch_page("export.py").run()
    assert not app.exception
    assert f"unknown setting '{key}'" in said(app)
    app.switch_page("tokens.py").run()
    assert app.title[0].value == "Tokens" and not app.exception


def test_the_slow_addresses_are_not_the_quick_ones():
    assert len({str(odd_address(seed)) for seed in range(200)}) > 190 and PAGES.is_dir()
