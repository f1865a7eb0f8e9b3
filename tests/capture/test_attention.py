"""Attention statistics against eager attention in float64, and models that must not notice that they are watched."""

import copy

import numpy as np
import pytest
import torch

from tests.families import shrunk, table
from tests.tiers import often
from workbench.capture.attention import tiles
from workbench.capture.attention.calls import Call, watching
from workbench.capture.attention.heads import weighed_statistics
from workbench.capture.attention.tiles import Row, weights
from workbench.metrics import attention as plain
from workbench.metrics.attention import STATISTICS, WEIGHED

LENGTHS = (21, 13)
# The padded batch holds a row that is not padded; on the right is where recordings pad.
SIDES = often(("none", "right", "left"), ["right"])
# Families of the family test whose layers attend, but not by a softmax that transformers dispatches.
FAMILIES = [name for name in shrunk.declared_families() if name not in table.EXPLAINED]
NOT_COVERED = {"deepseek_v4": "some layers attend to compressed keys beside the tokens', which are of no one token"}


def batch(side):
    ids_BS = torch.randint(3, shrunk.VOCABULARY, (2, LENGTHS[0]), generator=torch.Generator().manual_seed(7))
    mask_BS = torch.ones_like(ids_BS)
    if side == "right":
        mask_BS[1, LENGTHS[1] :] = 0
    elif side == "left":
        mask_BS[1, : -LENGTHS[1]] = 0
    return ids_BS, mask_BS


def watched(module, ids_BS, mask_BS):
    """Logits, and the calls of a forward pass."""
    calls = []
    with torch.no_grad(), watching(module, calls.append):
        logits = module(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).logits
    return logits, calls


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_watched_model_computes_the_same_bits(family, side):
    module = shrunk.build(family).module
    ids_BS, mask_BS = batch(side)
    with torch.no_grad():
        plain = module(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).logits
    logits, _ = watched(module, ids_BS, mask_BS)
    assert torch.equal(logits, plain)


def test_what_is_not_covered_is_said_by_layer():
    module = shrunk.build("deepseek_v4").module
    _, calls = watched(module, *batch("none"))
    assert [call.of_tokens for call in calls] == [True, True, True, False]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in NOT_COVERED])
def test_statistics_equal_those_of_eager_weights_in_float64(family, side):
    model = shrunk.build(family)
    ids_BS, mask_BS = batch(side)
    _, calls = watched(model.module, ids_BS, mask_BS)
    for row, tokens in enumerate(mask_BS.bool()):
        weights = eager_weights(model.module, ids_BS[row : row + 1, tokens])
        assert [call.layer for call in calls] == list(model.topology.attention_layers)
        start = int(tokens.int().argmax())
        for call in calls:
            same_as_eager(call, weights[call.layer], row=row, start=start, stop=start + int(tokens.sum()))


def eager_weights(module, ids_BS):
    """Each layer's weights [H, S, T] in float64, of one row that is not padded: a query that sees no key is NaN in some
    families' eager attention, and spoils the next layer."""
    exact = copy.deepcopy(module)
    if module.config.model_type != "inkling2_text":  # its own code mixes float32 into float64
        exact = exact.double()
    exact.set_attn_implementation("eager")
    exact.set_experts_implementation("eager")  # the others know no float64
    seen = {}
    for part in exact.modules():
        if getattr(part, "layer_idx", None) is not None and type(part).__name__.endswith(("Attention", "MLA")):

            def note(module, args, out):
                if isinstance(out, tuple) and len(out) > 1 and isinstance(out[1], torch.Tensor) and out[1].dim() == 4:
                    seen[module.layer_idx] = out[1][0]

            part.register_forward_hook(note)
    with torch.no_grad():
        exact(input_ids=ids_BS, use_cache=False)
    return seen


def same_as_eager(call, weights_HST, *, row, start, stop):
    found = tiles.query_statistics(Row(call, row, start, stop))
    kept_HS = weights_HST.sum(-1).numpy()
    expected = plain.query_statistics(weights_HST.numpy() / kept_HS[..., None], np.arange(stop - start))
    # granitemoe_swa's eager attention scales its output by what the sink leaves, and not the weights it returns.
    sunk_elsewhere = call.sinks is not None and np.allclose(kept_HS, 1)
    expected["off"] = found["off"].numpy() if sunk_elsewhere else 1 - kept_HS
    assert set(found) == set(STATISTICS) == {*expected, "max_logit"}  # which weights do not show
    for name, values in expected.items():
        scale = np.nanmax(np.abs(values), initial=1)
        np.testing.assert_allclose(
            found[name].numpy() / scale,
            values / scale,
            rtol=0,
            # What is left beside a first key of 0.9 is divided by 0.1, and so is its rounding.
            atol=5e-4 if name.endswith("_rest") else 5e-5,
            err_msg=f"{name} layer {call.layer}",
        )


def call_of(n_queries, n_keys, *, heads=4, groups=2, scale=1.0, dtype=torch.float32, **further) -> Call:
    generator = torch.Generator().manual_seed(1)
    query = scale * torch.randn(1, heads, n_queries, 16, generator=generator)
    key = torch.randn(1, groups, n_keys, 16, generator=generator)
    given = {"mask": None, "softcap": None, "bias": None, "sinks": None, "causal": True} | further
    return Call(layer=0, query=query.to(dtype), key=key.to(dtype), scaling=0.25, **given)


