"""What the Models page says of a model, against the model."""

from dataclasses import asdict

import pytest

from tests import tiny
from workbench.capture.proof.model import check_capture
from workbench.figures.matplotlib.draw import paper
from workbench.figures.plotly.draw import screen
from workbench.models import diagram
from workbench.models.topology import Topology


def test_a_row_for_each_layer_and_a_column_for_each_part(moe):
    figure = diagram.picture(moe.topology, "tiny")
    table = figure.table.set_index(["layer", "part"])
    for layer in (0, 2):
        assert table.loc[(layer, "5"), "share"] == pytest.approx(3 / 8)
        assert table.loc[(layer, "shared"), "share"] == 1
        assert "scaled by a gate" in table.loc[(layer, "shared"), "shape"]
    assert table.loc[(1, "dense"), "share"] == 1 and (1, "0") not in table.index
    assert set(table.xs("attention", level="part")["shape"]) == {"4 heads of 8, 2 key/value groups"}
    assert "2 of 3 layers have a router" in figure.alt
    screen(figure)
    paper(figure, width="column")


def test_a_dense_model_has_a_picture_too():
    figure = diagram.picture(tiny.dense().topology, "dense")
    assert set(figure.table["part"]) == {"attention", "dense"}
    screen(figure)


def test_two_routers_of_a_layer_stand_side_by_side(moe):
    value = moe.topology.to_json()
    first = value["routers"][0]
    twice = Topology.from_json({**value, "routers": [first, {**first, "site": "second"}]})
    parts = diagram.picture(twice, "two").table.query("layer == 0")["part"].tolist()
    assert {"mlp 0", "second 7", "mlp shared", "second shared"} <= set(parts)
    assert len(parts) == len(set(parts))


def test_facts_in_a_few_words(moe):
    facts = diagram.facts(moe.topology)
    assert facts["layers"] == "3, 2 MoE" and facts["experts"] == "8, top-3"
    assert facts["shared width"] == "24 gated" and facts["heads"] == "4, 2 groups"
    assert diagram.facts(tiny.dense().topology)["experts"] == "none"


@pytest.mark.parametrize(
    ("parameters", "text"),
    [(57_408_658_944, "57.41 B"), (141_000_000_000, "141.0 B"), (2_951_808, "2.95 M"), (950, "950")],
)
def test_parameters_to_four_digits(parameters, text):
    assert diagram.short(parameters) == text


@pytest.mark.parametrize(("free", "sentence"), [(2**32, "4.00 GiB are free on cpu"), (2**20, "it would be refused")])
def test_a_memory_forecast_in_a_sentence(free, sentence):
    forecast = {
        "weights_bytes": 2**30, "buffers_bytes": 2**29, "needed_bytes": 3 * 2**29, "kv_cache_bytes": 0,
        "free_bytes": free, "device": "cpu", "fits": free >= 3 * 2**29,
    }  # fmt: skip
    table, said = diagram.memory(forecast)
    assert sentence in said and "Recording needs 1.50 GiB" in said
    assert table["GiB"].tolist() == [1, 0.5, 1.5, free / 2**30, 0]


def test_every_proof_is_named(moe):
    table = diagram.proofs(asdict(check_capture(moe)))
    assert table["measured"].iloc[0] == "2"
    assert len(table) == 9 and table["of"].is_unique
