"""Load balance: every measure, with interval and floor, by layer, and at which scope."""

import streamlit as st
from components import choices, results

results.ask("Load balance", "load_balance")
recording = choices.choose_recording(routed=True)
balance = results.result(recording, "load_balance")
layer = choices.choose_layer(recording)
results.show(balance, "imbalance", follow={"layer": "layer"})
st.subheader(f"Layer {layer}")
measures, tests = balance.tables["layers"], balance.tables["tests"]
results.table(balance, "layers", measures[measures["layer"] == layer])
results.table(balance, "tests", tests[tests["layer"] == layer])
results.show(balance, "measures", follow={"layer": "layer"})
results.show(balance, "documents", follow={"layer": "layer"})
with results.folded("Tables of all layers") as is_open:
    for table in balance.tables if is_open else ():
        results.table(balance, table)

parts = {
    "Scope: one document, a batch, the corpus": "balance_scope",
    "How decided the routers are, and their z-loss": "router_confidence",
    "Distinct experts that a decoded batch meets": "coverage",
}
for title, name in parts.items():
    with results.part(title, name, recording) as is_open:
        if is_open:
            results.every(results.result(recording, name), follow={"layer": "layer"})
