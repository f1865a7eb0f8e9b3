"""What nnsight reads is what plain PyTorch hooks read on an unwrapped model, to the bit."""

import copy
import gc
import re
import threading
import weakref
from dataclasses import replace

import pytest
import torch

from tests import tiny
from workbench.capture.hooks import Tracer
from workbench.errors import CaptureError
from workbench.models.topology import topology


def plain_hooks(module, ids_BS, mask_BS) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """The slow twin: one hook per module, on a model that nnsight has never seen."""
    seen: list[dict[str, torch.Tensor]] = []
    handles = []
    for layer in module.model.layers:
        if not hasattr(layer.mlp, "gate"):
            continue
        store: dict[str, torch.Tensor] = {}
        seen.append(store)
        handles += [
            layer.mlp.gate.register_forward_hook(lambda m, i, out, s=store: s.update(logits=out[0].clone())),
            layer.mlp.experts.register_forward_pre_hook(
                lambda m, args, s=store: s.update(ids=args[1].clone(), weights=args[2].clone())
            ),
            layer.mlp.shared_expert_gate.register_forward_hook(
                lambda m, i, out, s=store: s.update(gate=out.reshape(-1).clone())
            ),
        ]
    with torch.no_grad():
        logits = module(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits, seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["grouped_mm", "eager", "batched_mm"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_trace_equals_plain_hooks_on_an_unwrapped_model(dtype, implementation, padded):
    traced, untouched = tiny.moe(seed=3).module.to(dtype), tiny.moe(seed=3).module.to(dtype)
    for module in (traced, untouched):
        module.set_experts_implementation(implementation)
    ids_BS = torch.randint(0, tiny.VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))
    mask_BS = torch.ones_like(ids_BS)
    if padded:
        mask_BS[1, 7:], mask_BS[2, 2:] = 0, 0
    given = mask_BS if padded else None
    trace = Tracer(traced, topology(traced)).run(ids_BS, given)
    logits, seen = plain_hooks(untouched, ids_BS, given)
    assert torch.equal(trace.logits, logits)
    assert len(trace.routers) == len(seen) == 2
    for capture, plain in zip(trace.routers, seen, strict=True):
        assert torch.equal(capture.ids_TK, plain["ids"])
        assert torch.equal(capture.weights_TK, plain["weights"])
        assert torch.equal(capture.logits_TE, plain["logits"])
        assert torch.equal(capture.shared_gate_T, plain["gate"])


def test_a_forced_expert_is_the_one_that_runs(moe):
    ids_BS = torch.arange(9)[None]
    tracer = Tracer(moe.module, moe.topology)
    router = moe.topology.routers[1]
    chosen_TK = (tracer.run(ids_BS).routers[1].ids_TK + 1) % router.n_experts
    forced = tracer.forced(ids_BS, None, router=router, chosen_TK=chosen_TK)

    untouched = tiny.moe().module
    experts = untouched.model.layers[router.layer].mlp.experts
    experts.register_forward_pre_hook(lambda m, args: (args[0], chosen_TK, args[2]))
    with torch.no_grad():
        expected = untouched(input_ids=ids_BS, use_cache=False).logits
    assert torch.equal(forced, expected)


def test_a_declared_site_that_never_runs_is_an_error(moe):
    router = moe.topology.routers[0]
    idle = replace(router, shared_gate_path="model.layers.0.mlp.gate_never_called")
    module = tiny.moe().module
    module.model.layers[0].mlp.gate_never_called = torch.nn.Linear(2, 1)
    facts = replace(moe.topology, routers=(idle,))
    with pytest.raises(CaptureError, match="'out:model.layers.0.mlp.gate_never_called' was declared but never ran"):
        Tracer(module, facts).run(torch.arange(4)[None])


def test_experts_that_run_twice_are_refused():
    module = tiny.moe().module
    block = module.model.layers[0].mlp
    plain = type(block).forward
    block.forward = lambda hidden: plain(block, hidden) + plain(block, hidden)
    with pytest.raises(CaptureError, match="ran 2 times in one forward pass; once was expected"):
        Tracer(module, topology(module)).run(torch.arange(4)[None])


def test_experts_called_without_ids_are_refused():
    module = tiny.moe().module
    block = module.model.layers[0].mlp

    class Blind(torch.nn.Module):
        def forward(self, hidden):
            return hidden

    block.experts = Blind()
    block.forward = lambda hidden: (block.gate(hidden), block.shared_expert_gate(hidden), block.experts(hidden))[2]
    with pytest.raises(CaptureError, match=re.escape("the experts were called with torch.float32 (1, 4, 32); hidden")):
        Tracer(module, topology(tiny.moe().module)).run(torch.arange(4)[None])


def test_a_traced_model_can_be_copied_and_is_freed():
    module = tiny.moe().module
    Tracer(module, topology(module)).run(torch.arange(4)[None])
    copied = copy.deepcopy(module)
    assert Tracer(copied, topology(copied)).run(torch.arange(4)[None]).routers[0].ids_TK.shape == (4, 3)
    alive = weakref.ref(module)
    del module
    gc.collect()
    assert alive() is None


def test_two_threads_may_trace_one_model(moe):
    tracer = Tracer(moe.module, moe.topology)
    ids_BS = torch.arange(12)[None]
    expected = tracer.run(ids_BS).logits
    results: list[torch.Tensor] = []

    def work() -> None:
        for _ in range(10):
            results.append(Tracer(moe.module, moe.topology).run(ids_BS).logits)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    assert all(torch.equal(result, expected) for result in results)
