"""The few facts about model families that transformers does not declare: a table, each row with its reason.

A family that is not listed gets `DEFAULT`, which is how most of transformers 5 names things.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class FamilyFacts:
    """What the modules of a family's MoE block are called and by what rule its router chooses.

    Attributes:
        experts: Attribute of the block that holds the routed experts.
        n_experts: Config names of E, first match.
        top_k: Config names of K, first match.
        expert_width: Config names of one routed expert's FFN width, first match.
        shared_expert: Attribute of the block that holds the shared expert; empty where the family has none.
        shared_width: Config names of the shared FFN width, first match.
        shared_gate: Attribute of the block that gates the shared expert; empty where there is none.
        scoring: How router logits become scores: `softmax` or `sigmoid`.
        normalized: Whether chosen weights are divided by their sum, where the config does not say (`norm_topk_prob`).
        plain_topk: Whether the K largest scores are chosen, with no bias, groups or noise.
        router_returns_tuple: Whether the router's output is a tuple; False where it is the logits themselves.
        reason: Why the row differs from the default, and the transformers file it was read from.
    """

    experts: str = "experts"
    n_experts: tuple[str, ...] = ("num_experts", "num_local_experts", "n_routed_experts")
    top_k: tuple[str, ...] = ("num_experts_per_tok",)
    expert_width: tuple[str, ...] = ("moe_intermediate_size", "intermediate_size")
    shared_expert: str = ""
    shared_width: tuple[str, ...] = ()
    shared_gate: str = ""
    scoring: str = "softmax"
    normalized: bool = True
    plain_topk: bool = True
    router_returns_tuple: bool = True
    reason: str = ""


DEFAULT = FamilyFacts()

FAMILIES: dict[str, FamilyFacts] = {
    "qwen2_moe": FamilyFacts(
        shared_expert="shared_expert",
        shared_width=("shared_expert_intermediate_size",),
        shared_gate="shared_expert_gate",
        normalized=False,
        reason="one shared expert behind a sigmoid gate (qwen2_moe/modeling_qwen2_moe.py, Qwen2MoeSparseMoeBlock)",
    ),
}


def family_facts(model_type: str) -> FamilyFacts:
    """The facts of a family, or the default ones."""
    return FAMILIES.get(model_type, DEFAULT)
