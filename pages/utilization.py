"""Utilization: the load of every expert of every layer, and the card of the one that is clicked, or of two."""

import drawing
import experts
import foreseen
import shared
import showing
import streamlit as st

showing.ask("Utilization", "expert_load")
recording = shared.choose_recording(routed=True)
load = showing.result(recording, "expert_load")
layer, expert = experts.choose(recording)
showing.show(load, "load_map", follow={"layer": "layer", "expert": "expert"})

with showing.told():
    least = experts.choose_least()
    card = experts.card(recording, layer, expert, least=least)
    pinned = experts.choose_pinned(recording, card.result.layer, card.result.expert)
    if pinned is None:
        st.header(f"Expert {card.result.expert} of layer {card.result.layer}")
        st.caption("The busiest of the layer; click a cell of the map for another." if expert is None else "")
        experts.show_card(card)
        showing.show(card, "contexts")
    else:
        beside = experts.card(recording, *pinned, least=least)
        here, there = drawing.beside()
        for column, each, tag in ((here, card, ""), (there, beside, "pinned-")):
            with column:
                st.header(f"Expert {each.result.expert} of layer {each.result.layer}")
                experts.show_card(each, wide=False, tag=tag)
        showing.show(card, "contexts")  # below: a text wants the width of the page
        showing.show(beside, "contexts", tag="pinned-")
    with showing.folded("Tables") as is_open:
        for shown, table in (
            (card, "tokens"),
            (card, "contexts"),
            (card, "domains"),
            (card, "partners"),
            (load, "experts"),
        ):
            if is_open and table in shown.tables:
                showing.table(shown, table)
    foreseen.other_layers(recording, "expert_card", card.result.layer, expert=expert, min_count=least)
with showing.folded("Spread of the load over each layer's experts") as is_open:
    if is_open:
        showing.show(load, "load_spread")
        showing.table(load, "layers")
