"""Load, MaxVio and dead experts of first choices: what they may not depend on, where they end, and what chance gives.

Axes: T tokens, L layers, K chosen per token, E experts.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analyses.routing import expert_load, load_balance
from workbench.recordings.importers.build import import_trace

N_EXPERTS, TOP_K, LENGTH = 6, 2, 15
VIOLATION, DEAD = (f"{name} {load_balance.OF_FIRST}" for name in ("max violation", "dead experts"))
IMBALANCE = f"{load_balance.HEADLINE} {load_balance.OF_FIRST}"


def uneven(*, n_documents: int = 12, n_layers: int = 2, seed: int = 0) -> np.ndarray:
    """Ranked ids [T, L, K] of a router that prefers high ids and never chooses expert 0 first."""
    rng = np.random.default_rng(seed)
    score_TLE = rng.gumbel(size=(n_documents * LENGTH, n_layers, N_EXPERTS)) + np.arange(N_EXPERTS) / 2
    score_TLE[..., 0] = np.median(score_TLE, axis=-1)
    return np.argsort(-score_TLE, axis=-1)[..., :TOP_K]


def uniform(*, n_documents: int, n_layers: int, seed: int = 0) -> np.ndarray:
    """Ranked ids [T, L, K], every order of experts equally likely."""
    key_TLE = np.random.default_rng(seed).random((n_documents * LENGTH, n_layers, N_EXPERTS))
    return np.argsort(key_TLE, axis=-1)[..., :TOP_K]


def measured(ids_TLK: np.ndarray, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Of a ranked trace in documents of one length: measures by layer, experts, and layers of `expert_load`."""
    n_tokens, n_layers, _ = ids_TLK.shape
    folder.mkdir()
    np.savez(
        folder / "trace.npz",
        ids=ids_TLK,
        tokens=np.arange(n_tokens) % 7,
        documents=np.arange(n_tokens) // LENGTH,
        layers=np.arange(n_layers),
    )
    recording = import_trace("numpy", folder / "trace.npz", folder / "r", n_experts=N_EXPERTS, ids_ranked=True)
    loads = expert_load.run(recording, expert_load.Settings(n_draws=19))
    measures = load_balance.run(recording, load_balance.Settings(n_resamples=200)).layers
    return measures.pivot(index="layer", columns="measure"), loads.experts, loads.layers


def test_names_of_experts_change_nothing(tmp_path):
    ids_TLK, name_E = uneven(), np.array([3, 5, 0, 1, 4, 2])
    measures, experts, layers = measured(ids_TLK, tmp_path / "a")
    renamed, their_experts, their_layers = measured(name_E[ids_TLK], tmp_path / "b")
    for column in ("value", "floor", "low", "high"):
        for measure in (VIOLATION, DEAD, IMBALANCE):
            np.testing.assert_allclose(measures[column, measure], renamed[column, measure], rtol=1e-5, atol=1e-9)
    assert (measures["value", VIOLATION] > 0.2).all()
    one, two = (
        of.pivot(index="layer", columns="expert", values="first_over_balance") for of in (experts, their_experts)
    )
    np.testing.assert_allclose(one.to_numpy(), two.to_numpy()[:, name_E])
    for column in ("highest_first", "unused_first"):
        np.testing.assert_allclose(layers[column], their_layers[column])


