"""Writes the page of formulas and traps, `docs/efficiency.md`: python -m tests.efficiency.page."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from analyses.question import Question
from tests.families import shrunk
from workbench.efficiency.costs.comparison import Costed, costed, with_published
from workbench.efficiency.costs.counterparts import KINDS, counterpart
from workbench.efficiency.costs.devices import DEVICES
from workbench.efficiency.costs.formulas import cache_bytes, linear_flops, prefill_flops, uniform_coverage
from workbench.efficiency.costs.torch_counter import count_flops
from workbench.models.loading import inspect_topology
from workbench.models.topology import topology

DOCS = Path(__file__).resolve().parents[2] / "docs" / "efficiency.md"
MODELS = (
    "qwen2-57b-a14b", "qwen1.5-moe-a2.7b", "qwen1.5-32b", "qwen2-7b", "mixtral-8x7b", "jamba-v0.1", "yi-1.5-34b"
)  # fmt: skip


def text() -> str:
    """The page."""
    subject = with_published(costed("qwen2-57b-a14b", "qwen1.5-32b"))
    return f"""# What a model costs, from its config alone

Made by `python -m tests.efficiency.page`; a test holds it against the code. `workbench costs MODEL --against MODEL` prints
all of this for any model that `workbench inspect` reads, with `--json` for programs and `--out DIR` for figures.

## Formulas

One multiply-add is 2 FLOP; matrix products and convolutions count, nothing else. h width, n query heads, g key/value groups,
d head width, E experts, K chosen, m width of an expert's FFN, s of the shared one, f of a dense one, V vocabulary.

| part | FLOP per token and layer | why |
| --- | --- | --- |
| attention maps | 4hnd + 4hgd | queries and output n·d wide, keys and values g·d wide |
| attention scores | 4nd·t at context t; prefill of S: 4nd·S(S + 1)/2 | a product with t keys and one with t values per head; sharing keys shrinks the cache, not this |
| router | 2hE | |
| routed experts | 6Khm | gate, up and down of K experts |
| shared expert | 6hs, and 2h for its gate | |
| dense FFN | 6hf | |
| head (once) | 2hV per position with logits | the embedding is looked up: 0 |

They are not typed in but read off the modules: a weight that is multiplied with a token's vector costs 2 FLOP, so low-rank
queries, biases' absence, and Mamba's maps and convolution need no formula of their own. Latent attention (DeepSeek) keeps
the latent and the rotary key; reading its cache, a token works in the latent's width: 2n(2·rank + rope)·t, as servers
that absorb the maps do. Mamba's elementwise recurrence is not counted, reading its state out is. What has no formula
(linear attention, indexers, chunks, hyper-connections …) is refused by name and never left out.

A decode step of B sequences reads b·[P − P_embedding − P_experts + P_experts·C(B)/E] and the cache of each. C(B), the
distinct experts that B tokens meet: E(1 − (1 − K/E)^B) under uniform routing; Σ 1 − (1 − p_e)^B with the loads p_e of a
recording; measured, by dealing its documents into batches (analysis `coverage`). The first gap is uneven load, the second
tokens that choose alike. The floor of a step is the longer of FLOP over peak and bytes over bandwidth.

## Published models

| model | total | active | cache, bytes per token | linear FLOP per token |
| --- | --- | --- | --- | --- |
{_models()}

Parameters active per token count the embedding whole. Of the reference pair the ratio of linear FLOP is {_pair(subject):.4f}.

## Three ways

Formula, torch's counter as the model runs, and the same on the meta device agree exactly, module by module
(`tests/efficiency/test_three_ways.py`), for every family of transformers' MoE models whose mixers are known. One exception is
explained: transformers pads the convolution of Jamba's Mamba layers by three positions and throws them away.

## Traps of other counters, on one input

| who | what | says | is |
| --- | --- | --- | --- |
{_traps(subject)}

† As reported of them; their code was not read here, and the number is what leaving the part out gives.

## Dense counterparts of Qwen2-57B-A14B

{_counterparts(subject)}

`iso-active` keeps depth, width and attention and replaces the experts by one FFN as wide as those active; the others scale
depth and width together and fit the FFN. They are fair in what they name and in nothing else: their quality is not equal.

## Where the MoE decodes faster

Floors on one H200, bfloat16, context 1,024, Qwen1.5-32B over Qwen2-57B-A14B (`workbench analyze MODEL crossover`):

| batch | {" | ".join(_ratios(subject))} |
| --- | {" | ".join("---" for _ in _ratios(subject))} |
| ratio | {" | ".join(f"{ratio:.2f}" for ratio in _ratios(subject).values())} |

## The card's claim

{_claim(subject)}

## What was measured, compared with this

Made by `workbench profile`; formulas as above, experts as the passes met them, ceilings as a large copy and a large product
reached them on the machine, before and after (the better one counts). Where the machine is in the table below, what its maker
states stands beside the ceiling.

| share | of the peak's work in the time of a phase |
| --- | --- |
| MFU, S-MFU | FLOP as if each token met all E experts; FLOP with its K |
| MBU, S-MBU | bytes as if each pass met all E experts; bytes with those that it met |

A loop may do more than its work: a static cache is read at its full length, and masked scores are computed. That counts as time.

