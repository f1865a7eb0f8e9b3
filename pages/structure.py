"""Structure: experts that are chosen together, one after another, and again; each beside what chance gives."""

import streamlit as st
from components import charts, choices, expert_card, prefetch_plan, results

results.ask("Structure", "coactivation")
recording = choices.choose_recording(routed=True)
layer, expert = expert_card.choose(recording)
controls = choices.choose_controls(recording)
with results.told():
    pairs = results.result(recording, "coactivation", layer=layer)
    st.header(f"Layer {layer}")
    matrix, strongest = charts.beside(first=2)
    with matrix:
        results.show(pairs, "pair_map", follow={"layer": "layer", "expert": "expert"})
    with strongest:
        results.show(pairs, "strongest_pairs")
    if expert is not None:
        expert_card.link(layer, expert)
    with results.folded("Tables of pairs") as is_open:
        for table in pairs.tables if is_open else ():
            results.table(pairs, table)
    if len(recording.moe_layers) > 1:
        with results.folded("Layer by layer") as is_open:
            if is_open:  # it counts the pairs of every layer
                every = results.result(recording, "coactivation")
                results.show(every, "by_layer", follow={"layer": "layer"}, tag="all-")
    prefetch_plan.other_layers(recording, "coactivation", layer)

follow = {"layer": "layer", "expert": "expert"}
with results.part("Flow to the next layer", "layer_flow", recording) as is_open:
    if is_open:
        results.every(results.result(recording, "layer_flow", layer=choices.with_next(recording, layer)))
        results.show(results.result(recording, "layer_flow"), "by_layer", follow={"layer": "layer"}, tag="all-")
parts = {
    "Repetition: the experts of the token before": "repetition",
    "Segments: an expert kept for a stretch of text": "segment_consistency",
    "Experts that neighbouring tokens need": "activated",
}
for title, name in parts.items():
    with results.part(title, name, recording) as is_open:
        if is_open:
            results.every(results.result(recording, name), follow=follow)
with results.part("Two occurrences of one token", "same_token", recording) as is_open:
    if is_open:
        results.every(results.result(recording, "same_token", **controls), follow=follow)
st.page_link("compare.py", label="Saturation: how many of a token's experts another recording of the text chose too")
