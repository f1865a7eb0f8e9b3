"""The entry: which pages there are, and what is around each of them."""

from pathlib import Path

import streamlit as st
from components import auth, choices, jobs

# An icon of our own: Streamlit would fetch a named one from the network.
st.set_page_config(page_title="MoE workbench", page_icon=Path(__file__).with_name("icon.svg"), layout="wide")
page = st.navigation(
    {
        "Start": [
            st.Page("models.py", title="Models", icon=":material/schema:", default=True),
            st.Page("record.py", title="Record", icon=":material/radio_button_checked:"),
        ],
        "Explore": [
            st.Page("tokens.py", title="Tokens", icon=":material/text_fields:"),
            st.Page("utilization.py", title="Utilization", icon=":material/grid_on:"),
            st.Page("load_balance.py", title="Load balance", icon=":material/balance:"),
            st.Page("specialization.py", title="Specialization", icon=":material/label:"),
            st.Page("structure.py", title="Structure", icon=":material/hub:"),
            st.Page("attention.py", title="Attention", icon=":material/visibility:"),
            st.Page("compare.py", title="Compare", icon=":material/compare_arrows:"),
        ],
        "Measure": [st.Page("efficiency.py", title="Efficiency", icon=":material/speed:")],
        "Print": [st.Page("export.py", title="Export", icon=":material/print:")],
    }
)
with jobs.sentences():
    auth.enter()
    jobs.host()
    choices.enter(page)
    page.run()
    choices.write_address()
