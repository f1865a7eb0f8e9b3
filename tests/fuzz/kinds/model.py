"""Model folders: a config of another hand, version, family or quantizer; files that are missing, extra or damaged."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from analyses import catalogue
from analyses.question import Question
from tests.fuzz import bases
from tests.fuzz.mutate import NUMBERS, as_json, damaged, held_object, mutated, near, strange
from tests.fuzz.trial import ROOT, Trial
from workbench.models.loading import inspect_topology, load, memory_forecast

QUANTIZED: tuple[dict[str, Any], ...] = (
    {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
    {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    {"quant_method": "bitsandbytes", "load_in_8bit": True},
    {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    {"quant_method": "modelopt", "quant_algo": "FP8"},
    {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}}}},
    {"quant_method": "fbgemm_fp8"}, {"quant_method": "torchao", "quant_type": "int8wo"}, {"quant_method": "hqq"},
    {"quant_method": "quark"}, {"quant_method": "aqlm"}, {"quant_method": "no-such"}, {"bits": 4}, {},
)  # fmt: skip
OTHER_TYPES = (
    "llama", "qwen2", "gpt2", "bert", "t5", "clip", "whisper", "mamba", "rwkv", "switch_transformers", "llava",
    "qwen3_vl_moe", "llama4", "kimi_k2", "bailing_moe", "no_such_type", "", "deepseek_v2", "dbrx", "gemma3n", "bloom",
)  # fmt: skip


def prepare(base: Path) -> None:
    """A folder of each family."""
    for family in bases.FAMILIES:
        bases.model_folder(base / family, family)


def run(trial: Trial) -> None:
    """Damages a folder and asks what can be asked of a model."""
    rng = trial.rng
    family = rng.choice(bases.FAMILIES)
    folder = trial.inputs / "model"
    shutil.copytree(trial.base / family, folder)
    trial.note(f"family {family}")
    trial.untouched = rng.random() < 0.03
    for _ in range(0 if trial.untouched else rng.choice((1, 1, 1, 2))):
        change = rng.choice(CHANGES)
        trial.note(change.__name__)
        with suppress(OSError):  # a folder, or a link to itself, as an earlier change left it
            change(trial, folder)
    ask(trial, folder)


def ask(trial: Trial, folder: Path) -> None:
    """What can be asked of a model: through the functions, or as it is typed."""
    rng = trial.rng
    out = trial.out / "recording"
    if rng.random() < 0.25:
        corpus = bases.write_rows(trial.inputs / "corpus.jsonl", bases.corpus_rows(with_ids=rng.random() < 0.5))
        trial.command("inspect", str(folder), *(["--json"] if rng.random() < 0.3 else []))
        trial.command(
            "costs", str(folder), "--batch", "1,4", *(["--against", "iso-active"] if rng.random() < 0.5 else [])
        )
        if not trial.command("record", str(folder), "--corpus", str(corpus), "--out", str(out)):
            trial.refuse_leftovers(out, whole=False)
        return
    trial.attempt("inspect", inspect_topology, str(folder))
    trial.attempt("memory", memory_forecast, str(folder))
    trial.attempt("costs", _costs, str(folder))
    if rng.random() < 0.1:
        trial.attempt("load with random weights", load, str(folder), device="cpu", weights="dummy")
    model = trial.attempt(
        "load", load, str(folder), device="cpu", dtype=rng.choice(("auto",) * 5 + ("bfloat16", "float16"))
    )
    if model is not None:
        record_with(trial, model, out)


def _costs(name: str) -> None:
    from workbench.efficiency.costs.comparison import costed

    subject = costed(name)
    for analysis in catalogue.names("costs"):
        Question(subject, analysis).answer()


def record_with(trial: Trial, model: Any, out: Path, corpus: Any = None) -> Any:
    """Records a few tokens with a model, with fields of chance."""
    from workbench.capture.generate import Generation
    from workbench.capture.record import record
    from workbench.recordings.fields import FIELDS

    rng = trial.rng
    fields = rng.choice((("routing", "logprob"), ("routing", "logprob"), ("routing", "logits"), FIELDS, ("logprob",)))
    how: dict[str, Any] = {"check": rng.random() < 0.7, "fields": fields, "batch_tokens": rng.choice((4096, 64, 16))}
    if rng.random() < 0.1 and "attention-weights" not in fields:
        how["generation"] = Generation(2, 0.0, 0)
    trial.note(f"record {how}")
    recording = trial.attempt("record", record, model, corpus or bases.short_corpus(), out, **how)
    if recording is None:
        trial.refuse_leftovers(out, whole=False)
    else:
        trial.attempt("verify", recording.verify)
    return recording


def _config(folder: Path) -> dict[str, Any]:
    return held_object(folder / "config.json")


def config_values(trial: Trial, folder: Path) -> None:
    """Values of another type, size or name."""
    published = [json.loads(file.read_text()) for file in sorted((ROOT / "data" / "configs").glob("*.json"))]
    config = mutated(trial.rng, _config(folder), donors=published)
    (folder / "config.json").write_bytes(as_json(trial.rng, config))


def config_numbers(trial: Trial, folder: Path) -> None:
    """Sizes that are a little or very wrong: heads, experts, k, layers, widths."""
    rng, config = trial.rng, _config(folder)
    sizes = [key for key, value in config.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    for key in rng.sample(sizes, min(len(sizes), rng.choice((1, 1, 2)))):
        config[key] = near(rng, config[key]) if rng.random() < 0.6 else rng.choice(NUMBERS)
        trial.note(f"{key} = {config[key]!r}"[:200])
    (folder / "config.json").write_text(json.dumps(config))


def config_of_another(trial: Trial, folder: Path) -> None:
    """Keys of another family, or its type."""
    rng, config = trial.rng, _config(folder)
    other = _config(trial.base / rng.choice(bases.FAMILIES)) if (trial.base / bases.FAMILIES[0]).is_dir() else {}
    kind = rng.choice(("type", "known type", "keys", "whole", "wrapped", "architecture"))
    if kind == "type":
        config["model_type"] = rng.choice(OTHER_TYPES)
    elif kind == "known type" and other:
        config["model_type"] = other["model_type"]
    elif kind == "keys":
        config |= {key: other[key] for key in rng.sample(sorted(other), min(len(other), 5))}
    elif kind == "wrapped":
        config = {"model_type": rng.choice(OTHER_TYPES), "text_config": config, "architectures": ["A"]}
    elif kind == "architecture":
        config["architectures"] = rng.choice((["No"], "No", [], [None], None, ["LlamaForCausalLM"], ["../../x"]))
    elif other:
        config = other
    trial.note(f"{kind} {config.get('model_type')!r}")
    (folder / "config.json").write_text(json.dumps(config))


def config_quantized(trial: Trial, folder: Path) -> None:
    """A word of a quantizer, known or not, whole or damaged."""
    rng, config = trial.rng, _config(folder)
    stated: Any = rng.choice(QUANTIZED)
    config["quantization_config"] = mutated(rng, stated) if rng.random() < 0.4 else stated
    trial.note(f"{config['quantization_config']}"[:300])
    (folder / "config.json").write_text(json.dumps(config))


def config_attention(trial: Trial, folder: Path) -> None:
    """Rope, windows, dtypes and kernels that are not there."""
    rng, config = trial.rng, _config(folder)
    rope = rng.choice((
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}, {"rope_type": "no"},
        {"type": "dynamic", "factor": 2.0}, {"rope_type": "yarn", "factor": 0}, {"rope_type": "linear"}, [], "linear",
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64, "rope_theta": 1e4},
    ))  # fmt: skip
    config |= rng.choice((
        {"rope_scaling": rope}, {"rope_parameters": rope}, {"attn_implementation": "owner/kernel"},
        {"_attn_implementation": "owner/kernel"}, {"attn_implementation": "flash_attention_2"},
        {"dtype": rng.choice(("float8_e4m3fn", "int8", "no", 7, None))}, {"torch_dtype": "float64"},
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}, {"is_encoder_decoder": True},
        {"layer_types": rng.choice((["full_attention"], ["no"] * 4, "full_attention", None, [None] * 4))},
        {"sliding_window": strange(rng)}, {"pad_token_id": 10**6}, {"bos_token_id": [1, 2]},
        {"tie_word_embeddings": True}, {"torchscript": True}, {"transformers_version": strange(rng)},
        {"hidden_act": rng.choice(("no", None, 3))}, {"use_cache": "yes"},
        {"name_or_path": "a/b"}, {"max_position_embeddings": 0},
    ))  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def config_bytes(trial: Trial, folder: Path) -> None:
    """A config that was cut or edited."""
    file = folder / "config.json"
    whole = trial.rng.random() < 0.6 and file.is_file()
    file.write_bytes(damaged(trial.rng, file.read_bytes()) if whole else as_json(trial.rng, _config(folder)))


def files(trial: Trial, folder: Path) -> None:
    """Files that are missing, of another kind, or beside those that belong."""
    rng = trial.rng
    names = sorted(found.name for found in folder.iterdir() if found.is_file())
    kind = rng.choice(
        ("delete", "empty", "folder", "damage", "swap", "link", "adapter", "pickle", "index", "generation")
    )
    name = rng.choice(names)
    trial.note(f"{kind} {name}")
    file = folder / name
    if kind == "delete":
        file.unlink()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "folder":
        file.unlink()
        file.mkdir()
    elif kind == "damage":
        file.write_bytes(damaged(rng, file.read_bytes()))
    elif kind == "swap":
        other = folder / rng.choice(names)
        content = file.read_bytes()
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif kind == "link":
        file.unlink()
        file.symlink_to(rng.choice(("no-such-file", "/dev/null", ".", file.name)))
    elif kind == "adapter":
        adapter = {"base_model_name_or_path": "a/b", "peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_bytes(as_json(rng, mutated(rng, adapter)))
        if rng.random() < 0.5:
            shutil.copy(file, folder / "adapter_model.safetensors")
    elif kind == "pickle":
        shutil.move(folder / name, folder / rng.choice(("pytorch_model.bin", "model.pt", "consolidated.pth")))
    elif kind == "index":
        index = {"metadata": {"total_size": 1}, "weight_map": {"lm_head.weight": "model.safetensors"}}
        (folder / "model.safetensors.index.json").write_bytes(as_json(rng, mutated(rng, index)))
    else:
        stated = held_object(folder / "generation_config.json")
        (folder / "generation_config.json").write_bytes(as_json(rng, mutated(rng, stated or {"a": 1})))


def published(trial: Trial, folder: Path) -> None:
    """A real model's config, damaged, with nothing beside it that belongs to it."""
    file = trial.rng.choice(sorted((ROOT / "data" / "configs").glob("*.json")))
    config = mutated(trial.rng, json.loads(file.read_text()))
    trial.note(file.stem)
    (folder / "config.json").write_bytes(as_json(trial.rng, config))


CHANGES = (
    config_values, config_values, config_values, config_numbers, config_numbers, config_of_another, config_quantized,
    config_attention, config_bytes, files, files, published,
)  # fmt: skip
