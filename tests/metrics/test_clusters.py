import numpy as np
import pytest
from scipy import stats

from workbench.statistics.design import Clusters
from workbench.statistics.intervals import domain_ratio_interval


def test_without_clusters_every_document_is_its_own():
    clusters = Clusters.of(np.array(["b", "a", "b"]))
    assert clusters.domains == ("b", "a")
    assert clusters.n_clusters == 3
    np.testing.assert_array_equal(clusters.stratum_U, [0, 0, 1])
    np.testing.assert_array_equal(clusters.sum(np.array([1, 10, 100])), [1, 100, 10])
    np.testing.assert_array_equal(clusters.clusters_M, [2, 1])
    assert clusters.degrees_of_freedom == 1
    assert list(clusters.strata()) == [slice(0, 2), slice(2, 3)]


def test_documents_of_a_cluster_add_up():
    clusters = Clusters.of(np.array([0, 1, 0, 1]), cluster_D=np.array(["x", "y", "x", "z"]))
    values_Dx = np.arange(8).reshape(4, 2)
    np.testing.assert_array_equal(clusters.sum(values_Dx), [[4, 6], [2, 3], [6, 7]])


def test_a_cluster_that_spans_domains_is_drawn_in_the_domain_of_most_of_its_documents():
    domain_D = np.array(["en", "zh", "zh", "en", "zh"])
    clusters = Clusters.of(domain_D, cluster_D=np.array([7, 7, 7, 8, 8]))
    # cluster 7: two of three are zh; cluster 8: one each, and en was seen first
    np.testing.assert_array_equal(clusters.stratum_U, [0, 1])
    np.testing.assert_array_equal(clusters.cluster_D, [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(clusters.clusters_M, [2, 2])
    cells = clusters.sum_cells(np.array([1, 10, 100, 1000, 10000]))
    runs = list(clusters.domain_runs())
    np.testing.assert_array_equal(cells[runs[0]], [1000, 1])
    np.testing.assert_array_equal(cells[runs[1]], [10000, 110])


def test_translations_make_one_stratum():
    """Ten articles in two languages: ten clusters, each in both domains, all drawn in the first."""
    clusters = Clusters.of(np.tile(["en", "zh"], 10), cluster_D=np.repeat(np.arange(10), 2))
    np.testing.assert_array_equal(clusters.clusters_M, [10, 10])
    assert clusters.degrees_of_freedom == 9
    assert clusters.too_few == ""


def test_too_few_clusters_are_named():
    clusters = Clusters.of(np.array(["code"] * 4 + ["math"] * 3))
    assert clusters.too_few == "no interval: fewer than 8 clusters in a domain (code has 4, math has 3)"
    assert clusters.note == clusters.too_few
    assert "the domain without a name has 1" in Clusters.of(np.array([""])).too_few


@pytest.mark.parametrize(
    ("sizes", "pooled", "few"),
    [
        ({"code": 9, "math": 8, "law": 3}, [9, 11], "law has 3"),  # with the smallest of the others
        ({"code": 9, "law": 1, "math": 9}, [10, 9], "law has 1"),  # the first of equals
        ({"code": 9, "law": 5, "math": 4}, [9, 9], "law has 5, math has 4"),  # together they are enough
        ({"a": 1, "b": 2, "c": 6}, [9], "a has 1, b has 2, c has 6"),
    ],
)
def test_domains_with_few_clusters_are_drawn_together(sizes, pooled, few):
    domain_D = np.repeat(list(sizes), list(sizes.values()))
    clusters = Clusters.of(domain_D)
    assert clusters.too_few == "" and f"({few}): no interval of its own" in clusters.note
    assert clusters.few_of_domain == f"no interval: fewer than 8 clusters in a domain ({few})"
    assert [run.stop - run.start for run in clusters.pooled.strata()] == pooled
    assert clusters.pooled.domains == clusters.domains and clusters.pooled.note == clusters.note
    values_D = np.arange(float(len(domain_D)))
    assert sorted(clusters.pooled.sum(values_D)) == sorted(clusters.sum(values_D))


def test_a_domain_alone_is_paired_with_another_and_others_stay():
    clusters = Clusters.of(np.array(["a"] * 3 + ["b"] + ["c"] * 2))
    assert [run.stop - run.start for run in clusters.paired.strata()] == [3, 3]  # b with c
    whole = Clusters.of(np.array(["a"] * 9 + ["b"] * 8))
    assert whole.paired is whole and whole.pooled is whole and whole.note == ""


def test_no_documents_are_refused():
    with pytest.raises(ValueError, match=r"domain_D is empty: a design needs at least one document; check"):
        Clusters.of(np.array([], dtype=int))


def test_another_number_of_documents_is_refused():
    clusters = Clusters.of(np.zeros(3, dtype=int))
    for method in (clusters.sum, clusters.sum_cells):
        with pytest.raises(ValueError, match=r"has 2 rows, but the clusters were made of 3 documents: pass one row"):
            method(np.ones((2, 4)))


def test_many_clusters_that_span_domains_are_a_stratum_of_their_own():
    """Ten articles in two languages beside ten of one language alone: each domain keeps its interval."""
    domain_D = np.array(["zh", "de"] * 10 + ["en"] * 10)
    cluster_D = np.array([i // 2 for i in range(20)] + list(range(100, 110)))
    clusters = Clusters.of(domain_D, cluster_D=cluster_D)
    assert clusters.too_few == ""
    assert np.bincount(clusters.stratum_U).tolist() == [0, 0, 10, 10]
    value_D = np.arange(30.0)
    interval = domain_ratio_interval(value_D, np.ones(30), clusters=clusters)
    for m, domain in enumerate(clusters.domains):
        inside = value_D[domain_D == domain]
        reach = stats.t.ppf(0.975, 9) * inside.std(ddof=1) / np.sqrt(10)  # the mean of ten independent clusters
        np.testing.assert_allclose(interval.high[m] - interval.value[m], reach)
