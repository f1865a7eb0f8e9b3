"""The few facts about model families that transformers does not declare: a table, each row with its reason.

A family that is not listed gets `DEFAULT`, which is how most of transformers 5 does things. What a row says is held
against the numbers whenever a capture is proved (`check.py`), and for every family in `tests/families`. Rows were read
from `transformers/models/FAMILY/modeling_FAMILY.py` of transformers 5.23 unless they name another file.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FamilyFacts:
    """By what rule a family's router chooses, and where its choice can be read.

    Attributes:
        scoring: How router logits become scores: `softmax`, `sigmoid` or `sqrtsoftplus` (the root of the softplus).
        normalized: Whether chosen weights are divided by their sum, where the config does not say (`norm_topk_prob`).
        scale: Config names of a factor on the chosen weights, first match; none where it is applied to the output.
        weights_rule: Whether the weights are the chosen scores, normalized and scaled as said; False where the family
            has a rule of its own.
        choice: What the top-k compares: `scores` (with the correction bias), or `logits` (with it).
        groups: Whether a config's `n_group` limits the choice to `topk_group` of as many groups of experts.
        experts: Attribute of the block that holds the routed experts.
        way: Where chosen ids and weights are read: `experts`, the inputs of the experts module; `scores`, the router's
            first output, [T, E], which is zero for experts not chosen.
        logits: Child of the router whose output is the logits, where the router itself returns something else.
        returns_logits: Whether the router returns the logits alone.
        shared: Attributes that may hold the shared expert, in the block or the decoder layer around it.
        hash_routers: Class names of routers that transformers does not declare.
        skips: Whether the router's last class is "no expert", which the experts see as expert 0 with weight 0.
        calls_linear: Whether the router calls the module that holds its linear map, and does not take its weight alone.
        rows_beyond: Config name of the number of logits that belong to shared experts, behind those of the routed.
        reason: Why the row differs from the default.
    """

    scoring: str = "softmax"
    normalized: bool = True
    scale: tuple[str, ...] = ("routed_scaling_factor", "route_scale", "router_scaling_factor")
    weights_rule: bool = True
    choice: str = "scores"
    groups: bool = True
    experts: str = "experts"
    way: str = "experts"
    logits: str = ""
    returns_logits: bool = False
    shared: tuple[str, ...] = ("shared_expert", "shared_experts", "shared_mlp")
    hash_routers: tuple[str, ...] = ()
    skips: bool = False
    calls_linear: bool = True
    rows_beyond: str = ""
    reason: str = ""


DEFAULT = FamilyFacts()
_SIGMOID = FamilyFacts(scoring="sigmoid", reason="the router's scores are sigmoids of its logits")

# Families whose only difference is that scores are sigmoids.
SIGMOID = (
    "afmoe", "axk1", "axk2", "bailing_hybrid", "deepseek_v3", "deepseek_v32", "dots1", "dots3_note_text", "exaone_moe",
    "flint", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "hy_v3", "hy_v4", "inkling2_text", "kimi_linear", "lfm2_moe",
    "mimo_v2_flash", "minimax_m2", "nemotron_h", "solar_open",
)  # fmt: skip

FAMILIES: dict[str, FamilyFacts] = {
    **dict.fromkeys(SIGMOID, _SIGMOID),
    "beam": FamilyFacts(
        scoring="sigmoid", scale=(), reason="sigmoid scores; routed_scaling_factor scales the block's output"
    ),
    "dbrx": FamilyFacts(returns_logits=True, reason="the router returns its logits; the block chooses from them"),
    "deepseek_v2": FamilyFacts(
        groups=False, reason="groups limit the choice only where topk_method is group_limited_greedy"
    ),
    "deepseek_v4": FamilyFacts(
        scoring="sqrtsoftplus",
        hash_routers=("DeepseekV4HashRouter",),
        reason="scores are roots of softplus; the first layers choose by token id, and transformers declares no "
        "recorder for their router",
    ),
    "gemma4_text": FamilyFacts(
        logits="proj",
        weights_rule=False,
        shared=("mlp",),
        reason="what is declared as router_logits are probabilities; the weights are scaled for each expert; router "
        "and experts sit in the decoder layer, beside an MLP that every token passes",
    ),
    "inkling_text": FamilyFacts(
        scoring="sigmoid",
        weights_rule=False,
        rows_beyond="n_shared_experts",
        reason="weights are normalized over chosen and shared experts together",
    ),
    "jamba": FamilyFacts(normalized=False, reason="the chosen probabilities are not divided by their sum"),
    "kolibri1": FamilyFacts(
        scoring="sigmoid", choice="logits", reason="sigmoid scores; the correction bias is added to the logits"
    ),
    "laguna": FamilyFacts(
        scoring="sigmoid", scale=(), reason="sigmoid scores; moe_routed_scaling_factor scales the block's output"
    ),
    "llama4_text": FamilyFacts(
        scoring="sigmoid",
        normalized=False,
        way="scores",
        reason="the experts see every token, scaled by its score, which is zero where an expert was not chosen",
    ),
    "longcat_flash": FamilyFacts(
        normalized=False,
        calls_linear=False,
        reason="weights are chosen probabilities times routed_scaling_factor; the last experts are identities",
    ),
    "minimax_m3_vl_text": FamilyFacts(
        scoring="sigmoid", scale=(), reason="sigmoid scores; routed_scaling_factor scales the block's output"
    ),
    "phimoe": FamilyFacts(
        weights_rule=False, reason="sparsemixer: each weight is a softmax over scores near the chosen one"
    ),
    "qwen2_moe": FamilyFacts(normalized=False, reason="the chosen probabilities are not divided by their sum"),
    "zaya": FamilyFacts(
        normalized=False,
        skips=True,
        reason="one class more than experts: a token may skip them; the experts then get expert 0 with weight 0",
    ),
}


def family_facts(model_type: str) -> FamilyFacts:
    """The facts of a family, or the default ones."""
    return FAMILIES.get(model_type, DEFAULT)


# Tensors of a checkpoint that no causal forward pass reads, whatever the family, by a pattern of their names.
_COMPUTED = re.compile(r"(?:^|\.)(?:inv_freq|original_inv_freq|position_ids|masked_bias)$")
_PREDICTION = re.compile(r"(?:^|\.)(?:mtp|nextn)(?:[._]|$)")
_PREDICTION_LAYER = re.compile(r"\.(?:eh_proj|enorm|hnorm|shared_head)\b")
_LAYER = re.compile(r"((?:^|.*\.)layers\.(\d+)\.)")
_OTHER_SENSES = re.compile(r"(?:^|\.)(?:vision|visual|image|audio|speech|multi_modal|mm_)\w*\.")


def ignorable(tensor: str, config: Any, *, n_layers: int, all_names: Iterable[str]) -> str | None:
    """Why a tensor of a checkpoint may be left out of its causal language model; None where nothing says so.

    Args:
        tensor: Its name on disk.
        config: Of the checkpoint: the outer one where the text part of a model of several senses is loaded.
        n_layers: Decoder layers by the config.
        all_names: The names of all tensors.
    """
    if _COMPUTED.search(tensor):
        return "a table that the model computes itself"
    if _PREDICTION.search(tensor):
        return "modules that predict further tokens, which a causal forward pass does not run"
    layer = _LAYER.match(tensor)
    if layer is not None and int(layer.group(2)) >= n_layers:
        if any(name.startswith(layer.group(1)) and _PREDICTION_LAYER.search(name) for name in all_names):
            return "modules that predict further tokens, which a causal forward pass does not run"
        return None
    other_senses = set(getattr(config, "sub_configs", {})) - {"text_config"}
    if other_senses and _OTHER_SENSES.search(tensor.partition("layers.")[0]):
        return f"parts for what is no text ({', '.join(sorted(other_senses))}); the text part is loaded"
    return None
