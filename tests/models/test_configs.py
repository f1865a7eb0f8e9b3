"""A config is input of a stranger: whatever stands in it gives a model that can be meant, or one sentence."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2MoeConfig
from transformers.integrations import hub_kernels
from typer.testing import CliRunner

from tests import tiny
from tests.families import shrunk
from workbench.cli.main import command_line
from workbench.errors import ModelError
from workbench.models import loading
from workbench.models.configs import on_meta, quantization_method
from workbench.models.loading import inspect, inspect_topology, load

ODD = (None, 0, -1, 10**7, 10**30, 0.5, "x", "4", True, [], [None], {}, {"a": 1}, float("nan"), float("inf"))


@pytest.fixture
def write(tmp_path):
    """Writes the config of a small Qwen2-MoE with some of its fields changed, and gives its folder."""
    stated = tiny.moe().module.config.to_dict()

    def write(**fields: object) -> str:
        (tmp_path / "config.json").write_text(json.dumps(stated | fields))
        return str(tmp_path)

    return write


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "gpt_oss", "llama4_text"])
def test_no_field_of_a_config_makes_a_traceback(tmp_path, family):
    """Each field in turn becomes what no field should be; anything but a ModelError would fail the test."""
    stated = json.loads(json.dumps(shrunk.config(family).to_dict(), default=str))
    refused = 0
    for number, name in enumerate([*stated, "text_config", "quantization_config", "auto_map", "per_layer_config"]):
        for odd in (ODD[number % len(ODD)], ODD[(7 * number + 3) % len(ODD)], ODD[(11 * number + 5) % len(ODD)]):
            (tmp_path / "config.json").write_text(json.dumps(stated | {name: odd}))
            try:
                facts = inspect(str(tmp_path)).topology
            except ModelError as error:
                refused += 1
                assert str(error).endswith(".") and "\n" not in str(error)
            else:
                assert 0 < facts.parameters_active <= facts.parameters_total
    assert refused > 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"the config cannot be read \(JSONDecodeError|the config cannot be read \(Expecting"),
        (b"[1]", "it is JSON of list, and an object was expected"),
        (b"\xff\xfe{}", r"the config cannot be read \(UnicodeDecodeError"),
        (b"[" * 100_000, r"the config cannot be read \(RecursionError"),
        (b"{}", "the config cannot be read"),
        (b'{"model_type": ["qwen2_moe"]}', "the config cannot be read"),
        (b'{"model_type": "of tomorrow"}', "the config cannot be read .*does not recognize"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        inspect(str(tmp_path))


def test_a_config_of_any_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.models.configs._LARGEST_FILE_BYTES", 10)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_moe"}')
    with pytest.raises(ModelError, match="it is larger than 10 bytes"):
        inspect(str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 10**7}, "config.json has num_hidden_layers 10,000,000; 0 to 1,024 are built here"),
        ({"num_hidden_layers": -3}, "config.json has num_hidden_layers -3; 0 to 1,024"),
        ({"num_experts": 10**6}, "config.json has num_experts 1,000,000; 0 to 65,536"),
        ({"num_experts": -1}, "config.json has num_experts -1; 0 to 65,536"),
        ({"vocab_size": 10**12}, "config.json has vocab_size 1,000,000,000,000; 0 to 67,108,864"),
        ({"hidden_size": 10**9}, "config.json has hidden_size 1,000,000,000; 0 to 1,048,576"),
        ({"num_labels": 10**10}, "config.json has num_labels 10,000,000,000"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "config.json has rope_parameters.rope_theta NaN"),
        (
            {"num_hidden_layers": 0, "layer_types": []},
            "has 0 for num_hidden_layers; a whole number from 1 was expected",
        ),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "4 num_attention_heads, no multiple of its 3 num_key"),
        ({"num_attention_heads": 64, "num_key_value_heads": 64}, "64 num_attention_heads in a hidden_size of 32"),
        ({"hidden_size": "wide"}, r"Validation error for field 'hidden_size': TypeError: Field 'hidden_size' expected"),
        ({"hidden_act": "swoosh"}, r"no model can be built by this config \(KeyError: .*swoosh.*Mend config.json"),
        ({"text_config": 5}, "text part .5. is no config"),
        ({"num_experts_per_tok": 9}, "qwen2_moe: layer 0 chooses 9 of 8 experts for each token; 1 to 8 was expected"),
        ({"num_experts_per_tok": 0}, "layer 0 chooses 0 of 8 experts"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused_before_anything_is_built(write, fields, message):
    folder = write(**fields)
    for read in (inspect_topology, lambda name: load(name, weights="dummy")):
        with pytest.raises(ModelError, match=message):
            read(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_group": 3}, "takes 1 of 3 groups of 8 experts"),
        ({"topk_group": 4}, "takes 4 of 2 groups"),
        ({"num_experts_per_tok": 6}, "chooses 6 experts for each token from 1 of 2 groups, which hold 4"),
    ],
)
def test_groups_must_hold_the_choice(tmp_path, fields, message):
    shrunk.config("deepseek_v3").save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stated | fields))
    with pytest.raises(ModelError, match=message):
        inspect(str(tmp_path))


@pytest.mark.parametrize(("experts", "chosen"), [(1, 1), (4, 4), (2, 1)])
def test_one_expert_or_all_of_them_is_a_model(write, experts, chosen):
    facts = load(write(num_experts=experts, num_experts_per_tok=chosen), weights="dummy").topology
    assert {(r.n_experts, r.top_k) for r in facts.routers} == {(experts, chosen)}
    assert (facts.parameters_active == facts.parameters_total) == (experts == chosen)


KERNEL = "owner/kernel"


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": KERNEL},
        {"_attn_implementation": f"{KERNEL}@main:layer"},
        {"_attn_implementation_internal": KERNEL},
        {"attn_implementation": {"": KERNEL}},
        {"experts_implementation": KERNEL},
        {"text_config": {"_attn_implementation": KERNEL}},
        {"kernel_config": {"kernel_mapping": {"RMSNorm": f"{KERNEL}:RMSNorm"}}},
    ],
)
def test_a_kernel_of_the_hub_is_refused_wherever_a_config_names_it(write, fields):
    folder = write(**fields)
    for read in (inspect_topology, lambda name: load(name, weights="dummy")):
        with pytest.raises(ModelError, match=r"a kernel of the hub: code of others, .* Take the line out"):
            read(folder)


def test_a_kernel_of_the_hub_is_refused_as_an_option(write):
    with pytest.raises(ModelError, match="attention is 'owner/kernel', a kernel of the hub"):
        load(write(), weights="dummy", attention=KERNEL)


def test_whatever_asks_for_a_kernel_gets_none():
    """Quantizers, and an attention whose package is not installed, fetch kernels of their own accord."""
    with pytest.raises(ModelError, match="'owner/kernel' is a kernel of the hub: .* never fetched"):
        hub_kernels.get_kernel(KERNEL, version=1)
    assert hub_kernels.lazy_load_kernel("finegrained-fp8") is None


@pytest.mark.parametrize("asked", ["eager", "flash_attention_2", "nonsense"])
def test_the_attention_is_not_the_configs_to_choose(write, asked):
    chosen = load(write(), weights="dummy").module.config._attn_implementation
    made = load(write(attn_implementation=asked, experts_implementation=asked), weights="dummy")
    assert made.module.config._attn_implementation == chosen
    assert load(write(), weights="dummy", attention="eager").module.config._attn_implementation == "eager"


def test_code_beside_a_type_that_transformers_has_is_not_needed(write):
    assert inspect_topology(write(auto_map={"AutoConfig": "code.Config"})).routers


@pytest.mark.parametrize(
    ("stated", "method"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {}}, None),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"quant_method": "of tomorrow"}}, "of tomorrow"),
        ({"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ({"quantization_config": {"bits": 4}}, "without a name"),
        ({"quantization_config": 5}, "without a name"),
        ({"quantization_config": ["fp8"]}, "without a name"),
        ({"quantization_config": {"quant_method": 7}}, "7"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "without a name"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
    ],
)
def test_the_method_of_quantization_is_read_from_any_content(stated, method):
    assert quantization_method(stated) == method
    assert quantization_method(SimpleNamespace(**stated)) == method


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "bitsandbytes", "modelopt", "mxfp4", "new"])
def test_inspect_shows_how_the_weights_on_disk_are_quantized(write, method, monkeypatch):
    """With or without the package of the method: it is the make-up that is looked at."""
    folder = write(quantization_config={"quant_method": method, "bits": 4})
    found = inspect(folder)
    assert found.quantization == method and found.topology == inspect(write()).topology
    monkeypatch.setenv("COLUMNS", "150")
    write(quantization_config={"quant_method": method, "bits": 4})
    assert f"quantized ({method})" in CliRunner().invoke(command_line(), ["inspect", folder]).output
    assert (
        json.loads(CliRunner().invoke(command_line(), ["inspect", folder, "--json"]).output)["quantization"] == method
    )


def test_a_dtype_in_which_nothing_is_computed_is_no_hindrance(write):
    facts = inspect_topology(write(dtype="float8_e4m3fn"))
    assert facts == inspect_topology(write())
    assert loading._dtype("auto", "cuda", SimpleNamespace(dtype=torch.float8_e4m3fn)) == torch.bfloat16
    assert loading._dtype("auto", "cuda", SimpleNamespace(dtype=torch.float16)) == torch.float16
    assert loading._dtype("auto", "cuda", SimpleNamespace(dtype="float16")) == torch.bfloat16


def test_a_constructors_error_names_the_model_type(monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("integer division or modulo by zero")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", fails)
    for build in (on_meta, lambda config: loading._dummy(config, torch.float32, "cpu")):
        with pytest.raises(ModelError, match=r"qwen2_moe: no .* \(ZeroDivisionError: integer division"):
            build(Qwen2MoeConfig())
