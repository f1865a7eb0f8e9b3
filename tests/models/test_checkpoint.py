"""Every tensor of a checkpoint is accounted for: loaded as it stands on disk, left out for a reason, or refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto import auto_factory

from tests.families import shrunk
from workbench.errors import ModelError
from workbench.models.checkpoint import accounting, comparison
from workbench.models.loading import load, weights_digest

FAMILIES = shrunk.declared_families()  # doge and jetmoe cannot be captured (docs/families.md)
WEIGHTS = "model.safetensors"


def change(folder, *, add=(), drop=(), config=(), replace=()):
    """Changes tensors and config values of a checkpoint's folder."""
    state = {name: value for name, value in load_file(folder / WEIGHTS).items() if name not in drop}
    save_file(state | dict(add) | dict(replace), folder / WEIGHTS, metadata={"format": "pt"})
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(config)))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("zaya", "doge", "jetmoe")])
def test_every_tensor_of_every_family_is_compared(family, tmp_path):
    """Saved in the layout of its makers, loaded, taken apart again: nothing is left out, nothing differs."""
    shrunk.build(family).module.save_pretrained(tmp_path)
    facts = load(str(tmp_path)).checkpoint
    assert facts.tensors == facts.compared > 30
    assert facts.left_out == () and facts.quantized is None and facts.adapter is None


def test_a_value_that_the_library_overwrites_after_reading_it_is_caught(tmp_path):
    """transformers 5.23 sets the last balancing bias of zaya to -1 behind the loading."""
    shrunk.build("zaya").module.save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"balancing_biases is not in the model as it is on disk: 1 of 9 values differ"
    ):
        load(str(tmp_path))


def test_tensors_that_the_class_lacks_are_refused_by_name(folder):
    names = [f"model.layers.{layer}.self_attn.o_proj.bias" for layer in range(3)]
    change(folder, add={name: torch.ones(32) for name in names})
    with pytest.raises(
        ModelError,
        match=r"holds 3 tensors \(model.layers.0.self_attn.o_proj.bias, .*Qwen2MoeForCausalLM does not take: biases",
    ):
        load(str(folder))


def test_more_layers_than_the_config_says_are_refused(folder):
    change(folder, config={"num_hidden_layers": 2, "layer_types": None})
    with pytest.raises(ModelError, match=r"config.json has 2 decoder layers, the weights have layer 2 too"):
        load(str(folder))


@pytest.mark.parametrize("family", ["glm4_moe", "deepseek_v3"])
def test_a_decoder_layer_is_not_taken_for_one_that_predicts_further_tokens(family, tmp_path):
    """The class ignores the layer of that number, whatever it holds; a whole decoder layer must not go that way."""
    number = {"glm4_moe": 46, "deepseek_v3": 61}[family]
    shrunk.build(family).module.save_pretrained(tmp_path)
    layer = {name: value for name, value in load_file(tmp_path / WEIGHTS).items() if ".layers.3." in name}
    extra = {name.replace(".layers.3.", f".layers.{number}."): value.clone() for name, value in layer.items()}
    change(tmp_path, add=extra)
    with pytest.raises(ModelError, match=rf"config.json has 4 decoder layers, the weights have layer {number} too"):
        load(str(tmp_path))
    change(tmp_path, add={f"model.layers.{number}.eh_proj.weight": torch.ones(32, 64)})
    (left_out,) = load(str(tmp_path)).checkpoint.left_out
    assert left_out.tensors == len(extra) + 1
    assert left_out.reason == "modules that predict further tokens, which a causal forward pass does not run"


def test_the_text_part_of_a_model_of_images_leaves_out_the_rest_and_says_so(tmp_path):
    shrunk.build("llama4").module.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    outer = CONFIG_MAPPING["llama4"](text_config=stated.get("text_config", stated)).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(outer))
    images = {"vision_model.class_embedding": torch.ones(8), "multi_modal_projector.linear_1.weight": torch.ones(8, 8)}
    change(tmp_path, add=images)
    facts = load(str(tmp_path)).checkpoint
    assert [(left_out.tensors, set(left_out.names)) for left_out in facts.left_out] == [(2, set(images))]
    assert "the text part is loaded" in facts.left_out[0].reason
    assert facts.compared == facts.tensors - 2
    change(tmp_path, add={"extra.weight": torch.ones(8)})
    with pytest.raises(ModelError, match=r"holds 1 tensor \(extra.weight\)"):
        load(str(tmp_path))


def test_parts_for_images_are_no_excuse_where_the_config_has_none(folder):
    change(folder, add={"vision_model.class_embedding": torch.ones(8)})
    with pytest.raises(ModelError, match=r"holds 1 tensor \(vision_model.class_embedding\)"):
        load(str(folder))


