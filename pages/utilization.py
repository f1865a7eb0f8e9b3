"""Utilization: the load of every expert of every layer, and the card of the one that is clicked."""

import shared
import showing
import streamlit as st

showing.ask("Utilization", "expert_load")
recording = shared.choose_recording()
load = showing.result(recording, "expert_load")
layer = shared.choose_layer(recording)
expert = shared.choose_expert(recording, layer)
showing.show(load, "load_map", follow={"layer": "layer", "expert": "expert"})

card = showing.result(recording, "expert_card", layer=layer, expert=expert)
st.header(f"Expert {card.result.expert} of layer {card.result.layer}")
st.caption("The busiest of the layer; click a cell of the map for another." if expert is None else "")
by_domain, by_token = st.columns(2)
with by_domain:
    showing.show(card, "by_domain")
with by_token:
    showing.show(card, "by_token")
showing.show(card, "contexts")
with showing.folded("Tables") as is_open:
    for shown, table in ((card, "tokens"), (card, "contexts"), (card, "domains"), (load, "experts")):
        if is_open:
            showing.table(shown, table)
with showing.folded("Spread of the load over each layer's experts") as is_open:
    if is_open:
        showing.show(load, "load_spread")
        showing.table(load, "layers")
