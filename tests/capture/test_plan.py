import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.capture.batching import make_plan
from workbench.errors import CorpusError

lengths_and_domains = st.lists(st.tuples(st.integers(1, 90), st.sampled_from("abc")), min_size=1, max_size=60)


@settings(deadline=None)
@given(lengths_and_domains, st.integers(1, 200), st.integers(1, 500))
def test_every_document_is_planned_once_within_the_budget(rows, batch_tokens, shard_tokens):
    lengths, domains = zip(*rows, strict=True)
    plan = make_plan(lengths, domains, batch_tokens=batch_tokens, shard_tokens=shard_tokens, context=64)
    seen = [row.document for batch in plan.batches for row in batch.rows]
    assert sorted(seen) == list(range(len(rows)))
    for batch in plan.batches:
        assert len(batch.rows) * batch.width <= batch_tokens
        assert all(row.n_tokens <= batch.width for row in batch.rows)
        assert all(row.n_tokens + row.n_cut == lengths[row.document] for row in batch.rows)
    covered = [i for first, last in plan.shards for i in range(first, last)]
    assert covered == list(range(len(plan.batches)))
    for first, last in plan.shards[:-1]:
        assert sum(plan.batches[i].n_tokens for i in range(first, last)) >= shard_tokens


def test_a_long_document_is_cut_to_the_context_and_counted():
    plan = make_plan([100, 10], ["a", "a"], batch_tokens=256, shard_tokens=1000, context=64)
    assert plan.n_cut_documents == 1
    assert (plan.batches[0].rows[0].n_tokens, plan.batches[0].rows[0].n_cut) == (64, 36)


def test_a_cap_takes_from_every_domain_in_turn():
    plan = make_plan([10] * 12, list("aaaaaabbbccc"), batch_tokens=100, shard_tokens=100, max_tokens=60)
    kept = sorted(row.document for batch in plan.batches for row in batch.rows)
    assert kept == [0, 1, 6, 7, 9, 10]
    assert plan.n_documents_left_out == 6


@given(lengths_and_domains, st.integers(90, 400))
def test_a_cap_is_never_passed(rows, cap):
    lengths, domains = zip(*rows, strict=True)
    plan = make_plan(lengths, domains, batch_tokens=128, shard_tokens=100, max_tokens=cap)
    assert 0 < plan.n_tokens <= cap


def test_equal_lengths_are_not_padded():
    assert make_plan([16] * 40, ["a"] * 40, batch_tokens=64, shard_tokens=64).padding_share == 0.0


@pytest.mark.parametrize("name", ["batch_tokens", "shard_tokens", "max_tokens"])
def test_a_budget_below_one_is_refused(name):
    budgets = {"batch_tokens": 10, "shard_tokens": 10, name: 0}
    with pytest.raises(CorpusError, match=f"{name} is 0; at least 1 was expected"):
        make_plan([3], ["a"], **budgets)


def test_a_cap_below_the_shortest_document_is_refused():
    with pytest.raises(CorpusError, match="max_tokens is 5, but the shortest document has 7 tokens; give at least 7"):
        make_plan([7, 9], ["a", "a"], batch_tokens=64, shard_tokens=64, max_tokens=5)
