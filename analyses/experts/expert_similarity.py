"""How alike are the experts of a layer, by their parameters and by their router rows?

Not shown: how alike their outputs are on text. The cosine of flattened parameters misses copies whose neurons stand in
another order; matched neurons do not, but a best match lies above zero for unrelated neurons too, so it is read beside
shuffled ones. Experts made of one dense model share neurons by construction. The parameters are no sample: facts
without intervals; only the agreement of two similarities is tested.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses.read.design import require
from workbench.errors import AnalysisError
from workbench.figures.spec import Figure, HeatMap, Lines
from workbench.metrics import similarity
from workbench.metrics.similarity import similarity_agreement
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
MEASURES = {
    "cosine": "parameters, cosine",
    "matched": "neurons, best match",
    "cka": "neurons, linear CKA",
    "router_cosine": "router rows, cosine",
}


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        layer: Decoder layer of the maps; the middle one of the MoE layers unless given.
        n_draws: Relabellings of the experts, for the agreement of router rows and matched neurons.
        seed: Of the relabellings.
    """

    layer: int | None = None
    n_draws: int = 999
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """How alike experts are.

    Attributes:
        pairs: One row per layer and ordered pair of different experts: `cosine` of flattened parameters, `matched`
            (mean best match of the expert's neurons among the other's; not symmetric), `cka` (linear CKA of the
            neurons), `router_cosine` (rows less their mean).
        layers: One row per layer: the means over pairs, the largest (`closest_…`), `matched_null` and `cka_null` (the
            other's neurons with shuffled coordinates), and `agreement`, rank
            correlation over pairs of router rows with matched neurons, with `null_low`, `null_high`, `p`.
        experts: One row per layer and expert: norms of its parameters and router row, its `nearest` expert by matched
            neurons with `matched`.
        layer: Layer of the maps.
        model: Name of the model.
    """

    pairs: pd.DataFrame
    layers: pd.DataFrame
    experts: pd.DataFrame
    layer: int
    model: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Reads the similarities of every layer's experts, and tests whether router rows and neurons agree.

    Raises:
        AnalysisError: the recording holds no routing or no field `weights`, or there is no such layer.
    """
    require(recording, NEEDS, "expert_similarity", columns=("ids",))
    middle = recording.moe_layers[len(recording.moe_layers) // 2]
    layer = settings.layer if settings.layer is not None else middle
    if layer not in recording.moe_layers:
        raise AnalysisError(
            f"expert_similarity: layer {layer} has no router; set layer to one of {list(recording.moe_layers)}."
        )
    if all(router.n_experts == 1 for router in recording.topology.routers):
        raise AnalysisError(
            f"expert_similarity: every router of {recording.path} has one expert, so there is no pair to compare. "
            "Record a model with more."
        )
    facts = recording.expert_weights
    several = facts.groupby("layer")["site"].nunique().max() > 1
    pairs, layers, experts = [], [], []
    for _, rows in facts.groupby(["layer", "site"]):
        about = _about(rows, several=several)
        square = {name: np.stack(rows[name].tolist()).astype(np.float64) for name in MEASURES}
        pairs.append(_pairs(square).assign(**about))
        layers.append(about | _summary(square, rows, settings))
        experts.append(_experts(square["matched"], rows).assign(**about))
    first = ["layer", "site"] if several else ["layer"]
    tables = [pd.concat(parts, ignore_index=True) for parts in (pairs, experts)]
    ordered = [table[[*first, *(name for name in table if name not in first)]] for table in tables]
    return Result(
        pairs=ordered[0],
        layers=pd.DataFrame(layers),
        experts=ordered[1],
        layer=layer,
        model=recording.manifest["identity"]["model"].rstrip("/").rpartition("/")[2],
    )


def _about(rows: pd.DataFrame, *, several: bool) -> dict[str, Any]:
    first = rows.iloc[0]
    return {"layer": int(first["layer"])} | ({"site": str(first["site"])} if several else {})


def _pairs(square: dict[str, np.ndarray]) -> pd.DataFrame:
    n_experts = len(square["cosine"])
    one, other = np.nonzero(~np.eye(n_experts, dtype=bool))
    return pd.DataFrame({"expert": one, "other": other, **{name: s[one, other] for name, s in square.items()}})


def _summary(square: dict[str, np.ndarray], rows: pd.DataFrame, settings: Settings) -> dict:
    off = ~np.eye(len(rows), dtype=bool)
    found = {name: values[off][~np.isnan(values[off])] for name, values in square.items()}
    agreement = similarity_agreement(
        square["router_cosine"], square["matched"], n_draws=settings.n_draws, seed=settings.seed
    )
    return {
        **{name: float(values.mean()) if len(values) else np.nan for name, values in found.items()},
        **{f"closest_{name}": float(values.max()) if len(values) else np.nan for name, values in found.items()},
        "matched_null": float(rows["matched_null"].mean()),
        "cka_null": float(rows["cka_null"].mean()),
        "agreement": agreement.correlation,
        "null_low": agreement.null_low,
        "null_high": agreement.null_high,
        "p": agreement.p,
    }


def _experts(matched_EE: np.ndarray, rows: pd.DataFrame) -> pd.DataFrame:
    others_EE = np.where(np.eye(len(rows), dtype=bool) | np.isnan(matched_EE), -np.inf, matched_EE)
    norms = rows[["expert", "norm_gate", "norm_up", "norm_down", "norm", "router_norm"]].reset_index(drop=True)
    best_E = others_EE.max(axis=1)
    return norms.assign(nearest=others_EE.argmax(axis=1), matched=np.where(np.isfinite(best_E), best_E, np.nan))


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`pairs`, `layers` and `experts`."""
    return {"pairs": result.pairs, "layers": result.layers, "experts": result.experts}


