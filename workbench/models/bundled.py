"""What ships with the project: models with their earlier checkpoints, and published configs. Names only, no torch."""

import re

from workbench.paths import BUNDLED

MODELS = BUNDLED / "models"
CONFIGS = BUNDLED / "configs"


def bundled_models() -> dict[str, list[str]]:
    """The bundled models and their earlier revisions, oldest first."""
    return {path.parent.name: revisions(path.parent.name) for path in sorted(MODELS.glob("*/model.safetensors"))}


def bundled_names() -> list[str]:
    """Every name that loads a bundled model: `NAME`, and `NAME@REVISION` for the earlier ones."""
    return [
        f"{name}@{revision}" if revision else name
        for name, earlier in bundled_models().items()
        for revision in ["", *earlier]
    ]


def revisions(name: str) -> list[str]:
    """The earlier checkpoints of a bundled model, oldest first."""
    return sorted((path.parent.name for path in (MODELS / name).glob("*/model.safetensors")), key=_step)


def published_configs() -> list[str]:
    """The published configs, which have no weights here."""
    return sorted(path.stem for path in CONFIGS.glob("*.json"))


def _step(revision: str) -> tuple[int, str]:
    number = re.search(r"\d+$", revision)
    return (int(number.group()) if number else -1, revision)
