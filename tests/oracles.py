"""What public code computes under names that we use too, written by us from its definitions, as plain loops.

For tests and for docs/differences.md, which say where each differs from ours. Axes: T tokens, L layers, E experts, K
chosen per token, ids in the order of their weights.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def pooled_balance_loss(ids_LTK: np.ndarray, mean_score_LE: np.ndarray) -> float:
    """Hugging Face transformers, `load_balancing_loss_func`: the tokens of all layers are pooled before the product.

    E Σ_e f_e P_e, with f_e the assignments to e over the *tokens* (it adds up to K) and P_e the mean score, both over
    all layers at once. K at balance.
    """
    n_layers, n_tokens, _ = ids_LTK.shape
    n_experts = mean_score_LE.shape[1]
    chosen = Counter(int(expert) for expert in ids_LTK.ravel())
    loss = 0.0
    for expert in range(n_experts):
        loss += chosen[expert] / (n_layers * n_tokens) * float(np.mean(mean_score_LE[:, expert]))
    return n_experts * loss


def adjacent_coactivation(ids_TK: np.ndarray, n_experts: int) -> np.ndarray:
    """OLMoE's analysis script: neighbouring ranks of a token alone, over how often the first is chosen."""
    pairs_EE, chosen_E = np.zeros((n_experts, n_experts)), np.zeros(n_experts)
    for token in ids_TK.tolist():
        for first, second in pairwise(token):
            pairs_EE[first, second] += 1
            pairs_EE[second, first] += 1
        for expert in token:
            chosen_E[expert] += 1
    return pairs_EE / np.where(chosen_E > 0, chosen_E, np.nan)[:, None]


def same_slot_flow(ids_TK: np.ndarray, next_TK: np.ndarray, n_experts: int) -> np.ndarray:
    """OLMoE's analysis script: the k-th expert of one layer with the k-th of the next."""
    flow_EE = np.zeros((n_experts, n_experts))
    for one, two in zip(ids_TK.tolist(), next_TK.tolist(), strict=True):
        for i, j in zip(one, two, strict=True):
            flow_EE[i, j] += 1
    return flow_EE


def type_averaged_specialization(token_T: Sequence[int], ids_TK: Sequence[Sequence[int]], *, top_k: int) -> float:
    """OLMoE's analysis script: the foremost expert's share of each distinct id, averaged over ids, however rare."""
    experts_of = defaultdict(list)
    for token, experts in zip(token_T, ids_TK, strict=True):
        experts_of[token] += list(experts)[:top_k]
    shares = [Counter(found).most_common(1)[0][1] / (len(found) // top_k) for found in experts_of.values()]
    return float(np.mean(shares))