def figures(result: Result) -> dict[str, Figure]:
    """`matched_map` and `router_map` of one layer's experts, `by_layer` and `agreement` over the layers."""
    here = result.pairs[result.pairs["layer"] == result.layer]
    if "site" in here:
        here = here[here["site"] == here["site"].iloc[0]]
    drawn: dict[str, Figure] = {}
    for name, column, said in (
        (
            "matched_map",
            "matched",
            "Mean best match of the row's neurons among the column's: 1 for a copy in any order.",
        ),
        ("router_map", "router_cosine", "Cosine of router rows less their mean: rows alike are chosen by like tokens."),
    ):
        if not here[column].notna().any():
            continue  # one expert in this layer
        nearest = here.nlargest(1, column).iloc[0]
        drawn[name] = HeatMap(
            here,
            "other",
            "expert",
            column,
            center=0.0 if column == "router_cosine" else None,
            title=f"Experts of layer {result.layer}: {MEASURES[column]}",
            x_label="expert",
            y_label="expert",
            value_label=MEASURES[column],
            caption=f"{said} {result.model}, layer {result.layer}; the diagonal is left out.",
            alt=f"The closest are {nearest['expert']:.0f} and {nearest['other']:.0f}, {nearest[column]:.2f}.",
        )
    nulls = {
        "cosine": 0.0 * result.layers["cosine"],
        "matched": result.layers["matched_null"],
        "cka": result.layers["cka_null"],
    }
    panels = [
        result.layers[["layer"]].assign(measure=MEASURES[name], value=result.layers[name], null=null)
        for name, null in nulls.items()
    ]
    by_layer = pd.concat(panels, ignore_index=True)
    one_each = by_layer.groupby(["layer", "measure"], as_index=False, sort=False).mean()
    drawn["by_layer"] = Lines(
        one_each,
        "layer",
        "value",
        panel="measure",
        null="null",
        null_label="unrelated experts",
        shared_y=False,
        title="How alike the experts of a layer are",
        x_label="layer",
        y_label="mean over pairs",
        caption=f"Mean over pairs of experts of a layer, {result.model}: cosine of flattened parameters (unrelated: "
        "0), mean best match of neurons, and their linear CKA (unrelated: the other's coordinates shuffled). Router "
        "rows less their mean have about the same mean in every model; their pairs are in the map. Parameters are no "
        "sample: no interval.",
        alt="; ".join(
            f"{row['measure']} at layer {row['layer']}: {row['value']:.3f}" for _, row in one_each.iterrows()
        ),
    )
    known = result.layers[result.layers["agreement"].notna()].drop_duplicates("layer")
    if len(known):
        strongest = known.iloc[int(known["agreement"].abs().to_numpy().argmax())]
        drawn["agreement"] = Lines(
            known,
            "layer",
            "agreement",
            null="null_high",
            null_label="97.5 % of experts relabelled at random",
            title="Do router rows say what the neurons say?",
            x_label="layer",
            y_label="rank correlation over pairs",
            hover=("null_low", "p"),
            caption=f"Spearman correlation, over pairs of experts, of the cosine of router rows with the best match of "
            f"neurons, {result.model}; beside the upper end of what experts relabelled at random give.",
            alt=f"Strongest at layer {strongest['layer']:.0f}: {strongest['agreement']:.2f}, p = {strongest['p']:.3f}.",
        )
    return drawn
