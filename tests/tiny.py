"""Tiny random models and corpora for tests, made so that proofs bite: routers are rescaled until they are decided."""

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from workbench.models.loading import Model, from_module
from workbench.recordings.corpus import Corpus, Document

VOCABULARY = 211
DOMAINS = ("chinese", "code", "english", "math", "multilingual")


def moe(*, seed: int = 0, n_experts: int = 8, top_k: int = 3, dense_layers: tuple[int, ...] = (1,)) -> Model:
    """A random Qwen2-MoE of three layers with GQA, a gated shared expert and decided routers."""
    torch.manual_seed(seed)
    module = Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, num_experts=n_experts, num_experts_per_tok=top_k,
            moe_intermediate_size=16, shared_expert_intermediate_size=24, mlp_only_layers=list(dense_layers),
            initializer_range=0.2, pad_token_id=0,
        )
    )  # fmt: skip
    for layer in module.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.weight.data *= 3.0
    return from_module(module.requires_grad_(False), name="tiny-random-moe")


def dense(*, seed: int = 0, n_layers: int = 2) -> Model:
    """A random dense Qwen2."""
    torch.manual_seed(seed)
    module = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=n_layers,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
            pad_token_id=0,
        )
    )  # fmt: skip
    return from_module(module.requires_grad_(False), name="tiny-random-dense")


def corpus(*, n_documents: int = 50, seed: int = 0, shortest: int = 5, longest: int = 60) -> Corpus:
    """Documents of random token ids in five domains that prefer different parts of the vocabulary."""
    rng = np.random.default_rng(seed)
    documents = []
    for i in range(n_documents):
        domain = i % len(DOMAINS)
        low = domain * VOCABULARY // len(DOMAINS)
        tokens = rng.integers(low, low + VOCABULARY // 3, size=rng.integers(shortest, longest)) % VOCABULARY
        documents.append(
            Document(f"d{i}", DOMAINS[domain], "random", f"c{i}", "", tuple(int(token) for token in tokens))
        )
    return Corpus("random", tuple(documents))
