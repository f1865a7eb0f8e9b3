"""Quantized checkpoints become the numbers that their codes stand for, or are refused by the name of their method."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests import tiny
from tests.families import shrunk
from workbench.capture.record import record
from workbench.errors import ModelError
from workbench.models.checkpoint import quantization
from workbench.models.loading import load

WEIGHTS = "model.safetensors"
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [8, 8]}
METHODS_REFUSED = (
    "gptq", "awq", "compressed-tensors", "bitsandbytes", "modelopt", "torchao", "hqq", "quark", "bitnet", "auto-round",
    "fbgemm_fp8", "a-method-of-tomorrow",
)  # fmt: skip


def in_blocks(weight, size=8):
    """Float8 codes of a matrix and the scale of each block, by a loop."""
    rows, columns = weight.shape
    codes = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn)
    scales = torch.zeros(-(-rows // size), -(-columns // size))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size)
            scales[i, j] = weight[part].abs().max() / 448
            codes[part] = (weight[part] / scales[i, j]).to(torch.float8_e4m3fn)
    return codes, scales


def plain_blocks(codes, scales, size=8):
    """What they stand for, value by value."""
    numbers = np.zeros(codes.shape, np.float32)
    for (i, j), code in np.ndenumerate(codes.float().numpy()):
        numbers[i, j] = code * scales[i // size, j // size].item()
    return torch.from_numpy(numbers)


def fp8(folder, family, *, scales="weight_scale_inv", config=FP8, size=8):
    """A family's checkpoint with its matrices in float8; gives what they stand for."""
    shrunk.build(family).module.save_pretrained(folder)
    state, numbers = {}, {}
    for name, value in load_file(folder / WEIGHTS).items():
        if value.ndim == 2 and name.endswith("_proj.weight"):
            codes, steps = in_blocks(value, size)
            state[name], state[f"{name.removesuffix('weight')}{scales}"] = codes, steps
            numbers[name] = plain_blocks(codes, steps, size)
        else:
            state[name] = numbers[name] = value
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    state_config(folder, config | {"weight_block_size": [size, size]} if config else {})
    return numbers


def state_config(folder, stated):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": stated}))


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "qwen3_moe"])
def test_float8_blocks_become_the_numbers_they_stand_for(family, tmp_path):
    numbers = fp8(tmp_path / "fp8", family)
    model = load(str(tmp_path / "fp8"))
    plain = shrunk.build(family).module
    plain.save_pretrained(tmp_path / "plain")
    save_file(numbers, tmp_path / "plain" / WEIGHTS, metadata={"format": "pt"})
    expected = load(str(tmp_path / "plain")).module.state_dict()
    for name, value in model.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=0)
    facts = model.checkpoint
    assert facts.quantized.method == "fp8" and facts.quantized.dequantized
    assert facts.quantized.tensors == sum(
        name.endswith("weight_scale_inv") for name in load_file(tmp_path / "fp8" / WEIGHTS)
    )
    assert facts.compared == len(numbers)
    assert {str(p.dtype) for p in model.module.parameters()} == {"torch.float32"}


def test_the_source_stands_in_the_manifest(tmp_path):
    fp8(tmp_path / "fp8", "qwen2_moe")
    recording = record(load(str(tmp_path / "fp8")), tiny.corpus(n_documents=5), tmp_path / "r")
    assert recording.manifest["model"]["quantization"]["method"] == "fp8"
    assert recording.manifest["model"]["quantization"]["dequantized"] is True
    assert recording.manifest["model"]["dtype"] == "float32"
    assert recording.manifest["model"]["adapter"] is None


def test_blocks_that_do_not_fit_are_never_spread_evenly(tmp_path):
    """transformers 5.23 divides rows by scales: 24 columns in blocks of 16 get 12 columns a scale."""
    fp8(tmp_path, "qwen2_moe", size=16)
    with pytest.raises(
        ModelError, match=r"shared_expert.down_proj.weight is not in the model as it is on disk: .* codes"
    ):
        load(str(tmp_path))


