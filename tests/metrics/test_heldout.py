"""Held-out gains, against plain loops over tokens, and routers that look at known things."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.metrics import heldout as m


def token_sets(n_tokens: int, n_experts: int, top_k: int, seed: int = 0) -> np.ndarray:
    return np.argsort(np.random.default_rng(seed).random((n_tokens, n_experts)), axis=1)[:, :top_k]


def corpus(seed: int, *, n_documents: int = 32, length: int = 40, n_ids: int = 15):
    rng = np.random.default_rng(seed)
    document_T = np.repeat(np.arange(n_documents), length)
    return document_T % 8, rng.zipf(1.4, len(document_T)) % n_ids


def table(fold_T, token_T, ids_TK, *, n_experts: int, n_folds: int = 8) -> np.ndarray:
    counts = np.zeros((n_folds, int(token_T.max()) + 1, n_experts), dtype=int)
    for fold, token, ids in zip(fold_T, token_T, ids_TK, strict=True):
        counts[fold, token, ids] += 1
    return counts


def slow_gains(fold_T, token_T, ids_TK, n_experts: int, n_folds: int = 8) -> np.ndarray:
    """Each fold's gain for every strength, assignment by assignment: [S, F]."""
    top_k = ids_TK.shape[1]
    out = np.zeros((len(m.STRENGTHS), n_folds))
    for fold in range(n_folds):
        learned = [(v, e) for f, v, ids in zip(fold_T, token_T, ids_TK, strict=True) if f != fold for e in ids]
        of_expert, of_pair = Counter(e for _, e in learned), Counter(learned)
        of_id = Counter(v for v, _ in learned)
        total = len(learned) + 0.5 * n_experts
        for f, v, ids in zip(fold_T, token_T, ids_TK, strict=True):
            for e in ids if f == fold else ():
                load = (of_expert[e] + 0.5) / total
                for s, strength in enumerate(m.STRENGTHS):
                    if np.isfinite(strength):
                        weight = strength * top_k
                        out[s, fold] += np.log((of_pair[v, e] + weight * load) / (of_id[v] + weight) / load)
    return out


def test_gains_equal_plain_python():
    fold_T, token_T = corpus(0, n_documents=16, length=15)
    ids_TK = np.where((token_T % 2 == 0)[:, None], [[0, 1]], token_sets(len(token_T), 5, 2))
    gain_SF = slow_gains(fold_T, token_T, ids_TK, 5)
    elsewhere_SF = gain_SF.sum(axis=1, keepdims=True) - gain_SF
    best_F = elsewhere_SF.argmax(axis=0)
    found = m.token_predictability(table(fold_T, token_T, ids_TK, n_experts=5), np.zeros((8, 5)), top_k=2)
    np.testing.assert_allclose(found.gain_F, gain_SF[best_F, np.arange(8)], atol=1e-9)
    np.testing.assert_array_equal(found.strength_F, np.array(m.STRENGTHS)[best_F])
    assert found.gain > 0.1


