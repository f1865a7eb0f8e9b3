"""Specialization: what the choice of experts follows from, and what the experts are, each beside its controls."""

import streamlit as st
from components import choices, expert_card, results

results.ask("Specialization", "domain_load")
recording = choices.choose_recording(routed=True)
layer, expert = expert_card.choose(recording)
controls = choices.choose_controls(recording)
follow = {"layer": "layer", "expert": "expert"}
with results.told():
    domains = results.result(recording, "domain_load", layer=layer, **controls)
    results.show(domains, "information", follow={"layer": "layer"})
    st.header(f"Layer {layer}")
    results.show(domains, "domain_map", follow=follow)
    if expert is not None:
        expert_card.link(layer, expert)
    with results.folded("Tables of domains") as is_open:
        for table in domains.tables if is_open else ():
            results.table(domains, table)

st.header("What the choice follows from")
with results.part("The token, and the domain once the token is known", "specialization", recording) as is_open:
    if is_open:
        results.every(results.result(recording, "specialization", **controls), follow={"layer": "layer"})
for title, name in {"Token, neighbours, place, domain, the layer before": "context", "The place": "position"}.items():
    with results.part(title, name, recording) as is_open:
        if is_open:
            results.every(results.result(recording, name, **controls), follow={"layer": "layer"})

st.header("What the experts are")
parts = {
    "What each expert adds": "contribution",
    "The shared expert": "shared_expert",
    "What a limit on each expert would drop": "capacity",
    "What is left of the dense parent": "upcycling_lineage",
}
for title, name in parts.items():
    with results.part(title, name, recording) as is_open:
        if is_open:
            results.every(results.result(recording, name), follow=follow)
with results.part("How alike the experts of the layer are", "expert_similarity", recording) as is_open:
    if is_open:
        results.every(results.result(recording, "expert_similarity", layer=layer), follow=follow)