def mxfp4(values):
    """Float4 codes [experts, rows, blocks, 16] and exponents of blocks of 32, of numbers that they hold exactly."""
    table = torch.tensor(quantization._E2M1)
    experts, rows, columns = values.shape
    blocks = values.reshape(experts, rows, columns // 32, 32)
    exponents = torch.floor(torch.log2(blocks.abs().amax(-1).clamp(min=2.0**-60))) - 2
    scaled = blocks / torch.exp2(exponents)[..., None]
    codes = (scaled[..., None] - table).abs().argmin(-1).to(torch.uint8)
    return codes[..., ::2] | (codes[..., 1::2] << 4), (exponents + 127).to(torch.uint8), codes, exponents


def test_float4_blocks_become_the_numbers_they_stand_for(tmp_path):
    config = shrunk.config("gpt_oss")
    config.intermediate_size = 64  # the packed widths are whole blocks
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    state, expected = load_file(tmp_path / WEIGHTS), {}
    for name in [name for name in state if name.endswith(("gate_up_proj", "down_proj"))]:
        value = state.pop(name).transpose(-1, -2).contiguous()  # [experts, rows, columns], as it is packed
        state[f"{name}_blocks"], state[f"{name}_scales"], codes, exponents = mxfp4(value)
        numbers = np.zeros(codes.shape, np.float32)
        for at, code in np.ndenumerate(codes.numpy()):
            numbers[at] = quantization._E2M1[code] * 2.0 ** float(exponents[at[:-1]])
        expected[name] = torch.from_numpy(numbers).reshape(value.shape).transpose(-1, -2)
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    state_config(tmp_path, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]})
    model = load(str(tmp_path))
    found = model.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    assert model.checkpoint.quantized.method == "mxfp4" and model.checkpoint.quantized.tensors == len(expected)
    assert model.checkpoint.compared == len(found)


@pytest.mark.parametrize("method", METHODS_REFUSED)
@pytest.mark.parametrize("place", ["config", "text_config"])
def test_other_methods_are_refused_by_name_whatever_is_installed(method, place, tmp_path, monkeypatch):
    shrunk.build("qwen2_moe").module.save_pretrained(tmp_path)
    state_config(tmp_path, {"quant_method": method, "bits": 4})
    if place == "text_config":
        shrunk.build("llama4").module.save_pretrained(tmp_path)
        stated = json.loads((tmp_path / "config.json").read_text())
        text = stated.get("text_config", stated) | {"quantization_config": {"quant_method": method, "bits": 4}}
        outer = CONFIG_MAPPING["llama4"](text_config=text).to_dict()
        (tmp_path / "config.json").write_text(json.dumps(outer))
    for package in ("optimum", "gptqmodel", "compressed_tensors", "bitsandbytes", "torchao"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    with pytest.raises(
        ModelError, match=rf"is quantized \({method}\), and its codes cannot be turned into weights here"
    ):
        load(str(tmp_path))


def test_dummy_weights_of_a_quantized_config_are_drawn(tmp_path):
    shrunk.build("qwen2_moe").module.save_pretrained(tmp_path)
    state_config(tmp_path, {"quant_method": "gptq", "bits": 4})
    model = load(str(tmp_path), weights="dummy")
    assert model.dtype == "float32" and model.checkpoint is None


@pytest.mark.parametrize(
    ("scales", "config", "message"),
    [
        (
            "weight_scale",
            FP8,
            r"stored as F8_E4M3 hold codes of a quantized checkpoint, and the scales that the method fp8 needs",
        ),
        ("weight_scale", {}, "stored as F8_E4M3 hold codes of a quantized checkpoint, but config.json names no method"),
        ("weight_scale_inv", {}, "but config.json names no method by which they become weights"),
    ],
)
def test_codes_without_what_makes_numbers_of_them_are_refused(scales, config, message, tmp_path):
    fp8(tmp_path, "qwen2_moe", scales=scales, config=config)
    with pytest.raises(ModelError, match=message):
        load(str(tmp_path))


def test_one_lost_scale_is_named(tmp_path):
    fp8(tmp_path, "qwen2_moe")
    state = load_file(tmp_path / WEIGHTS)
    del state["model.layers.1.self_attn.q_proj.weight_scale_inv"]
    save_file(state, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensor \(model.layers.1.self_attn.q_proj.weight\) stored as F8_E4M3"):
        load(str(tmp_path))


def test_a_method_that_another_tool_wrote_beside_the_config_is_named(tmp_path):
    fp8(tmp_path, "qwen2_moe", scales="weight_scale", config={})
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    with pytest.raises(
        ModelError,
        match=r"codes of a quantized checkpoint \(FP8 of hf_quant_config.json\), but config.json names no method",
    ):
        load(str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_integers_are_never_taken_for_weights(dtype, tmp_path):
    shrunk.build("qwen2_moe").module.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    name = "model.layers.1.self_attn.q_proj.weight"
    save_file(state | {name: torch.ones_like(state[name], dtype=dtype)}, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"1 tensor \({name}\) stored as [IU]\d+"):
        load(str(tmp_path))


def test_numbers_under_a_stated_method_are_loaded_as_they_stand(tmp_path):
    """A checkpoint that was dequantized and kept its config."""
    shrunk.build("qwen2_moe").module.save_pretrained(tmp_path)
    state_config(tmp_path, FP8)
    assert load(str(tmp_path)).checkpoint.quantized.tensors == 0
