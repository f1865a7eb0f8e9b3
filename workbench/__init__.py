"""A workbench for analysing and interpreting Mixture-of-Experts language models.

The engine: load a model, prove and record what its routers do over a corpus, read the recording. Public names are
imported when they are first used, so that reading a recording needs no torch; one that needs what is not installed
raises `MissingExtra`, an `ImportError`, with the pip command.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from workbench.extras import extra_named

if TYPE_CHECKING:
    from workbench.capture.proof.model import check_capture
    from workbench.capture.record import Progress, record
    from workbench.errors import WorkbenchError
    from workbench.models.loading import Model, from_module, load, memory_forecast
    from workbench.models.topology import Topology, topology
    from workbench.recordings.corpus import Corpus, Document
    from workbench.recordings.importers.build import import_trace
    from workbench.recordings.recording import Recording

    __version__: str

_HOMES = {
    "workbench.capture.record": ("Progress", "record"),
    "workbench.recordings.corpus": ("Corpus", "Document"),
    "workbench.errors": ("WorkbenchError",),
    "workbench.recordings.importers.build": ("import_trace",),
    "workbench.capture.proof.model": ("check_capture",),
    "workbench.models.loading": ("Model", "from_module", "load", "memory_forecast"),
    "workbench.models.topology": ("Topology", "topology"),
    "workbench.recordings.recording": ("Recording",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "load", "record", "import_trace", "Recording", "Corpus", "Document", "Model", "Topology", "Progress",
    "WorkbenchError", "check_capture", "from_module", "memory_forecast", "topology",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("workbench.version").workbench_version()
    if name not in _HOME_OF:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    with extra_named(f"workbench.{name}"):
        return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
