import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.oracles import pooled_balance_loss
from workbench.metrics import load as m
from workbench.statistics.design import Clusters

DESCRIPTORS = [
    m.load,
    m.coefficient_of_variation,
    m.max_violation,
    m.min_violation,
    m.gini,
    m.load_entropy,
    m.effective_experts,
    m.dead_experts,
]
OF_EXPERTS = [f for f in DESCRIPTORS if f is not m.load]

counts_E = arrays(np.int64, st.integers(2, 12), elements=st.integers(0, 50)).filter(lambda c: c.sum() > 0)


def token_sets(draw_T: int, n_experts: int, top_k: int, seed: int = 0) -> np.ndarray:
    return np.argsort(np.random.default_rng(seed).random((draw_T, n_experts)), axis=1)[:, :top_k]


# ---- values by hand ----


def test_counts_by_hand():
    ids_TK = np.array([[0, 2], [2, 3], [0, 2]])
    np.testing.assert_array_equal(m.expert_counts(ids_TK, n_experts=5), [2, 0, 3, 1, 0])
    by_document = m.document_counts(ids_TK, np.array([1, 1, 0]), n_documents=3, n_experts=4)
    np.testing.assert_array_equal(by_document, [[1, 0, 1, 0], [1, 0, 2, 1], [0, 0, 0, 0]])
    weights_TK = np.array([[0.5, 0.25], [0.75, 0.125], [0.5, 0.5]], dtype=np.float16)
    np.testing.assert_allclose(m.gate_mass(ids_TK, weights_TK, n_experts=4), [1, 0, 1.5, 0.125])


def test_descriptors_by_hand():
    counts = np.array([4, 2, 2, 0])
    np.testing.assert_allclose(m.load(counts), [0.5, 0.25, 0.25, 0])
    assert m.coefficient_of_variation(counts) == pytest.approx(np.sqrt(2) / 2)  # deviations 2, 0, 0, −2 of mean 2
    assert m.max_violation(counts) == pytest.approx(1)
    assert m.min_violation(counts) == pytest.approx(1)
    assert m.gini(counts) == pytest.approx((2 + 2 + 4 + 0 + 2 + 2) * 2 / (2 * 4 * 8))
    assert m.effective_experts(counts) == pytest.approx(2**1.5)  # entropy of (1/2, 1/4, 1/4): 1.5 bits
    assert m.load_entropy(counts) == pytest.approx(0.75)
    assert m.dead_experts(counts) == 1
    assert m.dead_experts(counts, threshold=1.0) == 3
    assert m.balance_loss(counts, np.array([0.4, 0.3, 0.2, 0.1])) == pytest.approx(4 * (0.2 + 0.075 + 0.05))


def test_imbalance_by_hand():
    counts_DE = np.array([[3, 1], [2, 0], [1, 1]])
    # pairs, each twice: 3·2 + 1·0 = 6, 3·1 + 1·1 = 4, 2·1 + 0·1 = 2; sizes 4·2, 4·2, 2·2
    assert m.imbalance(counts_DE) == pytest.approx(2 * 12 / 20 - 1)


def test_z_loss_by_hand():
    assert m.z_loss(np.array([1.0, 3.0], dtype=np.float32)) == pytest.approx(5)
    assert np.isnan(m.z_loss(np.array([], dtype=np.float32)))
    assert np.isnan(m.z_loss(np.array([1.0, np.nan])))


def test_effective_tokens_by_hand():
    # rates of choosing expert 0: 3/4 and 1/4 of 4 tokens, p = 1/2; each cluster is off by 1 token of 8, both experts
    counts_DE = np.array([[3, 1], [1, 3]])
    between = 2 * (2 / 1) * 2 * (1 / 8) ** 2
    clusters = Clusters.of(np.zeros(2, dtype=int))
    assert m.effective_tokens(counts_DE, top_k=1, clusters=clusters) == pytest.approx(0.5 / between)


# ---- limits ----


def test_balanced_load():
    counts = np.full(8, 5)
    for statistic in (m.coefficient_of_variation, m.max_violation, m.min_violation, m.gini, m.dead_experts):
        assert statistic(counts) == pytest.approx(0, abs=1e-12)
    assert m.load_entropy(counts) == pytest.approx(1)
    assert m.effective_experts(counts) == pytest.approx(8)
    assert m.balance_loss(counts, np.random.default_rng(0).dirichlet(np.ones(8))) == pytest.approx(1)
    assert m.imbalance(np.tile(counts, (3, 1))) == pytest.approx(0)


