"""Makes `docs/metrics.md`: every metric, the analysis that answers with it, and the page of the app that shows it.

    python -m docs.metrics [--out docs]

Nothing is listed by hand but what capture counts while the model runs: the rest is read from the code, names followed
through imports. So a metric that nobody can reach stands out, and a test refuses it.
"""

import argparse
import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import workbench.metrics
from analyses import _batch

ROOT = Path(__file__).resolve().parent.parent
RECORDED = {
    "weights": ("similarity.cosine_similarity", "similarity.router_similarity", "similarity.linear_cka",
                "similarity.best_match", "similarity.matched_similarity", "similarity.similarity_agreement"),
    "experts": ("contribution.contribution", "contribution.shared_share", "contribution.peer_contribution"),
    "attention": ("attention.query_statistics", "attention.by_bin", "heads.sink_windows", "heads.repeated_scores"),
    "attention-weights": ("attention.weighed_statistics", "heads.head_divergence"),
}  # fmt: skip
"""What is measured while the model runs, by the field that holds it: by capture's own code, held against these."""
_SCORES = ("router_confidence", "token_routing")
PLAIN = {
    "router.token_entropy": _SCORES, "router.token_entropy_from_logits": _SCORES, "router.margin": _SCORES,
    "router.topk_mass": _SCORES, "load.expert_counts": ("expert_load", "load_balance"),
    "load.document_counts": ("expert_load", "load_balance"), "load.gate_mass": ("expert_load",),
    "load.max_violation": ("load_balance",), "load.min_violation": ("load_balance",),
    "load.dead_experts": ("load_balance",), "load.z_loss": ("router_confidence",),
    "specialization.domain_load": ("domain_load",), "vocabulary.label_counts": ("specialization",),
    "structure.pair_counts": ("coactivation",), "structure.flow_counts": ("layer_flow",),
    "capacity.drop_fraction": ("capacity",), "agreement.pair_sums": ("same_token",),
}  # fmt: skip
"""Of all tokens at once: the recording, or the analysis part by part, adds up the same. Tests hold them together."""
TOOLS = ("sets", "clusters", "bags", "folds", "extremes", "floors", "nulls", "uncertainty", "rounds", "matching")
"""Modules of intervals, nulls and sets, which metrics are made of or stand beside."""
_HEADING = """# Metrics: what there is, and where to see it

Each is a function of `workbench.metrics`, NumPy in and out; its docstring has the definition, range, unit, what it
refuses, when it is NaN, and the source. `workbench analyze RECORDING ANALYSIS` answers with it on the command line, the
page in the app. This page is written by `python -m docs.metrics`, from the code.

| metric | what it is | analysis | page |
| --- | --- | --- | --- |
"""


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(importlib.import_module(module)))


@cache
def _names(module: str) -> dict[str, str]:
    """What the imports of a module call what: local name to qualified name."""
    found = {}
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("analyses", "workbench"):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _mentioned(node: ast.AST, module: str) -> set[str]:
    """Qualified names that code speaks of."""
    names, found = _names(module), set()
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id in names:
            found.add(f"{names[each.value.id]}.{each.attr}")
        elif isinstance(each, ast.Name):
            found.add(names.get(each.id, f"{module}.{each.id}"))
    return found


@cache
def _reached(name: str) -> frozenset[str]:
    """Functions of metrics that a function or class, or a module of analyses, leads to."""
    found: set[str] = set()
    queue = [name]
    while queue:
        whole = queue.pop()
        if whole.startswith("workbench.metrics."):
            whole = ".".join(whole.split(".")[:4])  # of a class, not its method
        elif whole.startswith("analyses."):
            whole = ".".join(whole.split(".")[:3])
        module, _, last = whole.rpartition(".")
        if whole in found:
            continue
        found.add(whole)
        if module == "analyses":
            queue += _mentioned(_tree(whole), whole)
            continue
        if not module.startswith(("analyses.", "workbench.metrics.")):
            continue
        for node in _tree(module).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == last:
                queue += _mentioned(node, module)
            if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == last for target in node.targets):
                queue += _mentioned(node, module)
    return frozenset(each for each in found if each.startswith("workbench.metrics."))


def metrics() -> Iterator[tuple[str, str]]:
    """Each metric as `module.name`, and its docstring."""
    for info in pkgutil.iter_modules(workbench.metrics.__path__):
        if info.name.startswith("_") or info.name in TOOLS:
            continue
        module = importlib.import_module(f"workbench.metrics.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith(("_", "refuse")):
                yield f"{info.name}.{name}", inspect.getdoc(function) or ""


def analyses_of(metric: str) -> list[str]:
    """The analyses that answer with a metric, by name."""
    of_recordings = [name for name in _batch.names() if hasattr(_batch.get(name), "NEEDS")]
    found = {name for name in of_recordings if f"workbench.metrics.{metric}" in _reached(f"analyses.{name}")}
    fields = [field for field, names in RECORDED.items() if metric in names]
    found |= {name for name in of_recordings if set(fields) & set(_batch.get(name).NEEDS)}
    return sorted(found | set(PLAIN.get(metric, ())))


@cache
def pages_of(analysis: str) -> tuple[str, ...]:
    """The pages that show an analysis; Compare shows any, of two recordings."""
    files = sorted((ROOT / "pages").glob("*.py"))
    shared = {"experts": "utilization", "mapping": "attention"}
    pages = [shared.get(file.stem, file.stem) for file in files if f'"{analysis}"' in file.read_text(encoding="utf-8")]
    return tuple(dict.fromkeys(pages))


def text() -> str:
    """The page."""
    lines = []
    for metric, doc in metrics():
        first = doc.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        names = analyses_of(metric)
        pages = dict.fromkeys(page.replace("_", " ").capitalize() for name in names for page in pages_of(name))
        lines.append(f"| `{metric}` | {first} | {', '.join(f'`{name}`' for name in names)} | {', '.join(pages)} |")
    return _HEADING + "\n".join(lines) + "\n"


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    (parser.parse_args().out / "metrics.md").write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
