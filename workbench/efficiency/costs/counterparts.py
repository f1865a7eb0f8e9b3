"""Dense models to hold an MoE against: as many active parameters, as many in all, or as much memory.

`iso-active` keeps the skeleton - depth, width, attention, vocabulary - and gives every layer one FFN as wide as the
active experts: only the experts differ. `iso-total` and `iso-memory` scale depth and width together, for an FFN as wide
as all experts is no model that anyone would train. Their quality is not equal to the MoE's, and nothing here says so.
"""

from dataclasses import dataclass, replace
from typing import Any

from workbench.efficiency.costs.formulas import dtype_bytes, known_parts, memory
from workbench.errors import ModelError
from workbench.models.topology import Topology
from workbench.models.weights import LayerParts, Mixer, Parts, Weights

KINDS = ("iso-active", "iso-total", "iso-memory")
_FFN_RATIO = 3.5  # FFN width over model width of common dense models, to scale the skeleton by; the FFN is fitted


@dataclass(frozen=True)
class Counterpart:
    """A dense model with as much of something as an MoE has.

    Attributes:
        kind: Of what: `iso-active`, `iso-total` or `iso-memory`.
        topology: What it is made of.
        wanted: Parameters, or bytes of weights and cache, that the MoE has.
        reached: What this model has of them.
        unit: `parameters` or `bytes`.
    """

    kind: str
    topology: Topology
    wanted: float
    reached: float
    unit: str

    @property
    def ffn(self) -> int:
        """Width of its FFN."""
        return known_parts(self.topology).layers[0].dense.products // (3 * self.topology.width)

    @property
    def off(self) -> float:
        """How far from the wanted, as a share of it."""
        return self.reached / self.wanted - 1

    @property
    def words(self) -> str:
        """What it is and how near it comes."""
        shape = f"{self.topology.n_layers} layers, width {self.topology.width:,}, FFN {self.ffn:,}"
        return f"{shape}; {self.reached:,.0f} of {self.wanted:,.0f} {self.unit} ({self.off:+.2%})"

    def config(self) -> Any:
        """A config of transformers that makes it: of Qwen2 where the attention has biases, of Llama where it has none.

        Rotary embeddings and norms are those configs' own; a cost knows nothing of them.
        """
        from transformers import LlamaConfig, Qwen2Config

        made = Qwen2Config if self.topology.family == "qwen2" else LlamaConfig
        return made(
            vocab_size=self.topology.vocabulary,
            hidden_size=self.topology.width,
            intermediate_size=self.ffn,
            num_hidden_layers=self.topology.n_layers,
            num_attention_heads=self.topology.n_heads,
            num_key_value_heads=self.topology.n_kv_groups,
            head_dim=self.topology.head_width,
            max_position_embeddings=self.topology.context,
            tie_word_embeddings=known_parts(self.topology).tied,
            dtype="bfloat16",
        )


def counterpart(
    moe: Topology, kind: str, *, batch: int = 1, context: int = 1024, dtype: str = "bfloat16"
) -> Counterpart:
    """The dense counterpart of an MoE.

    Args:
        moe: What it is made of.
        kind: `iso-active`, `iso-total` or `iso-memory`.
        batch: Sequences whose cache counts, for `iso-memory`.
        context: Tokens in each.
        dtype: Of weights and cache.

    Raises:
        ModelError: an unknown kind, a model without MoE layers, or one with no room for any dense FFN.
    """
    if kind not in KINDS:
        raise ModelError(f"counterpart is {kind!r}; {', '.join(KINDS)}, or the name of a model was expected.")
    if not moe.routers:
        raise ModelError(
            f"{moe.family}: this model has no MoE layer, so it is its own {kind} counterpart; name the model to hold "
            "it against."
        )
    shape = _Shape.of(moe)
    if kind == "iso-active":
        made = shape.fitted(moe.parameters_active).topology()
        return Counterpart(kind, made, float(moe.parameters_active), float(made.parameters_total), "parameters")
    whole = shape.scaled(moe.parameters_total).fitted(moe.parameters_total)
    if kind == "iso-total":
        made = whole.topology()
        return Counterpart(kind, made, float(moe.parameters_total), float(made.parameters_total), "parameters")
    asked: dict[str, Any] = {"batch": batch, "context": context, "dtype": dtype}
    wanted = memory(moe, **asked).total_bytes
    kept = memory(whole.topology(), **asked).cache_bytes
    made = whole.fitted((wanted - kept) / dtype_bytes(dtype)).topology()
    return Counterpart(kind, made, wanted, memory(made, **asked).total_bytes, "bytes")


