"""Measurements on a page: which there are, every analysis that one allows, and how one is made.

The analyses are walked, so that a new one shows itself: each is asked if the measurement has the tables that it needs.
"""

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import streamlit as st

from analyses import catalogue
from analyses.question import Question
from workbench.efficiency.measurements.measurement import MANIFEST, Measurement, is_measurement
from workbench.models import bundled
from workbench.paths import BUNDLED

from . import choices, jobs, results
from .jobs import data_folder, plain
from .recordings import changed_ns

FIRST = ("efficiency_waterfall", "throughput")


def measurements() -> dict[str, Path]:
    """The folders of measurements by name, newest first: of the data folder, and those that came with the workbench."""
    roots = {data_folder() / "measurements": "", BUNDLED / "reference": "reference/"}
    found = [
        (changed, f"{before}{file.parent.relative_to(root)}", file.parent)
        for root, before in roots.items()
        for file in root.glob(f"**/{MANIFEST}")
        if (changed := changed_ns(file)) is not None and is_measurement(file.parent)
    ]
    return {name: folder for _, name, folder in sorted(found, reverse=True)}


def part(model: str, against: str) -> None:
    """The part of the page about what was measured; where nothing was, how it is."""
    st.subheader("Measured")
    measurement = choose_measurement()
    if measurement is None:
        st.info("Nothing was measured into this data folder yet. What is measured shows here.")
    else:
        show(measurement)
    _measure(model, against)


def _measure(model: str, against: str) -> None:
    """Measures the models that are chosen, or says the command that does."""
    other = None if against.startswith("iso-") else against
    st.caption(
        "A measurement of the models chosen above, for some minutes and beside what else runs here; or by command:"
    )
    st.code(command(model, against), language="bash", wrap_lines=True)
    if st.button("Measure", icon=":material/timer:", key="measure"):
        weights = "dummy" if _published(model, other) else "checkpoint"
        with jobs.sentences():
            ask = partial(jobs.host().profile, model=model, against=other, weights=weights)
            jobs.submit("profile", ask)
    made = jobs.answer("profile")
    if made is not None:
        jobs.forget("profile")
        choices.pick(measurement=Path(made["measurement"]).name)
        st.rerun()


def _published(*names: str | None) -> bool:
    """Whether one of the models is a config without weights."""
    return any(name in bundled.published_configs() for name in names)


def choose_measurement() -> Measurement | None:
    """The measurement chosen in the sidebar, checked and open; None where there is none."""
    known = measurements()
    if not known:
        return None
    folder = known[choices.choose("Measurement", "measurement", list(known), default=next(iter(known)))]
    return _opened(str(folder), changed_ns(folder / MANIFEST) or 0)  # one that is gone says so when it is opened


@st.cache_resource(max_entries=8, show_spinner="Checking the measurement …")
def _opened(path: str, changed_ns: int) -> Measurement:
    measurement = Measurement.open(path)
    measurement.verify()
    return measurement


def show(measurement: Measurement) -> None:
    """What it is of, and every analysis that its tables allow, the first one open."""
    machine, models = measurement.manifest["machine"], measurement.models
    where = ", ".join(gpu["name"] for gpu in machine.get("gpus", [])) or machine.get("cpu", "")
    results.facts({
        "Models": ", ".join(models), "Machine": where,
        "Made": measurement.manifest["created"][:16].replace("T", " ") + " UTC", "Digest": measurement.digest[:12],
    })  # fmt: skip
    stated = measurement.manifest["tables"]
    names = catalogue.names("measurement")
    ordered = [*(name for name in FIRST if name in names), *(name for name in names if name not in FIRST)]
    there = {table for table, of in stated.items() if of["rows"]}
    lacking = {name: [need for need in catalogue.get(name).NEEDS if need not in there] for name in ordered}
    answered = [name for name in ordered if not lacking[name]]
    for name in answered[:1]:
        results.header(name)
        _every(measurement, name)
    for name in answered[1:]:
        with results.folded(_title(name)) as is_open:
            if is_open:
                results.header(name)
                _every(measurement, name)
    missing = [f"{_title(name)} ({', '.join(needs)})" for name, needs in lacking.items() if needs]
    if missing:
        st.caption(plain(f"Not asked, for the measurement lacks their tables: {'; '.join(missing)}."))
    with results.folded("What was left out, and the machine") as is_open:
        if is_open:
            st.dataframe([{"left out": line} for line in measurement.manifest.get("left_out", [])], hide_index=True)
            st.json(machine)


def _every(measurement: Measurement, name: str) -> None:
    with results.told():
        results.every(results.answered(Question(measurement, name)))


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def command(model: str, against: str) -> str:
    """What makes a measurement of two models, or of one beside which no named one stands."""
    both = [model, *([against] if not against.startswith("iso-") else [])]
    words = ["workbench", "profile", model, *(["--against", against] if len(both) > 1 else [])]
    words += ["--weights", "dummy", "--dtype", "bfloat16"] if _published(*both) else []
    return shlex.join([*words, "--out", str(data_folder() / "measurements" / _folder(both))])


def _folder(models: Sequence[str]) -> str:
    return "-".join(Path(name).name.replace("@", "-") for name in models)