def test_all_on_one_expert():
    counts = np.array([0, 9, 0, 0])
    assert m.coefficient_of_variation(counts) == pytest.approx(np.sqrt(3))
    assert m.max_violation(counts) == pytest.approx(3)
    assert m.min_violation(counts) == 1
    assert m.gini(counts) == pytest.approx(3 / 4)
    assert m.load_entropy(counts) == pytest.approx(0, abs=1e-12)
    assert m.effective_experts(counts) == pytest.approx(1)
    assert m.dead_experts(counts) == 3
    assert m.imbalance(np.tile(counts, (2, 1))) == pytest.approx(3)


def test_every_expert_chosen():
    counts = m.expert_counts(np.tile(np.arange(4), (6, 1)), n_experts=4)
    assert m.max_violation(counts) == 0
    assert m.load_entropy(counts) == pytest.approx(1)


def test_the_bounds_that_k_sets_are_reached():
    counts = m.expert_counts(np.tile([0, 1], (6, 1)), n_experts=8)  # always the same K = 2 of 8
    assert m.coefficient_of_variation(counts) == pytest.approx(np.sqrt(8 / 2 - 1))
    assert m.max_violation(counts) == pytest.approx(8 / 2 - 1)
    assert m.gini(counts) == pytest.approx(1 - 2 / 8)
    assert m.effective_experts(counts) == pytest.approx(2)


def test_nothing_counted_is_nan():
    for statistic in DESCRIPTORS:
        value = statistic(np.zeros((2, 4), dtype=int))
        if statistic is m.dead_experts:
            np.testing.assert_array_equal(value, [4, 4])
        else:
            assert np.isnan(value).all()
    assert np.isnan(m.imbalance(np.zeros((3, 4), dtype=int)))
    assert np.isnan(m.imbalance(np.ones((1, 4), dtype=int)))
    alone = Clusters.of(np.array([0, 0, 1]))
    assert m.imbalance(np.ones((3, 4), dtype=int), clusters=alone) == 0  # the lonely document has its pairs elsewhere
    assert np.isnan(m.imbalance(np.ones((1, 4), dtype=int), clusters=Clusters.of(np.array([0]))))
    assert np.isnan(m.effective_tokens(np.ones((1, 4), dtype=int), top_k=1, clusters=Clusters.of(np.array([0]))))
    assert np.isnan(m.load_entropy(np.array([3])))
    assert m.expert_counts(np.zeros((0, 2), dtype=int), n_experts=3).sum() == 0


def test_balance_loss_is_one_for_any_load_under_uniform_scores():
    counts = np.array([9, 1, 0, 2])
    assert m.balance_loss(counts, np.full(4, 0.25)) == pytest.approx(1)


# ---- invariances ----