**Host overhead** (`host_overhead`) is a step's time less the device's. On a GPU the device's time is the sum of its kernels in a
profiled run: events in the stream span its waiting for the host too, and say nothing of it. On a CPU no device time exists, and
what is told is the loop's own time outside the model's forward pass.

**The waterfall** (`efficiency_waterfall`) takes the ratio of two models' speeds apart, in prefill, in decode, and over whole
requests. t is the other model's time over the first one's, at the ceilings P and W; each factor is one ratio over the one before:

| step | ratio after it |
| --- | --- |
| FLOP | of FLOP / P |
| weights | of the longer of FLOP / P and weight bytes / W, experts as even, independent tokens meet them |
| experts met | the same with the experts that the passes met |
| cache | the same with the cache's bytes: what the machine allows |
| kernels | of the device's times: how much further from its floor the other model is |
| host | of the measured times |

The factors multiply to the measured ratio exactly: `kernels` is what is left of the medians. What a step is given depends on those
before it, so another order gives other factors. Nothing of this has run on a GPU yet; `make profile-h200` will.

## Devices

| name | bfloat16, TFLOP/s dense | TB/s | GB | source |
| --- | --- | --- | --- | --- |
{_devices()}
"""


def _models() -> str:
    rows = []
    for name in MODELS:
        facts = inspect_topology(name)
        kept = cache_bytes(facts, context=2, value_bytes=2) - cache_bytes(facts, context=1, value_bytes=2)
        flops = sum(linear_flops(facts).values())
        more = ", and the state" if any(m.state_values for m in facts.parts.mixers) else ""
        rows.append(
            f"| {name} | {facts.parameters_total:,} | {facts.parameters_active:,} | {kept:,.0f}{more} | {flops:,.0f} |"
        )
    return "\n".join(rows)


def _pair(subject: Costed) -> float:
    return sum(linear_flops(subject.other).values()) / sum(linear_flops(subject.topology).values())


def _traps(subject: Costed) -> str:
    torch.manual_seed(0)
    toy = AutoModelForCausalLM.from_config(shrunk.config("qwen2_moe")).eval()
    toy.set_experts_implementation("grouped_mm")
    stock = count_flops(toy, tokens=8, stock=True)[""]
    whole = sum(prefill_flops(topology(toy), tokens=8, causal=False).values())
    flops = linear_flops(subject.topology)
    linear = sum(flops.values())
    moe = subject.topology.parts.moe[0]
    met = uniform_coverage(subject.topology, tokens=8)[0]
    without, once = linear - flops["shared expert"], linear - flops["routed experts"] * (1 - 1 / moe.top_k)
    return "\n".join(
        (
            f"| torch's `FlopCounterMode` | no formula for grouped products and the CPU's attention: a tiny Qwen2-MoE, "
            f"8 tokens | {stock:,} FLOP | {whole:,} |",
            f"| counts without the shared expert (vLLM's MFU of Qwen2-MoE †) | Qwen2-57B-A14B, linear per token | "
            f"{without:,.0f} | {linear:,.0f} |",
            f"| counts of one expert where K are chosen (MoE-CAP's S-MFU †) | the same | {once:,.0f} | {linear:,.0f} |",
            f"| min(B·K, E) for the experts met | B = 8, K = {moe.top_k}, E = {moe.n_experts} | "
            f"{min(8 * moe.top_k, moe.n_experts)} | {met:.1f} expected |",
        )
    )


def _counterparts(subject: Costed) -> str:
    return "\n".join(f"- `{kind}`: {counterpart(subject.topology, kind).words}" for kind in KINDS)


def _ratios(subject: Costed) -> dict[str, float]:
    found = Question(subject, "crossover").answer().tables["map"]
    found = found[(found["context"] == 1024) & found["batch"].isin((1, 4, 32, 256))]
    return {str(batch): ratio for batch, ratio in zip(found["batch"], found["ratio"], strict=True)}


def _claim(subject: Costed) -> str:
    result = Question(subject, "card_claim").answer().result
    different = result.ratios[result.ratios["requests"] == "different"]
    same = result.ratios[result.ratios["requests"] == "identical"]
    nearest = different.iloc[(different["serial"] - different["published"]).abs().argmin()]
    impossible = different[different["impossible"]]["read"]
    lengths = " or ".join(map(str, result.lengths))
    return (
        f"Both published rows allow requests of {lengths} tokens, were they equally long; the split into read and written "
        f"is not published.\nOn {result.words}:\n\n"
        f"- Requests that differ, experts met as under uniform routing: splits with {impossible.max()} tokens read or "
        "fewer are impossible for\n  the MoE's row; the roofline's ratio is the published "
        f"{nearest['published']:.3f} near {nearest['read']} read and {nearest['written']} written.\n"
        f"- Requests that are all the same: nothing is impossible, and the ratio is at least {same['serial'].min():.2f} at "
        "any split.\n\nAn MoE's kernels are further from their floor than dense ones, so this is a bound on the split and "
        "no measurement of it."
    )


def _devices() -> str:
    return "\n".join(
        f"| {d.name} | {d.peak('bfloat16') / 1e12:,.1f} | {d.bandwidth_bytes / 1e12:.3f} | {d.memory_bytes / 1e9:,.0f} | "
        f"{d.source} |"
        for d in DEVICES.values()
    )


if __name__ == "__main__":
    DOCS.write_text(text(), encoding="utf-8")
    print(DOCS)
