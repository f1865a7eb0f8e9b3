"""Loads models by name, never wrapped: bundled ones, local folders, published configs with dummy weights, hub ids.

Before any weight is read, a memory forecast is compared with what is free. Remote code is never run and pickled
checkpoints are never opened.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from workbench.errors import ModelError
from workbench.models.checkpoint.accounting import CheckpointFacts, load_checkpoint, refuse_not_finite
from workbench.models.configs import on_meta, quantization_method, read_config, refuse_kernel
from workbench.models.library_errors import foreign_errors, quiet
from workbench.models.memory import MemoryForecast, forecast_memory, gib
from workbench.models.placement import named_weights
from workbench.models.sources import reached, resolve
from workbench.models.tokenizers import read_tokenizer
from workbench.models.topology import Topology, topology

_FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SAMPLED_ABOVE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Model:
    """A loaded, unwrapped model and what is known of it.

    Attributes:
        name: The name it was asked for by, without the revision.
        revision: Bundled checkpoint or hub revision; empty for the only or newest one.
        module: The transformers model, in eval mode.
        tokenizer: Its tokenizer; None where there is none (dummy weights).
        topology: What it is made of.
        weights: `checkpoint` or `dummy`.
        checkpoint: What the weights were read from; None where they were not read.
        tokenizer_problem: Why there is no tokenizer, with the next step; empty where there is one.
    """

    name: str
    revision: str
    module: Any
    tokenizer: PreTrainedTokenizerBase | None
    topology: Topology
    weights: str = "checkpoint"
    checkpoint: CheckpointFacts | None = None
    tokenizer_problem: str = "none came with it. Give 'token_ids' instead of 'text'."

    @property
    def device(self) -> torch.device:
        """Where the input goes."""
        return self.module.get_input_embeddings().weight.device

    @property
    def dtype(self) -> str:
        """The parameters' dtype, e.g. `float32`."""
        return str(self.module.dtype).removeprefix("torch.")


def load(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    weights: str = "checkpoint",
    attention: str | None = None,
) -> Model:
    """Loads a causal language model.

    Args:
        name: In this order: a bundled model (`tiny-moe`, `tiny-moe@step-0`), a local folder, a published config of
            `data/configs` (only with `weights="dummy"`), a hub id `OWNER/NAME`.
        device: `auto` (the GPU where there is one, several when one is too small), `cpu`, `cuda`, `cuda:1`.
        dtype: `auto` is float32 on a CPU, where the proofs of a capture are sharpest, and the checkpoint's own
            elsewhere; or a torch dtype's name.
        revision: Of a hub model; a bundled one's may also stand behind `@`.
        weights: `checkpoint`, or `dummy` for random weights of the config's shape.
        attention: transformers' attention implementation (`eager`, `sdpa`, `flex_attention`, `flash_attention_2`);
            what transformers chooses unless given.

    Returns:
        The model, unwrapped and in eval mode.

    Raises:
        ModelError: an unknown name (with the known ones); a folder without config or weights; a pickled checkpoint;
            NaN in a weight (named); too little memory (with the figures).
    """
    if weights not in ("checkpoint", "dummy"):
        raise ModelError(f"weights is {weights!r}; 'checkpoint' or 'dummy' was expected.")
    source = resolve(name, revision, weights)
    if attention is not None:
        refuse_kernel(attention, "attention is", "Give eager or sdpa, or leave it to transformers.")
    with quiet(), reached(source):
        config = read_config(source)
        where = _device(device)
        torch_dtype = _dtype(dtype, where, config)
        forecast = forecast_memory(topology(on_meta(config)), value_bytes=torch_dtype.itemsize, device=where)
        if not forecast.fits:
            raise ModelError(
                f"{source.name} needs {gib(forecast.needed_bytes)} ({gib(forecast.weights_bytes)} weights as "
                f"{str(torch_dtype).removeprefix('torch.')}, {gib(forecast.buffers_bytes)} recording buffers); "
                f"{gib(forecast.free_bytes)} are free on {where}. Use a narrower dtype (--dtype bfloat16), another "
                "device, or a smaller model."
            )
        if weights == "dummy":
            module, checkpoint = _dummy(config, torch_dtype, where), None
        else:
            module, checkpoint = load_checkpoint(
                source.name, source.folder, config, revision=source.hub_revision, is_hub=source.kind == "hub",
                dtype=torch_dtype, device=where,
            )  # fmt: skip
    if attention is not None:
        _set_attention(module, attention)
    module.eval().requires_grad_(False)
    parts = topology(module)
    refuse_not_finite(source.name, module, parts)
    with reached(source):
        text = read_tokenizer(source)
    return Model(source.name, source.revision, module, text.tokenizer, parts, weights, checkpoint, text.problem)


def _set_attention(module: Any, attention: str) -> None:
    with foreign_errors(
        f"attention is {attention!r}, which {module.config.model_type} cannot run here",
        "Give eager or sdpa, or leave it to transformers.",
    ):
        module.set_attn_implementation(attention)


