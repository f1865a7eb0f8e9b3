"""Models: choose one, see what it is made of and what it would take, and prove that it can be captured."""

from functools import partial

import streamlit as st
from components import charts, choices, jobs, results

from workbench.models import bundled, diagram
from workbench.models.topology import Topology

st.title("Models")
known = [*jobs.known_models(), *bundled.published_configs()]
model = choices.choose(
    "Model",
    "model",
    known,
    default="tiny-moe",
    place=st,
    accept_new_options=True,
    help="A bundled model, a published config, or type a local folder or a hub id such as Qwen/Qwen1.5-MoE-A2.7B.",
)
look = jobs.look_at(model)
if look is not None:
    topology = Topology.from_json(look["topology"])
    results.facts(diagram.facts(topology))
    figure = diagram.picture(topology, model)
    charts.draw(figure, "picture", gaps=True)
    st.caption(jobs.plain(figure.caption))
    if look.get("quantization"):
        st.caption(f"Weights on disk: quantized ({jobs.plain(look['quantization'])}).")

    memory, capture = charts.beside()
    with memory:
        st.subheader("Memory forecast")
        table, sentence = diagram.memory(look["forecast"])
        st.write(jobs.plain(sentence))
        gib = st.column_config.NumberColumn(format="%.3f")
        order = ["GiB", "what"]  # the figure stays in sight where there is little room
        st.dataframe(table, hide_index=True, column_order=order, column_config={"GiB": gib})
        st.button("Look again", on_click=jobs.look_again, args=(model,), type="tertiary", icon=":material/refresh:")
    with capture:
        st.subheader("Capture check")
        st.write(
            "Five proofs that what is captured is what the model did: shapes, logits, rebuild, causality, padding."
        )
        if model in bundled.published_configs():
            st.caption("A published config has no weights here, so there is nothing to load.")
        elif st.button("Load the model and prove the capture"):
            jobs.submit(f"prove {model}", partial(jobs.host().inspect, model, check=True))
        proved = jobs.answer(f"prove {model}")
        if proved is not None:
            st.success("The capture is proved.", icon=":material/verified:")
            st.dataframe(diagram.proofs(proved["check"]), hide_index=True)
            for remark in proved["remarks"]:
                st.caption(f"{jobs.plain(remark)}.")
