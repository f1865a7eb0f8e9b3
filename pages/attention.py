"""Attention: every head by a statistic, the one that is clicked along the document, and its map of one text."""

import drawing
import mapping
import shared
import showing
import streamlit as st

from analyses import _attention

showing.ask("Attention", "attention_heads")
recording = shared.choose_recording()
shared.stop_without(recording, "attention")
statistics = _attention.statistics_of(recording)
statistic = shared.choose(
    "Statistic", "statistic", statistics, default="normalized_entropy", quiet=True, format_func=_attention.AXIS.get
)
layer, head = shared.choose_head(recording)
heads = showing.result(recording, "attention_heads", statistic=statistic)
showing.show(heads, "map", follow={"layer": "layer", "head": "head"})

st.header(f"Layer {layer}, head {head}")
row = heads.tables["heads"].query("layer == @layer and head == @head").iloc[0]
showing.facts(
    {
        "entropy": f"{row['entropy']:.2f} nats",
        "effective keys": f"{row['effective_keys']:.0f}",
        "mean distance": f"{row['distance']:.0f} tokens",
        "first key": f"{row['first']:.1%}",
        "key before": f"{row['previous']:.1%}",
        "induction (probe)": f"{row['probe_induction']:.3f}",
    }
)
profile = showing.result(recording, "attention_profile", layer=layer, head=head, statistic=None)
showing.show(profile, "head")
with showing.folded("Map of this head on one text") as is_open:
    if is_open:
        mapping.show(recording, layer=layer, head=head)

st.header("All heads")
near_and_far, probe = drawing.beside()
with near_and_far:
    showing.show(heads, "landscape", follow={"layer": "layer", "head": "head"})
with probe:
    showing.show(heads, "induction", follow={"layer": "layer", "head": "head"})
    showing.show(heads, "roles")
showing.show(profile, "by_layer")
if "attention-weights" in recording.fields:
    groups = showing.result(recording, "attention_groups", layer=layer)
    for place, figure in zip(drawing.beside(), ("divergence", "groups"), strict=True):
        with place:
            showing.show(groups, figure)
if "attention-tokens" in recording.fields and recording.moe_layers:
    with showing.folded("Do tokens that attend alike choose the same experts?") as is_open:
        if is_open:
            showing.show(showing.result(recording, "attention_routing"), "overlap")
with showing.folded("Tables") as is_open:
    for shown, table in ((heads, "heads"), (heads, "statistics"), (profile, "head")) if is_open else ():
        showing.table(shown, table)
