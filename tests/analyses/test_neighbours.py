"""Whatever speaks of neighbouring tokens goes by their positions: not by rows, and not at all where none is known."""

import itertools

import numpy as np
import pandas as pd
import pytest

from analyses import catalogue
from analyses.comparison import differences
from analyses.domains import context
from analyses.read.controls import Controls
from analyses.structure import activated, coverage, repetition, segment_consistency
from tests.analyses.changed import interleaved, numbered, placeless
from tests.importers import sources
from tests.tiers import often
from workbench.errors import AnalysisError
from workbench.recordings.importers.build import import_trace
from workbench.recordings.recording import Recording

NAMES = [name for name in catalogue.of_recordings() if "routing" in catalogue.get(name).NEEDS]
ALONE = [name for name in NAMES if catalogue.input_of(name) != "two recordings"]
OF_NEIGHBOURS = ("repetition", "segment_consistency", "activated", "coverage")


def chosen(recording: Recording) -> dict[tuple[int, int], set[int]]:
    """The experts of the first MoE layer, by document and position."""
    tokens = recording.tokens()
    sets = [set(ids) for ids in recording.ids(recording.moe_layers[0]).tolist()]
    return dict(zip(zip(tokens["document"], tokens["position"], strict=True), sets, strict=True))


def with_a_gap(document_T: np.ndarray, position_T: np.ndarray) -> np.ndarray:
    """Everything from position 5 on stands two places later, as if two tokens had been masked."""
    return np.where(position_T >= 5, position_T + 2, position_T)


@pytest.mark.parametrize("name", often(NAMES, ["coverage", "repetition", "segment_consistency"]))
def test_the_order_of_rows_changes_nothing(name, recording, tmp_path):
    module = catalogue.get(name)
    other = [recording] if module.INPUT == "two recordings" else []
    tables = module.tables(module.run(recording, *other))
    moved = module.tables(module.run(interleaved(recording, tmp_path / "moved"), *other))
    assert tables.keys() == moved.keys()
    for key, table in tables.items():
        pd.testing.assert_frame_equal(table, moved[key], rtol=1e-9, atol=1e-12)


def test_pairs_windows_runs_and_previous_tokens_beside_a_plain_search(recording, tmp_path):
    gapped = numbered(recording, tmp_path / "r", with_a_gap)
    at = {(d, p + 2 if p >= 5 else p): s for (d, p), s in chosen(recording).items()}
    layer = recording.moe_layers[0]
    pairs = [(at[d, p], at[d, p + 1]) for d, p in at if (d, p + 1) in at]

    def of_layer(table: pd.DataFrame) -> pd.DataFrame:
        return table[(table["layer"] == layer) & (table.get("domain", repetition.ALL) == repetition.ALL)]

    rates = of_layer(repetition.run(gapped).rates).set_index("measure")
    assert (rates["pairs"] == len(pairs)).all()
    assert rates.loc["an expert in common", "value"] == pytest.approx(np.mean([bool(a & b) for a, b in pairs]))

    windows = [(d, p) for d, p in at if all((d, p + n) in at for n in range(4))]
    assert segment_consistency.run(gapped, segment_consistency.Settings(window=4)).windows == len(windows)

    found = of_layer(activated.run(gapped).runs).set_index("tokens")
    starts = [key for key in at if (key[0], key[1] - 1) not in at]
    runs = []
    for d, p in starts:
        stretch = list(itertools.takewhile(lambda key: key in at, ((d, p + n) for n in itertools.count())))
        runs += [stretch[n : n + 4] for n in range(0, len(stretch) - 3, 4)]
    assert found.loc[4, "runs"] == len(runs)
    met = [len(set().union(*(at[key] for key in run))) for run in runs]
    assert found.loc[4, "value"] == pytest.approx(np.mean(met))


