"""Forced routing: the ids that were asked for reach the experts, and nothing else changes."""

import numpy as np
import pytest
import torch

from tests import tiny
from workbench.capture.hooks import Tracer
from workbench.efficiency.profiling import forced_routing, timed_run
from workbench.efficiency.profiling.forced_routing import Routing
from workbench.efficiency.profiling.timed_run import Point
from workbench.errors import MeasurementError
from workbench.metrics.sequence import uniform_activated_experts

CPU = torch.device("cpu")
POINT = Point(4, 5, 3)


def planned(model, text: str, point: Point = POINT, seed: int = 0):
    return forced_routing.plan(Routing.parse(text), model.topology, point, device=CPU, seed=seed)


@pytest.mark.parametrize("text", ["uniform", "round-robin", "zipf:1.2", "worst"])
def test_a_plan_has_k_distinct_experts_for_every_token_of_every_pass(moe, text):
    passes = planned(moe, text)
    router = moe.topology.routers[0]
    assert [len(each[router.experts_path]) for each in passes] == [20, 4, 4]
    for each in passes:
        for ids_TK in (ids.numpy() for ids in each.values()):
            assert ids_TK.shape[1] == router.top_k and ids_TK.min() >= 0 and ids_TK.max() < router.n_experts
            assert all(len(set(row)) == router.top_k for row in ids_TK.tolist())


def test_worst_is_the_same_k_experts_and_round_robin_as_even_as_can_be(moe):
    router = moe.topology.routers[0]
    for each in planned(moe, "worst"):
        assert (each[router.experts_path].numpy() == np.arange(router.top_k)).all()
    for each in planned(moe, "round-robin", Point(8, 4, 4)):
        counts_E = np.bincount(each[router.experts_path].reshape(-1).numpy(), minlength=router.n_experts)
        assert counts_E.max() - counts_E.min() <= 1


def test_uniform_meets_what_uniform_routing_is_expected_to_meet():
    """Its null: E(1 − (1 − K/E)^B) distinct experts of B tokens, within four standard errors."""
    model = tiny.moe(n_experts=16, top_k=2)
    point = Point(8, 1, 400)
    path = model.topology.routers[0].experts_path
    distinct_S = [len(each[path].unique()) for each in planned(model, "uniform", point)]
    expected = uniform_activated_experts(tokens_B=np.array([8]), n_experts=16, top_k=2)[0]
    error = np.std(distinct_S) / np.sqrt(len(distinct_S))
    assert abs(np.mean(distinct_S) - expected) < 4 * error


def test_zipf_falls_with_its_exponent_and_is_uniform_at_zero():
    model = tiny.moe(n_experts=16, top_k=2)
    path = model.topology.routers[0].experts_path

    def share_of_first(text: str) -> float:
        ids_TK = planned(model, text, Point(64, 60, 1))[0][path]
        return float(np.bincount(ids_TK.reshape(-1).numpy(), minlength=16).max() / ids_TK.numel())

    flat, steep, steeper = (share_of_first(f"zipf:{alpha}") for alpha in (0, 1, 3))
    assert flat < 1 / 16 * 1.15 and flat < steep < steeper <= 0.5  # two distinct ones share a token's choices


def test_zipf_without_replacement_by_hand():
    """K = 1 draws expert r with probability r^−α / Σ."""
    model = tiny.moe(n_experts=4, top_k=1)
    path = model.topology.routers[0].experts_path
    ids_TK = planned(model, "zipf:1", Point(100, 400, 1))[0][path]
    share = np.sort(np.bincount(ids_TK.reshape(-1).numpy(), minlength=4) / ids_TK.numel())[::-1]
    np.testing.assert_allclose(share, np.array([12, 6, 4, 3]) / 25, atol=0.012)


def test_layers_and_seeds_differ_and_a_seed_repeats(moe):
    one, again, other = (planned(moe, "uniform", seed=seed) for seed in (0, 0, 1))
    paths = [router.experts_path for router in moe.topology.routers]
    assert all(torch.equal(one[0][path], again[0][path]) for path in paths)
    assert not torch.equal(one[0][paths[0]], other[0][paths[0]]) and not torch.equal(one[0][paths[0]], one[0][paths[1]])


