"""What is proved of each router's capture: shapes, logits, choice, weights, the rebuilt experts, and causality.

Proofs 1 to 4 of `check.py`, each on one padded batch of two rows. A router's bias of minus infinity masks experts: such
logits are as they should be, wherever the router's linear map gives them too.

Axes: T tokens, E experts, K chosen per token, C model width, B rows, S positions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from workbench.capture.hooks import RouterCapture, Tracer
from workbench.capture.proof.plain_experts import Rebuild, plain_experts
from workbench.capture.routing import router_scores, selection
from workbench.errors import CaptureError
from workbench.models.loading import Model
from workbench.models.placement import here
from workbench.models.topology import Router


class RouterProofs:
    """One model's proofs over one padded batch of two rows.

    Args:
        model: The model.
        ids_BS: Token ids.
        mask_BS: 1 for tokens, 0 for padding.
    """

    def __init__(self, model: Model, ids_BS: torch.Tensor, mask_BS: torch.Tensor) -> None:
        self.model = model
        self.modules = dict(model.module.named_modules())
        self.tracer = Tracer(model.module, model.topology)
        self.ids_BS, self.mask_BS = ids_BS, mask_BS
        self.trace = self.tracer.run(self.ids_BS, self.mask_BS, deep=True)
        # How far two correct ways may differ. Narrow dtypes: bf16 keeps 8 bits.
        exact = model.module.dtype == torch.float32
        self.tolerance = 1e-5 if exact else 2e-2

    def failure(self, router: Router, *, proof: str, expected: str, found: str) -> CaptureError:
        """The error of one router."""
        return failure(self.model, router, proof=proof, expected=expected, found=found)

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
        assert capture.linear_input is not None
        module = self.modules[router.linear_path or router.router_path]
        x_TC = capture.linear_input.reshape(-1, capture.linear_input.shape[-1])
        with here(module):
            weight_EC, bias_E = module.weight, getattr(module, "bias", None)
            # Some families compute their logits in float32 whatever the dtype of the weights.
            dtype = capture.logits_TE.dtype if capture.logits_TE.dtype == torch.float32 else weight_EC.dtype
            bias_E = None if bias_E is None else bias_E.to(dtype)
            mapped_TE = F.linear(x_TC.to(weight_EC.device, dtype), weight_EC.to(dtype), bias_E)
        error = relative_error(logits_TE, mapped_TE[:, : router.n_experts])
        if error > self.tolerance:
            raise self.failure(
                router,
                proof="logits",
                expected=f"the router's linear map within {self.tolerance:g}",
                found=f"a relative error of {error:.2g}",
            )
        self.choice(router, capture)
        self.weights(router, capture)
        return error

    def choice(self, router: Router, capture: RouterCapture) -> None:
        """The chosen ids follow from the logits by the family's rule."""
        if router.choice == "hash":
            return
        selection_TE, ids_TK = selection(router, capture), capture.ids_TK.long()
        if router.n_groups == 1:
            wrong = int((~_are_largest(selection_TE, ids_TK)).sum())
        else:
            wrong = min(int((~_are_largest(open_TE, ids_TK)).sum()) for open_TE in _within_groups(selection_TE, router))
        if wrong:
            of_groups = f" of {router.groups_chosen} in {router.n_groups} groups" if router.n_groups > 1 else ""
            raise self.failure(
                router,
                proof="top-k",
                expected=f"chosen ids with the k largest scores{of_groups}",
                found=f"{wrong} tokens with another choice",
            )

    def weights(self, router: Router, capture: RouterCapture) -> None:
        """The weights follow from the logits and ids by the family's rule."""
        if router.own_weights:
            return
        ids_TK, weights_TK = capture.ids_TK.long(), capture.weights_TK.float()
        chosen_TK = router_scores(capture.logits_TE, router.scoring, divided=False).gather(-1, ids_TK)
        if router.normalized:
            chosen_TK = chosen_TK / chosen_TK.sum(-1, keepdim=True)
        given_T = weights_TK.ne(0).any(-1)  # no expert was wanted where all are zero
        error = relative_error(weights_TK[given_T], router.scale * chosen_TK[given_T])
        tolerance = max(self.tolerance, 1e-4)  # some families add 1e-20 to the sum, others 1e-6
        if error > tolerance:
            raise self.failure(
                router,
                proof="weights",
                expected=f"{'normalized ' if router.normalized else ''}{router.scoring} scores times {router.scale:g}",
                found=f"a relative error of {error:.2g}",
            )

    def rebuild(self, router: Router, capture: RouterCapture, rebuild: Rebuild) -> tuple[float, float]:
        """Proof 3; returns the largest relative errors of experts and block."""
        assert capture.hidden_TC is not None and capture.routed_TC is not None
        assert capture.block_inputs is not None and capture.block_output is not None
        with torch.no_grad():
            with here(self.modules[router.experts_path]):
                rebuilt_TC = rebuild(capture.hidden_TC, capture.ids_TK, capture.weights_TK)
            # The block combines routed and shared parts by its own code; only its experts' output is ours.
            handle = self.modules[router.experts_path].register_forward_hook(lambda *_: rebuilt_TC)
            try:
                arguments, keywords = capture.block_inputs
                block = self.modules[router.block_path](*arguments, **keywords)
            finally:
                handle.remove()
        errors = {
            "experts' output": relative_error(rebuilt_TC, capture.routed_TC),
            "block's output": relative_error(block[0] if isinstance(block, tuple) else block, capture.block_output),
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
        logits_SV = self.trace.logits[0].float()
        for router, capture in zip(self.model.topology.routers, self.trace.routers, strict=True):
            position = self.ids_BS.shape[1] // 2
            n_real = router.n_experts - router.n_zero
            if router.top_k >= n_real:
                continue  # every expert is chosen already: there is no other one to force
            chosen_TK = capture.ids_TK.clone()
            given_S = capture.weights_TK[: self.ids_BS.shape[1]].ne(0).any(-1)
            if not bool(given_S[position]):  # no expert was wanted there: the nearest token that wanted one
                with_expert = given_S.nonzero().squeeze(-1)
                if not len(with_expert):
                    continue
                position = int(with_expert[(with_expert - position).abs().argmin()])
            heaviest = int(capture.weights_TK[position].abs().argmax())
            taken = capture.ids_TK[position].tolist()
            chosen_TK[position, heaviest] = next(e for e in range(n_real) if e not in taken)
            forced_BSV = self.tracer.forced(self.ids_BS, self.mask_BS, router=router, chosen_TK=chosen_TK)
            moved_S = (forced_BSV[0].float() - logits_SV).abs().amax(-1)
            change, leak = float(moved_S[position]), float(moved_S[:position].max()) if position else 0.0
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


def other_implementation(experts: Any, router: Router) -> tuple[str, Rebuild]:
    """An implementation of the experts other than the one that runs, with its name."""
    plain = getattr(type(experts).forward, "__wrapped__", None)
    if plain is None:
        return "plain loop", plain_experts(experts, router)
    n_real = router.n_experts - router.n_zero

    def inside(ids_TK: torch.Tensor) -> torch.Tensor:
        return ids_TK.clamp(max=n_real - 1) if router.skips else ids_TK  # their weight is zero

    if experts.config._experts_implementation == "eager":
        batched = ALL_EXPERTS_FUNCTIONS["batched_mm"]
        return "batched_mm", lambda hidden, ids, weights: batched(experts, hidden, inside(ids), weights)
    return "eager", lambda hidden, ids, weights: plain(experts, hidden, inside(ids), weights)


def failure(model: Model, router: Router | None, *, proof: str, expected: str, found: str) -> CaptureError:
    """The error of a proof: model, family, layer (None where it is of the whole model), expected, found, next step."""
    where = f", layer {router.layer} {router.site}" if router is not None else ""
    return CaptureError(
        f"{model.name} ({model.topology.family}){where}: the capture failed its proof of {proof}: expected {expected}, "
        f"found {found}. Nothing recorded from this model could be trusted. If the family is new, its facts belong "
        "into workbench/models/families.py; to record all the same, pass --no-check and the manifest will say so."
    )


def _are_largest(selection_TE: torch.Tensor, ids_TK: torch.Tensor) -> torch.Tensor:
    """Whether the ids have the K largest values; values are compared, for at a tie either expert is a right choice."""
    chosen_TK = selection_TE.gather(-1, ids_TK).sort(-1, descending=True).values
    best_TK = selection_TE.topk(ids_TK.shape[-1], dim=-1).values
    return torch.isclose(chosen_TK, best_TK, rtol=1e-6, atol=1e-7).all(-1)


def _within_groups(selection_TE: torch.Tensor, router: Router) -> list[torch.Tensor]:
    """The values when only the best groups are open, under each rule in use.

    A group is as good as its two largest values together (DeepSeek-V3) or its largest (V2); closed groups get minus
    infinity, or 0, which beats a negative value: then an expert of a closed group may be chosen.
    """
    selection_TGE = selection_TE.reshape(len(selection_TE), router.n_groups, -1)
    candidates = []
    for n_best in (2, 1):
        score_TG = selection_TGE.topk(min(n_best, selection_TGE.shape[-1]), -1).values.sum(-1)
        open_TG = torch.zeros_like(score_TG).scatter(-1, score_TG.topk(router.groups_chosen, -1).indices, 1) > 0
        for closed in (0.0, -torch.inf):
            candidates.append(selection_TGE.masked_fill(~open_TG[..., None], closed).reshape(selection_TE.shape))
    return candidates


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value; minus infinity (a masked expert) must be met by itself.

    Returns:
        The error; infinite where one holds NaN or an infinity that the other has not.
    """
    found, expected = found.float(), expected.float().to(found.device)
    known = torch.isfinite(expected)
    if not torch.equal(torch.where(known, 0, expected), torch.where(torch.isfinite(found), 0, found)):
        return float("inf")  # NaN is unequal to itself
    scale = float(torch.where(known, expected, 0).abs().max()) if expected.numel() else 0.0
    off = torch.where(known, found - expected, 0).abs()
    return (float(off.max()) if off.numel() else 0.0) / max(scale, 1e-30)
