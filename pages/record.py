"""Record: a prompt or a corpus through a model, with progress and cancel; and the list of what there is."""

from functools import partial
from pathlib import Path

import streamlit as st
from components import auth, charts, choices, jobs, recordings_list

from workbench.recordings.fields import FIELDS

st.title("Record")
known = jobs.known_models()
left, right = charts.beside(first=2)
with left:
    kind = st.segmented_control("What", ["Prompt", "Corpus"], default="Prompt", required=True, key="kind")
    if kind == "Prompt":
        typed = st.text_area("Prompt", height=160, key="prompt", placeholder="Type a text …")
        what = {"prompt": typed}
    else:
        upload = st.file_uploader("A JSONL of your own: one object a line, with text and domain", type="jsonl")
        what = {"corpus": st.selectbox("Corpus", jobs.known_corpora(), disabled=upload is not None)}
with right:
    model = st.selectbox("Model", known, index=known.index("tiny-moe"), accept_new_options=True, key="recorded-model")
    fields = st.multiselect(
        "Fields", FIELDS, default=FIELDS[:2], key="fields", help=jobs.plain(recordings_list.FIELDS_HELP)
    )
    parent = None
    if "weights" in fields:
        help_ = "The dense model that the MoE was made from: the recording then holds what is left of its neurons."
        parent = st.selectbox("Dense parent", known, index=None, accept_new_options=True, key="parent", help=help_)
    cap = st.number_input("Tokens, at most", min_value=1, value=None, placeholder="all", key="cap")
    check = st.toggle("Prove the capture first", value=True, key="check")
row = st.container(horizontal=True, vertical_alignment="center")
pressed = row.button("Record", type="primary", icon=":material/radio_button_checked:")
if loaded := jobs.host().loaded:
    row.caption(f"{jobs.plain(loaded)} is in memory.", width="content")
    if not auth.is_shared():
        row.button("Release it", on_click=jobs.host().unload, type="tertiary", icon=":material/eject:")
if pressed:
    with jobs.sentences():
        if kind == "Corpus" and upload is not None:
            what = {"corpus": jobs.uploaded_corpus(upload)}
        how = {"model": model, "fields": tuple(fields), "max_tokens": cap, "check": check, "parent": parent}
        jobs.submit("record", partial(jobs.host().record, **what, **how))
made = jobs.answer("record")
if made is not None:
    jobs.forget("record")
    choices.open_tokens(Path(made["recording"]).name)

recordings_list.unfinished()
recordings_list.listed()
recordings_list.made_by()
