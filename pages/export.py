"""Export: figures and tables put aside for a paper, at the size of the page, and all of them in one bundle."""

import streamlit as st
from components import choices, export_preview, results

st.title("Export")
st.markdown("**Which figures and tables go into the paper?** Add them here, or on any page beside what is shown.")
recording = choices.choose_recording()
other = choices.choose_other(recording, optional=True)
width = choices.choose(
    "Width", "width", list(export_preview.WIDTHS), default="column", format_func=export_preview.WIDTHS.get
)
names = export_preview.names_for(recording, other)
name = choices.choose("Analysis", "analysis", names, default=None, quiet=True, place=st, placeholder="choose one")
if name is not None:
    with results.told():
        export_preview.offer(results.result(recording, name, against=other))
basket = export_preview.put_aside()
if not basket:
    st.info("Nothing is put aside yet. Choose an analysis above, or press “Add to export” below a figure or table.")
    st.stop()

st.header("The bundle")
st.caption(
    "Figures as PDF, SVG and PNG, tables as CSV and LaTeX, where each comes from (provenance.json), the commands that "
    "make them again (reproduce.sh), and paper.tex, which shows them all: pdflatex paper.tex."
)
export_preview.download_bundle(basket, width)
for shown, chosen in basket:
    st.subheader(export_preview.title_of(shown))
    for each in chosen:
        export_preview.preview(shown, each, width)
