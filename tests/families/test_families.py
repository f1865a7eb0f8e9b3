"""Every MoE family of the installed transformers: captured, proved, recorded, and compared with plain hooks.

`python -m tests.families.table` writes what a run of this finds into `docs/families.md`.
"""

import copy
import inspect
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.families import shrunk, table
from workbench.capture.contributions import ExpertTracer
from workbench.capture.expert_weights import neuron_parts
from workbench.capture.hooks import Tracer
from workbench.capture.proof.router import other_implementation
from workbench.capture.record import record
from workbench.capture.routing import router_scores
from workbench.errors import CaptureError, ModelError
from workbench.models.families import FAMILIES as ROWS
from workbench.models.topology import topology
from workbench.recordings.corpus import Corpus, Document

FAMILIES = shrunk.declared_families()
LAYOUTS = ("qwen2_moe", "aria_text", "dbrx", "gpt_oss", "llama4_text", "longcat_flash", "nemotron_h")


def batch():
    """Two rows of token ids, the second one padded."""
    ids_BS = torch.randint(3, shrunk.VOCABULARY, (2, 21), generator=torch.Generator().manual_seed(7))
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[1, 13:] = 0
    return ids_BS, mask_BS


def plainly_hooked(module, facts, ids_BS, mask_BS):
    """What plain PyTorch hooks see of each router: logits, ids, weights, and the linear map's input."""
    seen = [{} for _ in facts.routers]
    handles = []
    for router, values in zip(facts.routers, seen, strict=True):

        def router_hook(_, args, output, router=router, values=values):
            values["router"] = output

        def logits_hook(_, args, output, router=router, values=values):
            values["logits"] = output if router.logits_index is None else output[router.logits_index]

        def experts_hook(_, args, keywords, values=values):
            values["given"] = [t for t in (*args, *keywords.values()) if isinstance(t, torch.Tensor)]

        def linear_hook(_, args, values=values):
            values["x"] = args[0]

        get = module.get_submodule
        handles += [
            get(router.router_path).register_forward_hook(router_hook),
            get(router.logits_path or router.router_path).register_forward_hook(logits_hook),
            get(router.experts_path).register_forward_pre_hook(experts_hook, with_kwargs=True),
            get(router.linear_input_path or router.router_path).register_forward_pre_hook(linear_hook),
        ]
    with torch.no_grad():
        logits_BSV = module(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits_BSV, seen


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in table.EXPLAINED])
def test_a_family_is_captured_proved_and_recorded(family, tmp_path):
    model = shrunk.build(family)
    bare = copy.deepcopy(model.module)
    ids_BS, mask_BS = batch()
    trace = Tracer(model.module, model.topology).run(ids_BS, mask_BS, deep=True)
    logits_BSV, seen = plainly_hooked(bare, model.topology, ids_BS, mask_BS)
    assert torch.equal(trace.logits, logits_BSV)
    for router, capture, plain in zip(model.topology.routers, trace.routers, seen, strict=True):
        same_as_plain_hooks(router, capture, plain)
        weight_EC = bare.get_submodule(router.linear_path or router.router_path).weight
        bias_E = getattr(bare.get_submodule(router.linear_path or router.router_path), "bias", None)
        mapped_TE = F.linear(plain["x"].reshape(-1, weight_EC.shape[1]).float(), weight_EC.float(), bias_E)
        torch.testing.assert_close(capture.logits_TE.float(), mapped_TE[:, : router.n_experts], rtol=1e-5, atol=1e-5)
        entropy = torch.special.entr(router_scores(capture.logits_TE, router.scoring)).sum(-1).mean()
        assert entropy < 0.9 * math.log(router.n_experts), "the tests' router is undecided, and proofs would not bite"
    as_returned_by_the_model(bare, model.topology, trace, ids_BS, mask_BS)
    with_experts = family not in table.EXPERTS_REFUSED
    recording = recorded(model, ids_BS, mask_BS, tmp_path, with_experts=with_experts)
    if with_experts:
        contributions_by_another_implementation(model, trace, recording, mask_BS)
    for router, plain in zip(model.topology.routers, trace.routers, strict=True):
        valid_TK = plain.ids_TK[mask_BS.reshape(-1).bool()].numpy()
        assert np.array_equal(recording.ids(router.layer, site=router.site), valid_TK)
        assert recording.counts(router.layer, site=router.site).sum() == valid_TK.size
    assert recording.manifest["check"]["routers"] == len(model.topology.routers)
    table.note(family, model.topology, recording.manifest["check"])


def same_as_plain_hooks(router, capture, plain):
    """Bit for bit."""
    assert torch.equal(capture.logits_TE, plain["logits"].reshape(-1, router.n_experts))
    if router.way == "scores":  # zero for every expert that was not chosen
        score_TE = plain["router"][0]
        assert torch.equal(torch.zeros_like(score_TE).scatter(1, capture.ids_TK, capture.weights_TK), score_TE)
        return
    (ids_TK,) = [t for t in plain["given"] if not t.is_floating_point()]
    (weights_TK,) = [t for t in plain["given"] if t.is_floating_point() and t.shape == ids_TK.shape]
    assert torch.equal(capture.weights_TK, weights_TK)
    skipped_TK = (weights_TK == 0) & torch.tensor(router.skips)
    assert torch.equal(capture.ids_TK[~skipped_TK], ids_TK[~skipped_TK])
    assert (capture.ids_TK[skipped_TK] == router.n_experts - 1).all()


