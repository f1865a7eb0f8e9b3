"""Utilization: the load of every expert of every layer, and the card of the one that is clicked, or of two."""

import streamlit as st
from components import charts, choices, expert_card, prefetch_plan, results

results.ask("Utilization", "expert_load")
recording = choices.choose_recording(routed=True)
load = results.result(recording, "expert_load")
layer, expert = expert_card.choose(recording)
results.show(load, "load_map", follow={"layer": "layer", "expert": "expert"})

with results.told():
    least = expert_card.choose_least()
    card = expert_card.card(recording, layer, expert, least=least)
    pinned = expert_card.choose_pinned(recording, card.result.layer, card.result.expert)
    if pinned is None:
        st.header(f"Expert {card.result.expert} of layer {card.result.layer}")
        st.caption("The busiest of the layer; click a cell of the map for another." if expert is None else "")
        expert_card.show_card(card)
        results.show(card, "contexts")
    else:
        beside = expert_card.card(recording, *pinned, least=least)
        here, there = charts.beside()
        for column, each, tag in ((here, card, ""), (there, beside, "pinned-")):
            with column:
                st.header(f"Expert {each.result.expert} of layer {each.result.layer}")
                expert_card.show_card(each, wide=False, tag=tag)
        results.show(card, "contexts")  # below: a text wants the width of the page
        results.show(beside, "contexts", tag="pinned-")
    with results.folded("Tables") as is_open:
        for shown, table in (
            (card, "tokens"),
            (card, "contexts"),
            (card, "domains"),
            (card, "partners"),
            (load, "experts"),
        ):
            if is_open and table in shown.tables:
                results.table(shown, table)
    prefetch_plan.other_layers(recording, "expert_card", card.result.layer, expert=expert, min_count=least)
with results.folded("Spread of the load over each layer's experts") as is_open:
    if is_open:
        results.show(load, "load_spread")
        results.table(load, "layers")
