"""Makes a large synthetic recording: skewed by expert, by domain and by document, in the real format.

    python -m tests.benchmarks.synthetic OUT [--tokens 1000000] [--layers 28] [--experts 64] [--top-k 8]

The routing is drawn, not computed by a model: scores are a sum of an expert's, a domain's and a document's preference
and noise of the token. It measures the reading side; what it says about routing means nothing.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa

from workbench.models.topology import Router, Topology
from workbench.recordings.recording import Recording
from workbench.recordings.schema import SCHEMA, id_dtype, prefix
from workbench.recordings.writer import RecordingWriter

DOMAINS = ("chinese", "code", "english", "math", "multilingual")
FIELDS = ("routing", "logprob")
SHARD_TOKENS = 65_536
VOCABULARY = 32_000


def topology(*, n_layers: int, n_experts: int, top_k: int) -> Topology:
    """A made-up model with a router in every layer."""
    routers = tuple(
        Router(
            layer=layer, site="mlp", n_experts=n_experts, top_k=top_k, scoring="softmax", normalized=False,
            shared_width=0, shared_gate=False, expert_width=1, router_path="", experts_path="", block_path="",
            shared_gate_path="", logits_index=0,
        )
        for layer in range(n_layers)
    )  # fmt: skip
    return Topology(
        family="synthetic", n_layers=n_layers, width=1, vocabulary=VOCABULARY, n_heads=1, n_kv_groups=1, head_width=1,
        context=None, routers=routers, parameters_total=0, parameters_active=0,
    )  # fmt: skip


def make(
    out: Path,
    *,
    n_tokens: int = 1_000_000,
    n_layers: int = 28,
    n_experts: int = 64,
    top_k: int = 8,
    documents_per_domain: int = 400,
    seed: int = 0,
) -> Recording:
    """Writes the recording, or opens it where the folder holds it complete.

    Args:
        out: Folder.
        n_tokens: T, spread evenly over the documents.
        n_layers: L.
        n_experts: E.
        top_k: K.
        documents_per_domain: Documents of each of five domains.
        seed: Of everything drawn.
    """
    facts = topology(n_layers=n_layers, n_experts=n_experts, top_k=top_k)
    n_documents = documents_per_domain * len(DOMAINS)
    length = n_tokens // n_documents
    per_shard = max(1, SHARD_TOKENS // length)
    shards = [range(i, min(i + per_shard, n_documents)) for i in range(0, n_documents, per_shard)]
    settings = {"tokens": n_tokens, "layers": n_layers, "experts": n_experts, "top_k": top_k, "seed": seed}
    manifest = {
        "schema": SCHEMA,
        "identity": {"model": "synthetic", **settings},
        "model": {"name": "synthetic", "revision": ""},
        "corpus": {"name": "synthetic", "domains": list(DOMAINS), "documents_cut": 0, "documents_left_out": 0},
        "fields": list(FIELDS),
        "phases": ["prefill"],
        "topology": facts.to_json(),
        "check": "no model",
    }
    with RecordingWriter(out, manifest, topology=facts, fields=FIELDS, n_shards=len(shards)) as writer:
        if not writer.closed:
            rng = np.random.default_rng(seed)
            preferences = rng.normal(0, 0.4, (n_layers, n_experts)), rng.normal(0, 0.5, (5, n_layers, n_experts))
            for index, documents in enumerate(shards):
                if index not in writer.parts:
                    writer.submit(index, *_shard(facts, documents, length, preferences, seed=seed + index))
            writer.close(
                pa.table(
                    {
                        "token": pa.array(range(VOCABULARY), pa.int32()),
                        "bytes": pa.nulls(VOCABULARY, pa.binary()),
                        "text": [f"<{i}>" for i in range(VOCABULARY)],
                    }
                )
            )
    return Recording.open(out)


def _shard(
    facts: Topology, documents: range, length: int, preferences: tuple[np.ndarray, np.ndarray], *, seed: int
) -> tuple[dict, dict]:
    rng = np.random.default_rng([seed, 1])
    n = len(documents)
    domain_D = np.array([document % len(DOMAINS) for document in documents])
    row_T = np.repeat(np.arange(n), length)
    logprob = -rng.exponential(3.0, n * length).astype(np.float32)
    logprob[::length] = np.nan
    tokens = {
        "document": np.repeat(np.array(documents, np.int32), length),
        "position": np.tile(np.arange(length, dtype=np.int32), n),
        "token": (rng.zipf(1.3, n * length) % VOCABULARY).astype(np.int32),
        "phase": np.zeros(n * length, np.int8),
        "logprob": logprob,
        "predicted": np.zeros(n * length, np.int32),
    }
    names = [f"d{document}" for document in documents]
    texts = {"id": names, "domain": [DOMAINS[m] for m in domain_D], "source": ["drawn"] * n, "cluster": names}
    rows = {
        "document": np.array(documents, np.int32),
        **{name: np.array(values, dtype=object) for name, values in texts.items()},
        "text_digest": np.array(names, dtype=object),
        "tokens": np.full(n, length, np.int32),
        "tokens_cut": np.zeros(n, np.int32),
        "phase": np.zeros(n, np.int8),
        "loss": -np.nanmean(logprob.reshape(n, length), axis=1).astype(np.float32),
    }
    of_expert_LE, of_domain_MLE = preferences
    for router in facts.routers:
        mean_DE = of_expert_LE[router.layer] + of_domain_MLE[domain_D, router.layer]
        mean_DE = mean_DE + rng.normal(0, 0.5, mean_DE.shape)
        logit_TE = mean_DE.astype(np.float32)[row_T] + rng.gumbel(size=(n * length, router.n_experts)).astype(
            np.float32
        )
        of_tokens, of_rows = _routing(logit_TE, row_T, n, router.top_k)
        at = prefix(router, facts)
        tokens |= {f"{at}.{name}": value for name, value in of_tokens.items()}
        rows |= {f"{at}.{name}": value for name, value in of_rows.items()}
    return {name: [value] for name, value in tokens.items()}, {name: [value] for name, value in rows.items()}


def _routing(logit_TE: np.ndarray, row_T: np.ndarray, n_rows: int, top_k: int) -> tuple[dict, dict]:
    n_experts = logit_TE.shape[1]
    exp_TE = np.exp(logit_TE - logit_TE.max(1, keepdims=True))
    score_TE = exp_TE / exp_TE.sum(1, keepdims=True)
    best_TK = np.argpartition(-score_TE, top_k, axis=1)[:, : top_k + 1]
    value_TK = np.take_along_axis(score_TE, best_TK, 1)
    order_TK = np.argsort(-value_TK, axis=1)
    ids_TK = np.take_along_axis(best_TK, order_TK, 1)
    value_TK = np.take_along_axis(value_TK, order_TK, 1)
    chosen_TK, weights_TK = ids_TK[:, :top_k], value_TK[:, :top_k]
    cell_T = (row_T[:, None] * n_experts + chosen_TK).ravel()
    size = n_rows * n_experts
    half = np.float16
    tokens = {
        "ids": chosen_TK.astype(id_dtype(n_experts)),
        "weights": weights_TK.astype(half),
        "entropy": -(score_TE * np.log(np.maximum(score_TE, 1e-30))).sum(1).astype(half),
        "margin": (value_TK[:, top_k - 1] - value_TK[:, top_k]).astype(half),
        "topk_mass": weights_TK.sum(1).astype(half),
        "logsumexp": np.log(exp_TE.sum(1)) + logit_TE.max(1),
    }
    score_sum = np.add.reduceat(score_TE, np.searchsorted(row_T, np.arange(n_rows)), axis=0)
    rows = {
        "counts": np.bincount(cell_T, minlength=size).reshape(n_rows, n_experts).astype(np.int32),
        "score_sum": score_sum.astype(np.float32),
        "weight_sum": np.bincount(cell_T, weights_TK.ravel(), size).reshape(n_rows, n_experts).astype(np.float32),
    }
    return tokens, rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=8)
    asked = parser.parse_args()
    made = make(asked.out, n_tokens=asked.tokens, n_layers=asked.layers, n_experts=asked.experts, top_k=asked.top_k)
    print(f"{made.n_tokens:,} tokens of {made.n_documents:,} documents in {made.path}")
