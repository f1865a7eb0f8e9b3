"""The proof that what is captured of a model is what the model did: five checks on a short text.

1. Shapes and ranges of ids and weights. 2. Logits are logits: they equal the router's linear map, and their top-k are
the chosen ids where the family's rule is plain top-k. 3. Rebuild: the experts' output, recomputed from the captured ids
and weights by another implementation than the one that ran, and the whole block with it, equal the model's. 4. Causal:
forcing another expert changes that token's logits and no earlier token's. 5. A padded batch chooses as single documents
do. A model that fails one is refused with family, layer, expected and found.

Axes: T tokens, E experts, K chosen per token, C model width, B rows, S positions.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from workbench.capture.hooks import RouterCapture, Tracer
from workbench.capture.reduce import router_scores
from workbench.errors import CaptureError
from workbench.models.families import family_facts
from workbench.models.loading import Model
from workbench.models.topology import Router

TEXT = (
    "The river rose in the night. By morning 1,204 sandbags lined the bank; def fill(n): return n + 1 — "
    "水位は下がった, и мост стоял."
)
_LENGTHS = (40, 23)  # two rows of unlike length, so that one is padded


@dataclass(frozen=True)
class CheckReport:
    """What the five proofs measured; part of every recording's manifest.

    Attributes:
        routers: Routers that were checked; 0 for a dense model, where nothing is to be proved.
        tokens: Tokens of the check's text.
        rebuild_with: Implementation that recomputed the experts.
        logits_error: Largest relative difference of captured logits and the router's linear map.
        experts_error: Largest relative difference of the experts' rebuilt output.
        block_error: Largest relative difference of the rebuilt block's output.
        causal_change: Smallest change of a token's logits when one of its experts is replaced.
        causal_leak: Largest change of an earlier token's logits.
        padding_differences: Chosen ids that differ between a padded batch and single documents, all at borders narrower
            than the dtype's rounding.
        seconds: How long it took; not part of the manifest.
    """

    routers: int
    tokens: int
    rebuild_with: str
    logits_error: float
    experts_error: float
    block_error: float
    causal_change: float
    causal_leak: float
    padding_differences: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without the time it took."""
        values = asdict(self)
        del values["seconds"]
        return values


@dataclass(frozen=True)
class _Tolerance:
    """How far two correct ways may differ: float32 1e-5, narrower dtypes 2e-2 (bf16 keeps 8 bits)."""

    relative: float
    rounding: float


def _tolerance(dtype: torch.dtype) -> _Tolerance:
    if dtype == torch.float32:
        return _Tolerance(1e-5, 0.0)
    return _Tolerance(2e-2, 8 * torch.finfo(dtype).eps)


def check_capture(model: Model) -> CheckReport:
    """Proves the capture of a model.

    Raises:
        CaptureError: names the family, the layer, what was expected and what was found.
    """
    started = time.perf_counter()
    if not model.topology.routers:
        return CheckReport(0, 0, "", 0.0, 0.0, 0.0, 0.0, 0.0, 0, time.perf_counter() - started)
    proof = _Proof(model)
    logits_error = experts_error = block_error = 0.0
    rebuild_with = ""
    for router, capture in zip(model.topology.routers, proof.trace.routers, strict=True):
        proof.shapes(router, capture)
        logits_error = max(logits_error, proof.logits(router, capture))
        rebuild_with, rebuild = proof.other_implementation(router)
        experts, block = proof.rebuild(router, capture, rebuild)
        experts_error, block_error = max(experts_error, experts), max(block_error, block)
    change, leak = proof.causality()
    return CheckReport(
        routers=len(model.topology.routers),
        tokens=int(proof.mask_BS.sum()),
        rebuild_with=rebuild_with,
        logits_error=logits_error,
        experts_error=experts_error,
        block_error=block_error,
        causal_change=change,
        causal_leak=leak,
        padding_differences=proof.padding(),
        seconds=time.perf_counter() - started,
    )


