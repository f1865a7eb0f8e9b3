"""Load balance: every measure, with interval and floor, by layer, and at which scope."""

import shared
import streamlit as st

shared.ask("Load balance", "load_balance")
recording = shared.choose_recording()
balance = shared.result(recording, "load_balance")
layer = shared.choose_layer(recording)
shared.show(balance, "imbalance", follow={"layer": "layer"})
st.subheader(f"Layer {layer}")
measures, tests = balance.tables["layers"], balance.tables["tests"]
shared.table(balance, "layers", measures[measures["layer"] == layer])
shared.table(balance, "tests", tests[tests["layer"] == layer])
shared.show(balance, "measures", follow={"layer": "layer"})
shared.show(balance, "documents", follow={"layer": "layer"})
with shared.folded("Tables of all layers") as is_open:
    for table in balance.tables if is_open else ():
        shared.table(balance, table)
