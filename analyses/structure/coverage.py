"""How many distinct experts does a batch of sequences that are decoded together meet, and why fewer than expected?

Not shown: batches of a server, whose sequences stand at different positions and are of different length; here each
sequence gives the token at the same position, and a batch ends with its shortest one. Sequences of one cluster (an
article and its translation) are never in one batch. What fewer experts save is a share of what a step reads, no time.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.read.design import RouterStack, require, router_stacks, sample_words
from analyses.read.neighbours import single_texts
from analyses.read.tokens import evenly, token_parts
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, Lines
from workbench.metrics import distinct_experts, sequence
from workbench.metrics.distinct_experts import batch_activated_experts
from workbench.recordings.recording import Recording
from workbench.statistics.design import Clusters
from workbench.statistics.intervals import ratio_interval

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (
    distinct_experts.batch_activated_experts,
    sequence.rate_activated_experts,
    sequence.uniform_activated_experts,
)
MOST_PANELS = 4


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        largest: Sequences of the largest batch; batches of 1, 2, 4 … up to it are counted.
        sample_tokens: Tokens of the documents that are dealt, at most (but enough documents for the largest batch).
        level: Coverage of the intervals.
        seed: Of the dealing of documents into batches.
    """

    largest: int = 64
    sample_tokens: int = 2_000_000
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """Distinct experts by batch.

    Attributes:
        batches: One row per layer and batch B: distinct experts `measured` with `low` and `high`, `independent` (tokens
            drawn independently at the recording's rates, Σ 1 − (1 − p)^B), `uniform` (uniform random routing), the two
            gaps `skew` (independent − uniform) and `correlation` (measured − independent), `share` of all experts, the
            `batches` counted and their `steps`.
        sample: The sample in words.
        used: Documents dealt into batches.
        level: Coverage of the intervals.
    """

    batches: pd.DataFrame
    sample: str
    used: int
    level: float


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Deals documents into batches and counts.

    Raises:
        AnalysisError: the recording holds no routing of single tokens or no positions, a number is under 1, or no
            document is a single text.
    """
    require(recording, NEEDS, "coverage", columns=("ids", "position"))
    for name in ("largest", "sample_tokens"):
        if getattr(settings, name) < 1:
            raise AnalysisError(f"coverage: {name} is {getattr(settings, name)}; 1 or more was expected.")
    documents = recording.documents()
    # One document of each cluster, in the order of the corpus, so that batches do not depend on the order on disk.
    ordered = documents.assign(row=np.arange(len(documents))).sort_values("document")
    ordered = ordered[ordered["document"].isin(single_texts(recording))]
    if ordered.empty:
        raise AnalysisError(
            f"coverage: the documents of {recording.path} hold several tokens at one position, so none is a sequence. "
            "Give the trace's requests and positions when importing it."
        )
    row_U = ordered.drop_duplicates("cluster")["row"].to_numpy()
    row_U = np.random.default_rng(settings.seed).permutation(row_U)
    within = np.cumsum(documents["tokens"].to_numpy()[row_U]) <= settings.sample_tokens
    row_U = row_U[: max(within.sum(), settings.largest)]
    doublings = min(settings.largest.bit_length(), len(row_U).bit_length()) - 1
    tables = [_of_stack(recording, stack, row_U, doublings, settings.level) for stack in router_stacks(recording)]
    return Result(pd.concat(tables, ignore_index=True), sample_words(recording), len(row_U), settings.level)


def _of_stack(
    recording: Recording, stack: RouterStack, row_U: np.ndarray, doublings: int, level: float
) -> pd.DataFrame:
    order_D = np.full(recording.n_documents, -1)
    order_D[row_U] = np.arange(len(row_U))
    dealt_T = np.concatenate([order_D[part.row_T] for part in token_parts(recording, RouterStack((), 1, 1))])
    mine_T = dealt_T >= 0
    by_document = np.argsort(dealt_T[mine_T], kind="stable")
    dealt_T = dealt_T[mine_T][by_document]
    tokens_B = 2 ** np.arange(doublings + 1)
    counts_LE = stack.stacked(recording, "counts").sum(axis=0)
    rate_LE = counts_LE / (counts_LE.sum(axis=1, keepdims=True) / stack.top_k)
    independent_LB = sequence.rate_activated_experts(rate_LE, tokens_B=tokens_B)
    uniform_B = sequence.uniform_activated_experts(tokens_B=tokens_B, n_experts=stack.n_experts, top_k=stack.top_k)
    frames = []
    for i, router in enumerate(stack.routers):  # one after another: the sets of all layers at once fill the memory
        one = RouterStack((router,), stack.n_experts, stack.top_k)
        bits_TW = np.concatenate([part.bits_LTW[0] for part in token_parts(recording, one)])[mine_T][by_document]
        found = batch_activated_experts(bits_TW, dealt_T, doublings=doublings)
        for n, tokens in enumerate(tokens_B.tolist()):
            distinct_G, steps_G = found.distinct[n], found.steps[n]
            design = Clusters.of(np.zeros(len(steps_G), dtype=int))
            interval = ratio_interval(distinct_G, steps_G, clusters=design, level=level)
            frames.append(
                stack.labels()
                .iloc[[i]]
                .assign(
                    batch=tokens,
                    measured=float(interval.value),
                    low=float(interval.low),
                    high=min(float(interval.high), stack.n_experts),
                    independent=independent_LB[i, n],
                    uniform=uniform_B[n],
                    skew=independent_LB[i, n] - uniform_B[n],
                    correlation=float(interval.value) - independent_LB[i, n],
                    share=float(interval.value) / stack.n_experts,
                    batches=len(steps_G),
                    steps=int(steps_G.sum()),
                )
            )
    return pd.concat(frames, ignore_index=True)


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`batches`."""
    return {"batches": result.batches}