@dataclass(frozen=True)
class _Shape:
    """A dense decoder's shape, and by it its parameters."""

    layers: int
    width: int
    heads: int
    groups: int
    head_width: int
    ffn: int
    vocabulary: int
    tied: bool
    biased: bool
    context: int

    @classmethod
    def of(cls, moe: Topology) -> "_Shape":
        parts = known_parts(moe)
        attention = next((m for m in parts.mixers if m.kind == "attention"), None)
        return cls(
            layers=moe.n_layers,
            width=moe.width,
            heads=attention.n_heads if attention else moe.n_heads,
            groups=attention.cached_values // attention.score_width if attention else moe.n_kv_groups,
            head_width=attention.score_width // 2 if attention else moe.head_width,
            ffn=round(_FFN_RATIO * moe.width),
            vocabulary=parts.embedding.parameters // moe.width,
            tied=parts.tied,
            biased=attention is not None and _has_biases(attention),
            context=moe.context or 4096,
        )

    @property
    def parameters(self) -> int:
        h, attended, kept = self.width, self.heads * self.head_width, self.groups * self.head_width
        layer = 2 * h * attended + 2 * h * kept + (attended + 2 * kept) * self.biased + 3 * h * self.ffn + 2 * h
        return self.layers * layer + self.vocabulary * h * (1 if self.tied else 2) + h

    def scaled(self, wanted: float) -> "_Shape":
        """Depth and width multiplied alike until the parameters are near; width per head and heads per group stay."""
        low, high = 0.0, 64.0
        for _ in range(40):
            factor = (low + high) / 2
            groups = max(1, round(self.groups * factor))
            heads = groups * (self.heads // self.groups)
            made = replace(
                self,
                layers=max(1, round(self.layers * factor)),
                width=heads * (self.width // self.heads),
                heads=heads,
                groups=groups,
                ffn=max(1, round(_FFN_RATIO * self.width * factor)),
            )
            low, high = (factor, high) if made.parameters < wanted else (low, factor)
        return made

    def fitted(self, wanted: float) -> "_Shape":
        """With the FFN, in steps of 64 where the model is wide, that brings the parameters nearest."""
        bare = replace(self, ffn=0)
        step = 64 if self.width >= 1024 else 1
        ffn = round((wanted - bare.parameters) / (3 * self.layers * self.width) / step) * step
        if ffn < step:
            raise ModelError(
                f"{wanted:,.0f} parameters leave no room for an FFN beside {bare.parameters:,} of attention and "
                "embedding; hold the model against a named one."
            )
        return replace(self, ffn=ffn)

    def topology(self) -> Topology:
        """What the model is made of."""
        h, attended, kept = self.width, self.heads * self.head_width, self.groups * self.head_width
        maps = 2 * h * attended + 2 * h * kept
        layers = []
        for layer in range(self.layers):
            mixer = Mixer(
                kind="attention",
                path=f"model.layers.{layer}.self_attn",
                weights=Weights(maps + (attended + 2 * kept) * self.biased, maps),
                n_heads=self.heads,
                score_width=2 * self.head_width,
                step_width=2 * self.head_width,
                cached_values=2 * kept,
            )
            layers.append(LayerParts(layer, (mixer,), (), Weights(3 * h * self.ffn, 3 * h * self.ffn), Weights(2 * h)))
        table = self.vocabulary * h
        return Topology(
            family="qwen2" if self.biased else "llama",
            n_layers=self.layers,
            width=h,
            vocabulary=self.vocabulary,
            n_heads=self.heads,
            n_kv_groups=self.groups,
            head_width=self.head_width,
            context=self.context,
            routers=(),
            parameters_total=self.parameters,
            parameters_active=self.parameters,
            attention_layers=tuple(range(self.layers)),
            parts=Parts(tuple(layers), Weights(table), Weights(0 if self.tied else table, table), Weights(h)),
        )


def _has_biases(attention: Mixer) -> bool:
    """Whether queries, keys and values have biases."""
    rows = attention.n_heads * attention.score_width // 2 + attention.cached_values
    return attention.weights.parameters - attention.weights.products >= rows