def test_a_table_that_the_model_computes_itself_is_left_out(folder):
    names = [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(3)]
    change(folder, add={name: torch.ones(4) for name in names})
    (left_out,) = load(str(folder)).checkpoint.left_out
    assert left_out.reason == "a table that the model computes itself" and set(left_out.names) == set(names)


def test_a_lost_expert_is_named(folder):
    lost = [f"model.layers.2.mlp.experts.5.{part}_proj.weight" for part in ("gate", "up", "down")]
    change(folder, drop=lost)
    with pytest.raises(
        ModelError, match=r"not whole: 3 tensors \(model.layers.2.mlp.experts.5.down_proj.weight, .* are missing"
    ):
        load(str(folder))


def test_one_matrix_of_an_expert_lost_is_named(folder):
    change(folder, drop=["model.layers.2.mlp.experts.5.up_proj.weight"])
    with pytest.raises(ModelError, match=r"1 tensor \(model.layers.2.mlp.experts.5.up_proj.weight\) is missing"):
        load(str(folder))


def test_more_experts_than_the_config_says_are_refused_with_both_shapes(folder):
    change(folder, config={"num_experts": 6})
    with pytest.raises(ModelError, match=r"experts.*is \[8, .*\] on disk and \[6, .*\] by config.json"):
        load(str(folder))


def test_two_tensors_for_one_place_are_refused_where_they_differ(folder):
    state = load_file(folder / WEIGHTS)
    change(folder, add={"norm.weight": state["model.norm.weight"] + 1})
    with pytest.raises(ModelError, match=r"norm.weight is not in the model as it is on disk"):
        load(str(folder))
    change(folder, replace={"norm.weight": state["model.norm.weight"].clone()})
    assert load(str(folder)).checkpoint.compared == len(state) + 1


def test_what_is_in_the_model_must_be_what_is_on_disk(folder, monkeypatch):
    """A fault planted in the library's conversion: two experts change places."""
    plain = accounting.AutoModelForCausalLM.from_pretrained

    def swapped(*arguments, **keywords):
        module = plain(*arguments, **keywords)
        down = module.model.layers[2].mlp.experts.down_proj.data
        down[[0, 1]] = down[[1, 0]]
        return module

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", swapped)
    with pytest.raises(
        ModelError, match=r"layers.2.mlp.experts.0.down_proj.weight is not in the model as it is on disk"
    ):
        load(str(folder))


def test_of_a_large_checkpoint_some_layers_are_compared(folder, monkeypatch):
    whole = load(str(folder)).checkpoint
    monkeypatch.setattr(comparison, "WHOLE_UP_TO_BYTES", 0)
    monkeypatch.setattr(comparison, "_looked_at", lambda groups, _: [n for n in sorted(groups) if n < 1])
    assert 0 < load(str(folder)).checkpoint.compared < whole.compared


def test_values_beyond_float16_are_named_with_what_to_do(folder):
    name = "model.layers.0.mlp.experts.3.down_proj.weight"
    change(folder, replace={name: load_file(folder / WEIGHTS)[name] * 1e6})
    load(str(folder))
    with pytest.raises(
        ModelError, match=rf"{name} holds .*beyond float16 \(up to 6.55e\+04\). Load it as --dtype bfloat16"
    ):
        load(str(folder), dtype="float16")


# Files beside the weights


def test_an_ordinary_checkpoint_has_nothing_to_remark(saved):
    assert load(str(saved)).checkpoint.remarks() == []


def test_an_adapter_is_never_applied_whatever_is_installed(saved, folder, monkeypatch):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/b"}))
    save_file({"base_model.model.lm_head.lora_A.weight": torch.ones(2, 32)}, folder / "adapter_model.safetensors")
    model = load(str(folder))
    assert weights_digest(model.module) == weights_digest(load(str(saved)).module)
    assert model.checkpoint.adapter == "adapter_config.json"
    assert "(adapter_config.json) and was not applied: adapters never are" in model.checkpoint.remarks()[0]
    assert model.checkpoint.files_left_out == {"adapter_model.safetensors": "an adapter; adapters are never applied"}
    asked = []
    monkeypatch.setattr(auto_factory, "is_peft_available", lambda: True)
    monkeypatch.setattr("transformers.integrations.peft.is_peft_available", lambda: True)
    monkeypatch.setattr("transformers.PreTrainedModel.load_adapter", lambda *a, **k: asked.append(a))
    assert weights_digest(load(str(folder)).module) == weights_digest(model.module)
    assert asked == []


