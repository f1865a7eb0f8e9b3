"""Loads models by name, never wrapped: bundled ones, local folders, published configs with dummy weights, hub ids.

Before any weight is read, a memory forecast is held against what is free. Remote code is never run and pickled
checkpoints are never opened. Names are resolved here and nowhere else.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging as transformers_logging

from workbench.errors import ModelError
from workbench.models.bundled import CONFIGS, MODELS, bundled_names, published_configs, revisions
from workbench.models.checkpoint import CheckpointFacts, load_checkpoint, refuse_not_finite
from workbench.models.memory import MemoryForecast, forecast_memory, gib
from workbench.models.placement import named_weights
from workbench.models.topology import Topology, topology

_GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
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
    """

    name: str
    revision: str
    module: Any
    tokenizer: PreTrainedTokenizerBase | None
    topology: Topology
    weights: str = "checkpoint"
    checkpoint: CheckpointFacts | None = None

    @property
    def device(self) -> torch.device:
        """Where the input goes."""
        return self.module.get_input_embeddings().weight.device

    @property
    def dtype(self) -> str:
        """The parameters' dtype, e.g. `float32`."""
        return str(self.module.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class _Source:
    name: str
    revision: str
    folder: str  # a folder, or a hub id
    kind: str  # bundled, folder, config, hub


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
        raise ModelError(f"weights is {weights!r}; 'checkpoint' or 'dummy' was wanted.")
    source = _resolve(name, revision, weights)
    with _quiet():
        config = _config(source)
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
                source.name, source.folder, config, revision=_hub_revision(source), is_hub=source.kind == "hub",
                dtype=torch_dtype, device=where,
            )  # fmt: skip
    if attention is not None:
        _set_attention(module, attention)
    module.eval().requires_grad_(False)
    parts = topology(module)
    refuse_not_finite(source.name, module, parts)
    return Model(source.name, source.revision, module, _tokenizer(source), parts, weights, checkpoint)


def _set_attention(module: Any, attention: str) -> None:
    try:
        module.set_attn_implementation(attention)
    except (ValueError, ImportError, KeyError) as error:
        raise ModelError(
            f"attention is {attention!r}, which {module.config.model_type} cannot run here: {_first_line(error)} "
            "Give eager or sdpa, or leave it to transformers."
        ) from error


def inspect_topology(name: str, *, revision: str | None = None) -> Topology:
    """What a model is made of, from its config alone, on the meta device: no weights are read."""
    with _quiet():
        return topology(on_meta(_config(_resolve(name, revision, "dummy"))))


