"""Compare: two recordings of one corpus, layer by layer, token by token, and in any analysis."""

import drawing
import jobs
import shared
import showing
import streamlit as st

showing.ask("Compare", "differences")
recording = shared.choose_recording()
other = shared.choose_other(recording)
if other is None:
    shared.offer_second(recording)
    st.stop()
kinds = {"auto": "by model", "same": "equal ids are equal experts", "matched": "matched first"}
experts = shared.choose("Experts", "experts", list(kinds), default="auto", format_func=kinds.get)
ceiling = shared.choose_ceiling(recording)
overview = showing.result(recording, "differences", against=other, experts=experts, ceiling=ceiling)
st.caption(jobs.plain(f"{' against '.join(overview.result.names)}. {overview.result.note}"))
showing.show(overview, "by_layer")
differences, loss = drawing.beside()
with differences:
    showing.show(overview, "differences")
with loss:
    showing.show(overview, "loss")

if "agreement" in overview.tables:
    st.header("Token by token")
    agreement = showing.result(recording, "saturation", against=other, experts=experts, ceiling=ceiling)
    by_layer, by_domain = drawing.beside()
    with by_layer:
        showing.show(agreement, "by_layer")
    with by_domain:
        showing.show(agreement, "by_domain")
with showing.folded("Tables") as is_open:
    for table in overview.tables if is_open else ():
        showing.table(overview, table)

st.header("In any analysis")
name = shared.choose("Analysis", "analysis", showing.names_of_one(), default=None, place=st, placeholder="choose one")
if name is not None:
    compared = showing.result(recording, name, against=other, experts=experts)
    for figure in compared.figures:
        showing.show(compared, figure)
    st.caption(jobs.plain(compared.result.said))
    for table in compared.tables:
        showing.table(compared, table)