def test_the_weights_once_more_in_another_layout_are_left_out(folder):
    save_file({"tok_embeddings.weight": torch.ones(2, 2)}, folder / "consolidated.00.safetensors")
    assert "once more" in load(str(folder)).checkpoint.files_left_out["consolidated.00.safetensors"]


def test_a_second_file_of_weights_is_refused_unless_it_is_the_same(folder):
    state = load_file(folder / WEIGHTS)
    save_file(state, folder / "copy.safetensors")
    assert load(str(folder)).checkpoint.files_left_out == {"copy.safetensors": "the same tensors once more"}
    save_file(state | {"lm_head.weight": state["lm_head.weight"] + 1}, folder / "copy.safetensors")
    with pytest.raises(ModelError, match=r"copy.safetensors holds 1 tensor \(lm_head.weight\) with other values"):
        load(str(folder))
    save_file({"more.weight": torch.ones(3)}, folder / "copy.safetensors")
    with pytest.raises(ModelError, match=r"copy.safetensors holds 1 tensor \(more.weight\) that are not in the files"):
        load(str(folder))


def sharded(folder):
    """The weights in two files with an index; gives the index."""
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(state)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: state[name] for name in held}, folder / file, metadata={"format": "pt"})
    return {"metadata": {}, "weight_map": {name: file for file, held in files.items() for name in held}}


def test_shards_are_read_by_their_index(saved, folder):
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(sharded(folder)))
    assert weights_digest(load(str(folder)).module) == weights_digest(load(str(saved)).module)


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda index, _: index["weight_map"].update({"lost": FIRST}), r"lists 1 tensor \(lost\) that no file holds"),
        (lambda index, _: index["weight_map"].update({"x": "../it"}), "names a file outside its folder"),
        (
            lambda index, _: index["weight_map"].update({"x": {"a": "/" * 9_000}}),
            r"outside its folder \(.{190,220}\), wh",
        ),
        (lambda index, _: index["weight_map"].update({"x": "x" * 300}), r"of which 1 are not there \(x{200} …\)"),
        (lambda _, folder: (folder / SECOND).unlink(), "names 2 files, of which 1 are not there"),
        (lambda index, _: index.pop("weight_map"), "index.json is damaged"),
        (lambda _, folder: shutil.copy(folder / FIRST, folder / SECOND), r"lists .* that no file holds"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(folder, spoil, message):
    index = sharded(folder)
    spoil(index, folder)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=message):
        load(str(folder))


def test_shards_without_an_index_are_refused(folder):
    sharded(folder)
    with pytest.raises(ModelError, match="neither model.safetensors nor model.safetensors.index.json"):
        load(str(folder))


def test_a_file_of_weights_outside_the_folder_is_refused(folder):
    change(folder, config={"transformers_weights": "../model.safetensors"})
    with pytest.raises(ModelError, match="transformers_weights of config.json is '../model.safetensors'"):
        load(str(folder))


# A router's mask


def masked(folder, *, experts):
    name = "model.layers.1.mlp.router.bias"
    bias = load_file(folder / WEIGHTS)[name]
    bias[experts] = -torch.inf
    change(folder, replace={name: bias})


def test_minus_infinity_in_a_routers_bias_is_a_mask(tmp_path):
    shrunk.build("gpt_oss").module.save_pretrained(tmp_path)
    masked(tmp_path, experts=[0, 5])
    assert bool(load(str(tmp_path)).module.model.layers[1].mlp.router.bias.isinf().any())
    masked(tmp_path, experts=[1, 2, 3, 4])
    with pytest.raises(ModelError, match=r"layer 1, .*router.bias masks 6 of 8 experts, but 3 are chosen"):
        load(str(tmp_path))


def test_plus_infinity_and_infinity_elsewhere_are_refused(tmp_path):
    shrunk.build("gpt_oss").module.save_pretrained(tmp_path)
    name = "model.layers.1.mlp.router.bias"
    change(tmp_path, replace={name: torch.full((8,), torch.inf)})
    with pytest.raises(ModelError, match="router.bias holds NaN or infinite values"):
        load(str(tmp_path))


def test_nan_in_a_correction_bias_is_refused(tmp_path):
    """It is a buffer, not a parameter."""
    shrunk.build("deepseek_v3").module.save_pretrained(tmp_path)
    change(tmp_path, replace={"model.layers.2.mlp.gate.e_score_correction_bias": torch.full((8,), torch.nan)})
    with pytest.raises(ModelError, match="layer 2, .*e_score_correction_bias holds NaN"):
        load(str(tmp_path))
