"""The app as `workbench app` serves it: what nobody foresaw becomes a number on the page and a traceback in the log."""

import streamlit as st
import troubles

app = st.App("app.py", on_script_error=troubles.tell)
