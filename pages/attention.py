"""Attention: every head by a statistic, the one that is clicked along the document, and its map of one text."""

import streamlit as st
from components import attention_map, charts, choices, results

from analyses.attention import _statistics

results.ask("Attention", "attention_heads")
recording = choices.choose_recording()
choices.stop_without(recording, "attention")
statistics = _statistics.statistics_of(recording)
statistic = choices.choose(
    "Statistic", "statistic", statistics, default="normalized_entropy", quiet=True, format_func=_statistics.AXIS.get
)
layer, head = choices.choose_head(recording)
heads = results.result(recording, "attention_heads", statistic=statistic)
results.show(heads, "map", follow={"layer": "layer", "head": "head"})

st.header(f"Layer {layer}, head {head}")
row = heads.tables["heads"].query("layer == @layer and head == @head").iloc[0]
results.facts(
    {
        "entropy": f"{row['entropy']:.2f} nats",
        "effective keys": f"{row['effective_keys']:.0f}",
        "mean distance": f"{row['distance']:.0f} tokens",
        "first key": f"{row['first']:.1%}",
        "key before": f"{row['previous']:.1%}",
        "induction (probe)": f"{row['probe_induction']:.3f}",
    }
)
profile = results.result(recording, "attention_profile", layer=layer, head=head, statistic=None)
results.show(profile, "head")
with results.folded("Map of this head on one text") as is_open:
    if is_open:
        attention_map.show(recording, layer=layer, head=head)

st.header("All heads")
near_and_far, probe = charts.beside()
with near_and_far:
    results.show(heads, "landscape", follow={"layer": "layer", "head": "head"})
with probe:
    results.show(heads, "induction", follow={"layer": "layer", "head": "head"})
    results.show(heads, "roles")
results.show(profile, "by_layer")
if "attention-weights" in recording.fields:
    groups = results.result(recording, "attention_groups", layer=layer)
    for place, figure in zip(charts.beside(), ("divergence", "groups"), strict=True):
        with place:
            results.show(groups, figure)
if "attention-tokens" in recording.fields and recording.moe_layers:
    with results.folded("Do tokens that attend alike choose the same experts?") as is_open:
        if is_open:
            results.show(results.result(recording, "attention_routing"), "overlap")
with results.folded("Tables") as is_open:
    for shown, table in ((heads, "heads"), (heads, "statistics"), (profile, "head")) if is_open else ():
        results.table(shown, table)
