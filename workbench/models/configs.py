"""Configs: what a model says it is, compared with what can be meant before anything is built of it.

A config is input of a stranger. It is read here as text first: its size, its numbers, and what it asks to be run are
judged before a class of transformers sees it. Code of its own and kernels of the hub are never run.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
)

from workbench.errors import ModelError
from workbench.models.library_errors import foreign_errors
from workbench.models.sources import Source

_LARGEST_FILE_BYTES = 64 * 2**20
# What a config's numbers may be at most, by their names; each is some times the largest that was ever published, and
# small enough that a model of it is built on the meta device in seconds.
_LIMITS: tuple[tuple[re.Pattern[str], int | None], ...] = (
    (re.compile(r"(^|_)(n|num)_(.*_)?(layers?|blocks)$|^(depth|(en|de)coder_layers)$"), 1024),
    (re.compile(r"experts?(_num)?$|num_.*experts|experts_per|topk|top_k"), 2**16),
    (re.compile(r"param|token|sample|step|flop|byte"), None),  # of the training, or an id
    (re.compile(r"vocab"), 2**26),
    (re.compile(r"position|context|seq|window|chunk|length"), 2**31 - 1),
    (re.compile(r"(^|_)(n|num|d)_|hidden_size|intermediate|ffn|embd|dim$|heads?$|rank|width|groups?$|state"), 2**20),
)
# What says which code computes: the workbench chooses that, and a name with a slash would be fetched from the hub.
_CODE = ("attn_implementation", "experts_implementation", "kernel_config", "use_kernels")
_SIZES = ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads")
"""What every model has and its make-up is made of, by the names that transformers maps a family's own to."""


def read_config(source: Source) -> Any:
    """The config of a causal language model, through the class of its model type.

    Its attention and its way of running experts are transformers' own choice, whatever it asks for.

    Raises:
        ModelError: there is none; it cannot be read, states what cannot be meant, or asks for code of the hub; or it is
            of no causal language model.
    """
    _refuse_stated(_stated(source), source)
    with foreign_errors(f"{source.name}: the config cannot be read", source.advice):
        config = AutoConfig.from_pretrained(source.folder, revision=source.hub_revision, trust_remote_code=False)
        config._attn_implementation = None
        config._experts_implementation = None
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
    _refuse_numbers(config, source.name)
    return config


def on_meta(config: Any) -> Any:
    """A model of a config without weights: its modules and their shapes.

    Raises:
        ModelError: the class of its model type cannot be built by it.
    """
    stated = config.dtype
    dtype = (
        None if stated is None or getattr(stated, "itemsize", 0) > 1 else torch.float32
    )  # of float8 nothing is built
    with (
        foreign_errors(
            f"{config.model_type}: no model can be built by this config",
            "Its numbers contradict each other, or are written for another version of transformers. Mend config.json.",
        ),
        torch.device("meta"),
    ):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **({"dtype": dtype} if dtype else {}))


def quantization_method(config: Any) -> str | None:
    """How the weights that belong to a config are quantized, as it names it (`fp8`, `gptq`); None where they are not.

    Args:
        config: A config of transformers, or the content of a config.json.
    """
    for part in (config, _member(config, "text_config")):
        for name in ("quantization_config", "compression_config", "quantization"):
            stated = _member(part, name)
            if stated is None or stated == {} or (name != "quantization_config" and not isinstance(stated, Mapping)):
                continue
            if any(_member(stated, f"{private}load_in_{bits}bit") for private in ("", "_") for bits in (4, 8)):
                return "bitsandbytes"
            method = _member(stated, "quant_method") or _member(stated, "quantization")
            return str(getattr(method, "value", method)) if method else "without a name"
    return None


def _member(owner: Any, name: str) -> Any:
    return owner.get(name) if isinstance(owner, Mapping) else getattr(owner, name, None)


def _stated(source: Source) -> dict[str, Any]:
    """What stands in config.json, as text says it."""
    what = f"{source.name}: the config cannot be read"
    if source.kind == "hub":
        with foreign_errors(what, source.advice):
            stated, _ = PreTrainedConfig.get_config_dict(source.folder, revision=source.hub_revision)
        return dict(stated)
    file = Path(source.folder) / "config.json" if source.kind != "config" else Path(source.folder)
    if not file.is_file():
        raise ModelError(_no_config(file.parent))
    with foreign_errors(what, source.advice):
        if file.stat().st_size > _LARGEST_FILE_BYTES:
            raise ModelError(f"{what}: it is larger than {_LARGEST_FILE_BYTES:,} bytes. {source.advice}")
        stated = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(stated, dict):
        raise ModelError(f"{what}: it is JSON of {type(stated).__name__}, and an object was expected. {source.advice}")
    return stated