def test_the_order_of_tokens_in_a_document_changes_nothing(tmp_path):
    ids_TLK, rng = uneven(), np.random.default_rng(1)
    order_T = np.lexsort((rng.random(len(ids_TLK)), np.arange(len(ids_TLK)) // LENGTH))
    assert (order_T != np.arange(len(ids_TLK))).any()
    measures, experts, layers = measured(ids_TLK, tmp_path / "a")
    again, their_experts, their_layers = measured(ids_TLK[order_T], tmp_path / "b")
    for measure in (VIOLATION, DEAD, IMBALANCE):
        for column in ("value", "floor", "low", "high"):
            np.testing.assert_array_equal(measures[column, measure], again[column, measure])
    pd.testing.assert_series_equal(experts["first_over_balance"], their_experts["first_over_balance"])
    pd.testing.assert_frame_equal(
        layers[["highest_first", "unused_first"]], their_layers[["highest_first", "unused_first"]]
    )


def test_the_same_corpus_twice_has_the_same_loads_and_a_lower_floor(tmp_path):
    ids_TLK = uneven()
    measures, experts, layers = measured(ids_TLK, tmp_path / "a")
    twice, their_experts, their_layers = measured(np.concatenate([ids_TLK, ids_TLK]), tmp_path / "b")
    for measure in (VIOLATION, DEAD):
        np.testing.assert_allclose(measures["value", measure], twice["value", measure])
    np.testing.assert_allclose(experts["first_over_balance"], their_experts["first_over_balance"])
    np.testing.assert_allclose(layers["highest_first"], their_layers["highest_first"])
    # chance leaves less unevenness in more text, so what is over it grows
    assert (twice["floor", VIOLATION] < measures["floor", VIOLATION]).all()


def test_always_the_same_first_expert(tmp_path):
    """MaxVio ends at E − 1, which the second choices do not touch; of all K choices it ends at E/K − 1."""
    ids_TLK = np.empty((12 * LENGTH, 2, TOP_K), dtype=np.int64)
    ids_TLK[..., 0] = 4
    ids_TLK[..., 1] = np.random.default_rng(0).integers(0, 4, ids_TLK.shape[:2])
    measures, experts, layers = measured(ids_TLK, tmp_path / "a")
    assert measures["value", VIOLATION].tolist() == pytest.approx([N_EXPERTS - 1] * 2)
    assert measures["value", DEAD].tolist() == [N_EXPERTS - 1] * 2
    assert measures["value", IMBALANCE].tolist() == pytest.approx([N_EXPERTS - 1] * 2)  # Σ E² f² / E − 1 of one f = 1
    assert measures["value", "max violation"].tolist() == pytest.approx([N_EXPERTS / TOP_K - 1] * 2)
    over = experts.pivot(index="layer", columns="expert", values="first_over_balance")
    np.testing.assert_allclose(over, [[0, 0, 0, 0, N_EXPERTS, 0]] * 2)
    assert layers["highest_first"].tolist() == [N_EXPERTS] * 2 and layers["unused_first"].tolist() == [5, 5]


@pytest.mark.parametrize("n_documents", [1, 12])
def test_under_uniform_routing_the_floor_is_what_is_found(n_documents, tmp_path):
    """Layers are independent draws: the excess over the floor is 0 on average. One document leaves experts idle."""
    n_layers = 40
    measures, _, layers = measured(uniform(n_documents=n_documents, n_layers=n_layers), tmp_path / "a")
    floor_of = {measure: measures["floor", measure].iloc[0] for measure in (VIOLATION, DEAD)}
    assert floor_of[VIOLATION] > 0.1  # chance alone: MaxVio is never 0
    assert floor_of[DEAD] == pytest.approx(N_EXPERTS * (1 - 1 / N_EXPERTS) ** (n_documents * LENGTH))
    for measure in floor_of:
        excess_L = measures["value", measure] - measures["floor", measure]
        assert abs(excess_L.mean()) <= 3.5 * excess_L.std(ddof=1) / np.sqrt(n_layers) + 1e-9, measure
    assert layers["unused_first"].tolist() == measures["value", DEAD].tolist()


def test_under_uniform_routing_the_imbalance_is_nothing(tmp_path):
    measures, *_ = measured(uniform(n_documents=12, n_layers=40), tmp_path / "a")
    value_L = measures["value", IMBALANCE]
    assert abs(value_L.mean()) <= 3.5 * value_L.std(ddof=1) / np.sqrt(len(value_L))
    held_L = (measures["low", IMBALANCE] <= 0) & (measures["high", IMBALANCE] >= 0)
    assert held_L.mean() >= 0.85
