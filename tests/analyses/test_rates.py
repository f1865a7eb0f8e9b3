"""Intervals of rates: between 0 and 1 without being cut, and with what they keep of their promise beside them."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses.comparison import saturation
from analyses.domains import domain_load, position
from analyses.read.design import RATES_HELD
from analyses.routing import capacity, expert_card, expert_load, router_confidence
from analyses.structure import repetition
from tests import tiny
from workbench.capture.record import record
from workbench.recordings.recording import Recording
from workbench.statistics import intervals
from workbench.statistics.design import MIN_CLUSTERS, Clusters

COVERAGE = Path(__file__).parents[2] / "docs" / "coverage.md"


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Recording:
    return record(tiny.moe(seed=1), tiny.corpus(), tmp_path_factory.mktemp("other") / "r")


@pytest.fixture(scope="module")
def one_text(moe, tmp_path_factory) -> Recording:
    made = {"corpus": tiny.corpus(n_documents=3, shortest=30), "out": tmp_path_factory.mktemp("one") / "r"}
    return record(moe, **made)


def odds(share: pd.Series) -> np.ndarray:
    return np.log(share.to_numpy()) - np.log1p(-share.to_numpy())


def rates(recording: Recording, other: Recording) -> dict[str, pd.DataFrame]:
    """Tables of rates with the columns `rate`, `low`, `high`."""
    confidence = router_confidence.run(recording)
    card = expert_card.run(recording)
    of_two = saturation.run(recording, other).agreement
    places = position.run(recording, position.Settings(n_draws=2, n_seeds=1)).positions

    def named(table: pd.DataFrame, rate: str, low: str = "low", high: str = "high") -> pd.DataFrame:
        return table[[rate, low, high]].set_axis(["rate", "low", "high"], axis=1)

    shares = {
        f"confidence {part}": table.loc[table["statistic"] != router_confidence.MARGIN].rename(columns={"mean": "rate"})
        for part, table in (("layers", confidence.layers), ("domains", confidence.domains))
    }
    return shares | {
        "repetition": named(repetition.run(recording, repetition.Settings(n_draws=2)).rates, "value"),
        "saturation": named(of_two, "value"),
        "saturation top1": named(of_two, "top1", "top1_low", "top1_high"),
        "capacity": named(capacity.run(recording).shares, "dropped"),
        "position entropy": named(places, "entropy", "entropy_low", "entropy_high"),
        "domains of a card": named(card.domains, "rate"),
        "partners of a card": named(card.partners, "probability"),
    }


def test_the_ends_of_a_rate_lie_evenly_about_it_in_log_odds(recording, other):
    """And so they are between 0 and 1 of themselves; ends that are cut there are even neither in odds nor in rates."""
    for name, table in rates(recording, other).items():
        known = table[table["low"].notna() & (table["rate"] > 0) & (table["rate"] < 1)]
        assert len(known), name
        assert ((known["low"] > 0) & (known["high"] < 1)).all(), name
        below, above = odds(known["rate"]) - odds(known["low"]), odds(known["high"]) - odds(known["rate"])
        np.testing.assert_allclose(below, above, rtol=1e-6, atol=1e-9, err_msg=name)
        at_an_end = table[table["low"].notna() & table["rate"].isin([0, 1])]
        assert (at_an_end["high"] - at_an_end["low"] > 0).all(), name


def test_recordings_that_agree_everywhere_are_not_sure_to_agree_on_other_texts(recording):
    table = saturation.run(recording, recording).agreement
    whole = table[table["domain"] == saturation.ALL]
    assert (whole["value"] == 1).all() and (whole["high"] == 1).all()
    # as many documents of one length as tell as much, none of which disagrees
    tokens_D = recording.documents()["tokens"].to_numpy()
    effective = tokens_D.sum() ** 2 / (tokens_D**2).sum()
    np.testing.assert_allclose(whole["low"], 0.025 ** (1 / effective))


def test_what_is_1_by_definition_has_no_width_and_a_margin_may_be_negative(moe, tmp_path):
    every = record(tiny.moe(n_experts=4, top_k=4), tiny.corpus(n_documents=12), tmp_path / "r")
    mass = router_confidence.run(every).layers.query("statistic == @router_confidence.MASS")
    np.testing.assert_allclose(mass[["mean", "low", "high"]], 1, atol=1e-3)
    result = router_confidence.run(record(moe, tiny.corpus(n_documents=12), tmp_path / "m"))
    margin = result.layers.query("statistic == @router_confidence.MARGIN")
    np.testing.assert_allclose(margin["mean"] - margin["low"], margin["high"] - margin["mean"])


def test_a_share_that_rounding_put_beyond_1_lies_within_its_ends():
    clusters = Clusters.of(np.zeros(10))
    found = intervals.ratio_interval(np.full(10, 9.002), np.full(10, 9), clusters=clusters, share=True)
    assert 0 < found.low < found.value == found.high


def test_what_intervals_of_rates_keep_stands_beside_them(recording):
    load, domain, card = expert_load.run(recording), domain_load.run(recording), expert_card.run(recording)
    captions = {
        "load_map": expert_load.figures(load)["load_map"].caption,
        "domain_map": domain_load.figures(domain)["domain_map"].caption,
        **{name: expert_card.figures(card)[name].caption for name in ("by_domain", "by_token", "partners")},
    }
    for name, caption in captions.items():
        assert RATES_HELD in caption, name
        assert "log-odds" in caption or name == "load_map", name
    for note in (load.note, domain.rates_note, card.note):
        assert RATES_HELD in note
    assert RATES_HELD not in domain_load.figures(domain)["information"].caption  # which is no rate


def test_nothing_is_promised_where_there_is_no_interval(one_text):
    load, domain, card = expert_load.run(one_text), domain_load.run(one_text), expert_card.run(one_text)
    for note in (load.note, domain.rates_note, card.note):
        assert f"no interval: fewer than {MIN_CLUSTERS} clusters" in note and RATES_HELD not in note


def test_the_promise_is_what_was_measured():
    rows = re.findall(
        r"^\| (0\.\d+) \| (\d+) \| (8|24) \| (\S+) \| .* \| ([\d.]+) % \| \S+ \|$", COVERAGE.read_text(), re.M
    )
    assert len(rows) == 24 and {float(sd) for *_, sd, _ in rows} == {0, 0.5, 1}
    bursts = [float(held) for rate, alike, *_, held in rows if (rate, alike) == ("0.02", "10")]
    others = [float(held) for rate, alike, *_, held in rows if (rate, alike) != ("0.02", "10")]
    assert "92–99 %" in RATES_HELD and min(others) >= 92 and max(others) <= 99
    assert "89–91 % at worst" in RATES_HELD and len(bursts) == 6 and 89 <= min(bursts) <= 91
    assert "docs/coverage.md" in RATES_HELD
