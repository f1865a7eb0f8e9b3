"""Load balance: every measure, with interval and floor, by layer, and at which scope."""

import shared
import showing
import streamlit as st

showing.ask("Load balance", "load_balance")
recording = shared.choose_recording(routed=True)
balance = showing.result(recording, "load_balance")
layer = shared.choose_layer(recording)
showing.show(balance, "imbalance", follow={"layer": "layer"})
st.subheader(f"Layer {layer}")
measures, tests = balance.tables["layers"], balance.tables["tests"]
showing.table(balance, "layers", measures[measures["layer"] == layer])
showing.table(balance, "tests", tests[tests["layer"] == layer])
showing.show(balance, "measures", follow={"layer": "layer"})
showing.show(balance, "documents", follow={"layer": "layer"})
with showing.folded("Tables of all layers") as is_open:
    for table in balance.tables if is_open else ():
        showing.table(balance, table)

parts = {
    "Scope: one document, a batch, the corpus": "balance_scope",
    "How decided the routers are, and their z-loss": "router_confidence",
    "Distinct experts that a decoded batch meets": "coverage",
}
for title, name in parts.items():
    with showing.part(title, name, recording) as is_open:
        if is_open:
            showing.every(showing.result(recording, name), follow={"layer": "layer"})
