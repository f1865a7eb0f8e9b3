"""Tokens: where every token of a document goes, at one layer and across layers."""

import streamlit as st
from components import choices, results, search_box

results.ask("Tokens", "token_routing")
recording = choices.choose_recording(routed=True)
search_box.box(recording)
document, first, token = choices.choose_document(recording)
layer = choices.choose_layer(recording)
with results.told():
    shown = {"document": document, "first": first, "last": first + choices.TOKENS_SHOWN}
    routing = results.result(recording, "token_routing", layer=layer, **shown)
    across = results.result(recording, "token_routing", **shown)  # the same for every layer
    colours = {"expert": "first expert", "entropy": "router entropy", "loss": "loss"}
    how = {"kind": "segmented_control", "required": True, "format_func": colours.get}
    colour = choices.choose("Colour by", "colour", list(colours), default="expert", place=st, **how)
    results.show(routing, f"strip_{colour}", follow={"position": "token"})
    if token is not None:
        at_layer, at_all = (table[table["position"] == token] for table in routing.tables.values())
        results.show_token(at_layer, at_all)
    results.show(across, "layer_token_map", follow={"position": "token", "layer": "layer"})
    with results.folded("Table") as is_open:
        if is_open:
            results.table(routing, "tokens")
