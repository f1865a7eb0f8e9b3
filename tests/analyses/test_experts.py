"""What experts add, how alike they are, where they come from: against plain counting, limits, and what is refused."""

import numpy as np
import pytest
import torch

from analyses.experts import contribution, expert_similarity, upcycling_lineage
from analyses.routing import expert_card, shared_expert
from tests import tiny
from workbench.capture.record import record
from workbench.errors import AnalysisError
from workbench.models.topology import Topology
from workbench.recordings.recording import Recording
from workbench.recordings.selection import of_documents


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A model whose layer 2 has an expert that adds nearly nothing and one that adds a hundredfold."""
    model = tiny.moe()
    down = model.module.model.layers[2].mlp.experts.down_proj
    down[1] *= 0.01
    down[6] *= 100
    out = tmp_path_factory.mktemp("broken") / "r"
    return record(model, tiny.corpus(), out, fields=("routing", "experts", "weights"))


def test_contributions_by_counting(recording):
    result = contribution.run(recording)
    for layer in recording.moe_layers:
        ids_TK, added_TK = recording.ids(layer), recording.contribution(layer).astype(float)
        for row in result.experts[result.experts["layer"] == layer].itertuples():
            mine_TK = ids_TK == row.expert
            of_mine = added_TK[mine_TK.any(1)]
            assert row.contribution == pytest.approx(added_TK[mine_TK].mean(), rel=2e-3)
            assert row.peers == pytest.approx(of_mine.mean(), rel=2e-3)
            assert row.relative == pytest.approx(row.contribution / row.peers, rel=1e-6)
            assert row.low <= row.relative <= row.high
            assert row.part == pytest.approx(added_TK[mine_TK].sum() / added_TK.sum(), rel=2e-3)
            assert row.load == pytest.approx(mine_TK.sum() / mine_TK.size)
            assert row.weight == pytest.approx(recording.weights(layer).astype(float)[mine_TK].mean(), rel=2e-3)


def test_contributions_of_a_domain_by_counting(recording):
    result = contribution.run(recording)
    domain_of = recording.documents().set_index("document")["domain"]
    domain_T = domain_of.loc[recording.column("document")].to_numpy()
    ids_TK, added_TK = recording.ids(2), recording.contribution(2).astype(float)
    rows = result.domains[(result.domains["layer"] == 2) & (result.domains["domain"] == "math")]
    for row in rows.itertuples():
        mine_TK = (ids_TK == row.expert) & (domain_T == "math")[:, None]
        assert row.contribution == pytest.approx(added_TK[mine_TK].mean(), rel=2e-3)
        assert row.relative == pytest.approx(row.contribution / added_TK[mine_TK.any(1)].mean(), rel=2e-3)


def test_an_expert_that_is_dead_or_huge_in_norm_though_not_in_count_is_found(broken):
    result = contribution.run(broken, contribution.Settings(small=0.1, large=2.0))
    layer = result.layers.set_index("layer").loc[2]
    assert (layer["small"], layer["large"], layer["never_chosen"]) == (1 + _others_small(result), 1, 0)
    of_layer = result.experts[result.experts["layer"] == 2].set_index("expert")
    assert of_layer["relative"].idxmax() == 6 and of_layer["relative"].idxmin() == 1
    assert of_layer.loc[[1, 6], "load"].min() > 0.02
    assert result.layers.set_index("layer").loc[0, ["small", "large"]].tolist() == [0, 0]


def test_without_intervals_no_expert_is_called_small(recording):
    result = contribution.run(of_documents(recording, np.array([0])))
    assert result.layers[["small", "small_at_most", "large", "large_at_most"]].isna().all(axis=None)
    caption = contribution.figures(result)["extremes"].caption
    assert "Experts whose interval" not in caption and "no interval" in caption


def _others_small(result) -> int:
    """Experts that stand beside the huge one, and are small beside it."""
    of_layer = result.experts[(result.experts["layer"] == 2) & ~result.experts["expert"].isin([1, 6])]
    # 45 degrees of freedom: 2.87 deviations for 8 experts at once, 2.01 for one
    return int((of_layer["relative"] + (of_layer["high"] - of_layer["relative"]) * 2.869 / 2.014 < 0.1).sum())


def test_one_expert_a_token_is_held_against_the_layers_mean(tmp_path):
    made = record(tiny.moe(top_k=1), tiny.corpus(), tmp_path / "r", fields=("routing", "experts"))
    result = contribution.run(made)
    assert contribution.ALONE in result.note
    of_layer = result.experts[result.experts["layer"] == 0].dropna()
    assert (of_layer["load"] * of_layer["relative"]).sum() == pytest.approx(1, rel=1e-5)
    assert of_layer["relative"].max() > 1.05


def test_the_share_is_the_mean_over_tokens(recording):
    result = shared_expert.run(recording)
    for row in result.share_layers.itertuples():
        share_T = recording.router_statistic("shared_share", row.layer).astype(float)
        assert row.mean == pytest.approx(share_T.mean())
        assert row.low <= row.mean <= row.high
        assert row.q50 == pytest.approx(np.quantile(share_T, 0.5, method="inverted_cdf"), rel=1e-3)
    for row in result.directions.itertuples():
        for name in ("cosine", "projection"):
            value_T = recording.router_statistic(f"shared_{name}", row.layer).astype(float)
            assert getattr(row, name) == pytest.approx(value_T.mean())
            assert getattr(row, f"{name}_low") <= value_T.mean() <= getattr(row, f"{name}_high")
    assert {"share", "share_by_domain", "directions", "gate", "gate_by_domain"} == set(shared_expert.figures(result))


def test_tokens_without_any_output_are_left_out_of_the_share(tmp_path):
    model = tiny.moe()
    block = model.module.model.layers[0].mlp
    block.shared_expert.down_proj.weight.zero_()
    made = record(model, tiny.corpus(), tmp_path / "r", fields=("routing", "experts"))
    first = shared_expert.run(made).share_layers.iloc[0]
    assert first["mean"] == 0 and first["tokens"] == made.n_tokens
    assert shared_expert.run(made).directions["tokens"].tolist() == [0, made.n_tokens]
    block.experts.down_proj.zero_()
    silent = record(model, tiny.corpus(), tmp_path / "s", fields=("routing", "experts"), check=False)
    assert np.isnan(silent.router_statistic("shared_share", 0)).all()
    assert shared_expert.run(silent).share_layers["tokens"].tolist() == [0, silent.n_tokens]


def test_a_shared_expert_without_a_gate_has_a_share(recording):
    routers = [{**r, "shared_gate": False} for r in recording.manifest["topology"]["routers"]]
    ungated = Recording(recording.path, recording.manifest)
    ungated.topology = Topology.from_json({**recording.manifest["topology"], "routers": tuple(routers)})
    result = shared_expert.run(ungated)
    assert set(shared_expert.tables(result)) == {"share_layers", "share_domains", "directions"}
    assert set(shared_expert.figures(result)) == {"share", "share_by_domain", "directions"}


def test_without_the_field_the_gate_is_shown(moe, tmp_path):
    made = record(moe, tiny.corpus(), tmp_path / "r", fields=("routing",))
    assert set(shared_expert.figures(shared_expert.run(made))) == {"gate", "gate_by_domain"}


def test_similarities_are_those_recorded(recording):
    result = expert_similarity.run(recording)
    facts = recording.expert_weights
    rows = facts[facts["layer"] == 2]
    matched_EE = np.stack(rows["matched"])
    pairs = result.pairs[result.pairs["layer"] == 2]
    assert len(pairs) == 8 * 7
    assert pairs["matched"].tolist() == pytest.approx([matched_EE[r.expert, r.other] for r in pairs.itertuples()])
    layer = result.layers.set_index("layer").loc[2]
    assert layer["matched"] == pytest.approx((matched_EE.sum() - np.trace(matched_EE)) / 56)
    assert layer["closest_cosine"] == pytest.approx(pairs["cosine"].max())
    expert = result.experts[(result.experts["layer"] == 2) & (result.experts["expert"] == 3)].iloc[0]
    assert expert["nearest"] == np.where(np.arange(8) == 3, -1, matched_EE[3]).argmax()


def test_unrelated_experts_are_as_alike_as_shuffled_ones_and_a_copy_is_found(recording, tmp_path):
    layers = expert_similarity.run(recording).layers  # random weights: nothing in common
    assert (layers["matched"] - layers["matched_null"]).abs().max() < 0.02
    assert layers["cosine"].abs().max() < 0.02
    assert (layers["p"] > 0.01).all()
    model = tiny.moe()
    experts, gate = model.module.model.layers[2].mlp.experts, model.module.model.layers[2].mlp.gate
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    experts.gate_up_proj[5] = experts.gate_up_proj[0].unflatten(0, (2, 16))[:, order].flatten(0, 1)
    experts.down_proj[5] = experts.down_proj[0][:, order]
    gate.weight[5] = gate.weight[0] + 0.01
    made = record(model, tiny.corpus(n_documents=10), tmp_path / "r", fields=("routing", "weights"))
    result = expert_similarity.run(made, expert_similarity.Settings(layer=2))
    pair = result.pairs.query("layer == 2 and expert == 0 and other == 5").iloc[0]
    assert pair["matched"] == pytest.approx(1, abs=1e-5)
    assert abs(pair["cosine"]) < 0.2
    assert pair["router_cosine"] > 0.9


def test_lineage_is_that_recorded(recording):
    result = upcycling_lineage.run(recording)
    rows = recording.expert_weights.query("layer == 0")
    found = result.layers.query("layer == 0").set_index("candidates")
    for name, label in upcycling_lineage.CANDIDATES.items():
        values = np.concatenate(rows[name].tolist())
        assert found.loc[label, "mean"] == pytest.approx(values.mean())
        assert found.loc[label, "q95"] == pytest.approx(np.quantile(values, 0.95))
    bar = np.quantile(np.concatenate(rows["parent_shuffled"].tolist()), 0.99)
    for row, fact in zip(result.experts.query("layer == 0").itertuples(), rows.itertuples(), strict=True):
        assert row.similarity == pytest.approx(fact.parent_similarity.mean())
        assert row.above_null == pytest.approx((fact.parent_similarity > bar).mean())
        assert row.distinct == len(set(fact.parent_neuron))


def test_an_unrelated_parent_is_no_better_than_its_null(moe, tmp_path):
    stranger = tiny.dense(n_layers=3, seed=9)
    fields = ("routing", "weights")
    made = record(moe, tiny.corpus(n_documents=10), tmp_path / "r", fields=fields, parent=stranger)
    result = upcycling_lineage.run(made)
    assert result.experts["above_null"].mean() == pytest.approx(0.01, abs=0.02)


def test_the_card_holds_what_is_known_of_the_expert(recording, moe, tmp_path):
    facts = expert_card.run(recording, expert_card.Settings(layer=2, expert=4)).facts.set_index("fact")
    mine = recording.expert_weights.query("layer == 2 and expert == 4").iloc[0]
    added_TK, chosen_TK = recording.contribution(2).astype(float), recording.ids(2) == 4
    assert facts.loc["contribution to a token that chooses it", "value"] == pytest.approx(
        added_TK[chosen_TK].mean(), rel=2e-3
    )
    assert facts.loc["norm, all parameters", "value"] == pytest.approx(mine["norm"])
    assert facts.loc["similarity to the parent", "value"] == pytest.approx(mine["parent_similarity"].mean())
    others = np.where(np.arange(8) == 4, -1, mine["matched"])
    assert facts.loc["nearest expert by its neurons", "value"] == others.argmax()
    without = record(moe, tiny.corpus(), tmp_path / "r", fields=("routing",))
    assert "facts" not in expert_card.tables(expert_card.run(without))


def test_what_is_refused(recording, moe, tmp_path):
    with pytest.raises(AnalysisError, match=r"expert_similarity: layer 1 has no router; set layer to one of \[0, 2\]"):
        expert_similarity.run(recording, expert_similarity.Settings(layer=1))
    with pytest.raises(AnalysisError, match="null_quantile is 2; expected between 0 and 1"):
        upcycling_lineage.run(recording, upcycling_lineage.Settings(null_quantile=2))
    orphan = record(moe, tiny.corpus(n_documents=10), tmp_path / "r", fields=("routing", "weights"))
    with pytest.raises(AnalysisError, match="was recorded without a parent; record again with --parent MODEL"):
        upcycling_lineage.run(orphan)
    with pytest.raises(
        AnalysisError, match="contribution: .* was recorded without experts; .*--fields routing,weights,"
    ):
        contribution.run(orphan)
