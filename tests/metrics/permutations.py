"""Clustered data sets in which a null is true, and the p values of each scheme of permutations over them.

All data sets of a scheme are one array: their documents get numbers of their own, so one shuffle serves all. Axes:
S data sets, D documents of each, T tokens of each, E experts, P pairs of experts, K = 2, B draws.
"""

from collections.abc import Callable

import numpy as np

from analyses.read.tokens import p_value
from tests.metrics import simulation
from tests.metrics.simulation import PAIRS, E
from workbench.metrics import specialization, structure
from workbench.metrics.sets import Pairings, as_bits, indicators, overlap, shuffled_within, swapped_within
from workbench.statistics.design import Clusters

DOCUMENTS, LENGTH, DRAWS = 6, 30, 19
STARTS = np.array([0, 4, 16])  # first positions of the ranges


def places(n_sets: int) -> tuple[np.ndarray, np.ndarray]:
    """Document and position of the tokens of all data sets, one set after the other."""
    return np.repeat(np.arange(n_sets * DOCUMENTS), LENGTH), np.tile(np.arange(LENGTH), n_sets * DOCUMENTS)


def routed(rng: np.random.Generator, weight_NE: np.ndarray, cell_T: np.ndarray) -> np.ndarray:
    """Two experts for each token, P({i, j}) ∝ w_i w_j of its cell: given its counts all arrangements are alike."""
    pair_NP = weight_NE[:, PAIRS[0]] * weight_NE[:, PAIRS[1]]
    edge_NP = np.cumsum(pair_NP, axis=1) / pair_NP.sum(axis=1, keepdims=True)
    draw_T = rng.random(len(cell_T))
    pair_T = np.empty(len(cell_T), dtype=np.int64)
    for start in range(0, len(cell_T), 1 << 15):
        run = slice(start, start + (1 << 15))
        pair_T[run] = (draw_T[run, None] > edge_NP[cell_T[run]]).sum(axis=1)
    return PAIRS.T[np.minimum(pair_T, PAIRS.shape[1] - 1)]


def documents(rng: np.random.Generator, n_sets: int, *, concentration: float = 8.0) -> np.ndarray:
    """What each document of each data set prefers, strongly: [S·D, E]."""
    return simulation.dirichlet(rng, np.full((n_sets * DOCUMENTS, E), concentration / E))


def counted(bits_TW: np.ndarray, other_TW: np.ndarray, n_sets: int) -> np.ndarray:
    """Pairs of experts by data set: [S, E, E]."""
    one, two = (indicators(b, n_experts=E).reshape(n_sets, -1, E).astype(np.float32) for b in (bits_TW, other_TW))
    return np.swapaxes(one, 1, 2) @ two


def domain(n_sets: int, seed: int) -> np.ndarray:
    """Documents' domains within strata of length; domains differ in nothing, documents in length and taste."""
    sample = simulation.draw("strong", n_sets=n_sets, per_domain=12, n_domains=3, seed=seed)
    found = specialization.domain_information_test(
        sample.counts_DSE, clusters=Clusters.of(sample.domain_D), n_draws=199, seed=seed
    )
    return found.p