def scores_of(call: Call) -> np.ndarray:
    """Scores in float64, minus infinity where a key is not seen: all that tiles have to agree with."""
    query_HSD, key_GTD = call.query[0].double(), call.key[0].double()
    key_HTD = key_GTD.repeat_interleave(len(query_HSD) // len(key_GTD), 0)
    score_HST = call.scaling * (query_HSD @ key_HTD.transpose(-1, -2))
    n_queries, n_keys = score_HST.shape[1:]
    closed_ST = torch.ones(n_queries, n_keys).triu(n_keys - n_queries + 1).bool()
    if call.window is not None:
        closed_ST |= torch.ones(n_queries, n_keys).tril(n_keys - n_queries - call.window).bool()
    return score_HST.masked_fill(closed_ST, -torch.inf).numpy()


@pytest.mark.parametrize("budget", [2**9, 2**12, 2**18])
@pytest.mark.parametrize("of_heads", [(4, 2), (6, 1), (3, 3), (8, 2)])
@pytest.mark.parametrize("shape", [(1, 1, None), (300, 300, None), (1, 200, None), (300, 300, 40)])
def test_any_cut_into_tiles_gives_the_definitions(budget, of_heads, shape, monkeypatch):
    (heads, groups), (n_queries, n_keys, window) = of_heads, shape
    monkeypatch.setitem(tiles._TILE, "cpu", budget)
    call = call_of(n_queries, n_keys, heads=heads, groups=groups, window=window)
    score_HST = scores_of(call)
    weight_HST = torch.tensor(score_HST).softmax(-1).numpy()
    positions_S = np.arange(n_keys - n_queries, n_keys)
    row = Row(call, 0, 0, n_keys)
    found = tiles.query_statistics(row)
    expected = plain.query_statistics(weight_HST, positions_S) | {"max_logit": score_HST.max(-1), "off": 0}
    for name in STATISTICS:
        np.testing.assert_allclose(
            found[name], np.broadcast_to(expected[name], found[name].shape), rtol=2e-4, atol=2e-4
        )
    np.testing.assert_allclose(weights(row), weight_HST, atol=1e-6)
    some = weights(row, heads=slice(1, 2))
    torch.testing.assert_close(some, weights(row)[1:2])


def test_statistics_that_need_the_weights_equal_their_definitions():
    call = call_of(150, 150)
    ids_T = torch.randint(0, 12, (150,), generator=torch.Generator().manual_seed(2))
    row = Row(call, 0, 0, 150)
    found = weighed_statistics(row, ids_T)
    weight_HST = torch.tensor(scores_of(call)).softmax(-1).numpy()
    expected = plain.weighed_statistics(weight_HST, ids_T.numpy(), positions_S=np.arange(150))
    assert set(found) == set(WEIGHED) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("largest", [5, 50, 150])
def test_logits_of_any_size_keep_the_tolerance_in_bfloat16(largest):
    """Queries and keys come in the model's dtype; all after them is float32, so what is left is its rounding."""
    call = call_of(400, 400, dtype=torch.bfloat16)
    scale = largest / np.abs(scores_of(call)[np.isfinite(scores_of(call))]).max()
    call = call_of(400, 400, scale=scale, dtype=torch.bfloat16)
    score_HST = scores_of(call)
    assert np.abs(score_HST[np.isfinite(score_HST)]).max() > 0.95 * largest
    weight_HST = torch.tensor(score_HST).softmax(-1).numpy()
    found = tiles.query_statistics(Row(call, 0, 0, 400))
    expected = plain.query_statistics(weight_HST, np.arange(400))
    assert np.abs(found["entropy"].numpy() - expected["entropy"]).max() < 2e-5 + 5e-7 * largest
    np.testing.assert_allclose(found["spread"], expected["spread"], atol=0.02)


def test_a_query_that_sees_no_key_is_nan_and_spoils_no_other():
    mask = torch.ones(1, 1, 10, 10).tril().bool()
    mask[0, 0, 4] = False
    call = call_of(10, 10)
    blind = tiles.query_statistics(Row(call_of(10, 10, mask=mask), 0, 0, 10))
    seeing = tiles.query_statistics(Row(call, 0, 0, 10))
    for name in STATISTICS:
        assert blind[name][:, 4].isnan().all() or name == "off", name
        others = [i for i in range(10) if i != 4]
        torch.testing.assert_close(
            blind[name][:, others], seeing[name][:, others], equal_nan=True, rtol=1e-5, atol=1e-5
        )


def test_a_block_mask_of_flex_attention_is_understood():
    from torch.nn.attention.flex_attention import create_block_mask

    block = create_block_mask(lambda b, h, q, k: (k <= q) & (k > q - 7), None, None, 40, 40, device="cpu")
    flex = tiles.query_statistics(Row(call_of(40, 40, mask=block), 0, 0, 40))
    window = tiles.query_statistics(Row(call_of(40, 40, window=7), 0, 0, 40))
    for name in STATISTICS:
        torch.testing.assert_close(flex[name], window[name], equal_nan=True)
