"""Efficiency: what any config costs beside a dense model, whether the card's claim can be, and what was measured."""

import streamlit as st
from components import charts, choices, jobs, measurements, results

from workbench.efficiency.costs.comparison import Costed, published_names, with_counterpart
from workbench.efficiency.costs.counterparts import KINDS
from workbench.efficiency.costs.devices import DEVICES
from workbench.models import bundled
from workbench.models.topology import Topology

results.ask("Efficiency", "crossover")
models = [*bundled.published_configs(), *bundled.bundled_names()]
model = choices.choose("Model", "model", models, default="qwen2-57b-a14b", quiet=True, accept_new_options=True)
against = choices.choose("Beside", "beside", [*KINDS, *models], default="qwen1.5-32b", accept_new_options=True)
device = choices.choose("Device", "device", [*DEVICES, *(f"2x{name}" for name in DEVICES)], default="h200")
looks = {name: jobs.look_at(name) for name in dict.fromkeys((model, *(() if against in KINDS else (against,))))}
if None in looks.values():
    measurements.part(model, against)
    st.stop()
topologies = {name: Topology.from_json(look["topology"]) for name, look in looks.items()}
if against in KINDS:
    subject = with_counterpart(model, topologies[model], against)
else:
    subject = Costed(model, topologies[model], against, topologies[against])
st.caption(jobs.plain(subject.words))
crossover = results.of_costs(subject, "crossover", device=device)
faster, by_batch = charts.beside()
with faster:
    results.show(crossover, "map")
with by_batch:
    results.show(crossover, "by_batch")
roofline = results.of_costs(subject, "roofline", device=device)
bound, throughput = charts.beside()
with bound:
    results.show(roofline, "intensity")
with throughput:
    results.show(roofline, "throughput")
with results.folded("Tables") as is_open:
    for shown, table in ((roofline, "steps"), (crossover, "map"), (crossover, "crossings")) if is_open else ():
        if table in shown.tables:
            results.table(shown, table)

with results.folded("The published claim, and published quality beside cost") as is_open:
    found = {name: jobs.look_at(name) for name in published_names()} if is_open else {"": None}
    if None not in found.values():
        published = {name: Topology.from_json(look["topology"]) for name, look in found.items()}
        subject = Costed(subject.name, subject.topology, subject.against, subject.other, subject.note, published)
        for name, figures in (("card_claim", ("ratio", "share")), ("quality_cost", ("by_active", "by_floor"))):
            shown = results.of_costs(subject, name)
            for figure in figures:
                results.show(shown, figure)

measurements.part(model, against)