def token(n_sets: int, seed: int) -> np.ndarray:
    """Sets of a document among its tokens; a document has words and experts of its own that have nothing in common."""
    rng = np.random.default_rng(seed)
    document_T, position_T = places(n_sets)
    ids_TK = routed(rng, documents(rng, n_sets), document_T)
    n_words = 5
    taste_NV = np.cumsum(rng.dirichlet(np.ones(n_words), size=n_sets * DOCUMENTS), axis=1)
    word_T = np.minimum((rng.random(len(document_T))[:, None] > taste_NV[document_T]).sum(axis=1), n_words - 1)

    def sharpness(word_T: np.ndarray) -> np.ndarray:
        """Σ_v Σ_e n(v, e)² by data set: the sharpness of `vocabulary_specialization`, with fewer ties."""
        row_T = (document_T // DOCUMENTS) * n_words + word_T
        cells = (row_T[:, None] * E + ids_TK).ravel()
        counts = np.bincount(cells, minlength=n_sets * n_words * E).reshape(n_sets, -1)
        return (counts.astype(np.float64) ** 2).sum(axis=1)

    drawn = [sharpness(word_T[shuffled_within(document_T, position_T, seed=seed, draw=draw)]) for draw in range(DRAWS)]
    return p_value(sharpness(word_T), np.array(drawn))


def swaps(n_sets: int, seed: int) -> np.ndarray:
    """Exchanges within documents that keep every margin; experts are chosen by the document's taste alone."""
    rng = np.random.default_rng(seed)
    document_T, position_T = places(n_sets)
    bits_TW = as_bits(routed(rng, documents(rng, n_sets, concentration=40.0), document_T), n_experts=E)
    pairs_SEE = counted(bits_TW, bits_TW, n_sets)
    matched_SEE = structure.matched_pairs(np.diagonal(pairs_SEE, axis1=1, axis2=2), top_k=2)
    drawn, pairings = [], Pairings(document_T, position_T, seed=seed)
    for draw in range(DRAWS):
        first = 20 * (draw + 1) if draw else 0
        bits_TW = swapped_within(bits_TW, pairings, n_steps=20 if draw else 40, first_step=first)
        drawn.append(structure.displaced_pairs(counted(bits_TW, bits_TW, n_sets), matched_SEE))
    return p_value(structure.displaced_pairs(pairs_SEE, matched_SEE), np.array(drawn))


def layer(n_sets: int, seed: int) -> np.ndarray:
    """One layer's sets within documents; a document prefers some experts in both layers, which are independent."""
    rng = np.random.default_rng(seed)
    document_T, position_T = places(n_sets)
    weight_NE = documents(rng, n_sets)
    one_TW, two_TW = (as_bits(routed(rng, weight_NE, document_T), n_experts=E) for _ in range(2))

    def told(other_TW: np.ndarray) -> np.ndarray:
        return structure.flow_information(counted(one_TW, other_TW, n_sets), top_k=2)

    drawn = [told(two_TW[shuffled_within(document_T, position_T, seed=seed, draw=draw)]) for draw in range(DRAWS)]
    return p_value(told(two_TW), np.array(drawn))


def neighbours(n_sets: int, seed: int) -> np.ndarray:
    """Sets within documents, for repetition and windows; tokens are independent given their document."""
    rng = np.random.default_rng(seed)
    document_T, position_T = places(n_sets)
    bits_TW = as_bits(routed(rng, documents(rng, n_sets), document_T), n_experts=E)

    def repeated(bits_TW: np.ndarray) -> np.ndarray:
        common_DT = overlap(bits_TW[1:], bits_TW[:-1]) * (document_T[1:] == document_T[:-1])
        return np.append(common_DT, 0).reshape(n_sets, -1).sum(axis=1)

    drawn = [repeated(bits_TW[shuffled_within(document_T, position_T, seed=seed, draw=draw)]) for draw in range(DRAWS)]
    return p_value(repeated(bits_TW), np.array(drawn))


def position(n_sets: int, seed: int) -> np.ndarray:
    """Sets within document × range of positions; each range prefers experts, and is attended to, in its own way."""
    rng = np.random.default_rng(seed)
    document_T, position_T = places(n_sets)
    bin_T = np.searchsorted(STARTS, position_T, side="right") - 1
    cell_T = document_T * len(STARTS) + bin_T
    weight_NE = np.repeat(documents(rng, n_sets), len(STARTS), axis=0) + 0.5 * np.tile(
        simulation.dirichlet(rng, np.full((len(STARTS), E), 8 / E)), (n_sets * DOCUMENTS, 1)
    )
    bits_TW = as_bits(routed(rng, weight_NE, cell_T), n_experts=E)
    # half of the attention is on the first tokens of the document, half on those just before
    back_T = np.where(rng.random(len(cell_T)) < 0.5, position_T, rng.integers(0, 4, len(cell_T)))
    attended_T = np.arange(len(cell_T)) - np.minimum(back_T, position_T)

    def agreed(bits_TW: np.ndarray) -> np.ndarray:
        return overlap(bits_TW, bits_TW[attended_T]).astype(np.int64).reshape(n_sets, -1).sum(axis=1)

    drawn = [agreed(bits_TW[shuffled_within(cell_T, position_T, seed=seed, draw=draw)]) for draw in range(DRAWS)]
    return p_value(agreed(bits_TW), np.array(drawn))


SCHEMES: dict[str, Callable[[int, int], np.ndarray]] = {
    "documents' domains, within strata of length": domain,
    "token ids within documents": token,
    "margin-preserving swaps within documents": swaps,
    "sets of one layer within documents": layer,
    "sets within documents (neighbours)": neighbours,
    "sets within document and range of positions": position,
}
