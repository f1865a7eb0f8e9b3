"""Which documents are resampled together, and within which domain: the sampling design behind every interval.

Not a clustering algorithm: clusters are given (chunks of one article, translations), and are documents where they are
not. Axes: D documents, U clusters, M domains, x any further axes.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, Num, Shaped

MIN_CLUSTERS = 8  # fewer, and a variance between clusters is a guess: no interval is given


@dataclass(frozen=True, eq=False)
class Clusters:
    """The documents' clusters, and the domain (stratum) each cluster is drawn in. Made by `Clusters.of`.

    A cluster within one domain belongs to that domain's stratum. Clusters that span domains (an article and its
    translations) are a stratum of their own where there are at least 8 of them; fewer go to the domain that holds most
    of their documents, ties to the domain seen first in the corpus. Documents keep their own domains: only the drawing
    is stratified by this. Clusters are numbered stratum by stratum, cells (documents of one cluster in one domain)
    domain by domain.

    A variance needs 8 clusters in a stratum, and a pair of clusters 2. Whoever needs either asks `pooled` or `paired`,
    which draw domains with fewer together.
    """

    domains: tuple[Hashable, ...]
    """Labels, in the order of their first document; stratum M, past the last, holds clusters that span domains."""
    domain_D: Int[np.ndarray, "D"]
    cluster_D: Int[np.ndarray, "D"]
    stratum_U: Int[np.ndarray, "U"]
    cell_D: Int[np.ndarray, "D"]
    cell_cluster_C: Int[np.ndarray, "C"]
    cell_domain_C: Int[np.ndarray, "C"]
    few: tuple[str, ...] = ()
    """The domains with fewer than 8 clusters, and how many each has, in words."""

    @classmethod
    def of(
        cls,
        domain_D: Shaped[np.ndarray, "D"],
        *,
        cluster_D: Shaped[np.ndarray, "D"] | None = None,
        pooled_below: int = 1,
    ) -> "Clusters":
        """The design of documents with these domains (and clusters; without them every document is its own).

        Args:
            domain_D: Label of each document.
            cluster_D: What is drawn together; each document by itself where it is None.
            pooled_below: Strata with fewer clusters are one stratum together; where that has too few as well, they join
                the smallest of the others (the first of equals).

        Raises:
            ValueError: there are no documents.
        """
        if len(domain_D) == 0:
            raise ValueError("domain_D is empty: a design needs at least one document; check the corpus or the filter")
        domains, domain_index_D = _codes(domain_D)
        _, raw_D = _codes(np.arange(len(domain_D)) if cluster_D is None else cluster_D)
        n_clusters = int(raw_D.max()) + 1
        documents_UM = np.zeros((n_clusters, len(domains)), dtype=np.int64)
        np.add.at(documents_UM, (raw_D, domain_index_D), 1)
        stratum_raw_U = documents_UM.argmax(axis=1)  # the first of equals: the domain seen first
        spans_U = (documents_UM > 0).sum(axis=1) > 1
        if spans_U.sum() >= MIN_CLUSTERS:
            stratum_raw_U[spans_U] = len(domains)
        stratum_raw_U = _pooled(stratum_raw_U, pooled_below)
        order_U = np.argsort(stratum_raw_U, kind="stable")
        rank_U = np.empty(n_clusters, dtype=np.int64)
        rank_U[order_U] = np.arange(n_clusters)
        cluster_index_D = rank_U[raw_D]
        cell_key_C, cell_D = np.unique(domain_index_D * n_clusters + cluster_index_D, return_inverse=True)
        made = cls(
            domains=tuple(domains),
            domain_D=domain_index_D,
            cluster_D=cluster_index_D,
            stratum_U=stratum_raw_U[order_U],
            cell_D=cell_D,
            cell_cluster_C=cell_key_C % n_clusters,
            cell_domain_C=cell_key_C // n_clusters,
        )
        return replace(made, few=made._few())

    @cached_property
    def pooled(self) -> "Clusters":
        """The same documents, domains with fewer than 8 clusters drawn together: for variances between clusters.

        A domain's difference from those that it is drawn with counts as noise, so intervals grow rather than shrink.
        """
        return self._with_pooled(MIN_CLUSTERS)

    @cached_property
    def paired(self) -> "Clusters":
        """The same documents, domains with a single cluster drawn together with others: for pairs of clusters."""
        return self._with_pooled(2)

    def _with_pooled(self, least: int) -> "Clusters":
        if np.unique(self.stratum_U, return_counts=True)[1].min() >= least:
            return self
        made = Clusters.of(self.domain_D, cluster_D=self.cluster_D, pooled_below=least)
        return replace(made, domains=self.domains, few=self.few)

    @property
    def n_clusters(self) -> int:
        """U."""
        return len(self.stratum_U)

    @property
    def clusters_M(self) -> Int[np.ndarray, "M"]:
        """Clusters with at least one document in each domain."""
        return np.bincount(self.cell_domain_C, minlength=len(self.domains))

    @property
    def degrees_of_freedom(self) -> int:
        """Clusters less strata: the degrees of freedom of a variance between clusters within strata."""
        return self.n_clusters - len(np.unique(self.stratum_U))

    def _few(self) -> tuple[str, ...]:
        per_stratum = {int(m): int(n) for m, n in zip(*np.unique(self.stratum_U, return_counts=True), strict=True)}
        return tuple(
            f"{label if str(label) else 'the domain without a name'} has {n}"
            for m, (label, touching) in enumerate(zip(self.domains, self.clusters_M, strict=True))
            if (n := min(int(touching), per_stratum.get(m, int(touching)))) < MIN_CLUSTERS
        )

    @property
    def too_few(self) -> str:
        """Why no interval of the whole can be given, or an empty string."""
        return self.few_of_domain if self.n_clusters < MIN_CLUSTERS else ""

    @property
    def few_of_domain(self) -> str:
        """Why some domains have no interval of their own, or an empty string."""
        if not self.few:
            return ""
        return f"no interval: fewer than {MIN_CLUSTERS} clusters in a domain ({', '.join(self.few)})"

    @property
    def note(self) -> str:
        """What is to be said of intervals of the whole: why there are none, or which domains are drawn together."""
        if self.too_few or not self.few:
            return self.too_few
        return (
            f"fewer than {MIN_CLUSTERS} clusters in a domain ({', '.join(self.few)}): no interval of its own, and in "
            "those of the whole it is drawn together with others"
        )

    def strata(self) -> Iterator[slice]:
        """The run of clusters of each stratum, in order."""
        for m in np.unique(self.stratum_U):
            yield slice(*np.searchsorted(self.stratum_U, [m, m + 1]).tolist())

    def domain_runs(self) -> Iterator[slice]:
        """The run of cells of each domain, in the order of `domains`."""
        for m in range(len(self.domains)):
            yield slice(*np.searchsorted(self.cell_domain_C, [m, m + 1]).tolist())

    def sum(self, values_Dx: Num[np.ndarray, "D *x"]) -> Float[np.ndarray, "U *x"]:
        """Sums over the documents of each cluster.

        Raises:
            ValueError: the first axis is not this design's documents.
        """
        return _sum_by(self._checked(values_Dx), self.cluster_D, self.n_clusters)

    def sum_cells(self, values_Dx: Num[np.ndarray, "D *x"]) -> Float[np.ndarray, "C *x"]:
        """Sums over the documents of each cluster in each domain, domain by domain.

        Raises:
            ValueError: the first axis is not this design's documents.
        """
        return _sum_by(self._checked(values_Dx), self.cell_D, len(self.cell_domain_C))

    def _checked(self, values_Dx: np.ndarray) -> np.ndarray:
        if len(values_Dx) != len(self.domain_D):
            raise ValueError(
                f"the first axis has {len(values_Dx)} rows, but the clusters were made of {len(self.domain_D)} "
                "documents: pass one row per document, in the order given to Clusters.of"
            )
        return values_Dx


def _pooled(stratum_U: np.ndarray, least: int) -> np.ndarray:
    """Strata with fewer clusters than `least` under one number."""
    stratum, n = np.unique(stratum_U, return_counts=True)
    small, large = stratum[n < least], stratum[n >= least]
    if not len(small):
        return stratum_U
    into = small[0]
    if n[n < least].sum() < least and len(large):
        into = large[np.argmin(n[n >= least])]
    return np.where(np.isin(stratum_U, small), into, stratum_U)


def _codes(labels: np.ndarray) -> tuple[list[Hashable], np.ndarray]:
    """Labels in the order of their first appearance, and each item's index among them."""
    values, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return values[order].tolist(), rank[inverse]


def _sum_by(values_Dx: np.ndarray, label_D: np.ndarray, n: int) -> np.ndarray:
    order_D = np.argsort(label_D, kind="stable")
    if n == len(label_D):  # every document alone: nothing to add
        return values_Dx[order_D].astype(np.float64)
    starts = np.searchsorted(label_D[order_D], np.arange(n))
    return np.add.reduceat(values_Dx[order_D], starts, axis=0, dtype=np.float64)
