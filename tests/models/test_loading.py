"""Names are resolved in one order, and whatever cannot be loaded says why and what to do."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import SwitchTransformersConfig, ViTConfig

from tests import tiny
from workbench.errors import ModelError
from workbench.models import loading
from workbench.models.bundled import MODELS, bundled_models
from workbench.models.loading import inspect_topology, load, memory_forecast, weights_digest


def test_a_folder_gives_the_very_weights(saved):
    model = load(str(saved))
    assert model.dtype == "float32"
    assert weights_digest(model.module) == weights_digest(tiny.moe().module)
    assert model.topology == tiny.moe().topology
    assert not model.module.training
    assert model.tokenizer is None  # none was saved


@pytest.mark.parametrize("name", ["tiny-moe", "tiny-dense", "tiny-moe@step-0", "tiny-dense@parent"])
def test_bundled_models_load_with_their_tokenizer(name):
    model = load(name)
    assert f"{model.name}{'@' if model.revision else ''}{model.revision}" == name
    assert model.tokenizer.decode(model.tokenizer("Überall 水 42\n")["input_ids"]) == "Überall 水 42\n"
    assert bool(model.topology.routers) == name.startswith("tiny-moe")
    assert model.topology.context >= 2048


def test_a_tokenizer_splits_as_its_file_says():
    """AutoTokenizer would split the dense model's text by Qwen2's own rules, and its losses would be wrong."""
    text = "def f(x):\n    return x + 1234\n\n\nclass A:\n"
    expected = Tokenizer.from_file(str(MODELS / "tiny-dense" / "tokenizer.json")).encode(text).ids
    for name in ("tiny-dense", "tiny-dense@parent", "tiny-moe", "tiny-moe@step-0"):
        assert load(name).tokenizer(text)["input_ids"] == expected


def test_the_bundled_pair_is_iso_active():
    moe, dense = load("tiny-moe"), load("tiny-dense")
    config = moe.module.config
    chosen = config.num_experts_per_tok * config.moe_intermediate_size
    assert chosen + config.shared_expert_intermediate_size == dense.module.config.intermediate_size
    assert moe.topology.parameters_total <= 3_500_000
    assert config.num_experts >= 16
    assert not config.norm_topk_prob


def test_bundled_revisions_are_listed_oldest_first():
    revisions = bundled_models()["tiny-moe"]
    assert revisions[0] == "step-0"
    assert len(revisions) >= 3
    assert revisions == sorted(revisions, key=lambda name: int(name.partition("-")[2]))


def test_the_bundled_models_are_small():
    size = sum(file.stat().st_size for file in MODELS.rglob("*") if file.suffix != ".pt" and file.is_file())
    assert size <= 32 * 10**6


def test_an_unknown_revision_lists_the_known_ones():
    with pytest.raises(ModelError, match=r"'tiny-moe' has no revision 'step-9'; it has step-0, step-"):
        load("tiny-moe@step-9")


def test_an_unknown_name_lists_what_is_known():
    with pytest.raises(
        ModelError, match=r"unknown model 'gpt-9'. Known: bundled tiny-dense.*published configs .*qwen2-57b"
    ):
        load("gpt-9")


def test_a_published_config_needs_dummy_weights():
    with pytest.raises(ModelError, match="is a published config without weights; load it with weights='dummy'"):
        load("qwen2-57b-a14b")


def test_the_reference_model_has_the_published_parameters():
    topology = inspect_topology("qwen2-57b-a14b")
    assert topology.parameters_total == 57_408_658_944
    assert topology.parameters_active == 14_249_270_784
    assert topology.moe_layers == tuple(range(28))


def test_a_model_too_large_is_refused_with_the_figures():
    with pytest.raises(ModelError, match=r"needs 21\d\.\d GiB \(213\.9 GiB weights as float32.* are free on cpu"):
        load("qwen2-57b-a14b", weights="dummy", device="cpu")


def test_the_forecast_counts_weights_and_buffers():
    forecast = memory_forecast("qwen2-57b-a14b", dtype="bfloat16", device="cpu")
    assert forecast.weights_bytes == 2 * 57_408_658_944
    assert forecast.kv_cache_bytes == 57_344 * 4096  # 57,344 bytes a token in bf16
    assert forecast.needed_bytes > forecast.weights_bytes


def test_dummy_weights_are_made_where_they_stay(monkeypatch):
    """Nothing of them is on the host first: on the meta device no value is ever made."""
    seen: list[str] = []
    plain = torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *a, **k: seen.append("to") or plain(self, *a, **k))
    module = loading._dummy(tiny.moe().module.config, torch.bfloat16, "meta")
    assert {p.device.type for p in module.parameters()} == {"meta"} and module.dtype == torch.bfloat16
    assert seen == []


def test_dummy_weights_are_those_of_the_seed():
    config = tiny.moe().module.config
    torch.manual_seed(0)
    plain = loading.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    made = loading._dummy(config, torch.float32, "cpu")
    assert weights_digest(made) == weights_digest(plain)


def test_dummy_weights_of_a_folder(folder):
    (folder / "model.safetensors").unlink()
    assert load(str(folder), weights="dummy").topology == tiny.moe().topology


def test_a_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config.json, so it is no model folder"):
        load(str(folder))


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has a config but no weights \(\*.safetensors\)"):
        load(str(folder))


def test_a_pickled_checkpoint_is_never_opened(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ModelError, match=r"pickled checkpoint \(pytorch_model.bin\), which can run code"):
        load(str(folder))


def test_a_broken_config_is_refused(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="the config cannot be read"):
        load(str(folder))


def test_truncated_weights_are_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="the weights cannot be loaded"):
        load(str(folder))


def test_missing_tensors_are_named(folder):
    state = load_file(folder / "model.safetensors")
    del state["model.layers.2.mlp.gate.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing keys in the checkpoint, e.g. model.layers.2.mlp.gate.weight"):
        load(str(folder))


def test_nan_in_a_weight_is_named_with_its_layer(folder):
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layer 1, model.layers.1.mlp.up_proj.weight holds NaN"):
        load(str(folder))


def test_a_config_that_contradicts_its_weights_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_experts": 12}))
    with pytest.raises(ModelError, match="the weights cannot be loaded|mismatched keys"):
        load(str(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "device is 'tpu'; 'auto', 'cpu', 'cuda' or 'cuda:N' was expected"),
        ({"dtype": "int4"}, "dtype is 'int4'; 'auto', 'float32'"),
        ({"weights": "none"}, "weights is 'none'; 'checkpoint' or 'dummy' was expected"),
    ],
)
def test_wrong_arguments_are_refused(saved, arguments, message):
    with pytest.raises(ModelError, match=re.escape(message)):
        load(str(saved), **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_gpu_that_is_not_there_is_named(saved):
    with pytest.raises(ModelError, match="device is 'cuda', but torch .* sees no CUDA GPU; use device='cpu'"):
        load(str(saved), device="cuda")


def test_a_large_models_digest_is_sampled_and_says_so(monkeypatch):
    monkeypatch.setattr(loading, "_SAMPLED_ABOVE_BYTES", 1000)
    module = tiny.moe().module
    before = weights_digest(module)
    assert before.startswith("sampled:")
    module.model.layers[0].mlp.gate.weight[0, 0] += 1
    assert weights_digest(module) != before


def test_an_encoder_decoder_is_refused(tmp_path):
    SwitchTransformersConfig(d_model=16, num_layers=2, num_decoder_layers=2, num_heads=2, d_kv=8, d_ff=16,
                             num_experts=4, vocab_size=50).save_pretrained(tmp_path / "switch")  # fmt: skip
    for refuse in (inspect_topology, load):
        with pytest.raises(
            ModelError, match=r"switch \(switch_transformers\) is an encoder-decoder model: its decoder"
        ):
            refuse(str(tmp_path / "switch"))


def test_a_model_that_is_no_language_model_is_refused(tmp_path):
    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(ModelError, match="vit: transformers has no causal language model of type 'vit'"):
        inspect_topology(str(tmp_path / "vit"))


def test_a_model_with_code_of_its_own_is_refused_and_the_code_is_not_run(tmp_path):
    canary = tmp_path / "it ran"
    config = {"model_type": "homemade", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(canary)!r}, 'w')")
    with pytest.raises(ModelError, match=r"brings code of its own \(auto_map in its config.json\), which is never run"):
        load(str(tmp_path))
    assert not canary.exists()
