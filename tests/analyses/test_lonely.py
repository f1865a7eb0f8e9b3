"""A domain of a single document: it has no interval of its own, it is named, and the corpus keeps its numbers."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from analyses import catalogue
from analyses.routing import load_balance
from tests import tiny
from workbench.capture.record import record
from workbench.recordings.fields import FIELDS
from workbench.recordings.recording import Recording

NAMES = [name for name in catalogue.of_recordings() if "routing" in catalogue.get(name).NEEDS]
# what is drawn by expert or document, or has no interval at all, names no domain
SILENT = ("coverage", "expert_similarity", "token_routing", "upcycling_lineage")


@pytest.fixture(scope="module")
def lonely(moe, tmp_path_factory) -> Recording:
    """50 documents, ten of each domain, of which one is a domain of its own."""
    texts = tiny.corpus()
    alone = dataclasses.replace(texts.documents[7], domain="law")
    documents = (*texts.documents[:7], alone, *texts.documents[8:])
    how = {"fields": FIELDS, "parent": tiny.dense(n_layers=3)}
    return record(moe, dataclasses.replace(texts, documents=documents), tmp_path_factory.mktemp("lonely") / "r", **how)


def ends(table: pd.DataFrame) -> int:
    """Rows with an interval."""
    return int(table["low"].notna().sum()) if "low" in table else 0


@pytest.mark.parametrize("name", NAMES)
def test_the_others_keep_their_intervals_and_it_is_named(name, lonely, recording):
    module = catalogue.get(name)
    asked = [[each] * (1 + (module.INPUT == "two recordings")) for each in (lonely, recording)]
    found, plain = (module.run(*recordings) for recordings in asked)
    tables, of_plain = module.tables(found), module.tables(plain)
    for key, table in of_plain.items():
        if key != "information":  # of all domains, of which one has nothing that could vary
            assert (ends(tables[key]) > 0) == (ends(table) > 0), key
    if name in SILENT:
        return
    notes = [getattr(found, "note", "")] + [
        note for table in tables.values() if "note" in table for note in table["note"].unique()
    ]
    assert any("(law has 1)" in note for note in notes), notes


def test_balance_has_its_value_interval_and_test(lonely):
    result = load_balance.run(lonely)
    headline = result.layers[result.layers["measure"] == load_balance.HEADLINE]
    assert np.isfinite(headline[["value", "low", "high"]].to_numpy()).all()
    assert np.isfinite(result.tests[["imbalance", "p", "effective_tokens"]].to_numpy()).all()
    assert headline["note"].str.contains(r"\(law has 1\)").all()
    assert "(law has 1)" in load_balance.figures(result)["imbalance"].caption
