"""The table family × proof of `docs/families.md`: what the family tests found, and why some families are refused.

python -m tests.families.table
"""

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from workbench.models.topology import Topology

DOCS = Path(__file__).resolve().parents[2] / "docs" / "families.md"
_NOTES = "WORKBENCH_FAMILY_NOTES"  # where a run that makes the table collects what it found


@dataclass(frozen=True)
class Explained:
    """Why a family is refused, and by what error."""

    error: str
    reason: str


EXPLAINED = {
    "doge": Explained(
        r"doge: the block 'model\.layers\.0' has a router but no module named 'experts'",
        "Its experts are rows of two embeddings, retrieved by product keys inside one module: there is no experts "
        "module to read. transformers says of its router that it mixes the logits of different tokens, so that routing "
        "is not causal in a full forward pass: the proof of causality could not hold.",
    ),
    "jetmoe": Explained(
        r"jetmoe: the block 'model\.layers\.0\.mlp' has a router but no module named 'experts'",
        "Its blocks call two parallel linear maps on tokens sorted by expert, and the one in attention is called "
        "through methods (map, reduce) that no hook sees.",
    ),
}


# Families whose routing is recorded, and whose field `experts` is refused.
EXPERTS_REFUSED = {
    **dict.fromkeys(
        ("axk1", "gemma4", "gemma4_text"),
        Explained(
            r"what an expert adds cannot be told: it is transformed before it is added",
            "What the experts put out is normalized before it is added: what one of them adds depends on the others.",
        ),
    ),
    "nemotron_h": Explained(
        r"what an expert adds cannot be told: what it puts out has width 16 and is mapped to 32",
        "The experts work in a narrower width, and their sum is mapped back to the model's.",
    ),
}


def note(family: str, topology: Topology, check: Mapping[str, Any]) -> None:
    """Collects a family's row, where a run that makes the table asks for it."""
    if folder := os.environ.get(_NOTES):
        row = {"topology": topology.to_json(), "check": dict(check)}
        (Path(folder) / f"{family}.json").write_text(json.dumps(row))


def _row(family: str, note: Mapping[str, Any]) -> str:
    topology, check = Topology.from_json(note["topology"]), note["check"]
    rules = "; ".join(dict.fromkeys(router.rule for router in topology.routers))
    first = topology.routers[0]
    shared = f"{'gated' if first.shared_gate else 'yes'}" if first.shared_width else "no"
    layers = f"{len(topology.moe_layers)} of {topology.n_layers}"
    proofs = [f"{check[name]:.0e}" for name in ("logits_error", "experts_error", "block_error")]
    cells = [family, layers, rules, shared, "exact", *proofs, f"{check['causal_leak']:.0e}", "same"]
    return f"| {' | '.join(cells)} |"


def write(notes: Path) -> None:
    """Writes the page."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted(notes.glob("*.json"))}
    names = sorted([*found, *EXPLAINED])
    rows = [_row(n, found[n]) if n in found else f"| {n} | refused, see below |{' |' * 8}" for n in names]
    without = "\n".join(f"- **{name}**: {e.reason}" for name, e in EXPERTS_REFUSED.items())
    reasons = "\n".join(f"- **{name}**: {e.reason}" for name, e in EXPLAINED.items())
    DOCS.write_text(
        f"""# Which families are captured, and what was proved of each

Made by `python -m tests.families.table` from a run of `tests/families` with transformers {transformers.__version__}:
every model type of its causal-language-model registry that declares a router recorder ({len(names)}), as a tiny random
model in float32 whose routers are decided, whose correction biases are random, and whose experts stand in groups where
the family knows groups. The rule is that of the tiny model; a checkpoint's own is shown by `workbench inspect`.

Columns: *layers* with a router. *Shared* expert. *Shapes*: ids unique and in range, weights finite. *Logits*: largest
relative difference from the router's own linear map; chosen ids and weights follow from them by the rule. *Experts*,
*block*: their output rebuilt from the captured ids and weights by another implementation. *Leak*: largest change of an
earlier token's logits when an expert is replaced. *Padding*: the same experts alone and in a padded batch. Captured
logits, ids and weights equal those of plain PyTorch hooks on an unwrapped copy bit for bit in every row.

| family | layers | rule | shared | shapes | logits | experts | block | leak | padding |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

## Refused, of the field `experts`

Every other family above has it, proved by calling each expert alone and by another implementation.

{without}

## Refused

{reasons}

Encoder–decoder models (Switch, NLLB-MoE) are refused when they are loaded: their decoder reads an encoder's output, and
a recording of one text would not say what was fed to it.
""",
        encoding="utf-8",
    )


def main() -> None:
    """Runs the family tests and writes the page."""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tests = [sys.executable, "-m", "pytest", "-q", "tests/families", "-k", "not table"]
        done = subprocess.run(tests, env={**os.environ, _NOTES: folder}, check=False, capture_output=True, text=True)
        failed = re.findall("^FAILED.*", done.stdout, re.MULTILINE)
        if failed:
            sys.exit("\n".join(failed))
        write(Path(folder))
    print(DOCS)


if __name__ == "__main__":
    main()