Rebuild = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class _Proof:
    """One model's proofs over one padded batch of two rows."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.facts = family_facts(model.topology.family)
        self.modules = dict(model.module.named_modules())
        self.tracer = Tracer(model.module, model.topology)
        self.ids_BS, self.mask_BS = _sample(model)
        self.trace = self.tracer.run(self.ids_BS, self.mask_BS, deep=True)
        # How far two correct ways may differ. Narrow dtypes: bf16 keeps 8 bits.
        exact = model.module.dtype == torch.float32
        self.tolerance = 1e-5 if exact else 2e-2
        self.rounding = 0.0 if exact else 8 * torch.finfo(model.module.dtype).eps

    def failure(self, router: Router, *, proof: str, expected: str, found: str) -> CaptureError:
        """The error of one router: family, layer, expected, found, and the next step."""
        return CaptureError(
            f"{self.model.name} ({self.model.topology.family}), layer {router.layer} {router.site}: the capture failed "
            f"its proof of {proof}: expected {expected}, found {found}. Nothing recorded from this model could be "
            "trusted. If the family is new, its facts belong into workbench/models/families.py; to record all the "
            "same, pass --no-check and the manifest will say so."
        )

    def shapes(self, router: Router, capture: RouterCapture) -> None:
        """Proof 1."""
        n_tokens = self.ids_BS.numel()
        got = [tuple(tensor.shape) for tensor in (capture.ids_TK, capture.weights_TK, capture.logits_TE)]
        wanted = [(n_tokens, router.top_k), (n_tokens, router.top_k), (n_tokens, router.n_experts)]
        if got != wanted:
            raise self.failure(router, proof="shapes", expected=f"ids, weights, logits {wanted}", found=str(got))
        low, high = int(capture.ids_TK.min()), int(capture.ids_TK.max())
        if low < 0 or high >= router.n_experts:
            raise self.failure(
                router, proof="ranges", expected=f"ids in [0, {router.n_experts})", found=f"ids from {low} to {high}"
            )
        ordered = capture.ids_TK.sort(-1).values
        if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
            raise self.failure(
                router, proof="ranges", expected="different experts for a token", found="one expert named twice"
            )
        if not bool(torch.isfinite(capture.weights_TK).all()):
            raise self.failure(router, proof="ranges", expected="finite routing weights", found="NaN or infinite ones")

    def logits(self, router: Router, capture: RouterCapture) -> float:
        """Proof 2; returns the largest relative error."""
        logits_TE = capture.logits_TE.float()
        if bool((logits_TE >= 0).all()) and torch.allclose(logits_TE.sum(-1), logits_TE.new_ones(()), atol=1e-3):
            raise self.failure(
                router,
                proof="logits",
                expected="raw router logits",
                found="rows that are non-negative and sum to 1: probabilities",
            )
        assert capture.router_input is not None
        module = self.modules[router.router_path]
        x_TC = capture.router_input.reshape(-1, capture.router_input.shape[-1]).to(module.weight.dtype)
        error = _relative(logits_TE, F.linear(x_TC, module.weight, getattr(module, "bias", None)))
        if error > self.tolerance:
            raise self.failure(
                router,
                proof="logits",
                expected=f"the router's linear map within {self.tolerance:g}",
                found=f"a relative error of {error:.2g}",
            )
        if self.facts.plain_topk:
            score_TE = router_scores(capture.logits_TE, router.scoring)
            chosen_TK = score_TE.gather(-1, capture.ids_TK.long()).sort(-1, descending=True).values
            best_TK = score_TE.topk(router.top_k, dim=-1).values
            # Scores are compared and not ids: at a tie either expert is a right choice.
            wrong = int((~torch.isclose(chosen_TK, best_TK, rtol=1e-6, atol=0)).any(-1).sum())
            if wrong:
                raise self.failure(
                    router,
                    proof="top-k",
                    expected="chosen ids with the k largest scores",
                    found=f"{wrong} tokens with another choice",
                )
        return error

    def other_implementation(self, router: Router) -> tuple[str, Rebuild]:
        """An implementation of the experts other than the one that ran, with its name."""
        experts = self.modules[router.experts_path]
        plain = getattr(type(experts).forward, "__wrapped__", None)
        if plain is None:
            raise self.failure(
                router,
                proof="rebuild",
                expected="experts that transformers dispatches",
                found=f"{type(experts).__name__}, which it does not",
            )
        if experts.config._experts_implementation == "eager":
            batched = ALL_EXPERTS_FUNCTIONS["batched_mm"]
            return "batched_mm", lambda hidden, ids, weights: batched(experts, hidden, ids, weights)
        return "eager", lambda hidden, ids, weights: plain(experts, hidden, ids, weights)

    def rebuild(self, router: Router, capture: RouterCapture, rebuild: Rebuild) -> tuple[float, float]:
        """Proof 3; returns the largest relative errors of experts and block."""
        assert capture.hidden_TC is not None and capture.routed_TC is not None
        assert capture.block_input is not None and capture.block_output is not None
        with torch.no_grad():
            rebuilt_TC = rebuild(capture.hidden_TC, capture.ids_TK, capture.weights_TK)
            # The block combines routed and shared parts by its own code; only its experts' output is ours.
            handle = self.modules[router.experts_path].register_forward_hook(lambda *_: rebuilt_TC)
            try:
                block = self.modules[router.block_path](capture.block_input)
            finally:
                handle.remove()
        errors = {
            "experts' output": _relative(rebuilt_TC, capture.routed_TC),
            "block's output": _relative(block[0] if isinstance(block, tuple) else block, capture.block_output),
        }
        for what, error in errors.items():
            if error > self.tolerance:
                raise self.failure(
                    router,
                    proof="rebuild",
                    expected=f"the {what} from captured ids and weights within {self.tolerance:g}",
                    found=f"a relative error of {error:.2g}",
                )
        return errors["experts' output"], errors["block's output"]

    def causality(self) -> tuple[float, float]:
        """Proof 4; returns the smallest wanted change and the largest unwanted one."""
        smallest_change, largest_leak = float("inf"), 0.0
        position = self.ids_BS.shape[1] // 2
        logits_SV = self.trace.logits[0].float()
        for router, capture in zip(self.model.topology.routers, self.trace.routers, strict=True):
            if router.top_k == router.n_experts:
                continue  # every expert is chosen already: there is no other one to force
            chosen_TK = capture.ids_TK.clone()
            heaviest = int(capture.weights_TK[position].abs().argmax())
            taken = capture.ids_TK[position].tolist()
            chosen_TK[position, heaviest] = next(e for e in range(router.n_experts) if e not in taken)
            forced_BSV = self.tracer.forced(self.ids_BS, self.mask_BS, router=router, chosen_TK=chosen_TK)
            moved_S = (forced_BSV[0].float() - logits_SV).abs().amax(-1)
            change, leak = float(moved_S[position]), float(moved_S[:position].max())
            if change <= leak:
                raise self.failure(
                    router,
                    proof="causality",
                    expected="logits that change when one of the token's experts is replaced",
                    found=f"a change of {change:.2g}, of earlier tokens {leak:.2g}",
                )
            scale = float(logits_SV.abs().max())
            if leak > self.tolerance * scale:
                raise self.failure(
                    router,
                    proof="causality",
                    expected=f"no earlier token to change beyond {self.tolerance:g}",
                    found=f"a change of {leak / scale:.2g}",
                )
            smallest_change, largest_leak = min(smallest_change, change), max(largest_leak, leak)
        return (0.0 if smallest_change == float("inf") else smallest_change), largest_leak

    def padding(self) -> int:
        """Proof 5; returns the ids that differ, all of them within rounding."""
        differences = 0
        width = self.ids_BS.shape[1]
        for row, length in enumerate(self.mask_BS.sum(-1).tolist()):
            alone = self.tracer.run(self.ids_BS[row : row + 1, :length])
            pairs = zip(self.model.topology.routers, self.trace.routers, alone.routers, strict=True)
            for router, padded, single in pairs:
                together_SK = padded.ids_TK[row * width : row * width + length].sort(-1).values
                single_SK = single.ids_TK.sort(-1).values
                differs_S = (together_SK != single_SK).any(-1)
                if not bool(differs_S.any()):
                    continue
                ordered_SE = single.logits_TE[differs_S].float().sort(-1, descending=True).values
                border_S = ordered_SE[:, router.top_k - 1] - ordered_SE[:, router.top_k]
                allowed_S = self.rounding * ordered_SE.abs().amax(-1)
                if bool((border_S > allowed_S).any()):
                    raise self.failure(
                        router,
                        proof="padding",
                        expected="the same experts for a document alone and in a padded batch",
                        found=f"{int(differs_S.sum())} of {length} tokens with others, at logit borders up to "
                        f"{float(border_S.max()):.2g} where {float(allowed_S.max()):.2g} could be rounding",
                    )
                differences += int((together_SK != single_SK).sum())
        return differences


def _sample(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    rows = []
    generator = torch.Generator().manual_seed(0)
    text_ids = model.tokenizer(TEXT)["input_ids"] if model.tokenizer is not None else []
    for length in _LENGTHS:
        filler = torch.randint(0, model.topology.vocabulary, (length,), generator=generator).tolist()
        rows.append((text_ids + filler)[:length])
        text_ids = text_ids[::-1]  # the second row reads the text backwards: another text, as short
    width = max(_LENGTHS)
    ids_BS = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask_BS = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids_BS.to(model.device), mask_BS.to(model.device)


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    scale = float(expected.float().abs().max())
    return float((found.float() - expected.float()).abs().max()) / max(scale, 1e-30)
