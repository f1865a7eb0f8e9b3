"""Efficiency: what any config costs beside a dense model, whether the card's claim can be, and what was measured."""

import drawing
import jobs
import measuring
import shared
import showing
import streamlit as st

from workbench.efficiency.counterparts import KINDS
from workbench.efficiency.devices import DEVICES
from workbench.efficiency.subject import Costed, published_names, with_counterpart
from workbench.models import bundled
from workbench.models.topology import Topology

showing.ask("Efficiency", "crossover")
models = [*bundled.published_configs(), *bundled.bundled_names()]
model = shared.choose("Model", "model", models, default="qwen2-57b-a14b", quiet=True, accept_new_options=True)
against = shared.choose("Beside", "beside", [*KINDS, *models], default="qwen1.5-32b", accept_new_options=True)
device = shared.choose("Device", "device", [*DEVICES, *(f"2x{name}" for name in DEVICES)], default="h200")
looks = {name: jobs.look_at(name) for name in dict.fromkeys((model, *(() if against in KINDS else (against,))))}
if None in looks.values():
    measuring.part(model, against)
    st.stop()
topologies = {name: Topology.from_json(look["topology"]) for name, look in looks.items()}
if against in KINDS:
    subject = with_counterpart(model, topologies[model], against)
else:
    subject = Costed(model, topologies[model], against, topologies[against])
st.caption(jobs.plain(subject.words))
crossover = showing.of_costs(subject, "crossover", device=device)
faster, by_batch = drawing.beside()
with faster:
    showing.show(crossover, "map")
with by_batch:
    showing.show(crossover, "by_batch")
roofline = showing.of_costs(subject, "roofline", device=device)
bound, throughput = drawing.beside()
with bound:
    showing.show(roofline, "intensity")
with throughput:
    showing.show(roofline, "throughput")
with showing.folded("Tables") as is_open:
    for shown, table in ((roofline, "steps"), (crossover, "map"), (crossover, "crossings")) if is_open else ():
        if table in shown.tables:
            showing.table(shown, table)

with showing.folded("The published claim, and published quality beside cost") as is_open:
    found = {name: jobs.look_at(name) for name in published_names()} if is_open else {"": None}
    if None not in found.values():
        published = {name: Topology.from_json(look["topology"]) for name, look in found.items()}
        subject = Costed(subject.name, subject.topology, subject.against, subject.other, subject.note, published)
        for name, figures in (("card_claim", ("ratio", "share")), ("quality_cost", ("by_active", "by_floor"))):
            shown = showing.of_costs(subject, name)
            for figure in figures:
                showing.show(shown, figure)

measuring.part(model, against)