@pytest.mark.parametrize("text", ["uniform", "worst", "round-robin"])
def test_the_planned_experts_are_met_and_counted(moe, text):
    plan = planned(moe, text)
    ids_BS = torch.ones((POINT.batch, POINT.prompt_tokens), dtype=torch.long)
    module, routers = moe.module, moe.topology.routers
    with forced_routing.forced(module, moe.topology, plan) as tell, forced_routing.counted(module, routers) as counts:
        timed_run.run(module, ids_BS, output_tokens=POINT.output_tokens, before_step=tell)
    for router in routers:
        for got_E, wanted in zip(counts[router.experts_path], plan, strict=True):
            ids = wanted[router.experts_path].reshape(-1).numpy()
            np.testing.assert_array_equal(got_E, np.bincount(ids, minlength=router.n_experts))


def test_counts_of_natural_routing_are_those_that_a_trace_sees(moe):
    ids_BS = torch.arange(1, 13).reshape(3, 4)
    with forced_routing.counted(moe.module, moe.topology.routers) as counts:
        timed_run.run(moe.module, ids_BS, output_tokens=1)
    trace = Tracer(moe.module, moe.topology).run(ids_BS)
    for router, seen in zip(moe.topology.routers, trace.routers, strict=True):
        wanted_E = np.bincount(seen.ids_TK.reshape(-1).numpy(), minlength=router.n_experts)
        np.testing.assert_array_equal(counts[router.experts_path][0], wanted_E)


def test_its_own_choice_forced_changes_nothing_and_another_does(moe):
    ids_BS = torch.arange(1, 13).reshape(3, 4)
    natural = timed_run.run(moe.module, ids_BS, output_tokens=1).logits_BV
    seen = Tracer(moe.module, moe.topology).run(ids_BS).routers
    own = [{r.experts_path: s.ids_TK.clone() for r, s in zip(moe.topology.routers, seen, strict=True)}]
    for plan, same in ((own, True), (planned(moe, "worst", Point(3, 4, 1)), False)):
        with forced_routing.forced(moe.module, moe.topology, plan) as tell:
            forced = timed_run.run(moe.module, ids_BS, output_tokens=1, before_step=tell).logits_BV
        assert bool(torch.allclose(forced, natural, atol=1e-5)) is same
    assert torch.equal(timed_run.run(moe.module, ids_BS, output_tokens=1).logits_BV, natural)  # the hooks are gone


def test_replay_takes_the_recordings_rows(moe, recording):
    router = moe.topology.routers[0]
    plan = planned(moe, f"replay:{recording.path}", Point(2, 3, 2))
    ids_TK = recording.ids(router.layer)
    half = len(ids_TK) // 2
    wanted = np.concatenate([ids_TK[0:3], ids_TK[half : half + 3]])
    np.testing.assert_array_equal(plan[0][router.experts_path].numpy(), wanted)
    np.testing.assert_array_equal(plan[1][router.experts_path].numpy(), np.stack([ids_TK[3], ids_TK[half + 3]]))


def test_replay_refuses_another_models_recording(recording):
    path = f"replay:{recording.path}"
    with pytest.raises(MeasurementError, match="has 3 experts a token and ids up to 7 at layer 0; the model chooses 2"):
        planned(tiny.moe(top_k=2), path)
    with pytest.raises(MeasurementError, match="has no routing of layer 1; replay a recording of the model itself"):
        planned(tiny.moe(dense_layers=()), path)


@pytest.mark.parametrize("text", ["zipf", "zipf:steep", "zipf:-1", "replay", "best", "replay:"])
def test_unknown_routings_are_refused(text):
    with pytest.raises(MeasurementError, match="routing is .*wants its exponent|routing is .*natural, uniform"):
        Routing.parse(text)


def test_a_dense_model_has_nothing_to_force(dense):
    with pytest.raises(MeasurementError, match="routing is worst, but this qwen2 model has no router to force"):
        planned(dense, "worst")
    assert planned(dense, "natural") is None