def _no_config(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        base = _base_of_adapter(folder)
        return (
            f"{folder} holds an adapter (adapter_config.json) and no model: it changes {base}. Merge it where you made "
            "it (model.merge_and_unload().save_pretrained(NEW_FOLDER)) and give that folder, or give the base model."
        )
    below = sorted(path.parent.name for path in folder.glob("*/config.json"))
    hint = f" One lies in {', '.join(below[:3])} below it." if below else ""
    return f"{folder} has no config.json, so it is no model folder; give the folder that holds it.{hint}"


def _base_of_adapter(folder: Path) -> str:
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "a model that it does not name"
    return repr(str(base)[:200])


def _refuse_stated(stated: Mapping[str, Any], source: Source) -> None:
    """Refuses what no class of transformers should see."""
    for path, value in _leaves(stated):
        names = [name.partition("[")[0] for name in path.split(".")]
        if any(name.lstrip("_").removesuffix("_internal") in _CODE for name in names):
            refuse_kernel(value, f"{source.name}: config.json has {path}", "Take the line out.")
        if isinstance(value, int | float) and not isinstance(value, bool):
            _refuse_number(path, names[-1], value, source)
    kind = stated.get("model_type")
    if stated.get("auto_map") and not (isinstance(kind, str) and kind in CONFIG_MAPPING):
        raise ModelError(
            f"{source.name} brings code of its own (auto_map in its config.json), which is never run here: what it "
            "computes cannot be proved, and it can do anything to this machine. Use a model type that transformers "
            "itself has."
        )


def refuse_kernel(value: Any, what: str, advice: str) -> None:
    """Refuses an implementation whose name has a slash: transformers would fetch it from the hub and run it.

    Raises:
        ModelError: names it.
    """
    if isinstance(value, str) and "/" in value:
        raise ModelError(
            f"{what} {value!r}, a kernel of the hub: code of others, which is never fetched and run here. {advice}"
        )


def _refuse_number(path: str, name: str, value: float, source: Source) -> None:
    if math.isnan(value):
        raise ModelError(f"{source.name}: config.json has {path} NaN; a number was expected. {source.advice}")
    most = next((most for pattern, most in _LIMITS if pattern.search(name)), None)
    if most is not None and not 0 <= value <= most and not (value == -1 and most > 2**16):
        raise ModelError(
            f"{source.name}: config.json has {path} {value:,}; 0 to {most:,} are built here, and no published "
            f"model has more. {source.advice}"
        )


def _leaves(stated: Any) -> Iterator[tuple[str, Any]]:
    """What stands in nested JSON, with its path: `text_config.num_experts`, `layer_types[3]`."""
    waiting: list[tuple[str, Any]] = [("", stated)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{path}.{name}" if path else str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{path}[{i}]", inner) for i, inner in enumerate(value)]
        else:
            yield path, value


def _refuse_numbers(config: Any, name: str) -> None:
    """Refuses sizes that make no decoder, in the words of the config's class."""
    with foreign_errors(f"{name}: the config cannot be read", "Mend config.json."):
        text = config.get_text_config()
        if not isinstance(text, PreTrainedConfig):
            raise ModelError(f"{name}: what config.json has for its text part ({text!r:.100}) is no config. Mend it.")
        first = text.per_layer_config[0] if getattr(text, "is_heterogeneous", False) else text
        sizes = {size: getattr(first, size, None) for size in _SIZES}
        groups = getattr(first, "num_key_value_heads", None)
        width = getattr(first, "head_dim", None)
    stated = {**sizes, **{k: v for k, v in (("num_key_value_heads", groups), ("head_dim", width)) if v is not None}}
    for size, value in stated.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            got = "states none" if value is None else f"has {value!r}"
            raise ModelError(
                f"{name}: the config ({text.model_type}) {got} for {size}; a whole number from 1 was expected. Mend "
                "config.json; models that have no attention heads, or no fixed vocabulary, are not looked at."
            )
    heads = stated["num_attention_heads"]
    if heads % stated.get("num_key_value_heads", heads):
        raise ModelError(
            f"{name}: the config has {heads} num_attention_heads, no multiple of its {groups} num_key_value_heads: "
            "every key and value serves as many heads. Mend config.json."
        )
    if "head_dim" not in stated and sizes["hidden_size"] < heads:
        raise ModelError(
            f"{name}: the config has {heads} num_attention_heads in a hidden_size of {sizes['hidden_size']}, and "
            "states no head_dim: a head would have no width. Mend config.json."
        )
