"""How alike are the experts' neurons still to those of the dense model they were made from?

Not shown: which share of a neuron was copied and which drawn anew; the two cannot be told apart after training, so this
is a similarity, not a share. A best match among many lies above zero for unrelated neurons too: it is read beside the
parent's neurons with shuffled coordinates, and beside the next layer's, which have the same channels and other
functions. The parameters are no sample: there is no interval.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.read.design import require
from workbench.errors import AnalysisError
from workbench.figures.spec import Distribution, Figure, HeatMap
from workbench.metrics import similarity
from workbench.recordings.recording import Recording

INPUT = "recording"
NEEDS = ("routing", "weights")
METRICS = (
    similarity.best_match,
    similarity.cosine_similarity,
    similarity.linear_cka,
    similarity.matched_similarity,
    similarity.router_similarity,
    similarity.similarity_agreement,
)
QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
CANDIDATES = {
    "parent_similarity": "parent, same layer",
    "parent_other_layer": "parent, next layer",
    "parent_shuffled": "parent, shuffled",
}


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        null_quantile: Quantile of the shuffled parent's similarities that `above_null` counts neurons over.
    """

    null_quantile: float = 0.99


@dataclass(frozen=True, eq=False)
class Result:
    """The neurons' best matches in the parent.

    Attributes:
        layers: One row per layer and candidates (the parent's same layer, its next one, its shuffled neurons): mean and
            quantiles of the neurons' best similarity.
        experts: One row per layer and expert: `similarity` (mean over its neurons), `other_layer` and `shuffled` (the
            same of the nulls), `above_null` (share of its neurons above the null's quantile), `distinct` parent neurons
            among its matches, `neurons`.
        parent: One row per layer: `neurons` of the parent that are the best match of some neuron above the null, and
            how many `matches` such a one has on the mean.
        model: Name of the model.
        parent_name: Name of the parent.
        null_quantile: Of the settings.
    """

    layers: pd.DataFrame
    experts: pd.DataFrame
    parent: pd.DataFrame
    model: str
    parent_name: str
    null_quantile: float


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Summarizes the matches by layer and expert.

    Raises:
        AnalysisError: the recording holds no routing, no field `weights`, or no parent; or the quantile is no share.
    """
    require(recording, NEEDS, "upcycling_lineage", columns=("ids",))
    facts = recording.expert_weights
    if "parent_neuron" not in facts:
        raise AnalysisError(
            f"upcycling_lineage: {recording.path} was recorded without a parent; record again with --parent MODEL, the "
            "dense model that it was made from."
        )
    if not 0 < settings.null_quantile < 1:
        raise AnalysisError(f"upcycling_lineage: null_quantile is {settings.null_quantile}; expected between 0 and 1.")
    facts = facts[facts["parent_neuron"].str.len() > 0]
    several = facts.groupby("layer")["site"].nunique().max() > 1
    layers, experts, parents = [], [], []
    for _, rows in facts.groupby(["layer", "site"]):
        about = rows[["layer", "site"] if several else ["layer"]].iloc[0].to_dict()
        found = {name: np.stack(rows[name].tolist()).astype(np.float64) for name in CANDIDATES}
        neuron_EF = np.stack(rows["parent_neuron"].tolist())
        bar = float(np.quantile(found["parent_shuffled"], settings.null_quantile))
        above_EF = found["parent_similarity"] > bar
        for name, label in CANDIDATES.items():
            if not np.isnan(found[name]).all():
                layers.append(about | {"candidates": label} | _distribution(found[name]))
        experts.append(
            pd.DataFrame(
                {
                    **about,
                    "expert": rows["expert"].to_numpy(),
                    "similarity": found["parent_similarity"].mean(axis=1),
                    "other_layer": found["parent_other_layer"].mean(axis=1),
                    "shuffled": found["parent_shuffled"].mean(axis=1),
                    "above_null": above_EF.mean(axis=1),
                    "distinct": [len(np.unique(neuron_F)) for neuron_F in neuron_EF],
                    "neurons": neuron_EF.shape[1],
                }
            )
        )
        matched, times = np.unique(neuron_EF[above_EF], return_counts=True)
        parents.append(about | {"neurons": len(matched), "matches": float(times.mean()) if len(times) else np.nan})
    return Result(
        layers=pd.DataFrame(layers),
        experts=pd.concat(experts, ignore_index=True),
        parent=pd.DataFrame(parents),
        model=recording.manifest["identity"]["model"].rstrip("/").rpartition("/")[2],
        parent_name=_named(recording.manifest["settings"]["parent"]),
        null_quantile=settings.null_quantile,
    )


def _named(parent: dict) -> str:
    return f"{parent['name']}@{parent['revision']}" if parent["revision"] else str(parent["name"])


def _distribution(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean())} | {name: float(np.quantile(values, q)) for name, q in QUANTILES.items()}


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`layers`, `experts` and `parent`."""
    return {"layers": result.layers, "experts": result.experts, "parent": result.parent}


def figures(result: Result) -> dict[str, Figure]:
    """`similarity` of neurons by layer beside its nulls, and `by_expert` as a map."""
    means = result.layers.groupby("candidates", sort=False)["mean"].mean()
    near = "; ".join(f"{name}: {value:.2f}" for name, value in means.items())
    one_site = result.experts.drop_duplicates(["layer", "expert"])
    least = one_site.nsmallest(1, "similarity").iloc[0]
    how = "mean over gate row, up row and down column of their cosines"
    return {
        "similarity": Distribution(
            result.layers.drop_duplicates(["layer", "candidates"]),
            "layer",
            group="candidates",
            title="Neurons of the experts and their best match in the parent",
            x_label="layer",
            y_label="similarity of the best match",
            caption=f"Similarity ({how}) of each neuron of {result.model} to its best match in {result.parent_name}: "
            "among the FFN neurons of the same layer, of the next layer, and of the same layer with shuffled "
            "coordinates. Box: middle half of neurons, whiskers: 5–95 %. A similarity, not a share of what was copied.",
            alt=f"Means over layers: {near}.",
        ),
        "by_expert": HeatMap(
            one_site,
            "expert",
            "layer",
            "similarity",
            title="Similarity to the parent by expert",
            x_label="expert",
            y_label="layer",
            value_label="mean similarity of the best match",
            hover=("shuffled", "other_layer", "above_null", "distinct"),
            caption=f"Mean over an expert's neurons of the similarity to their best match in {result.parent_name}, "
            f"{result.model}. With shuffled coordinates the mean is {one_site['shuffled'].mean():.2f}.",
            alt=f"Least is expert {least['expert']:.0f} of layer {least['layer']:.0f}, {least['similarity']:.2f}.",
        ),
    }
