"""Tokens: where every token of a document goes, at one layer and across layers."""

import jumping
import shared
import showing
import streamlit as st

showing.ask("Tokens", "token_routing")
recording = shared.choose_recording(routed=True)
jumping.box(recording)
document, first, token = shared.choose_document(recording)
layer = shared.choose_layer(recording)
with showing.told():
    shown = {"document": document, "first": first, "last": first + shared.TOKENS_SHOWN}
    routing = showing.result(recording, "token_routing", layer=layer, **shown)
    across = showing.result(recording, "token_routing", **shown)  # the same for every layer
    colours = {"expert": "first expert", "entropy": "router entropy", "loss": "loss"}
    how = {"kind": "segmented_control", "required": True, "format_func": colours.get}
    colour = shared.choose("Colour by", "colour", list(colours), default="expert", place=st, **how)
    showing.show(routing, f"strip_{colour}", follow={"position": "token"})
    if token is not None:
        at_layer, at_all = (table[table["position"] == token] for table in routing.tables.values())
        showing.show_token(at_layer, at_all)
    showing.show(across, "layer_token_map", follow={"position": "token", "layer": "layer"})
    with showing.folded("Table") as is_open:
        if is_open:
            showing.table(routing, "tokens")