def test_a_gap_parts_neighbours(recording, tmp_path):
    """Two masked tokens: fewer pairs, fewer windows, and no longer a run across."""
    gapped = numbered(recording, tmp_path / "r", with_a_gap)
    assert repetition.run(gapped).rates["pairs"].max() < repetition.run(recording).rates["pairs"].max()
    same = repetition.run(
        numbered(recording, tmp_path / "late", lambda d, p: p + 100)
    ).rates  # a completion that begins at 100
    pd.testing.assert_frame_equal(
        same[["value", "pairs", "uniform"]], repetition.run(recording).rates[["value", "pairs", "uniform"]]
    )
    measures = [differences.run(each, each).measures.set_index("measure") for each in (recording, gapped)]
    values = [each.loc[differences.REPETITION, "a"].to_numpy() for each in measures]
    assert (values[0] != values[1]).all()


@pytest.mark.parametrize("name", ("repetition", "segment_consistency", "coverage"))
def test_several_texts_in_one_document_have_no_neighbours(name, recording, tmp_path):
    """A forward pass of a server that decodes: each row is of another request, all at nearly the same position."""
    passes = numbered(recording, tmp_path / "r", lambda document_T, position_T: position_T // 4)
    with pytest.raises(AnalysisError, match=f"{name}: .* hold several tokens at one position"):
        catalogue.get(name).run(passes)
    runs = activated.run(passes)
    assert set(runs.runs["tokens"]) == {1} and "50 of 50 documents hold several tokens at one position" in runs.note


def test_some_documents_of_several_texts_are_left_out_and_counted(recording, tmp_path):
    some = numbered(recording, tmp_path / "r", lambda d, p: np.where(d == 0, p // 2, p))
    result = repetition.run(some)
    assert "1 of 50 documents hold several tokens at one position" in result.note
    tokens = recording.documents().set_index("document")["tokens"]
    assert result.rates["pairs"].max() == (tokens.drop(0) - 1).sum()
    assert "1 of 50 documents" in segment_consistency.run(some, segment_consistency.Settings(window=4)).note
    assert "1 of 50 documents" in activated.run(some).note
    assert coverage.run(some).used == 49


def test_requests_that_repeat_their_experts_repeat_wholly_however_their_rows_alternate(tmp_path):
    """Four requests, each with experts of its own: 1, where neighbours by row would give 0."""
    n_tokens = 12
    request_T = np.repeat(np.arange(4), n_tokens)
    file = sources.numpy_file(
        tmp_path / "trace.npz",
        ids=np.stack([np.stack([2 * request_T, 2 * request_T + 1], axis=-1)] * 2, axis=1),
        tokens=None,
        documents=request_T,
    )
    made = import_trace("numpy", file, tmp_path / "r", n_experts=8, ids_ranked=True)
    rates = repetition.run(interleaved(made, tmp_path / "moved")).rates
    assert (rates["value"] == 1).all() and (rates["pairs"] == 4 * (n_tokens - 1)).all()


@pytest.mark.parametrize("name", ALONE)
def test_where_positions_are_not_known_no_number_of_neighbours_is_given(name, recording):
    module = catalogue.get(name)
    asked = placeless(recording)
    if name in (*OF_NEIGHBOURS, "position", "token_routing", "router_confidence"):
        with pytest.raises(AnalysisError, match=f"{name}: .* no word on which tokens stand next to one another"):
            module.run(asked)
        return
    if "attention-tokens" in module.NEEDS:
        return  # no trace has it
    result = module.run(asked)
    tables, figures = module.tables(result), module.figures(result)
    assert tables and figures
    if name in ("context", "specialization", "capacity", "same_token", "expert_card"):
        assert "positions are not known" in result.note
    for table in tables.values():
        labels = table.astype(str).to_numpy().ravel().tolist()
        assert not {"previous token", "true next token", "position"} & set(labels)


def test_no_measure_of_neighbours_between_two_where_one_does_not_know_them(recording):
    result = differences.run(recording, placeless(recording))
    assert differences.REPETITION not in set(result.measures["measure"])
    assert differences.NO_NEIGHBOURS in result.note


def test_no_previous_token_where_no_two_are_neighbours(recording, tmp_path):
    apart = numbered(recording, tmp_path / "r", lambda document_T, position_T: 2 * position_T)
    result = context.run(apart)
    assert context.PREVIOUS not in set(result.gains["context"])
    assert "the previous token is not known" in result.note
    assert Controls.of(apart, context.Settings(), "context").words == ""
