"""Attention statistics by definition: values by hand, limit cases, and what is refused."""

import numpy as np
import pytest

from workbench.metrics.attention import BIN_EDGES, STATISTICS, by_bin, query_statistics


def test_values_by_hand():
    weights = np.array([[[1, 0, 0], [0.25, 0.75, 0], [0.5, 0.25, 0.25]]])
    found = query_statistics(weights, np.arange(3))
    assert set(found) == set(STATISTICS) - {"off", "max_logit"}
    entropy = [0, -0.25 * np.log(0.25) - 0.75 * np.log(0.75), 1.5 * np.log(2)]
    np.testing.assert_allclose(found["entropy"][0], entropy, atol=1e-12)
    np.testing.assert_allclose(found["normalized_entropy"][0], [np.nan, entropy[1] / np.log(2), entropy[2] / np.log(3)])
    np.testing.assert_allclose(found["participation"][0], [1, 1 / 0.625, 1 / 0.375])
    np.testing.assert_allclose(found["distance"][0], [0, 0.25, 1.25])
    np.testing.assert_allclose(found["previous"][0], [np.nan, 0.25, 0.25])
    np.testing.assert_allclose(found["self"][0], [1, 0.75, 0.25])
    np.testing.assert_allclose(found["max_weight"][0], [1, 0.75, 0.5])
    np.testing.assert_allclose(found["spread"][0], [0, np.sqrt(0.25 * 0.75), np.sqrt(2.25 - 1.25**2)], atol=1e-12)
    # Without the first key: one key is left at query 1, two equal ones at query 2.
    np.testing.assert_allclose(found["entropy_rest"][0], [np.nan, 0, np.log(2)], atol=1e-12)
    np.testing.assert_allclose(found["distance_rest"][0], [np.nan, 0, 0.5], atol=1e-12)


def test_uniform_attention_is_the_upper_limit():
    weights = np.tril(np.ones((1, 200, 200)))
    weights /= weights.sum(-1, keepdims=True)
    found = query_statistics(weights, np.arange(200))
    np.testing.assert_allclose(found["normalized_entropy"][0, 1:], 1)
    np.testing.assert_allclose(found["participation"][0], np.arange(1, 201))
    np.testing.assert_allclose(found["distance"][0], np.arange(200) / 2)
    np.testing.assert_allclose(found["local32"][0, 100:], 32 / np.arange(101, 201))


def test_a_query_all_on_the_first_key_has_no_rest():
    found = query_statistics(np.array([[[1.0, 0], [0.95, 0.05]]]), np.arange(2))
    assert np.isnan(found["entropy_rest"]).all()
    assert found["mostly_first"][0].tolist()[1] == 1


def test_means_by_bin():
    values = np.array([[5.0, 1, 2, np.nan, 7]])
    binned = by_bin(values, np.array([0, 1, 2, 3, 4]))
    assert binned.shape == (1, len(BIN_EDGES))
    np.testing.assert_allclose(binned[0, :4], [5, 1, 2, 7])
    assert np.isnan(binned[0, 4:]).all()


def test_what_is_no_attention_is_refused():
    with pytest.raises(ValueError, match="sum to 2 or 0; 1 was expected"):
        query_statistics(np.ones((1, 1, 2)), np.arange(1))
    with pytest.raises(ValueError, match="positions_S holds -1"):
        by_bin(np.ones((1, 1)), np.array([-1]))
