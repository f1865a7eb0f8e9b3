"""Where a model's files are: names are resolved here and nowhere else.

A name is, in this order: a bundled model, a local folder, a published config, a hub id. Whether the hub answers is
asked once, for seconds: its own client tries for minutes, file by file.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.utils import get_session

from workbench.errors import ModelError
from workbench.models.bundled import CONFIGS, MODELS, bundled_names, published_configs, revisions
from workbench.models.library_errors import reason

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_ANSWERS_WITHIN_S = 5.0


@dataclass(frozen=True)
class Source:
    """Where the files of a model are.

    Attributes:
        name: The name it was asked for by, without the revision.
        revision: Bundled checkpoint or hub revision; empty for the only or newest one.
        folder: A folder, a config file, or a hub id.
        kind: `bundled`, `folder`, `config` or `hub`.
        silence: Why the hub does not answer; empty where it does, or is not asked.
    """

    name: str
    revision: str
    folder: str
    kind: str
    silence: str = ""

    @property
    def hub_revision(self) -> str | None:
        """The revision to ask the hub for; None elsewhere and for the newest."""
        return (self.revision or None) if self.kind == "hub" else None

    @property
    def advice(self) -> str:
        """What to do where its config gives no model."""
        if self.kind != "hub":
            return "Mend config.json or save the model again."
        if self.silence:
            return (
                f"The hub ({constants.ENDPOINT}) does not answer here: {self.silence}. If the name is right, check the "
                "connection to the hub, or give a local folder."
            )
        if _offline():
            return (
                "If the name is right, it is not on this machine yet, and the hub is not asked here (workbench app "
                "--hub, or HF_HUB_OFFLINE=0), or give a local folder."
            )
        return "If the name is right, check the connection to the hub, or give a local folder."


def resolve(name: str, revision: str | None, weights: str) -> Source:
    """Where the model of a name is.

    Args:
        name: Bundled model, local folder, published config or hub id.
        revision: Of a bundled or hub model.
        weights: `checkpoint`, or `dummy` where none are needed.

    Raises:
        ModelError: an unknown name or revision, or a published config asked for its weights.
    """
    bare, _, behind = name.partition("@")
    wanted = revision or behind or ""
    if "/" not in bare and os.path.isfile(MODELS / bare / "model.safetensors"):
        folder = MODELS / bare / wanted
        if wanted and not os.path.isfile(folder / "model.safetensors"):
            known = ", ".join(revisions(bare))
            raise ModelError(
                f"the bundled model {bare!r} has no revision {wanted!r}; it has {known}, or none for the last."
            )
        return Source(bare, wanted, str(folder), "bundled")
    if os.path.isdir(name):  # not Path.is_dir, to which a name too long or with a zero byte is an error
        return Source(Path(name).resolve().name, revision or "", name, "folder")
    if bare in published_configs():
        if weights != "dummy":
            raise ModelError(
                f"{bare!r} is a published config without weights; load it with weights='dummy', or give its hub id."
            )
        return Source(bare, "", str(CONFIGS / f"{bare}.json"), "config")
    if _HUB_ID.fullmatch(bare):
        return Source(bare, wanted, bare, "hub", "" if _offline() else _hub_silence())
    shown = name if len(name) <= 200 else f"{name[:200]}…"
    raise ModelError(
        f"unknown model {shown!r}. Known: bundled {', '.join(bundled_names())}; published configs "
        f"{', '.join(published_configs()) or 'none'} (dummy weights); or give a local folder or a hub id OWNER/NAME."
    )


def _offline() -> bool:
    """Whether the hub is not to be asked."""
    stated = os.environ.get("HF_HUB_OFFLINE", "").lower()
    return constants.HF_HUB_OFFLINE or stated in ("1", "true", "yes", "on")


@contextmanager
def reached(source: Source) -> Iterator[None]:
    """Lets the hub be asked for a source's files where it answers; else what was fetched before is read alone."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, _offline() or bool(source.silence)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub_silence() -> str:
    """Why the hub does not answer; empty where it does, with whatever."""
    answers: list[str] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=_HUB_ANSWERS_WITHIN_S)
            answers.append("")
        except Exception as error:
            answers.append(reason(error))

    # In a thread of its own: looking up the name of a host has no limit in time that could be given.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_HUB_ANSWERS_WITHIN_S)
    return answers[0] if answers else f"nothing came within {_HUB_ANSWERS_WITHIN_S:.0f} s"
