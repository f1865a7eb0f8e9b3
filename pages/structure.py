"""Structure: experts that are chosen together, one after another, and again; each beside what chance gives."""

import drawing
import experts
import foreseen
import shared
import showing
import streamlit as st

showing.ask("Structure", "coactivation")
recording = shared.choose_recording(routed=True)
layer, expert = experts.choose(recording)
controls = shared.choose_controls(recording)
with showing.told():
    pairs = showing.result(recording, "coactivation", layer=layer)
    st.header(f"Layer {layer}")
    matrix, strongest = drawing.beside(first=2)
    with matrix:
        showing.show(pairs, "pair_map", follow={"layer": "layer", "expert": "expert"})
    with strongest:
        showing.show(pairs, "strongest_pairs")
    if expert is not None:
        experts.link(layer, expert)
    with showing.folded("Tables of pairs") as is_open:
        for table in pairs.tables if is_open else ():
            showing.table(pairs, table)
    if len(recording.moe_layers) > 1:
        with showing.folded("Layer by layer") as is_open:
            if is_open:  # it counts the pairs of every layer
                every = showing.result(recording, "coactivation")
                showing.show(every, "by_layer", follow={"layer": "layer"}, tag="all-")
    foreseen.other_layers(recording, "coactivation", layer)

follow = {"layer": "layer", "expert": "expert"}
with showing.part("Flow to the next layer", "layer_flow", recording) as is_open:
    if is_open:
        showing.every(showing.result(recording, "layer_flow", layer=shared.with_next(recording, layer)))
        showing.show(showing.result(recording, "layer_flow"), "by_layer", follow={"layer": "layer"}, tag="all-")
parts = {
    "Repetition: the experts of the token before": "repetition",
    "Segments: an expert kept for a stretch of text": "segment_consistency",
    "Experts that neighbouring tokens need": "activated",
}
for title, name in parts.items():
    with showing.part(title, name, recording) as is_open:
        if is_open:
            showing.every(showing.result(recording, name), follow=follow)
with showing.part("Two occurrences of one token", "same_token", recording) as is_open:
    if is_open:
        showing.every(showing.result(recording, "same_token", **controls), follow=follow)
st.page_link("compare.py", label="Saturation: how many of a token's experts another recording of the text chose too")
