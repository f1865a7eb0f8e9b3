"""Compare: two recordings of one corpus, layer by layer, token by token, and in any analysis."""

import streamlit as st
from components import charts, choices, jobs, results

results.ask("Compare", "differences")
recording = choices.choose_recording()
other = choices.choose_other(recording)
if other is None:
    choices.offer_second(recording)
    st.stop()
kinds = {"auto": "by model", "same": "equal ids are equal experts", "matched": "matched first"}
experts = choices.choose("Experts", "experts", list(kinds), default="auto", format_func=kinds.get)
ceiling = choices.choose_ceiling(recording)
overview = results.result(recording, "differences", against=other, experts=experts, ceiling=ceiling)
st.caption(jobs.plain(f"{' against '.join(overview.result.names)}. {overview.result.note}"))
results.show(overview, "by_layer")
differences, loss = charts.beside()
with differences:
    results.show(overview, "differences")
with loss:
    results.show(overview, "loss")

if "agreement" in overview.tables:
    st.header("Token by token")
    agreement = results.result(recording, "saturation", against=other, experts=experts, ceiling=ceiling)
    by_layer, by_domain = charts.beside()
    with by_layer:
        results.show(agreement, "by_layer")
    with by_domain:
        results.show(agreement, "by_domain")
with results.folded("Tables") as is_open:
    for table in overview.tables if is_open else ():
        results.table(overview, table)

st.header("In any analysis")
name = choices.choose("Analysis", "analysis", results.names_of_one(), default=None, place=st, placeholder="choose one")
if name is not None:
    compared = results.result(recording, name, against=other, experts=experts)
    for figure in compared.figures:
        results.show(compared, figure)
    st.caption(jobs.plain(compared.result.said))
    for table in compared.tables:
        results.table(compared, table)
