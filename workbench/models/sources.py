"""Where a model's files are: names are resolved here and nowhere else.

A name is, in this order: a bundled model, a local folder, a published config, a hub id.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import ModelError
from workbench.models.bundled import CONFIGS, MODELS, bundled_names, published_configs, revisions

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """Where the files of a model are.

    Attributes:
        name: The name it was asked for by, without the revision.
        revision: Bundled checkpoint or hub revision; empty for the only or newest one.
        folder: A folder, a config file, or a hub id.
        kind: `bundled`, `folder`, `config` or `hub`.
    """

    name: str
    revision: str
    folder: str
    kind: str

    @property
    def hub_revision(self) -> str | None:
        """The revision to ask the hub for; None elsewhere and for the newest."""
        return (self.revision or None) if self.kind == "hub" else None


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
    if "/" not in bare and (MODELS / bare / "model.safetensors").is_file():
        folder = MODELS / bare / wanted
        if wanted and not (folder / "model.safetensors").is_file():
            known = ", ".join(revisions(bare))
            raise ModelError(
                f"the bundled model {bare!r} has no revision {wanted!r}; it has {known}, or none for the last."
            )
        return Source(bare, wanted, str(folder), "bundled")
    if Path(name).is_dir():
        return Source(Path(name).resolve().name, revision or "", name, "folder")
    if bare in published_configs():
        if weights != "dummy":
            raise ModelError(
                f"{bare!r} is a published config without weights; load it with weights='dummy', or give its hub id."
            )
        return Source(bare, "", str(CONFIGS / f"{bare}.json"), "config")
    if _HUB_ID.fullmatch(bare):
        return Source(bare, wanted, bare, "hub")
    raise ModelError(
        f"unknown model {name!r}. Known: bundled {', '.join(bundled_names())}; published configs "
        f"{', '.join(published_configs()) or 'none'} (dummy weights); or give a local folder or a hub id OWNER/NAME."
    )


def hub_advice() -> str:
    """What to do where the hub gave nothing."""
    if os.environ.get("HF_HUB_OFFLINE"):
        return "it is not on this machine yet, and the hub is not asked here (workbench app --hub, or HF_HUB_OFFLINE=0)"
    return "check the connection to the hub"
