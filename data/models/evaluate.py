"""Measures the bundled models on held-out text, and writes the tables of their model card.

    python data/models/evaluate.py --heldout CORPUS/heldout

Needs a folder of `DOMAIN.jsonl` files. Records every bundled model and revision over it, writes
`evaluation.json`, and replaces what stands between the markers in README.md.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import workbench as wb
from workbench.metrics import load, specialization
from workbench.models.bundled import bundled_models
from workbench.models.topology import Topology
from workbench.recordings.corpus import Corpus, Document
from workbench.recordings.recording import Recording
from workbench.statistics import extremes, intervals, permutation
from workbench.statistics.design import Clusters

FOLDER = Path(__file__).resolve().parent
BEGIN, END = "<!-- evaluation: made by evaluate.py -->", "<!-- end of evaluation -->"
BITS = 1 / np.log(2)


def heldout(folder: Path) -> Corpus:
    """All domains as one corpus."""
    documents: list[Document] = []
    for file in sorted(folder.glob("*.jsonl")):
        documents.extend(Corpus.read(file).documents)
    return Corpus("heldout", tuple(documents))


def flops_per_token(topology: Topology, config: Any) -> int:
    """FLOPs of the matrix products with weights, output included, of one token (1 multiply-add = 2 FLOPs).

    Attention's scores are left out: they grow with the context, and are the same for both models.
    """
    h, n, g, d = topology.width, topology.n_heads, topology.n_kv_groups, topology.head_width
    total = 2 * h * topology.vocabulary + topology.n_layers * (4 * h * n * d + 4 * h * g * d)
    routed = {router.layer: router for router in topology.routers}
    for layer in range(topology.n_layers):
        if router := routed.get(layer):
            widths = router.top_k * router.expert_width + router.shared_width
            total += 6 * h * widths + 2 * h * router.n_experts + 2 * h * router.shared_gate
        else:
            total += 6 * h * config.intermediate_size
    return total


def losses(recording: Recording) -> tuple[np.ndarray, np.ndarray, Clusters]:
    """Sum of the loss and number of scored tokens of each document, in corpus order, and the design."""
    documents = recording.documents().sort_values("document")
    scored_D = documents["tokens"].to_numpy() - 1.0
    clusters = Clusters.of(documents["domain"].to_numpy(), cluster_D=documents["cluster"].to_numpy())
    return documents["loss"].to_numpy() * scored_D, scored_D, clusters


def routing(recording: Recording) -> list[dict[str, float]]:
    """Balance and domain information of every layer."""
    documents = recording.documents()
    clusters = Clusters.of(documents["domain"].to_numpy(), cluster_D=documents["cluster"].to_numpy())
    domain_of = np.empty(len(documents), dtype=np.int64)
    domain_of[documents["document"]] = clusters.domain_D
    domain_T, token_T = domain_of[recording.column("document")], recording.column("token")
    rows = []
    for router in recording.topology.routers:
        counts_DE = recording.counts(router.layer)
        resamples = intervals.cluster_bootstrap(counts_DE, clusters=clusters)
        violation = extremes.max_violation_interval(extremes.max_t_band(resamples.corpus))
        balance = permutation.balance_test(counts_DE, clusters=clusters)
        information = intervals.bias_corrected_interval(specialization.domain_information, resamples.domains)
        permuted = specialization.domain_information_test(counts_DE, clusters=clusters)
        hashed = specialization.hash_router_information(
            token_T, domain_T, n_domains=len(clusters.domains), n_experts=router.n_experts, top_k=router.top_k
        )
        rows.append(
            {
                "layer": router.layer,
                "imbalance": float(balance.statistic),
                "balance_p": float(balance.p),
                "max_violation": float(violation.value),
                "max_violation_low": float(violation.low),
                "max_violation_high": float(violation.high),
                "dead_experts": int(load.dead_experts(counts_DE.sum(0))),
                "information_bits": float(permuted.statistic) * BITS,
                "information_low": float(information.low) * BITS,
                "information_high": float(information.high) * BITS,
                "permuted_bits": float(permuted.null_mean) * BITS,
                "permuted_p": float(permuted.p),
                "hashed_bits": float(hashed.mean()) * BITS,
            }
        )
    return rows


def evaluate(corpus: Corpus) -> dict[str, Any]:
    """Everything the card says, by model and revision."""
    names = [
        f"{name}{'@' if revision else ''}{revision}"
        for name, revisions in bundled_models().items()
        for revision in [*revisions, ""]
    ]
    result: dict[str, Any] = {"documents": len(corpus.documents), "corpus_digest": corpus.digest, "models": {}}
    kept: dict[str, tuple[np.ndarray, np.ndarray, Clusters]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            model = wb.load(name, device="cpu")
            recording = wb.record(model, corpus, Path(temporary) / name)
            nll_D, scored_D, clusters = kept[name] = losses(recording)
            by_domain = intervals.domain_ratio_interval(nll_D, scored_D, clusters=clusters)
            result["models"][name] = {
                "parameters_total": model.topology.parameters_total,
                "parameters_active": model.topology.parameters_active,
                "flops_per_token": flops_per_token(model.topology, model.module.config),
                "tokens": recording.n_tokens,
                "documents_cut": recording.manifest["corpus"]["documents_cut"],
                "loss": dict(zip(clusters.domains, by_domain.value.tolist(), strict=True)),
                "routing": routing(recording) if model.topology.routers else [],
            }
            print(f"{name}: {recording.n_tokens:,} tokens", flush=True)
    moe, scored_D, clusters = kept["tiny-moe"]
    difference = intervals.domain_ratio_interval(moe - kept["tiny-dense"][0], scored_D, clusters=clusters)
    result["moe_minus_dense"] = {
        domain: {"difference": float(value), "low": float(low), "high": float(high), "clusters": int(n)}
        for domain, value, low, high, n in zip(
            clusters.domains, difference.value, difference.low, difference.high, clusters.clusters_M, strict=True
        )
    }
    return result


def card(result: dict[str, Any]) -> str:
    """The evaluation as Markdown."""
    models = result["models"]
    lines = [
        "| model | parameters | active per token | FLOPs per token | tokens measured |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in ("tiny-moe", "tiny-dense"):
        m = models[name]
        numbers = (m["parameters_total"], m["parameters_active"], m["flops_per_token"], m["tokens"])
        lines.append(f"| `{name}` | {' | '.join(f'{number:,}' for number in numbers)} |")
    lines += [
        "",
        "Loss in nats per token. The difference is paired by document; 95 % interval over clusters of documents.",
        "",
        "| domain | parent | MoE, step 0 | MoE | dense twin | MoE − twin | 95 % interval | clusters |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for domain, d in sorted(result["moe_minus_dense"].items()):
        cells = [models[n]["loss"][domain] for n in ("tiny-dense@parent", "tiny-moe@step-0", "tiny-moe", "tiny-dense")]
        lines.append(
            f"| {domain} | {' | '.join(f'{cell:.3f}' for cell in cells)} | {d['difference']:+.4f} | "
            f"{d['low']:+.4f} to {d['high']:+.4f} | {d['clusters']} |"
        )
    lines += [
        "",
        "Balance on the held-out text, and bits a chosen expert tells about the domain (bias-corrected interval).",
        "",
        "| layer | imbalance | MaxVio (95 % interval) | dead | information | 95 % interval | domains permuted | p "
        "| hash of the id | step 0 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for now, before in zip(models["tiny-moe"]["routing"], models["tiny-moe@step-0"]["routing"], strict=True):
        lines.append(
            f"| {now['layer']} | {now['imbalance']:.3f} | {now['max_violation']:.2f} ({now['max_violation_low']:.2f} "
            f"to {now['max_violation_high']:.2f}) | {now['dead_experts']} | {now['information_bits']:.3f} | "
            f"{now['information_low']:.3f} to {now['information_high']:.3f} | {now['permuted_bits']:.3f} | "
            f"{now['permuted_p']:.3f} | {now['hashed_bits']:.3f} | {before['information_bits']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heldout", type=Path, required=True, help="folder of DOMAIN.jsonl")
    result = evaluate(heldout(parser.parse_args().heldout))
    (FOLDER / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    (FOLDER / "README.md").write_text(f"{before}{BEGIN}\n{card(result)}\n{END}{after}", encoding="utf-8")
    print(card(result))


if __name__ == "__main__":
    main()
