"""Utilization: the load of every expert of every layer, and the card of the one that is clicked, or of two."""

import experts
import shared
import showing
import streamlit as st

showing.ask("Utilization", "expert_load")
recording = shared.choose_recording()
load = showing.result(recording, "expert_load")
layer, expert = experts.choose(recording)
showing.show(load, "load_map", follow={"layer": "layer", "expert": "expert"})

least = experts.choose_least()
card = experts.card(recording, layer, expert, least=least)
pinned = experts.choose_pinned(recording, card.result.layer, card.result.expert)
if pinned is None:
    st.header(f"Expert {card.result.expert} of layer {card.result.layer}")
    st.caption("The busiest of the layer; click a cell of the map for another." if expert is None else "")
    experts.show_card(card)
else:
    here, there = st.columns(2, gap="large")
    with here:
        st.header(f"Expert {card.result.expert} of layer {card.result.layer}")
        experts.show_card(card, wide=False)
    with there:
        beside = experts.card(recording, *pinned, least=least)
        st.header(f"Expert {beside.result.expert} of layer {beside.result.layer}")
        experts.show_card(beside, wide=False, tag="pinned-")
with showing.folded("Tables") as is_open:
    for shown, table in ((card, "tokens"), (card, "contexts"), (card, "domains"), (load, "experts")):
        if is_open:
            showing.table(shown, table)
with showing.folded("Spread of the load over each layer's experts") as is_open:
    if is_open:
        showing.show(load, "load_spread")
        showing.table(load, "layers")