@given(seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_one_context_is_token_predictability_and_names_do_not_matter(seed):
    fold_T, token_T = corpus(seed)
    rng = np.random.default_rng(seed)
    ids_TK = np.where(
        rng.random((len(token_T), 1)) < 0.6, token_sets(15, 6, 2)[token_T], token_sets(len(token_T), 6, 2)
    )
    by_table = m.token_predictability(table(fold_T, token_T, ids_TK, n_experts=6), np.zeros((8, 6)), top_k=2)
    order, names = rng.permutation(len(token_T)), rng.permutation(6)
    for tokens, ids, folds in ((token_T, ids_TK, fold_T), (99 - token_T[order], names[ids_TK][order], fold_T[order])):
        (by_tokens,) = m.context_gains([tokens], ids, fold_T=folds, n_folds=8, n_experts=6)
        np.testing.assert_allclose(by_tokens.gain_F, by_table.gain_F, atol=1e-9)
        np.testing.assert_allclose(by_tokens.load_loss_F, by_table.load_loss_F)
    assert by_table.gain <= by_table.ceiling(2)


def test_ids_of_one_fold_may_be_left_out_of_the_table():
    fold_T, token_T = corpus(4)
    ids_TK = token_sets(15, 6, 2)[token_T]
    counts = table(fold_T, token_T, ids_TK, n_experts=6)
    counts[1:, 3] = 0  # id 3 in one fold only
    other_FE = counts[:, 3].copy()
    whole = m.token_predictability(counts, np.zeros((8, 6)), top_k=2)
    left = m.token_predictability(np.delete(counts, 3, axis=1), other_FE, top_k=2)
    np.testing.assert_allclose(left.gain_F, whole.gain_F, atol=1e-9)
    np.testing.assert_allclose(left.assignments_F, whole.assignments_F)


def test_random_routing_gains_nothing():
    """However few the tokens: plug-in information would be far over 0 here."""
    gains = []
    for seed in range(60):
        fold_T, token_T = corpus(seed, n_documents=16, length=20)
        ids_TK = token_sets(len(token_T), 16, 2, seed=seed + 500)
        gains.append(
            m.token_predictability(table(fold_T, token_T, ids_TK, n_experts=16), np.zeros((8, 16)), top_k=2).gain
        )
    assert -0.02 < np.mean(gains) < 0.005


def test_a_router_by_token_alone_reaches_the_ceiling_of_ids_seen():
    rng = np.random.default_rng(0)
    token_T, fold_T = rng.integers(0, 20, 8000), np.arange(8000) % 8
    ids_TK = token_sets(20, 32, 4)[token_T]
    found = m.token_predictability(table(fold_T, token_T, ids_TK, n_experts=32), np.zeros((8, 32)), top_k=4)
    assert found.gain == pytest.approx(found.ceiling(4), rel=0.01)


def test_steps_find_what_the_router_looks_at():
    """By the previous token alone: the token says nothing, the previous all, whichever comes first."""
    rng = np.random.default_rng(5)
    token_T, fold_T = rng.integers(0, 12, 6000), np.arange(6000) // 10 % 8
    previous_T = np.concatenate([[-1], token_T[:-1]])
    ids_TK = token_sets(13, 16, 2)[previous_T]
    unrelated_T = rng.integers(0, 5, 6000)

    def gains(*contexts) -> list[float]:
        steps = m.context_gains(contexts, ids_TK, fold_T=fold_T, n_folds=8, n_experts=16)
        return [step.gain / step.ceiling(2) for step in steps]

    token, both, all_three = gains(token_T, previous_T, unrelated_T)
    assert token < 0.01 and both > 0.97 and all_three == pytest.approx(both, abs=0.01)
    first, second = gains(previous_T, token_T)
    assert first > 0.97 and second == pytest.approx(first, abs=0.01)
    nothing, later, last = gains(unrelated_T, token_T, previous_T)  # rare combinations fall back on the last alone
    assert nothing < 0.01 and later < 0.01 and last > 0.9


def slow_steps(contexts, ids_TK, fold_T, *, n_experts: int, n_folds: int) -> list[np.ndarray]:
    """Each fold's gain at every step, token by token."""
    n_tokens, top_k = ids_TK.shape
    load = np.zeros((n_tokens, top_k))
    for t in range(n_tokens):
        learned = [e for u in range(n_tokens) if fold_T[u] != fold_T[t] for e in ids_TK[u]]
        for k, e in enumerate(ids_TK[t]):
            load[t, k] = (learned.count(e) + 0.5) / (len(learned) + 0.5 * n_experts)

    def best(choices: list[np.ndarray], counted: list[int]) -> np.ndarray:
        """Of each fold the choice with the largest sum of logarithms on the others; of equal ones the last."""
        out = choices[0].copy()
        for fold in range(n_folds):
            others = [t for t in counted if fold_T[t] != fold]
            sums = [np.log(choice[others]).sum() for choice in choices]
            chosen = max(range(len(choices)), key=lambda c: (sums[c], c))
            mine = [t for t in range(n_tokens) if fold_T[t] == fold]
            out[mine] = choices[chosen][mine]
        return out

    def shrunk(keys: list, broader: np.ndarray) -> np.ndarray:
        choices, counted = [broader.copy() for _ in m.STRENGTHS], []
        for t in range(n_tokens):
            seen = [u for u in range(n_tokens) if keys[u] == keys[t] and fold_T[u] != fold_T[t]]
            if not seen:
                continue
            counted.append(t)
            for s, strength in enumerate(m.STRENGTHS):
                for k, e in enumerate(ids_TK[t]):
                    if np.isfinite(strength):
                        times = sum(e in ids_TK[u] for u in seen)
                        top = times + strength * top_k * broader[t, k]
                        choices[s][t, k] = top / (len(seen) * top_k + strength * top_k)
        return best(choices, counted)

    share, gains = load.copy(), []
    for step, context in enumerate(contexts):
        if step:
            alone = shrunk(context.tolist(), load)
            share = best([weight * share + (1 - weight) * alone for weight in m.MIXTURES], list(range(n_tokens)))
        share = shrunk([tuple(of[t] for of in contexts[: step + 1]) for t in range(n_tokens)], share)
        gains.append(np.array([np.log(share / load)[fold_T == fold].sum() for fold in range(n_folds)]))
    return gains


@pytest.mark.parametrize("seed", range(4))
def test_nested_contexts_equal_plain_python(seed):
    rng = np.random.default_rng(seed)
    token_T, place_T, fold_T = rng.zipf(1.5, 60) % 6, rng.integers(0, 3, 60), np.arange(60) // 5 % 4
    ids_TK = np.where(rng.random((60, 1)) < 0.7, token_sets(6, 5, 2)[token_T], token_sets(3, 5, 2, 1)[place_T])
    contexts = [token_T, place_T, rng.integers(0, 2, 60)]
    found = m.context_gains(contexts, ids_TK, fold_T=fold_T, n_folds=4, n_experts=5)
    for step, plain_F in zip(found, slow_steps(contexts, ids_TK, fold_T, n_experts=5, n_folds=4), strict=True):
        np.testing.assert_allclose(step.gain_F, plain_F, atol=1e-9)


def test_nothing_counted_is_nan():
    empty = m.token_predictability(np.zeros((3, 2, 4), dtype=int), np.zeros((3, 4)), top_k=2)
    assert np.isnan(empty.gain) and np.isnan(empty.ceiling(2))


def test_refusals():
    with pytest.raises(
        ValueError, match=r"counts_FVE has 1 folds, expected 2 or more: one is predicted from the others"
    ):
        m.token_predictability(np.ones((1, 2, 3), dtype=int), np.zeros((1, 3)), top_k=1)
    with pytest.raises(ValueError, match=r"counts hold -1, expected 0 or more: pass assignments"):
        m.token_predictability(-np.ones((2, 2, 3), dtype=int), np.zeros((2, 3)), top_k=1)
    zeros = np.zeros(4, dtype=int)
    with pytest.raises(ValueError, match=r"n_folds is 1, expected 2 or more"):
        m.context_gains([zeros], token_sets(4, 3, 2), fold_T=zeros, n_folds=1, n_experts=3)
    with pytest.raises(ValueError, match=r"ids_TK spans \d to 2, expected 0 to 1"):
        m.context_gains([zeros], np.array([[0, 2]] * 4), fold_T=zeros, n_folds=2, n_experts=2)