def figures(result: Result) -> dict[str, Figure]:
    """`by_batch` at some layers; `gaps` by layer at the largest batch that has an interval."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    layers = sorted(result.batches["layer"].unique().tolist())
    shown = evenly(layers, MOST_PANELS)
    names = {"measured": "model", "independent": "independent tokens, same loads", "uniform": "uniform routing"}
    keys = ["layer", *(["site"] if "site" in result.batches else []), "batch"]
    some = result.batches[result.batches["layer"].isin(shown)]
    long = some.melt(id_vars=keys, value_vars=list(names), var_name="routing", value_name="experts")
    bounds = some[[*keys, "low", "high"]].assign(routing="measured")
    long = long.merge(bounds, how="left", on=[*keys, "routing"])
    long["routing"] = long["routing"].map(names)
    panel = "layer"
    if "site" in long:
        long, panel = long.assign(router=long["layer"].astype(str) + " " + long["site"]), "router"
    long["doublings"] = np.log2(long["batch"]).round().astype(int)
    certain = result.batches[result.batches["low"].notna()]
    last = certain if len(certain) else result.batches
    last = last[last["batch"] == last["batch"].max()]
    most = int(last["batch"].iloc[0])
    ends = {"low": last["low"] - last["independent"], "high": last["high"] - last["independent"]}
    gaps = pd.concat(
        [
            last.assign(gap="uneven loads", experts=last["skew"], low=np.nan, high=np.nan),
            last.assign(gap="tokens that choose alike", experts=last["correlation"], **ends),
        ]
    )
    said = f"{result.sample}; {result.used:,} documents of as many clusters, dealt into batches at random"
    middle = some[some["layer"] == shown[len(shown) // 2]].iloc[-1]
    return {
        "by_batch": Lines(
            long,
            "doublings",
            "experts",
            group="routing",
            panel=panel,
            low="low",
            high="high",
            interval_label=level,
            hover=("batch",),
            title="Distinct experts that a decode step meets",
            x_label="sequences in the batch, as a power of 2",
            y_label="experts",
            caption="Distinct experts of the tokens at one position of B documents, beside B independent tokens at the "
            f"recording's rates and under uniform random routing ({said}). {level}: ratio over batches, t; none "
            "under 8 batches.",
            alt=f"At layer {middle['layer']:.0f}, a batch of {middle['batch']:.0f} meets {middle['measured']:.1f} "
            f"experts; independent tokens {middle['independent']:.1f}, uniform routing {middle['uniform']:.1f}.",
        ),
        "gaps": Lines(
            gaps,
            "layer",
            "experts",
            group="gap",
            panel="site" if "site" in gaps else None,
            low="low",
            high="high",
            interval_label=level,
            title=f"Why {most} sequences meet fewer experts",
            x_label="decoder layer",
            y_label="experts more than expected",
            caption="Independent tokens at the recording's rates less uniform routing (uneven loads), and the measured "
            f"batches less independent tokens (tokens that choose alike), at {most} sequences ({said}). {level} of the "
            "measured batches, the rates taken as known.",
            alt="; ".join(f"{gap}: {part['experts'].mean():+.1f} on average" for gap, part in gaps.groupby("gap"))
            + ".",
        ),
    }
