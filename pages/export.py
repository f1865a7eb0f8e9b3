"""Export: figures and tables put aside for a paper, at the size of the page, and all of them in one bundle."""

import printing
import shared
import showing
import streamlit as st

st.title("Export")
st.markdown("**Which figures and tables go into the paper?** Add them here, or on any page beside what is shown.")
recording = shared.choose_recording()
other = shared.choose_other(recording, optional=True)
width = shared.choose("Width", "width", list(printing.WIDTHS), default="column", format_func=printing.WIDTHS.get)
names = printing.names_for(recording, other)
name = shared.choose("Analysis", "analysis", names, default=None, quiet=True, place=st, placeholder="choose one")
if name is not None:
    with showing.told():
        printing.offer(showing.result(recording, name, against=other))
results = printing.put_aside()
if not results:
    st.info("Nothing is put aside yet. Choose an analysis above, or press “Add to export” below a figure or table.")
    st.stop()

st.header("The bundle")
st.caption(
    "Figures as PDF, SVG and PNG, tables as CSV and LaTeX, where each comes from (provenance.json), the commands that "
    "make them again (reproduce.sh), and paper.tex, which shows them all: pdflatex paper.tex."
)
printing.download_bundle(results, width)
for shown, chosen in results:
    st.subheader(printing.title_of(shown))
    for each in chosen:
        printing.preview(shown, each, width)
