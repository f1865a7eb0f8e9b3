"""Loads a checkpoint so that every tensor of it is accounted for: loaded, left out for a stated reason, or refused.

transformers drops what a class does not take, and says so only in a log. Here what it did with each tensor is written
down while it loads (`Ledger`), what was dropped is compared with the reasons there are (`families.py`), and what the
model holds afterwards is compared with what is on disk (`checkpoint_proof.py`). Adapters are never applied, whatever
is installed.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import cached_file

from workbench.errors import ModelError
from workbench.models.checkpoint.comparison import compare
from workbench.models.checkpoint.ledger import Ledger, written_down
from workbench.models.checkpoint.quantization import (
    FLOATS,
    NOTE,
    QuantizedSource,
    codes_and_scales,
    dequantizing,
    method_beside,
    refuse_unknown_method,
)
from workbench.models.checkpoint.tensor_files import AN_ADAPTER, TensorFiles, counted, tensor_files
from workbench.models.configs import quantization_method
from workbench.models.families import ignorable
from workbench.models.library_errors import foreign_errors
from workbench.models.placement import named_weights
from workbench.models.topology import Topology

ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class LeftOut:
    """Tensors of a checkpoint that the model does not hold, and why that is right."""

    reason: str
    tensors: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointFacts:
    """What a model's weights were read from; part of the manifest.

    Attributes:
        tensors: Tensors in the files that were read.
        left_out: Those that the model does not hold.
        files_left_out: Other files of weights beside them, with the reason.
        compared: Tensors whose values in the model were compared with those on disk.
        quantized: How the source was quantized; None where it was not.
        adapter: The adapter that lies beside the weights and was not applied; None where there is none.
    """

    tensors: int
    left_out: tuple[LeftOut, ...]
    files_left_out: dict[str, str]
    compared: int
    quantized: QuantizedSource | None
    adapter: str | None

    def remarks(self) -> list[str]:
        """What a user should know of how the weights were read, a sentence each; none of an ordinary checkpoint."""
        remarks = []
        if self.quantized is not None:
            remarks.append(
                f"the checkpoint is quantized ({self.quantized.method}): {self.quantized.tensors:,} tensors were "
                f"turned into numbers; {self.quantized.note}"
            )
        if self.adapter is not None:
            remarks.append(
                f"an adapter lies beside the weights ({self.adapter}) and was not applied: adapters never are. To "
                "study both together, merge it where it was made (merge_and_unload) and save that"
            )
        remarks += [f"{left_out.tensors:,} tensors were left out: {left_out.reason}" for left_out in self.left_out]
        files = {file: reason for file, reason in self.files_left_out.items() if reason != AN_ADAPTER}
        remarks += [f"{file} was not read: {reason}" for file, reason in files.items()]
        return remarks

    def to_json(self) -> dict[str, Any]:
        """As JSON values, less what stands in the manifest under keys of its own."""
        return {
            "tensors": self.tensors,
            "left_out": [{"reason": o.reason, "tensors": o.tensors, "names": list(o.names)} for o in self.left_out],
            "files_left_out": self.files_left_out,
            "compared": self.compared,
        }


def load_checkpoint(
    name: str, folder: str, config: Any, *, revision: str | None, is_hub: bool, dtype: torch.dtype, device: str
) -> tuple[Any, CheckpointFacts]:
    """Loads the weights of a folder or a hub id.

    Args:
        name: For errors.
        folder: Folder, or hub id.
        config: Its config.
        revision: Of a hub id.
        is_hub: Whether it is one.
        dtype: What the weights become.
        device: `cpu`, `cuda` (all GPUs), `cuda:N`.

    Raises:
        ModelError: tensors that would be lost, are missing, of another shape, or codes of a method that is not
            dequantized here; damaged files; values that are not those on disk, or not finite.
    """
    method = quantization_method(config)
    refuse_unknown_method(name, method)
    files = None if is_hub else tensor_files(Path(folder), config)
    if files is not None:
        _refuse_codes_without_method(name, Path(folder), files, method)
    options: dict[str, Any] = {"device_map": "auto"} if device == "cuda" else {}
    with written_down() as ledger:
        try:
            with foreign_errors(
                f"{name}: the weights cannot be loaded",
                "Check that the safetensors files are whole and belong to this config.json.",
            ):
                module = AutoModelForCausalLM.from_pretrained(
                    folder, config=dequantizing(config), revision=revision, dtype=dtype, use_safetensors=True,
                    trust_remote_code=False, ignore_mismatched_sizes=True, **options,
                )  # fmt: skip
        except ModelError:
            _refuse_unconverted(name, ledger)  # says more than the library, which refers to a report
            raise
    if files is None:
        files = tensor_files(Path(cached_file(folder, "config.json", revision=revision)).parent, config)
        _refuse_codes_without_method(name, files.read[0].parent, files, method)
    _refuse_unconverted(name, ledger)
    _refuse_mismatched(name, ledger, files)
    left_out = _left_out(name, module, config, ledger, files)
    _refuse_missing(name, module, ledger)
    compared, dequantized = compare(name, module, config, files, ledger)
    return module if options else module.to(device), CheckpointFacts(
        tensors=len(files.tensors),
        left_out=left_out,
        files_left_out=files.left_out,
        compared=compared,
        quantized=QuantizedSource(method, True, dequantized, NOTE) if method is not None else None,
        adapter=_adapter_beside(files.read[0].parent),
    )


def _refuse_codes_without_method(name: str, folder: Path, files: TensorFiles, method: str | None) -> None:
    """Refuses codes that nothing turns into numbers: they would be taken for weights as they stand."""
    dtypes = {tensor: stored.dtype for tensor, stored in files.tensors.items()}
    scales_of = codes_and_scales(dtypes) if method is not None else {}
    known = {*scales_of, *scales_of.values()}
    bare = [
        tensor
        for tensor, dtype in dtypes.items()
        if tensor not in known and (dtype.startswith(("F8", "F6", "F4")) or _is_integer_weight(tensor, dtype))
    ]
    if not bare:
        return
    stated = method_beside(folder)
    how = f"codes of a quantized checkpoint ({stated})" if stated else "codes of a quantized checkpoint"
    raise ModelError(
        f"{name}: {counted(bare, 'tensor')} stored as {'/'.join(sorted({dtypes[tensor] for tensor in bare}))} "
        f"hold {how}, "
        + (
            f"and the scales that the method {method} needs are not beside them"
            if method is not None
            else "but config.json names no method by which they become weights"
        )
        + "; taken as they stand they would be wrong. Give the checkpoint they were made from, or dequantize them with "
        "the tool that made them and save that."
    )


def _is_integer_weight(tensor: str, dtype: str) -> bool:
    """Integers under a name of weights; tables of ids (a router that hashes tokens) have other names."""
    return dtype not in FLOATS and re.search(r"(?:^|[._])(?:weight|proj|bias)$", tensor) is not None


def _refuse_unconverted(name: str, ledger: Ledger) -> None:
    for parameter, error in ledger.unconverted.items():
        sources = [tensor for tensor, place in ledger.place_of.items() if place == parameter]
        gap = _gap(ledger.place_of)
        lines = error.strip().splitlines()
        raise ModelError(
            f"{name}: {parameter} cannot be made of {counted(sources, 'tensor')} of the checkpoint"
            + (
                f": {gap} missing. Download the checkpoint again."
                if gap
                else f" ({lines[-1] if lines else 'no reason'}). "
            )
            + ("" if gap else "Check that weights and config.json belong together.")
        )


def _refuse_mismatched(name: str, ledger: Ledger, files: TensorFiles) -> None:
    if not ledger.mismatched:
        return
    gap = _gap(files.tensors)
    if gap:
        raise ModelError(
            f"{name}: the checkpoint is not whole: {gap} missing, while other layers have them. Download it again."
        )
    parameter, found, wanted = sorted(ledger.mismatched)[0]
    raise ModelError(
        f"{name}: mismatched keys in the checkpoint: {parameter} is {list(found)} on disk and {list(wanted)} by "
        f"config.json ({len(ledger.mismatched)} in all); such tensors would be random. Check that weights and "
        "config.json belong together."
    )


def _refuse_missing(name: str, module: Any, ledger: Ledger) -> None:
    """Refuses parameters that nothing was read for; what the class ignores is a buffer, or starts at a fixed value."""
    ignored = re.compile("|".join(f"(?:{p})" for p in module._keys_to_ignore_on_load_missing or ()) or r"(?!)")
    missing = [key for key in ledger.missing if not ignored.search(key)]
    if missing:
        raise ModelError(
            f"{name}: missing keys in the checkpoint, e.g. {missing[0]} ({len(missing)} in all); such tensors would be "
            "random. Check that weights and config.json belong together."
        )


def _left_out(name: str, module: Any, config: Any, ledger: Ledger, files: TensorFiles) -> tuple[LeftOut, ...]:
    """The tensors that the model does not hold, by reason.

    Raises:
        ModelError: there is none for some of them.
    """
    held = set(module.state_dict())
    dropped = [tensor for tensor in files.tensors if ledger.place_of.get(tensor) not in held]
    by_class = re.compile("|".join(f"(?:{p})" for p in module._keys_to_ignore_on_load_unexpected or ()) or r"(?!)")
    n_layers = config.get_text_config(decoder=True).num_hidden_layers
    reasons: dict[str, list[str]] = {}
    lost = []
    for tensor in dropped:
        reason = ignorable(tensor, config, n_layers=n_layers, all_names=files.tensors)
        place = ledger.place_of.get(tensor, tensor)
        layer = re.search(r"(?:^|\.)layers\.(\d+)\.", place)
        beyond = layer is not None and int(layer.group(1)) >= n_layers
        if reason is None and by_class.search(place) and not beyond:
            reason = f"{type(module).__name__} declares that it does not take them"
        if reason is None:
            lost.append(tensor)
        else:
            reasons.setdefault(reason, []).append(tensor)
    if lost:
        raise ModelError(
            f"{name}: the checkpoint holds {counted(lost, 'tensor')} that {type(module).__name__} does not take"
            f"{_cause(lost, n_layers, files)}; they would be lost, and the model would not be the one that was saved. "
            "Give the config.json and the model class that belong to these weights."
        )
    return tuple(LeftOut(reason, len(names), tuple(sorted(names)[:5])) for reason, names in sorted(reasons.items()))


def _cause(lost: list[str], n_layers: int, files: TensorFiles) -> str:
    """What the lost tensors tell of what went wrong, for the error."""
    layers = {int(found.group(1)) for tensor in lost if (found := re.search(r"(?:^|\.)layers\.(\d+)\.", tensor))}
    if beyond := sorted(layer for layer in layers if layer >= n_layers):
        return (
            f": config.json has {n_layers} decoder layers, the weights have layer {', '.join(map(str, beyond[:5]))} too"
        )
    if any("scale" in tensor.rpartition(".")[2] for tensor in lost) and any(
        stored.dtype not in FLOATS for stored in files.tensors.values()
    ):
        return ": they are the scales of quantized weights, whose method config.json does not name rightly"
    if all(tensor.endswith(".bias") for tensor in lost):
        return ": biases that this config.json says are not there"
    return ""


def _gap(names: Any) -> str:
    """Experts that some layer lacks and another has, as names; empty where there is no gap."""
    numbered = re.compile(r"(.*\blayers\.)(\d+)(\..*\bexperts\.)(\d+)(\..*)")
    found: dict[tuple[str, str, str], dict[int, set[int]]] = {}
    for name in names:
        if match := numbered.fullmatch(name):
            before, layer, between, expert, behind = match.groups()
            found.setdefault((before, between, behind), {}).setdefault(int(layer), set()).add(int(expert))
    lacking = []
    for (before, between, behind), experts_of in found.items():
        # An expert that most layers have: one that stands in a single layer alone is one too many there.
        times = Counter(expert for experts in experts_of.values() for expert in experts)
        largest = max((expert for expert, n in times.items() if 2 * n >= len(experts_of)), default=-1)
        for layer, experts in experts_of.items():
            lacking += [f"{before}{layer}{between}{e}{behind}" for e in range(largest + 1) if e not in experts]
    return f"{counted(lacking, 'tensor')} {'is' if len(lacking) == 1 else 'are'}" if lacking else ""


def _adapter_beside(folder: Path) -> str | None:
    if (folder / ADAPTER).is_file():
        return ADAPTER
    files = sorted(file.name for file in folder.glob("adapter_model*.safetensors"))
    return files[0] if files else None


def refuse_not_finite(name: str, module: Any, topology: Topology) -> None:
    """Refuses NaN and infinity in parameters and persistent buffers.

    Minus infinity in a router's bias is a mask, by which an expert is never chosen, and is let pass as long as enough
    experts are left to choose from.

    Raises:
        ModelError: names the layer and the tensor.
    """
    routers = {router.router_path: router for router in topology.routers}
    for path, values in (*named_weights(module), *_named_buffers(module)):
        if not values.is_floating_point() or bool(torch.isfinite(values).all()):
            continue
        router = routers.get(path.rpartition(".")[0])
        masked = values == -torch.inf
        if router is not None and values.ndim == 1 and bool((masked | values.isfinite()).all()):
            if int((~masked).sum()) >= router.top_k:
                continue
            raise ModelError(
                f"{name}: layer {router.layer}, {path} masks {int(masked.sum())} of {router.n_experts} experts, but "
                f"{router.top_k} are chosen for a token. Check that weights and config.json belong together."
            )
        layer = re.search(r"\.(\d+)\.", path)
        where = f"layer {layer.group(1)}, {path}" if layer else path
        raise ModelError(
            f"{name}: {where} holds NaN or infinite values; what it computes means nothing. "
            "Download or convert the checkpoint again."
        )


def _named_buffers(module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    kept = set(module.state_dict())
    yield from ((path, buffer) for path, buffer in module.named_buffers() if path in kept and not buffer.is_meta)
