"""Facts of the experts' parameters: against the plain metrics, and lineage against the truth of the bundled model."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests import tiny
from workbench.capture.expert_weights import check_parent, expert_weights, neuron_parts
from workbench.capture.record import record
from workbench.errors import ModelError, RecordingError
from workbench.metrics import similarity
from workbench.models.loading import load
from workbench.models.upcycling import UpcyclingRecipe, neuron_sources
from workbench.recordings.recording import Recording
from workbench.recordings.schema import EXPERT_WEIGHTS

BUNDLED = UpcyclingRecipe(n_experts=32, expert_width=40, top_k=4, shared_width=160)  # data/models/train.py, seed 0


def parts_of(model, router):
    """[E, F, P, C] of a layer, float64."""
    parts = neuron_parts(model.module.get_submodule(router.experts_path), router)
    return np.stack([part.double().numpy() for part in parts.values()], axis=2)


def test_it_is_what_the_plain_metrics_say(moe):
    table = expert_weights(moe).to_pandas()
    assert len(table) == sum(router.n_experts for router in moe.topology.routers)
    for router in moe.topology.routers:
        rows = table[table["layer"] == router.layer]
        neurons_EFPC = parts_of(moe, router)
        weight_EC = moe.module.get_submodule(router.router_path).weight.double().numpy()
        plain = {
            "cosine": similarity.cosine_similarity(neurons_EFPC.reshape(len(neurons_EFPC), -1)),
            "router_cosine": similarity.router_similarity(weight_EC),
            "matched": similarity.matched_similarity(neurons_EFPC),
            "cka": similarity.linear_cka(neurons_EFPC),
        }
        for name, expected_EE in plain.items():
            np.testing.assert_allclose(np.stack(rows[name]), expected_EE, atol=1e-5)
        np.testing.assert_allclose(rows["router_norm"], np.linalg.norm(weight_EC, axis=1), rtol=1e-5)
        for p, name in enumerate(("gate", "up", "down")):
            norm_E = np.sqrt((neurons_EFPC[:, :, p] ** 2).sum((1, 2)))
            np.testing.assert_allclose(rows[f"norm_{name}"], norm_E, rtol=1e-5)
        np.testing.assert_allclose(rows["norm"], np.sqrt((neurons_EFPC**2).sum((1, 2, 3))), rtol=1e-5)
        order = torch.randperm(32, generator=torch.Generator().manual_seed(0)).numpy()
        nulls = [
            similarity.best_match(neurons_EFPC[e], neurons_EFPC[(e + 1) % 8][..., order]).similarity_F.mean()
            for e in range(8)
        ]
        np.testing.assert_allclose(rows["matched_null"], nulls, atol=1e-5)


def test_lineage_is_what_the_plain_match_says(moe):
    parent = tiny.dense(n_layers=3)
    table = expert_weights(moe, parent=parent).to_pandas()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0)).numpy()
    for router in moe.topology.routers:
        neurons_EFPC = parts_of(moe, router)
        ffns = [parent.module.model.layers[layer].mlp for layer in (router.layer, (router.layer + 1) % 3)]
        here, other = (
            np.stack([f.gate_proj.weight, f.up_proj.weight, f.down_proj.weight.T], 1).astype(float) for f in ffns
        )
        for row in table[table["layer"] == router.layer].itertuples():
            plain = similarity.best_match(neurons_EFPC[row.expert], here)
            assert np.array_equal(row.parent_neuron, plain.candidate_F)
            np.testing.assert_allclose(row.parent_similarity, plain.similarity_F, atol=1e-5)
            for found, candidates in ((row.parent_shuffled, here[..., order]), (row.parent_other_layer, other)):
                expected = similarity.best_match(neurons_EFPC[row.expert], candidates).similarity_F
                np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_order_of_neurons_changes_the_cosine_and_not_the_match(moe):
    before, other = expert_weights(moe).to_pandas(), tiny.moe()
    for router in other.topology.routers:
        for part_EFC in neuron_parts(other.module.get_submodule(router.experts_path), router).values():
            part_EFC[3] = part_EFC[3].flip(0).clone()
    after = expert_weights(other).to_pandas()
    np.testing.assert_allclose(np.stack(after["matched"]), np.stack(before["matched"]), atol=1e-5)
    np.testing.assert_allclose(np.stack(after["cka"]), np.stack(before["cka"]), atol=1e-5)
    np.testing.assert_allclose(after["norm"], before["norm"], rtol=1e-5)
    assert not np.allclose(np.stack(after["cosine"]), np.stack(before["cosine"]), atol=1e-3)


@pytest.mark.parametrize(
    ("revision", "recovered", "similarity_low", "similarity_high"),
    [("step-0", 1.0, 0.6, 0.75), ("step-226", 1.0, 0.5, 0.7), ("step-904", 0.995, 0.4, 0.6), ("", 0.985, 0.35, 0.55)],
)
def test_the_source_of_each_neuron_is_found(revision, recovered, similarity_low, similarity_high):
    """Half of each expert was drawn anew; the truth is known. Shuffled and foreign parents are far below."""
    moe = load(f"tiny-moe@{revision}" if revision else "tiny-moe", device="cpu")
    table = expert_weights(moe, parent=load("tiny-dense@parent", device="cpu")).to_pandas()
    for layer, rows in table.groupby("layer"):
        sources_EM = neuron_sources(BUNDLED, dense_width=320, layer=layer, seed=0)
        assert (np.stack(rows["parent_neuron"]) == sources_EM).mean() >= recovered
        mean = np.stack(rows["parent_similarity"]).mean()
        assert similarity_low < mean < similarity_high
        for null in ("parent_shuffled", "parent_other_layer"):
            assert np.stack(rows[null]).mean() < 0.6 * mean


def test_a_parent_that_it_was_not_made_from_matches_no_better_than_its_null(moe):
    """The null of lineage."""
    table = expert_weights(moe, parent=tiny.dense(n_layers=3, seed=9)).to_pandas()
    for null in ("parent_shuffled", "parent_other_layer"):
        gain = np.stack(table["parent_similarity"]).mean() - np.stack(table[null]).mean()
        assert abs(gain) < 0.02


def test_a_parent_of_another_make_is_refused(moe, dense, tmp_path):
    with pytest.raises(
        ModelError, match=r"parent: tiny-random-dense has no 'model\.layers\.2\.mlp\.gate_proj'; a dense"
    ):
        check_parent(moe, dense)  # two layers
    with pytest.raises(ModelError, match=r"parent: tiny-random-moe has no 'model\.layers\.0\.mlp\.gate_proj'"):
        check_parent(moe, moe)
    wide = tiny.dense(n_layers=3)
    object.__setattr__(wide, "topology", wide.topology.__class__(**{**vars(wide.topology), "width": 64}))
    with pytest.raises(ModelError, match="parent: tiny-random-dense has model width 64, tiny-random-moe has 32"):
        record(moe, tiny.corpus(), tmp_path / "r", fields=("routing", "weights"), parent=wide)
    assert not (tmp_path / "r").exists()


def test_a_parent_needs_the_field(moe, tmp_path):
    with pytest.raises(RecordingError, match="parent: it is compared in the field 'weights', which is not asked for"):
        record(moe, tiny.corpus(), tmp_path / "r", parent=tiny.dense(n_layers=3))


def test_unknown_parameters_are_refused(moe):
    router = moe.topology.routers[0]
    with pytest.raises(ModelError, match=r"neurons cannot be told apart: their parameters are \{'weight': \(8, 32\)"):
        neuron_parts(torch.nn.Linear(32, 8, bias=False), router)


def test_the_recording_holds_it_and_verifies_it(recording, moe, tmp_path):
    here = recording.expert_weights
    assert here["layer"].unique().tolist() == [0, 2]
    assert recording.manifest["expert_weights"]["rows"] == len(here) == 16
    assert recording.manifest["settings"]["parent"]["name"] == "tiny-random-dense"
    made = record(moe, tiny.corpus(n_documents=3), tmp_path / "r", fields=("routing", "weights"))
    files = made.verify().files
    table = pq.read_table(made.path / EXPERT_WEIGHTS)
    pq.write_table(table.slice(1), made.path / EXPERT_WEIGHTS)
    with pytest.raises(RecordingError, match=rf"{EXPERT_WEIGHTS} is not what was written"):
        Recording.open(made.path).verify()
    (made.path / EXPERT_WEIGHTS).unlink()
    with pytest.raises(RecordingError, match=rf"{EXPERT_WEIGHTS} cannot be read"):
        _ = Recording.open(made.path).expert_weights
    assert files == 4
    without = record(moe, tiny.corpus(n_documents=3), tmp_path / "without", fields=("routing",))
    with pytest.raises(RecordingError, match=r"'weights'.*recorded with fields routing\."):
        _ = without.expert_weights