@dataclass(frozen=True)
class Inspection:
    """What a config says of a model, without its weights.

    Attributes:
        topology: What it is made of.
        forecast: The memory that loading it and recording with it will take.
        quantization: How its weights on disk are quantized, as its config names it; None where they are not.
    """

    topology: Topology
    forecast: MemoryForecast
    quantization: str | None


def inspect(
    name: str, *, device: str = "auto", dtype: str = "auto", revision: str | None = None, batch_tokens: int = 4096
) -> Inspection:
    """What a model is made of and what loading it will take, from its config alone: no weights are read.

    Args:
        name: As of `load`.
        device: As of `load`.
        dtype: As of `load`.
        revision: As of `load`.
        batch_tokens: Padded positions of a batch.

    Raises:
        ModelError: an unknown name, or a config that gives no model.
    """
    source = resolve(name, revision, "dummy")
    with quiet(), reached(source):
        config = read_config(source)
        where = _device(device)
        torch_dtype = _dtype(dtype, where, config)
        found = topology(on_meta(config))
    forecast = forecast_memory(found, value_bytes=torch_dtype.itemsize, device=where, batch_tokens=batch_tokens)
    return Inspection(found, forecast, quantization_method(config))


def inspect_topology(name: str, *, revision: str | None = None) -> Topology:
    """What a model is made of, from its config alone, on the meta device: no weights are read."""
    source = resolve(name, revision, "dummy")
    with quiet(), reached(source):
        return topology(on_meta(read_config(source)))


def memory_forecast(
    name: str, *, device: str = "auto", dtype: str = "auto", revision: str | None = None, batch_tokens: int = 4096
) -> MemoryForecast:
    """What loading a model and recording with it will take, from its config alone."""
    return inspect(name, device=device, dtype=dtype, revision=revision, batch_tokens=batch_tokens).forecast


def load_tokenizer(name: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, without its weights.

    Raises:
        ModelError: an unknown name, or no tokenizer that can be read, with the reason.
    """
    source = resolve(name, revision, "dummy")
    with reached(source):
        found = read_tokenizer(source)
    if found.tokenizer is None:
        raise ModelError(f"{name} has no tokenizer that can be read: {found.problem}")
    return found.tokenizer


def from_module(module: Any, *, name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> Model:
    """A model that is in memory already, under a name of the caller's."""
    return Model(name, "", module.eval(), tokenizer, topology(module))


def weights_digest(module: Any) -> str:
    """SHA-256 over every parameter's name, shape, dtype and values.

    Above 256 MiB of parameters a fixed sample of 4,096 values of each tensor stands for its values; the digest then
    begins with `sampled:`.
    """
    sampled = sum(p.numel() * p.element_size() for p in module.parameters()) > _SAMPLED_ABOVE_BYTES
    digest = hashlib.sha256()
    for name, parameter in named_weights(module):
        values = parameter.detach().reshape(-1)
        if sampled and values.numel() > 4096:
            at = torch.linspace(0, values.numel() - 1, 4096, dtype=torch.float64).long()
            values = values[at.to(values.device)]
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return ("sampled:" if sampled else "") + digest.hexdigest()


def config_digest(module: Any) -> str:
    """SHA-256 over the model's config, without the place it was read from and the version that wrote it."""
    config = {
        key: value
        for key, value in module.config.to_dict().items()
        if key not in ("transformers_version", "_name_or_path")
    }
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def _dummy(config: Any, dtype: torch.dtype, where: str) -> Any:
    """Random weights, drawn where they stay and in their dtype: a host need not hold what a GPU can."""
    torch.manual_seed(0)
    with (
        foreign_errors(f"{config.model_type}: no random weights can be made by this config", "Mend config.json."),
        torch.device(where),
    ):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device is {device!r}, but torch {torch.__version__} sees no CUDA GPU; use device='cpu'.")
    if device != "cpu" and not re.fullmatch(r"cuda(:\d+)?", device):
        raise ModelError(f"device is {device!r}; 'auto', 'cpu', 'cuda' or 'cuda:N' was expected.")
    return device


def _dtype(dtype: str, device: str, config: Any) -> torch.dtype:
    if dtype == "auto":
        stated = config.dtype
        # Float8 and integers are codes on disk, in which nothing is computed.
        computes = isinstance(stated, torch.dtype) and stated.is_floating_point and stated.itemsize > 1
        return torch.float32 if device == "cpu" else stated if computes else torch.bfloat16
    if dtype not in _FLOATS:
        raise ModelError(f"dtype is {dtype!r}; 'auto', {', '.join(map(repr, _FLOATS))} was expected.")
    return _FLOATS[dtype]


def with_module(model: Model, module: Any) -> Model:
    """The same model with other weights, for tests and interventions."""
    return replace(model, module=module, topology=topology(module))
