"""Can the published throughput of the reference pair be true, and of which requests?

Not shown: that it is. The card says neither how long requests were nor which GPU ran them; a split that the roofline
allows is only not impossible. Bounds are of many equal requests on both GPUs without any loss by working together.
Experts are met as under uniform random routing, or K of them where all requests are the same text, as synthetic loads
of that time were.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.costs._checks import check
from workbench.efficiency.costs.claims import bound, common_lengths, published_claims
from workbench.efficiency.costs.comparison import Costed
from workbench.efficiency.costs.devices import device
from workbench.efficiency.costs.formulas import linear_flops
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, Lines

INPUT = "costs"
METRICS = ()
_SHARES = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        device: What the card's numbers were measured on.
        dtype: Of weights and cache.
        most: Sequences that a server lets run together; 256 is vLLM's default of that time.
        memory_share: Of the memory that may be used; 0.9 is vLLM's default.
    """

    device: str = "2xa100-80gb"
    dtype: str = "bfloat16"
    most: int = 256
    memory_share: float = 0.9


@dataclass(frozen=True, eq=False)
class Result:
    """The audit.

    Attributes:
        claims: One row per model: what was published, and the least and most tokens per request by the rounding.
        splits: One row per model, requests (`different` or `identical`) and split of a request in tokens `read` and
            `written`: the `batch`, the bound `most_per_s` of any schedule, `serial_per_s` of reading and writing in
            turns, `published_per_s`, its share of both, and whether it is `impossible`.
        ratios: One row per requests and split: the MoE over the dense model in requests per second, `serial` and as
            `published`, and whether the split is `impossible`.
        lengths: Whole numbers of tokens per request that both rows allow.
        flop_ratio: FLOP per token of the dense model over the MoE's.
        words: Device and limits in words.
    """

    claims: pd.DataFrame
    splits: pd.DataFrame
    ratios: pd.DataFrame
    lengths: tuple[int, ...]
    flop_ratio: float
    words: str


def run(subject: Costed, settings: Settings = Settings()) -> Result:
    """Holds the card's throughput against the roofline.

    Raises:
        AnalysisError: settings that cannot be meant, or topologies of published configs that were not read.
        ModelError: the weights do not fit.
    """
    check("card_claim", on=settings.device, dtype=settings.dtype, most=settings.most)
    claims, on = published_claims(), device(settings.device)
    absent = [claim.config for claim in claims if claim.config not in subject.published]
    if absent:
        raise AnalysisError(f"card_claim: the published configs were not read ({absent[0]}); give with_published().")
    lengths = common_lengths(claims)
    if not lengths:
        raise AnalysisError("card_claim: no one length of request fits both published rows; nothing can be split.")
    length = lengths[0]
    rows = []
    for claim in claims:
        for share in _SHARES:
            for requests in ("different", "identical"):
                read = max(1, round(length * share))
                found = bound(
                    subject.published[claim.config], on, read=read, written=length - read, dtype=settings.dtype,
                    most=settings.most, memory_share=settings.memory_share, identical=requests == "identical",
                )  # fmt: skip
                published = float(claim.requests_per_s)
                rows.append(
                    {
                        "model": claim.model,
                        "requests": requests,
                        "read": read,
                        "written": length - read,
                        "batch": found.batch,
                        "most_per_s": found.most_per_s,
                        "serial_per_s": found.serial_per_s,
                        "published_per_s": published,
                        "share_of_most": published / found.most_per_s,
                        "share_of_serial": published / found.serial_per_s,
                        "impossible": published > found.most_per_s,
                    }
                )
    splits = pd.DataFrame(rows)
    moe, dense = (splits[splits["model"] == claim.model] for claim in claims)
    both = moe.merge(dense, on=["requests", "read", "written"], suffixes=("", "_dense"))
    low, high = (c.tokens_per_request for c in claims)
    flops = [sum(linear_flops(subject.published[claim.config]).values()) for claim in claims]
    return Result(
        claims=pd.DataFrame(
            {
                "model": [c.model for c in claims],
                "requests_per_s": [float(c.requests_per_s) for c in claims],
                "tokens_per_s": [float(c.tokens_per_s) for c in claims],
                "least_tokens_per_request": [low[0], high[0]],
                "most_tokens_per_request": [low[1], high[1]],
            }
        ),
        splits=splits,
        ratios=pd.DataFrame(
            {
                "requests": both["requests"],
                "read": both["read"],
                "written": both["written"],
                "serial": both["serial_per_s"] / both["serial_per_s_dense"],
                "published": both["published_per_s"] / both["published_per_s_dense"],
                "impossible": both["impossible"] | both["impossible_dense"],
            }
        ),
        lengths=lengths,
        flop_ratio=flops[1] / flops[0],
        words=f"{on.name} ({on.source}), {settings.dtype}, at most {settings.most} sequences together, "
        f"{settings.memory_share:.0%} of the memory".replace("%", " %"),
    )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`claims`, `splits`, `ratios`."""
    return {"claims": result.claims, "splits": result.splits, "ratios": result.ratios}


def figures(result: Result) -> dict[str, Figure]:
    """`ratio` by the split, and `share`: how much of the bound was published."""
    lengths = " or ".join(map(str, result.lengths))
    allowed = result.ratios[~result.ratios["impossible"]]
    asked = result.splits.assign(requests="requests " + result.splits["requests"], whole=1.0)
    said = f"Both published rows allow requests of {lengths} tokens, of one length. {result.words}"
    return {
        "ratio": Lines(
            result.ratios.assign(requests="requests " + result.ratios["requests"]),
            "read",
            "serial",
            group="requests",
            null="published",
            null_label="published",
            hover=("written", "impossible"),
            title="The published ratio beside the roofline's",
            x_label=f"tokens read, of {result.lengths[0]}",
            y_label="MoE over dense, requests/s",
            caption="Requests per second of Qwen2-57B-A14B over those of Qwen1.5-32B, reading and writing in turns at "
            f"the roofline, by how a request is split. {said}. The ratio of FLOP per token is {result.flop_ratio:.3f}.",
            alt=f"Published {result.ratios['published'].iloc[0]:.3f}; splits that the roofline allows give "
            f"{allowed['serial'].min():.2f} to {allowed['serial'].max():.2f}.",
        ),
        "share": Lines(
            asked,
            "read",
            "share_of_most",
            group="model",
            panel="requests",
            null="whole",
            null_label="the bound",
            hover=("written", "batch", "impossible"),
            title="How much of the bound was published",
            x_label=f"tokens read, of {result.lengths[0]}",
            y_label="published over bound",
            caption="Published requests per second over what no schedule exceeds; over 1 the split is impossible. "
            f"{said}.",
            alt="; ".join(
                f"{model}: {part['share_of_most'].min():.2f} to {part['share_of_most'].max():.2f}"
                for model, part in result.splits.groupby("model", sort=False)
            )
            + f"; {int(np.sum(result.splits['impossible']))} of {len(result.splits)} splits are impossible.",
        ),
    }
