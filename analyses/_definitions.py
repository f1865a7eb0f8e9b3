"""Which metrics an analysis answers with, read from the code: names are followed through imports.

For a page that says what its numbers are, and for docs/metrics.md. Nothing is listed by hand but what capture counts
while the model runs.
"""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache

import workbench.metrics
from analyses import _batch

RECORDED = {
    "weights": ("similarity.cosine_similarity", "similarity.router_similarity", "similarity.linear_cka",
                "similarity.best_match", "similarity.matched_similarity", "similarity.similarity_agreement"),
    "experts": ("contribution.contribution", "contribution.shared_share", "contribution.peer_contribution"),
    "attention": ("attention.query_statistics", "attention.by_bin", "heads.sink_windows", "heads.repeated_scores"),
    "attention-weights": ("attention.weighed_statistics", "heads.head_divergence"),
}  # fmt: skip
"""What is measured while the model runs, by the field that holds it: by capture's own code, compared with these."""
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
TOOLS = (
    "sets", "clusters", "bags", "folds", "extremes", "floors", "nulls", "uncertainty", "rounds", "matching",
    "neighbours",
)  # fmt: skip
"""Modules of intervals, nulls, sets and neighbours, which metrics are made of or stand beside."""


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(importlib.import_module(module)))


@cache
def _names(module: str) -> dict[str, str]:
    """What the imports of a module call what: local name to qualified name."""
    found: dict[str, str] = {}
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("analyses", "workbench"):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _mentioned(node: ast.AST, module: str) -> set[str]:
    """Qualified names that code speaks of."""
    names, found = _names(module), set[str]()
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


def definitions(analysis: str) -> dict[str, tuple[str, str]]:
    """The metrics that an analysis answers with: of each, by `module.name`, its definition and its source, in words."""
    reached = _reached(f"analyses.{analysis}")
    by_field = {metric for field in getattr(_batch.get(analysis), "NEEDS", ()) for metric in RECORDED.get(field, ())}
    found = {}
    for metric, doc in metrics():
        if f"workbench.metrics.{metric}" in reached or metric in by_field or analysis in PLAIN.get(metric, ()):
            said, _, _ = doc.partition("\n\nArgs:")
            said, _, _ = said.partition("\n\nRaises:")
            said, _, _ = said.partition("\n\nReturns:")
            _, _, source = doc.partition("Source:\n")
            found[metric] = (said, " ".join(source.split()))
    return found
