"""Records text while the model writes it: the prompt in one pass, then token by token with a cache of keys and values.

Rows of a batch are prompts of one length, so nothing is padded and no row sees another. The chosen tokens follow from
the seed and the document alone, whatever the batch: a run that was stopped goes on as it would have gone.

Axes: B rows, S prompt positions, N new tokens, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from workbench.capture.hooks import RouterCapture, Trace, Tracer
from workbench.capture.routing import BatchTokens
from workbench.errors import RecordingError


@dataclass(frozen=True)
class Generation:
    """How text is generated.

    Attributes:
        new_tokens: Most tokens written behind a prompt; fewer where the model ends the text.
        temperature: 0 for the most probable token each time; else tokens are drawn from the softmax of the logits over
            the temperature.
        seed: Of the drawing; each document has a stream of its own.
    """

    new_tokens: int
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.new_tokens < 1:
            raise RecordingError(f"new tokens are {self.new_tokens}; 1 or more was expected.")
        if not 0 <= self.temperature < float("inf"):
            raise RecordingError(
                f"temperature is {self.temperature}; 0 (the most probable token) or a positive number was expected."
            )


@dataclass(frozen=True)
class Written:
    """What a batch of prompts was continued with.

    Attributes:
        prefill: The trace of the prompts.
        decode: The traces of the new tokens, joined: each was the input of one step.
        batch: Where the new tokens are; rows that ended early are padded behind their end.
        logprob_BN: Of each new token given all before it, nats.
        predicted_BN: The most probable token behind each new token.
    """

    prefill: Trace
    decode: Trace
    batch: BatchTokens
    logprob_BN: torch.Tensor
    predicted_BN: torch.Tensor


def generate(
    tracer: Tracer, ids_BS: torch.Tensor, documents: list[int], how: Generation, *, stop: set[int], **traced: Any
) -> Written:
    """Continues prompts of one length.

    Args:
        tracer: Of the model.
        ids_BS: The prompts' token ids, nothing padded.
        documents: Number of each row's document, for its stream of random numbers.
        how: How tokens are chosen.
        stop: Ids that end a text; the token itself is still recorded.
        traced: As of `Tracer.run`, for the prompts.
    """
    prefill = tracer.run(ids_BS, keep_cache=True, **traced)
    streams = [np.random.default_rng([how.seed, document]) for document in documents]
    going_B = torch.ones(len(ids_BS), dtype=torch.bool)
    lengths_B = torch.zeros(len(ids_BS), dtype=torch.long)
    logits_BV, cache = prefill.logits[:, -1].float(), prefill.cache
    steps: list[Trace] = []
    written, logprob, predicted = [], [], []
    while len(steps) < how.new_tokens and bool(going_B.any()):
        chosen_B = _choose(logits_BV, how.temperature, streams)
        chosen_logit_B = logits_BV.gather(-1, chosen_B[:, None].to(logits_BV.device)).squeeze(-1)
        logprob.append(chosen_logit_B - logits_BV.logsumexp(-1))
        lengths_B += going_B
        going_B &= torch.tensor([int(token) not in stop for token in chosen_B])
        step = tracer.run(
            chosen_B[:, None].to(ids_BS.device), cache=cache, keep_cache=True, routers=traced.get("routers")
        )
        logits_BV, cache = step.logits[:, -1].float(), step.cache
        predicted.append(logits_BV.argmax(-1))
        written.append(chosen_B)
        steps.append(replace(step, logits=step.logits[:, :0], cache=None))
    batch = BatchTokens(torch.stack(written, 1).to(ids_BS.device), lengths_B.to(ids_BS.device))
    decode = Trace(
        steps[0].logits, tuple(_joined(captures) for captures in zip(*(s.routers for s in steps), strict=True))
    )
    return Written(replace(prefill, cache=None), decode, batch, torch.stack(logprob, 1), torch.stack(predicted, 1))


def _choose(logits_BV: torch.Tensor, temperature: float, streams: list[np.random.Generator]) -> torch.Tensor:
    """The next token of each row, on the CPU."""
    if temperature == 0:
        return logits_BV.argmax(-1).cpu()
    share_BV = (logits_BV.double() / temperature).softmax(-1).cumsum(-1).cpu().numpy()
    drawn = [stream.random() * row[-1] for stream, row in zip(streams, share_BV, strict=True)]
    return torch.tensor([int(np.searchsorted(row, u, side="right")) for row, u in zip(share_BV, drawn, strict=True)])


def _joined(captures: tuple[RouterCapture, ...]) -> RouterCapture:
    """The captures of N steps of B rows as one of B rows of N positions."""

    def joined(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(parts, 1).flatten(0, 1)

    def joined_of(name: str) -> torch.Tensor | None:
        parts = [value for capture in captures if (value := getattr(capture, name)) is not None]
        return joined(parts) if parts else None

    return replace(
        captures[0],
        logits_TE=joined([capture.logits_TE for capture in captures]),
        ids_TK=joined([capture.ids_TK for capture in captures]),
        weights_TK=joined([capture.weights_TK for capture in captures]),
        shared_gate_T=joined_of("shared_gate_T"),
        contribution_TK=joined_of("contribution_TK"),
        shared_T3=joined_of("shared_T3"),
    )


def stop_ids(module: Any) -> set[int]:
    """The ids that end a text, as the model's generation config or its config say."""
    for config in (getattr(module, "generation_config", None), module.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return set(ids) if isinstance(ids, list | tuple) else {int(ids)}
    return set()