def as_returned_by_the_model(bare, facts, trace, ids_BS, mask_BS):
    """Where the model itself returns router logits, they are those captured."""
    if "output_router_logits" not in inspect.signature(bare.forward).parameters or facts.family in NOT_LOGITS:
        return
    with torch.no_grad():
        returned = bare(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False, output_router_logits=True)
    given = [t for t in returned.router_logits if t is not None]
    learned = [c for r, c in zip(facts.routers, trace.routers, strict=True) if r.choice != "hash"]
    assert len(given) == len(learned)
    for capture, logits in zip(learned, given, strict=True):
        torch.testing.assert_close(capture.logits_TE, logits.reshape(capture.logits_TE.shape), rtol=0, atol=0)


# What these return under the name is something else, and is not compared: probabilities.
NOT_LOGITS = ("gemma4_text",)


def contributions_by_another_implementation(model, trace, recording, mask_BS):
    """Slot by slot, with its weight, by the implementation that did not run."""
    for router, capture in zip(model.topology.routers, trace.routers, strict=True):
        _, rebuild = other_implementation(model.module.get_submodule(router.experts_path), router)
        if router.way == "scores":
            rows_ETC = rebuild(capture.hidden_TC, capture.ids_TK, capture.weights_TK).unflatten(
                0, (router.n_experts, -1)
            )
            added_TK = rows_ETC[capture.ids_TK, torch.arange(mask_BS.numel())[:, None]].norm(dim=-1)
        else:
            slots = [(capture.ids_TK[:, k : k + 1], capture.weights_TK[:, k : k + 1]) for k in range(router.top_k)]
            outs = [rebuild(capture.hidden_TC, *slot) for slot in slots]
            added_TK = torch.stack([out.reshape(mask_BS.numel(), -1).norm(dim=-1) for out in outs], -1)
        added_TK *= recording.manifest["experts_check"]["routed_scale"][f"{router.layer} {router.site}"]
        found_TK = recording.contribution(router.layer, site=router.site)
        np.testing.assert_allclose(found_TK, added_TK[mask_BS.reshape(-1).bool()].numpy(), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("family", list(table.EXPERTS_REFUSED))
def test_experts_whose_part_cannot_be_told_are_refused(family):
    """An entry that starts to work fails this test."""
    model = shrunk.build(family)
    with pytest.raises(
        CaptureError, match=rf"\({model.topology.family}\), layer \d.*{table.EXPERTS_REFUSED[family].error}"
    ):
        ExpertTracer(model)


@pytest.mark.parametrize("family", LAYOUTS)
def test_neurons_of_every_layout_can_change_places(family):
    """The model computes the same when its experts' neurons, as they are told apart, are permuted."""
    model = shrunk.build(family)
    ids_BS, _ = batch()
    experts = [model.module.get_submodule(router.experts_path) for router in model.topology.routers]
    for name, parameter in (named for module in experts for named in module.named_parameters()):
        if name.endswith("_bias"):
            parameter.zero_()  # not part of a neuron here
    before_BSV = model.module(input_ids=ids_BS).logits
    for router, module in zip(model.topology.routers, experts, strict=True):
        order = torch.randperm(router.expert_width, generator=torch.Generator().manual_seed(3))
        for part_EFC in neuron_parts(module, router).values():
            part_EFC.copy_(part_EFC[:, order].clone())
    torch.testing.assert_close(model.module(input_ids=ids_BS).logits, before_BSV, rtol=1e-4, atol=1e-4)


def recorded(model, ids_BS, mask_BS, folder, *, with_experts):
    """The rows of the batch as a recording, proved."""
    rows = [tuple(row[:n].tolist()) for row, n in zip(ids_BS, mask_BS.sum(-1).tolist(), strict=True)]
    documents = tuple(Document(f"d{i}", "random", "random", f"d{i}", "", row) for i, row in enumerate(rows))
    fields = ("routing", "logprob", "weights", *(("experts",) if with_experts else ()))
    return record(model, Corpus("random", documents), folder / "recording", fields=fields)


@pytest.mark.parametrize("family", list(table.EXPLAINED))
def test_a_family_that_is_not_supported_is_refused_as_explained(family):
    """An entry that starts to work fails this test."""
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(shrunk.config(family))
    with pytest.raises(ModelError, match=table.EXPLAINED[family].error):
        topology(module)


def test_few_families_are_not_supported():
    assert len(table.EXPLAINED) <= 6
    assert set(table.EXPLAINED) <= set(FAMILIES)


def test_every_row_of_facts_is_of_a_known_family():
    assert set(ROWS) <= set(FAMILIES) | {"dots3_note_text"}


def test_no_causal_family_hides_experts_without_declaring_their_router():
    """Were there one, it would belong into `families.py` (hash_routers) and into the table."""
    hidden = []
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if name in FAMILIES or name not in CONFIG_MAPPING:
            continue
        found = MODEL_FOR_CAUSAL_LM_MAPPING.get(CONFIG_MAPPING[name], None)
        for model_class in found if isinstance(found, tuple) else (found,):
            if model_class is None:
                continue
            of_module = vars(sys.modules[model_class.__module__])
            hidden += [name for kind in of_module if kind.endswith(("Experts", "TopKRouter", "SparseMoeBlock"))]
    assert hidden == []


def test_the_table_in_the_docs_names_every_family():
    written = (table.DOCS).read_text(encoding="utf-8")
    assert [name for name in FAMILIES if f"\n| {name} |" not in written] == []
    rows = [line.split("|")[1].strip() for line in written.splitlines() if line.startswith("| ")]
    assert set(rows) - {"family", "---"} <= set(FAMILIES)
