"""The fields of a recording: what can be asked to be recorded."""

FIELDS = (
    "routing", "logprob", "logits", "experts", "weights", "attention", "attention-tokens", "attention-weights",
)  # fmt: skip
"""In the order in which a manifest names them; `docs/guide.md` says what each holds."""