@given(counts=counts_E, seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_names_of_experts_do_not_matter(counts, seed):
    order = np.random.default_rng(seed).permutation(len(counts))
    for statistic in OF_EXPERTS:
        assert statistic(counts[order]) == pytest.approx(statistic(counts), nan_ok=True)
    np.testing.assert_array_equal(m.load(counts[order]), m.load(counts)[order])


@given(counts=counts_E, times=st.integers(2, 7))
@settings(max_examples=40, deadline=None)
def test_the_same_text_again_changes_nothing(counts, times):
    for statistic in DESCRIPTORS:
        np.testing.assert_allclose(statistic(counts * times), statistic(counts), atol=1e-12)


@given(seed=st.integers(0, 50), cut=st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_token_order_does_not_matter_and_shards_add(seed, cut):
    ids_TK = token_sets(30, 6, 2, seed)
    whole = m.expert_counts(ids_TK, n_experts=6)
    shuffled = np.random.default_rng(seed).permuted(ids_TK[np.random.default_rng(seed).permutation(30)], axis=1)
    np.testing.assert_array_equal(m.expert_counts(shuffled, n_experts=6), whole)
    shards = [m.expert_counts(part, n_experts=6) for part in (ids_TK[:cut], ids_TK[cut:])]
    np.testing.assert_array_equal(sum(shards), whole)
    document_T = np.random.default_rng(seed + 1).integers(0, 4, 30)
    by_document = m.document_counts(ids_TK, document_T, n_documents=4, n_experts=6)
    np.testing.assert_array_equal(by_document.sum(axis=0), whole)


@given(seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_imbalance_ignores_the_order_of_documents_and_the_names_of_experts(seed):
    rng = np.random.default_rng(seed)
    counts_DE, domain_D = rng.integers(0, 9, (9, 5)), rng.permutation(np.repeat([0, 1, 2], 3))
    rows, columns = rng.permutation(9), rng.permutation(5)
    for clusters, moved in ((None, None), (Clusters.of(domain_D), Clusters.of(domain_D[rows]))):
        value = m.imbalance(counts_DE, clusters=clusters)
        assert m.imbalance(counts_DE[rows][:, columns], clusters=moved) == pytest.approx(value)


@pytest.mark.parametrize("statistic", DESCRIPTORS)
def test_further_axes_are_mapped_over(statistic):
    counts_xE = np.random.default_rng(0).integers(0, 20, (3, 2, 7))
    expected = [[statistic(counts_xE[i, j]) for j in range(2)] for i in range(3)]
    np.testing.assert_allclose(statistic(counts_xE), expected)
    assert isinstance(statistic(counts_xE[0, 0]), np.ndarray)


def test_blocks_of_layers_give_what_single_layers_give(monkeypatch):
    rng = np.random.default_rng(3)
    counts_DLE, clusters = rng.integers(0, 20, (12, 5, 4)), Clusters.of(np.repeat([0, 1], 6))
    alone = [m.imbalance(counts_DLE[:, layer], clusters=clusters) for layer in range(5)]
    monkeypatch.setattr("workbench.statistics.arithmetic.BLOCK", 2 * 12 * 4)
    np.testing.assert_allclose(m.imbalance(counts_DLE, clusters=clusters), alone)
    effective = m.effective_tokens(counts_DLE, top_k=2, clusters=clusters)
    alone = [m.effective_tokens(counts_DLE[:, layer], top_k=2, clusters=clusters) for layer in range(5)]
    np.testing.assert_allclose(effective, alone)


# ---- slow twins ----


def slow_imbalance(counts_DE, domain_D=None):
    """Over pairs; with domains, a pair of one domain stands for n/(n − 1) pairs."""
    n_documents, n_experts = counts_DE.shape
    domain_D = np.zeros(n_documents, dtype=int) if domain_D is None else domain_D
    top = bottom = 0.0
    for a in range(n_documents):
        for b in range(n_documents):
            if a == b:
                continue
            n = (domain_D == domain_D[a]).sum()
            pair = n / (n - 1) if domain_D[a] == domain_D[b] else 1.0
            top += pair * sum(int(counts_DE[a, e]) * int(counts_DE[b, e]) for e in range(n_experts))
            bottom += pair * int(counts_DE[a].sum()) * int(counts_DE[b].sum())
    return n_experts * top / bottom - 1


@given(seed=st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_imbalance_equals_the_sum_over_pairs(seed):
    rng = np.random.default_rng(seed)
    counts_DE = rng.integers(0, 30, (8, 4)) + (rng.random(4) < 0.5) * 3
    domain_D = rng.permutation([0, 0, 0, 1, 1, 1, 1, 1])
    assert m.imbalance(counts_DE) == pytest.approx(slow_imbalance(counts_DE))
    assert m.imbalance(counts_DE, clusters=Clusters.of(domain_D)) == pytest.approx(slow_imbalance(counts_DE, domain_D))


@given(counts=counts_E)
@settings(max_examples=40, deadline=None)
def test_descriptors_equal_plain_python(counts):
    c, n, total = counts.tolist(), len(counts), int(counts.sum())
    mean = total / n
    assert m.coefficient_of_variation(counts) == pytest.approx((sum((x - mean) ** 2 for x in c) / n) ** 0.5 / mean)
    assert m.max_violation(counts) == pytest.approx((max(c) - mean) / mean)
    assert m.min_violation(counts) == pytest.approx((mean - min(c)) / mean)
    assert m.gini(counts) == pytest.approx(sum(abs(x - y) for x in c for y in c) / (2 * n * total))
    entropy = -sum(x / total * np.log(x / total) for x in c if x)
    assert m.load_entropy(counts) == pytest.approx(entropy / np.log(n), abs=1e-12)
    assert m.effective_experts(counts) == pytest.approx(np.exp(entropy))
    assert m.dead_experts(counts, threshold=0.5) == sum(x <= 0.5 * mean for x in c)


@given(seed=st.integers(0, 200))
@settings(max_examples=25, deadline=None)
def test_sums_over_tokens_equal_plain_python_in_any_order_and_in_parts(seed):
    rng = np.random.default_rng(seed)
    ids_TK, weights_TK, logsumexp_T = token_sets(20, 5, 2, seed), rng.random((20, 2)), rng.normal(size=20)
    mass_E = [0.0] * 5
    for ids, weights in zip(ids_TK.tolist(), weights_TK.tolist(), strict=True):
        for e, w in zip(ids, weights, strict=True):
            mass_E[e] += w
    np.testing.assert_allclose(m.gate_mass(ids_TK, weights_TK, n_experts=5), mass_E)
    assert m.z_loss(logsumexp_T) == pytest.approx(sum(x * x for x in logsumexp_T.tolist()) / 20)
    order, names = rng.permutation(20), rng.permutation(5)
    moved = m.gate_mass(names[ids_TK[order]], weights_TK[order], n_experts=5)
    np.testing.assert_allclose(moved[names], mass_E)
    assert m.z_loss(logsumexp_T[order]) == pytest.approx(m.z_loss(logsumexp_T))
    parts = [m.gate_mass(ids_TK[run], weights_TK[run], n_experts=5) for run in (slice(7), slice(7, None))]
    np.testing.assert_allclose(sum(parts), mass_E)


@given(counts=counts_E, seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_balance_loss_equals_plain_python_and_ignores_names(counts, seed):
    rng = np.random.default_rng(seed)
    score_E, order = rng.dirichlet(np.ones(len(counts))), rng.permutation(len(counts))
    share = [c / int(counts.sum()) for c in counts.tolist()]
    plain = len(counts) * sum(f * p for f, p in zip(share, score_E.tolist(), strict=True))
    assert m.balance_loss(counts, score_E) == pytest.approx(plain)
    assert m.balance_loss(counts[order], score_E[order]) == pytest.approx(plain)


@given(seed=st.integers(0, 200))
@settings(max_examples=20, deadline=None)
def test_effective_tokens_equal_plain_python(seed):
    rng = np.random.default_rng(seed)
    counts_DE, domain_D = rng.integers(1, 20, (9, 4)), rng.permutation([0, 0, 0, 0, 1, 1, 1, 1, 1])
    tokens_D, total = counts_DE.sum(axis=1) / 2, counts_DE.sum() / 2
    simple = between = 0.0
    for e in range(4):
        rate = counts_DE[:, e].sum() / total
        simple += rate * (1 - rate)
        for domain in (0, 1):
            off = [(counts_DE[d, e] - rate * tokens_D[d]) / total for d in range(9) if domain_D[d] == domain]
            mean = sum(off) / len(off)
            between += len(off) / (len(off) - 1) * sum((x - mean) ** 2 for x in off)
    clusters = Clusters.of(domain_D)
    assert m.effective_tokens(counts_DE, top_k=2, clusters=clusters) == pytest.approx(simple / between)
    names = rng.permutation(4)
    assert m.effective_tokens(counts_DE[:, names], top_k=2, clusters=clusters) == pytest.approx(simple / between)


# ---- what the numbers mean ----


def test_imbalance_is_unbiased_where_documents_have_preferences():
    """Balanced over documents, far from balanced in each: 0 on average, while the plain CV² is not."""
    rng = np.random.default_rng(0)
    weight = rng.gamma(0.5, size=(12, 4000, 8))
    counts_DSE = rng.multinomial(40, weight / weight.sum(-1, keepdims=True))
    value_S = m.imbalance(counts_DSE)
    assert abs(value_S.mean()) < 4 * value_S.std() / np.sqrt(4000)
    assert (m.coefficient_of_variation(counts_DSE.sum(0)) ** 2).mean() > 0.1


def test_imbalance_by_domain_keeps_the_domains_weight():
    """Two domains on other experts, each steady: the truth is that of the mix, and pairs alone would miss it."""
    counts_DE = np.array([[8, 0, 4, 4]] * 3 + [[0, 4, 4, 8]] * 3)
    truth = m.coefficient_of_variation(counts_DE.sum(axis=0)) ** 2
    assert m.imbalance(counts_DE, clusters=Clusters.of(np.repeat([0, 1], 3))) == pytest.approx(truth)
    assert m.imbalance(counts_DE) < truth


def test_effective_tokens_of_independent_tokens_are_the_tokens():
    rng = np.random.default_rng(1)
    counts_DSE = rng.multinomial(50, np.full(8, 1 / 8), size=(40, 200))
    effective_S = m.effective_tokens(counts_DSE, top_k=1, clusters=Clusters.of(np.repeat([0, 1], 20)))
    assert np.median(effective_S) == pytest.approx(2000, rel=0.05)


def test_transformers_loss_is_k_times_ours():
    """And K at balance: `load_balancing_loss_func` sums the load over K where ours is a share."""
    import torch
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits_TE = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    scores_TE = torch.softmax(logits_TE, dim=-1)
    counts = m.expert_counts(torch.topk(scores_TE, 2).indices.numpy(), n_experts=8)
    ours = m.balance_loss(counts, scores_TE.mean(dim=0).double().numpy())
    theirs = load_balancing_loss_func((logits_TE,), num_experts=8, top_k=2)
    assert float(theirs) == pytest.approx(2 * float(ours), rel=1e-5)
    even_TE = torch.eye(8).repeat(10, 1) + torch.eye(8).roll(1, 0).repeat(10, 1)
    assert float(load_balancing_loss_func((even_TE,), num_experts=8, top_k=2)) == pytest.approx(2, rel=1e-5)


def test_transformers_loss_pools_the_layers():
    """Two layers that are each uneven, and even together: the pooled loss does not see it."""
    import torch
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits_LTE = torch.randn(3, 200, 8, generator=torch.Generator().manual_seed(1)) + torch.linspace(-1, 1, 8)
    scores_LTE = torch.softmax(logits_LTE, dim=-1)
    ids_LTK = torch.topk(scores_LTE, 2).indices.numpy()
    theirs = load_balancing_loss_func(tuple(logits_LTE), num_experts=8, top_k=2)
    assert pooled_balance_loss(ids_LTK, scores_LTE.mean(dim=1).numpy()) == pytest.approx(float(theirs), rel=1e-5)

    halves_LTK = np.stack([np.tile([[0, 1]], (10, 1)), np.tile([[2, 3]], (10, 1))])
    scores_LE = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    assert pooled_balance_loss(halves_LTK, scores_LE) == 2  # K, as at balance
    for ids_TK, scores_E in zip(halves_LTK, scores_LE, strict=True):
        assert m.balance_loss(m.expert_counts(ids_TK, n_experts=4), scores_E) == 2  # 1 at balance


# ---- refusals ----


@pytest.mark.parametrize(
    "call",
    [
        lambda ids: m.expert_counts(ids, n_experts=4),
        lambda ids: m.document_counts(ids, np.zeros(len(ids), dtype=int), n_documents=1, n_experts=4),
        lambda ids: m.gate_mass(ids, np.ones(ids.shape), n_experts=4),
    ],
)
def test_bad_ids_are_refused(call):
    with pytest.raises(ValueError, match=r"ids_TK spans 0 to 4, expected 0 to 3: check n_experts"):
        call(np.array([[0, 4], [1, 2]]))
    with pytest.raises(ValueError, match=r"ids_TK spans -1 to 2, expected 0 to 3"):
        call(np.array([[0, -1], [1, 2]]))
    with pytest.raises(ValueError, match=r"twice in 1 tokens \(first: token 1, ids \[2, 2\]\), expected distinct ids"):
        call(np.array([[0, 1], [2, 2]]))


def test_documents_outside_are_refused():
    with pytest.raises(ValueError, match=r"document_T spans 0 to 2, expected 0 to 1: pass 0-based"):
        m.document_counts(np.array([[0], [1]]), np.array([0, 2]), n_documents=2, n_experts=2)


@pytest.mark.parametrize("statistic", [*DESCRIPTORS, lambda c: m.balance_loss(c, np.full(2, 0.5))])
def test_negative_counts_are_refused(statistic):
    with pytest.raises(ValueError, match=r"counts hold -1, expected 0 or more: pass assignments"):
        statistic(np.array([-1, 2]))


def test_negative_counts_by_document_are_refused():
    counts_DE = np.array([[1, 2], [-3, 2]])
    clusters = Clusters.of(np.zeros(2, dtype=int))
    for call in (
        lambda: m.imbalance(counts_DE),
        lambda: m.effective_tokens(counts_DE, top_k=1, clusters=clusters),
    ):
        with pytest.raises(ValueError, match=r"counts hold -3"):
            call()


def test_other_bad_arguments_are_refused():
    clusters = Clusters.of(np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match=r"top_k is 3, expected 1 to 2 \(E\): pass K of the recording"):
        m.effective_tokens(np.ones((2, 2), dtype=int), top_k=3, clusters=clusters)
    with pytest.raises(ValueError, match=r"has 3 rows, but the clusters were made of 2"):
        m.imbalance(np.ones((3, 2), dtype=int), clusters=clusters)
