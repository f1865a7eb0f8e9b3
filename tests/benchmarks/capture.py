"""What a trace of all routers adds to a forward pass: nnsight as the workbench uses it, and plain hooks beside it.

    python -m tests.benchmarks.capture [--rounds 40]

A toy of 28 layers as narrow as the reference model is deep, so that the forward is short and what a trace adds shows.
Rounds are interleaved: the bare copy's forward, the same with plain hooks on routers and experts, and the wrapped
model's trace. One thread.
"""

import argparse
import copy
import statistics
import time

import torch
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from workbench.capture.contributions import ExpertTracer
from workbench.capture.hooks import Tracer
from workbench.models.loading import from_module
from workbench.models.topology import topology


def toy() -> Qwen2MoeForCausalLM:
    """28 MoE layers, 8 experts, top-2, width 64."""
    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=28, num_attention_heads=4,
        num_key_value_heads=2, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
    )  # fmt: skip
    return Qwen2MoeForCausalLM(config).eval().requires_grad_(False)


def main() -> None:
    """Prints the medians and what is added."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    bare = toy()
    hooked, wrapped = copy.deepcopy(bare), copy.deepcopy(bare)
    facts = topology(bare)
    seen: list[object] = []
    for router in facts.routers:
        hooked.get_submodule(router.router_path).register_forward_hook(lambda m, a, out: seen.append(out[0]))
        hooked.get_submodule(router.experts_path).register_forward_pre_hook(lambda m, args: seen.append(args[1:]))
    tracer = Tracer(wrapped, facts)
    expert_tracer = ExpertTracer(from_module(copy.deepcopy(bare), name="toy"))
    ids_BS = torch.randint(0, 512, (1, 64))
    ways = {
        "bare forward": lambda: bare(input_ids=ids_BS, use_cache=False),
        "plain hooks": lambda: hooked(input_ids=ids_BS, use_cache=False),
        "trace": lambda: tracer.run(ids_BS),
        "trace with experts": lambda: expert_tracer.run(ids_BS),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for round_ in range(rounds + 3):
            for name, run in ways.items():
                started = time.perf_counter()
                run()
                if round_ >= 3:  # the first ones wrap the model and find the order of its sites
                    times[name].append(1000 * (time.perf_counter() - started))
            seen.clear()
    forward = statistics.median(times["bare forward"])
    print(f"bare forward: {forward:.1f} ms (median of {rounds})")
    for name in ("plain hooks", "trace", "trace with experts"):
        added = [with_it - bare_ for with_it, bare_ in zip(times[name], times["bare forward"], strict=True)]
        low, middle, high = statistics.quantiles(added, n=4)
        print(f"{name} adds {middle:.1f} ms ({low:.1f}–{high:.1f}, middle half of the rounds)")


if __name__ == "__main__":
    main()
