"""Specialization: what the choice of experts follows from, and what the experts are, each beside its controls."""

import experts
import shared
import showing
import streamlit as st

showing.ask("Specialization", "domain_load")
recording = shared.choose_recording(routed=True)
layer, expert = experts.choose(recording)
controls = shared.choose_controls(recording)
follow = {"layer": "layer", "expert": "expert"}
with showing.told():
    domains = showing.result(recording, "domain_load", layer=layer, **controls)
    showing.show(domains, "information", follow={"layer": "layer"})
    st.header(f"Layer {layer}")
    showing.show(domains, "domain_map", follow=follow)
    if expert is not None:
        experts.link(layer, expert)
    with showing.folded("Tables of domains") as is_open:
        for table in domains.tables if is_open else ():
            showing.table(domains, table)

st.header("What the choice follows from")
with showing.part("The token, and the domain once the token is known", "specialization", recording) as is_open:
    if is_open:
        showing.every(showing.result(recording, "specialization", **controls), follow={"layer": "layer"})
for title, name in {"Token, neighbours, place, domain, the layer before": "context", "The place": "position"}.items():
    with showing.part(title, name, recording) as is_open:
        if is_open:
            showing.every(showing.result(recording, name, **controls), follow={"layer": "layer"})

st.header("What the experts are")
parts = {
    "What each expert adds": "contribution",
    "The shared expert": "shared_expert",
    "What a limit on each expert would drop": "capacity",
    "What is left of the dense parent": "upcycling_lineage",
}
for title, name in parts.items():
    with showing.part(title, name, recording) as is_open:
        if is_open:
            showing.every(showing.result(recording, name), follow=follow)
with showing.part("How alike the experts of the layer are", "expert_similarity", recording) as is_open:
    if is_open:
        showing.every(showing.result(recording, "expert_similarity", layer=layer), follow=follow)