def load_tokenizer(name: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, without its weights.

    Raises:
        ModelError: an unknown name, or no tokenizer beside the model.
    """
    tokenizer = _tokenizer(_resolve(name, revision, "dummy"))
    if tokenizer is None:
        raise ModelError(f"{name} has no tokenizer that can be read; name a folder with tokenizer.json, or a hub id.")
    return tokenizer


def memory_forecast(
    name: str, *, device: str = "auto", dtype: str = "auto", revision: str | None = None, batch_tokens: int = 4096
) -> MemoryForecast:
    """What loading a model and recording with it will take, from its config alone."""
    with _quiet():
        config = _config(_resolve(name, revision, "dummy"))
        where = _device(device)
        return forecast_memory(
            topology(on_meta(config)),
            value_bytes=_dtype(dtype, where, config).itemsize,
            device=where,
            batch_tokens=batch_tokens,
        )


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


def _resolve(name: str, revision: str | None, weights: str) -> _Source:
    bare, _, behind = name.partition("@")
    wanted = revision or behind or ""
    if "/" not in bare and (MODELS / bare / "model.safetensors").is_file():
        folder = MODELS / bare / wanted
        if wanted and not (folder / "model.safetensors").is_file():
            known = ", ".join(revisions(bare))
            raise ModelError(
                f"the bundled model {bare!r} has no revision {wanted!r}; it has {known}, or none for the last."
            )
        return _Source(bare, wanted, str(folder), "bundled")
    if Path(name).is_dir():
        return _Source(Path(name).resolve().name, revision or "", name, "folder")
    if bare in published_configs():
        if weights != "dummy":
            raise ModelError(
                f"{bare!r} is a published config without weights; load it with weights='dummy', or give its hub id."
            )
        return _Source(bare, "", str(CONFIGS / f"{bare}.json"), "config")
    if _HUB_ID.fullmatch(bare):
        return _Source(bare, wanted, bare, "hub")
    raise ModelError(
        f"unknown model {name!r}. Known: bundled {', '.join(bundled_names())}; published configs "
        f"{', '.join(published_configs()) or 'none'} (dummy weights); or give a local folder or a hub id OWNER/NAME."
    )


def _config(source: _Source) -> Any:
    if source.kind == "folder" and not (Path(source.folder) / "config.json").is_file():
        raise ModelError(
            f"{source.folder} has no config.json, so it is no model folder; give the folder that holds it."
        )
    try:
        config = AutoConfig.from_pretrained(source.folder, revision=_hub_revision(source), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{source.name} brings code of its own (auto_map in its config.json), which is never run here: what it "
                "computes cannot be proved, and it can do anything to this machine. Use a model type that transformers "
                "itself has."
            ) from error
        raise ModelError(
            f"{source.name}: the config cannot be read ({_first_line(error)}). "
            + (
                f"If the name is right, {_hub_advice()}, or give a local folder."
                if source.kind == "hub"
                else "Mend config.json or save the model again."
            )
        ) from error
    if config.is_encoder_decoder:
        raise ModelError(
            f"{source.name} ({config.model_type}) is an encoder-decoder model: its decoder reads an encoder's "
            "output, so a recording of one text would not say what was fed to it. Only causal models are recorded."
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{source.name}: transformers has no causal language model of type {config.model_type!r}. Give one "
            "that AutoModelForCausalLM loads."
        )
    return config


def on_meta(config: Any) -> Any:
    """A model of a config without weights: its modules and their shapes."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _dummy(config: Any, dtype: torch.dtype, where: str) -> Any:
    """Random weights, drawn where they stay and in their dtype: a host need not hold what a GPU can."""
    torch.manual_seed(0)
    with torch.device(where):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def _tokenizer(source: _Source) -> PreTrainedTokenizerBase | None:
    if source.kind == "config":
        return None
    try:
        with _quiet():
            # AutoTokenizer swaps in the model type's own class, which splits text by its own rules even where
            # tokenizer.json says otherwise. A checkpoint that states the generic class means its tokenizer.json.
            stated = get_tokenizer_config(source.folder, revision=_hub_revision(source)).get("tokenizer_class")
            kind = PreTrainedTokenizerFast if stated in _GENERIC_TOKENIZERS else AutoTokenizer
            tokenizer = kind.from_pretrained(source.folder, revision=_hub_revision(source), trust_remote_code=False)
            # Without files transformers makes one that knows special tokens alone.
            return tokenizer if len(tokenizer) > len(tokenizer.all_special_ids) else None
    except (OSError, ValueError, KeyError):
        return None  # a corpus of token ids needs none; one of text is refused by name when it is recorded


def _hub_advice() -> str:
    if os.environ.get("HF_HUB_OFFLINE"):
        return "it is not on this machine yet, and the hub is not asked here (workbench app --hub, or HF_HUB_OFFLINE=0)"
    return "check the connection to the hub"


def _hub_revision(source: _Source) -> str | None:
    return (source.revision or None) if source.kind == "hub" else None


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device is {device!r}, but torch {torch.__version__} sees no CUDA GPU; use device='cpu'.")
    if device != "cpu" and not re.fullmatch(r"cuda(:\d+)?", device):
        raise ModelError(f"device is {device!r}; 'auto', 'cpu', 'cuda' or 'cuda:N' was wanted.")
    return device


def _dtype(dtype: str, device: str, config: Any) -> torch.dtype:
    if dtype == "auto":
        return torch.float32 if device == "cpu" else (config.dtype or torch.bfloat16)
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ModelError(f"dtype is {dtype!r}; 'auto', {', '.join(map(repr, known))} was wanted.")
    return known[dtype]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides transformers' progress bars and advice: the workbench says itself what matters."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def with_module(model: Model, module: Any) -> Model:
    """The same model with other weights, for tests and interventions."""
    return replace(model, module=module, topology=topology(module))
