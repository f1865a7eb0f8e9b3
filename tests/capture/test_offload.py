"""A model that is spread over devices: weights offloaded to CPU or disk by accelerate, as `device_map="auto"` does it.

No GPU is needed: accelerate keeps the weights of some modules elsewhere and brings them in for their forward pass,
so outside of it they lie on the meta device, as they do when a model is larger than a GPU.
"""

import numpy as np
import pytest
import torch
from accelerate import dispatch_model

from tests import tiny
from workbench.capture.proof.model import check_capture
from workbench.capture.record import record
from workbench.models.loading import from_module, weights_digest

PLACES = {
    "disk": {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu",
             "model.layers.0": "disk", "model.layers.1": "cpu", "model.layers.2": "disk"},
    "cpu": {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu",
            "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "cpu"},
}  # fmt: skip


@pytest.fixture(params=PLACES, ids=lambda name: name.replace(" ", "-"))
def spread(request, tmp_path):
    """The tests' model, with some of its weights where they are brought in from."""
    module = tiny.moe().module
    dispatch_model(module, device_map=PLACES[request.param], main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    return from_module(module, name="spread")


def test_weights_are_elsewhere(spread):
    assert any(parameter.is_meta for parameter in spread.module.parameters())


def test_the_capture_is_proved(spread, moe):
    there, here = check_capture(spread), check_capture(moe)
    assert there.routers == here.routers == 2
    assert there.experts_error <= 1e-5 and there.logits_error <= 1e-5


def test_the_recording_is_the_same(spread, moe, tmp_path):
    corpus = tiny.corpus(n_documents=8)
    there, here = record(spread, corpus, tmp_path / "there"), record(moe, corpus, tmp_path / "here")
    for layer in here.moe_layers:
        assert np.array_equal(there.ids(layer), here.ids(layer))
        np.testing.assert_allclose(there.weights(layer), here.weights(layer), atol=1e-3)
    np.testing.assert_allclose(there.column("logprob"), here.column("logprob"), atol=1e-5)


def test_the_digest_is_that_of_the_weights(spread, moe):
    assert weights_digest(spread.module) == weights_digest(moe.module)
    assert spread.device == torch.device("cpu")
    assert spread.topology == moe.topology
