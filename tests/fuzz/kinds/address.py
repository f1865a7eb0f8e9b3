"""Addresses: the app's pages with choices that are not there, cannot be meant, or were made by hand."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch
from urllib.parse import urlencode

from streamlit.testing.v1 import AppTest

from tests.fuzz import bases
from tests.fuzz.mutate import NUMBERS, TEXTS
from tests.fuzz.trial import ROOT, Failure, Trial

PAGES = ROOT / "pages"
NAMES = (
    "recording", "layer", "expert", "document", "token", "from", "open", "aside", "against", "experts", "phase",
    "model", "head", "analysis", "width", "measurement", "colour", "untrained", "ceiling", "beside", "tokens", "least",
    "most", "device", "dtype", "batch", "context", "set", "no-such",
)  # fmt: skip
OPENED = (
    "models", "record", "tokens", "utilization", "load_balance", "specialization", "structure", "attention", "compare",
    "efficiency", "export",
)  # fmt: skip
_TEXTS = [text for text in TEXTS if "\ud800" not in text]  # an address cannot hold half a letter


def prepare(base: Path) -> None:
    """A data folder with recordings that are whole, and one that is not."""
    folder = base / "data" / "recordings"
    folder.mkdir(parents=True)
    bases.recordings(folder)
    shutil.copytree(folder / "plain", folder / "damaged")
    (folder / "damaged" / "manifest.json").write_text("{")


def run(trial: Trial) -> None:
    """Opens a page by an address."""
    rng = trial.rng
    data = trial.out / "data"
    shutil.copytree(trial.base / "data", data)
    page = rng.choice(OPENED)
    names = rng.sample(NAMES, rng.choice((1, 2, 3, 5)))
    address = {name: _value(rng, name) for name in names}
    if rng.random() < 0.4:
        address["aside"] = _aside(rng)
    if rng.random() < 0.6:
        address["recording"] = rng.choice(("whole", "plain", "written", "dense", "imported-npz", "imported-stat"))
    trial.note(f"{page}?{urlencode(address)}"[:1_000])
    with _app(data):
        trial.attempt(page, _open, trial, page, address)


def _value(rng: Random, name: str) -> str:
    if name == "aside":
        return _aside(rng)
    plain = ("0", "1", "2", "7", "d0", "whole", "plain", "written", "prefill", "decode", "same", "matched", "auto",
             "expert_load", "differences", "text", "entropy", "tiny-moe", "table", "h200")  # fmt: skip
    return str(rng.choice((rng.choice(plain), rng.choice(plain), rng.choice(NUMBERS), rng.choice(_TEXTS))))


def _aside(rng: Random) -> str:
    """What is put aside, as the app writes it, with something changed."""
    said = []
    for _ in range(rng.choice((1, 1, 2, 5))):
        known: dict[str, Any] = {
            "of": rng.choice(("whole", "plain", "damaged", "no", "../plain")),
            "names": rng.choice(("loads", "shares", "a,b", "")),
            "analysis": rng.choice(("expert_load", "specialization", "differences", "saturation", "throughput", "no")),
            "set": rng.choice(("layer=0", "experts=same", "document=d0", "untrained=plain", "ceiling=no", "a", "=")),
            "against": rng.choice(("", "plain", "no", "..")), "experts": rng.choice(("same", "matched", "auto", "no")),
            "phase": rng.choice(("", "prefill", "decode", "no")),
        }  # fmt: skip
        for key in rng.sample(sorted(known), rng.choice((0, 1, 2))):
            known[key] = rng.choice((_value(rng, "x"), "", known[key]))
        said.append(urlencode({key: value for key, value in known.items() if rng.random() < 0.8}))
    return "|".join(said)


def _open(trial: Trial, page: str, address: dict[str, str]) -> None:
    app = AppTest.from_file(str(PAGES / "app.py"), default_timeout=120)
    for name, value in address.items():
        app.query_params[name] = value
    app.switch_page(f"{page}.py").run()
    for found in app.exception:
        trial.fail(Failure("traceback", _signature(found), page, f"{found.value}\n" + "\n".join(found.stack_trace)))
    for found in app.error:
        trial.refused(page, found.value)


def _signature(found: Any) -> str:
    ours = [line for line in found.stack_trace if str(ROOT) in line and "site-packages" not in line]
    where = (ours or found.stack_trace or [""])[-1].strip().split("\n")[0]
    return f"page: {found.value[:60]} {where.replace(str(ROOT), '')}"[:200]


@contextlib.contextmanager
def _app(data: Path) -> Iterator[None]:
    """The app over a data folder, with a model host whose process follows a script."""
    from tests.hosting import ScriptedProcess
    from workbench.jobs import queue

    main, path = sys.modules["__main__"], list(sys.path)
    sys.path.insert(0, str(PAGES))
    with (
        patch.object(queue, "ModelProcess", ScriptedProcess),
        patch.dict(os.environ, {"WORKBENCH_DATA": str(data)}),
    ):
        try:
            yield
        finally:
            if "jobs" in sys.modules:
                sys.modules["jobs"]._host.clear()  # ends the host
            sys.modules["__main__"], sys.path[:] = main, path
