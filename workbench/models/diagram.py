"""Models for people who look at them: which there are, what one is made of, what it would take. Without torch.

Everything is read off a topology, a memory forecast or a report of the capture check, as plain data; nothing is loaded.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from workbench.figures.spec import HeatMap
from workbench.models.topology import Topology

_PROOFS = {
    "routers": "routers checked",
    "tokens": "tokens of the check's text",
    "rebuild_with": "recomputed the experts",
    "logits_error": "logits against the router's own map",
    "experts_error": "experts' output against its rebuild",
    "block_error": "block's output against its rebuild",
    "causal_change": "least change by another expert",
    "causal_leak": "change of an earlier token",
    "padding_differences": "other choices in a padded batch",
}


def picture(topology: Topology, name: str) -> HeatMap:
    """A row for each decoder layer, a column for each of its parts, coloured by the share of tokens that use it."""
    rows = [row for layer in range(topology.n_layers) for row in _parts(topology, layer)]
    routed = topology.moe_layers
    others = list(dict.fromkeys(part for _, part, share, _ in rows if share == 1))
    parameters = f"{short(topology.parameters_total)} parameters, {short(topology.parameters_active)} met by one token"
    return HeatMap(
        pd.DataFrame(rows, columns=["layer", "part", "share", "shape"]),
        "part",
        "layer",
        "share",
        title=f"What {name} is made of",
        x_label=f"{'routed expert, then ' if routed else ''}{', '.join(others)}",
        y_label="layer",
        value_label="share of tokens that use it",
        hover=("shape",),
        caption=f"Decoder layers of {name} ({topology.family}) from top to bottom and their parts; colour: the share "
        "of tokens that use a part, for a routed expert at a balanced load (top-k over experts). Grey: the layer has "
        f"no such part. {parameters}.",
        alt=f"{len(routed)} of {topology.n_layers} layers have a router. {parameters}.",
    )


def _parts(topology: Topology, layer: int) -> list[tuple[int, str, float, str]]:
    routers = [router for router in topology.routers if router.layer == layer]
    sites = {router.site for router in topology.routers}
    heads = f"{topology.n_heads} heads of {topology.head_width}, {topology.n_kv_groups} key/value groups"
    parts: list[tuple[int, str, float, str]] = []
    for router in routers:
        site = f"{router.site} " if len(sites) > 1 else ""
        share, shape = router.top_k / router.n_experts, f"width {router.expert_width:,}, {router.rule}"
        parts += [(layer, f"{site}{expert}", share, shape) for expert in range(router.n_experts)]
    parts.append((layer, "attention", 1.0, heads))
    for router in routers:
        if router.shared_width:
            gate = ", scaled by a gate" if router.shared_gate else ""
            parts.append((layer, f"{router.site} shared" if len(sites) > 1 else "shared", 1.0,
                          f"width {router.shared_width:,}{gate}"))  # fmt: skip
    if not routers:
        parts.append((layer, "dense", 1.0, "feed-forward block without a router"))
    return parts


def facts(topology: Topology) -> dict[str, str]:
    """What a model is made of, in a few words each."""
    shapes = dict.fromkeys((r.n_experts, r.top_k, r.shared_width, r.shared_gate) for r in topology.routers)
    experts = [f"{n}, top-{k}" for n, k, _, _ in shapes]
    shared = [f"{width:,}{' gated' if gate else ''}" if width else "none" for _, _, width, gate in shapes]
    return {
        "parameters": short(topology.parameters_total),
        "active per token": short(topology.parameters_active),
        "layers": f"{topology.n_layers}, {len(topology.moe_layers)} MoE",
        "experts": "; ".join(dict.fromkeys(experts)) or "none",
        "shared width": "; ".join(dict.fromkeys(shared)) or "none",
        "heads": f"{topology.n_heads}, {topology.n_kv_groups} groups",
        "model width": f"{topology.width:,}",
        "context": f"{topology.context:,}" if topology.context else "not stated",
    }


def memory(forecast: Mapping[str, Any]) -> tuple[pd.DataFrame, str]:
    """A memory forecast as a table, and in a sentence."""
    words = {
        "weights_bytes": "weights",
        "buffers_bytes": "recording buffers of one batch",
        "needed_bytes": "needed to record",
        "free_bytes": f"free on {forecast['device']}",
        "kv_cache_bytes": "keys and values of one batch, if it generated",
    }
    table = pd.DataFrame({"what": list(words.values()), "GiB": [forecast[key] / 2**30 for key in words]})
    needed, free = f"{forecast['needed_bytes'] / 2**30:,.2f} GiB", f"{forecast['free_bytes'] / 2**30:,.2f} GiB"
    if forecast["fits"]:
        return table, f"Recording needs {needed}; {free} are free on {forecast['device']}."
    return table, (
        f"Recording needs {needed}, and {free} are free on {forecast['device']}: it would be refused. Use a machine "
        "with more memory, or a smaller model."
    )


def proofs(check: Mapping[str, Any]) -> pd.DataFrame:
    """What the capture check measured: differences are the largest, relative; changes are of logits."""
    return pd.DataFrame({"measured": [_measured(check[key]) for key in _PROOFS], "of": _PROOFS.values()})


def _measured(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def short(parameters: int) -> str:
    """A number of parameters, to four digits."""
    for size, name in ((10**9, "B"), (10**6, "M")):
        if parameters >= size:
            return f"{parameters / size:,.{2 if parameters < 100 * size else 1}f} {name}"
    return f"{parameters:,}"
