"""Two recordings that can be compared: what they have in common, and whether their experts are the same ones.

What differs and cannot be compared is refused in a sentence; what is left out to make the rest comparable is said.
Axes: D documents, T tokens, E experts, K chosen per token.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

import numpy as np
import pandas as pd

from analyses.read.design import RouterStack, require, router_stacks
from analyses.read.order import place, text_columns
from analyses.read.tokens import Tokens, document_rows, token_parts
from workbench.errors import AnalysisError
from workbench.metrics.sets import joint_counts, keyed_hash
from workbench.models.topology import Router
from workbench.recordings.recording import Recording
from workbench.recordings.selection import of_documents, of_layers, renamed
from workbench.statistics.matching import match_experts, matching_consistency

Experts = Literal["auto", "same", "matched"]
EXPERTS: tuple[Experts, ...] = ("auto", "same", "matched")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two recordings of the same tokens by routers of the same shapes, though not of the same K.

    Attributes:
        one: The first, a.
        other: The second, b; its documents have the numbers of the first's.
        names: Of both, short and different.
        same_experts: Whether an id means the same expert in both; else experts are matched before they are compared.
        said: What was left out, and whether experts were matched, as sentences.
    """

    one: Recording
    other: Recording
    names: tuple[str, str]
    same_experts: bool
    said: tuple[str, ...]

    @property
    def words(self) -> str:
        """What was left out and how experts correspond, for captions."""
        return " ".join(self.said)


def pair(one: Recording, other: Recording, *, analysis: str, experts: str = "auto") -> Pair:
    """Finds what two recordings have in common.

    Args:
        one: The first.
        other: The second.
        analysis: Who asks, for the sentences.
        experts: `same` takes ids as the same experts in both, `matched` matches them; `auto` does the first for
            recordings of one model (other revision, dtype, quantization or batches), and for traces of one format and
            shape that both do not name their model, as the files of checkpoints do not.

    Raises:
        AnalysisError: another phase, tokenizer, number of experts; no layer or document in common; or `experts` is
            none of those.
    """
    if experts not in EXPERTS:
        raise AnalysisError(f"{analysis}: experts is {experts!r}; {', '.join(EXPERTS)} were expected.")
    both = _Both(one, other, analysis)
    both.same_phase()
    for each in (both.one, both.other):
        require(each, ("routing",), analysis, columns=())
    both.same_layers()
    both.same_documents()
    unnamed = _unnamed_alike(one, other)
    related = same_model(one, other) or unnamed
    same = experts == "same" or (experts == "auto" and related)
    if not same:
        why = "as asked" if related else "the models are different"
        both.said.append(
            f"Experts were matched ({why}): one to one by common tokens, in each half of the documents by a matching "
            "that was fitted on the other half."
        )
    elif unnamed and experts == "auto":
        both.said.append(
            "Neither trace names its model: they are taken as checkpoints of one, so experts of equal ids as the same "
            "(experts=matched matches them)."
        )
    elif not related:
        both.said.append("Experts of equal ids were taken as the same, as asked, though the models are different.")
    return Pair(both.one, both.other, _names(one, other), same, tuple(both.said))


def same_model(one: Recording, other: Recording) -> bool:
    """Whether two recordings are of one model: checkpoints of it, other dtypes, or the same weights again.

    The digest of a config covers the dtype, so the routers' shapes are compared in its place. Other weights under the
    same name, revision and dtype are another model.
    """
    models = [each.manifest["model"] for each in (one, other)]
    names = {model["name"] for model in models}
    shapes = [[(r.layer, r.n_experts, r.expert_width) for r in each.topology.routers] for each in (one, other)]
    if len(names) > 1 or None in names or shapes[0] != shapes[1]:
        return False
    stated = [tuple(model.get(key) for key in ("revision", "dtype", "quantization", "weights")) for model in models]
    weights = [model.get("weights_digest") for model in models]
    return stated[0] != stated[1] or weights[0] == weights[1]


def _unnamed_alike(one: Recording, other: Recording) -> bool:
    """Whether both are imported from one format, of routers of the same shapes, and neither says of which model."""
    formats = {each.manifest.get("source", {}).get("format") for each in (one, other)}
    shapes = [[(r.layer, r.n_experts, r.top_k) for r in each.topology.routers] for each in (one, other)]
    unnamed = all(each.manifest["model"]["name"].startswith("unknown model") for each in (one, other))
    return len(formats) == 1 and None not in formats and shapes[0] == shapes[1] and unnamed


def _names(one: Recording, other: Recording) -> tuple[str, str]:
    """Short names that tell the two apart: by model and revision, then dtype, then folder."""

    def model(recording: Recording) -> str:
        return str(recording.manifest["identity"]["model"]).rstrip("/").rpartition("/")[2]

    for tell in (model, lambda r: f"{model(r)} {r.manifest['model'].get('dtype', '')}".strip(), lambda r: r.path.name):
        if tell(one) != tell(other):
            return tell(one), tell(other)
    return model(one), f"{model(one)} again"


@dataclass
class _Both:
    """Two recordings while they are cut down to what they have in common."""

    one: Recording
    other: Recording
    analysis: str

    def __post_init__(self) -> None:
        self.said: list[str] = []
        self.paths = f"{self.one.path} and {self.other.path}"

    def refuse(self, sentence: str) -> NoReturn:
        raise AnalysisError(f"{self.analysis}: {self.paths} cannot be compared: {sentence}")

    def same_phase(self) -> None:
        mine, theirs = self.one.phases, self.other.phases
        if mine == theirs:
            return
        for name, few, many in (("other", mine, theirs), ("one", theirs, mine)):
            if len(few) == 1 and few[0] in many:
                setattr(self, name, getattr(self, name).of_phase(few[0]))
                self.said.append(f"Of {getattr(self, name).path.name} only {few[0]} is compared.")
                return
        self.refuse(
            f"one holds {' and '.join(mine)}, the other {' and '.join(theirs)}, which are never averaged. Record the "
            "same phase, or choose one: --phase prefill or --phase decode."
        )

    def same_layers(self) -> None:
        shapes = [_shapes(each) for each in (self.one, self.other)]
        layers = tuple(layer for layer, experts in shapes[0].items() if shapes[1].get(layer) == experts)
        if not layers:
            shared = [layer for layer in shapes[0] if layer in shapes[1]]
            if not shared:
                self.refuse(
                    f"one has its MoE layers at {list(shapes[0])}, the other at {list(shapes[1])}. Compare models with "
                    "MoE layers in common."
                )
            got = [", ".join(map(str, of[shared[0]])) for of in shapes]
            self.refuse(
                f"one has {got[0]} experts at layer {shared[0]}, the other {got[1]}. Compare models with as many "
                "experts; how many a token chooses may differ."
            )
        for name, of in (("one", shapes[0]), ("other", shapes[1])):
            if len(layers) < len(of):
                setattr(self, name, of_layers(getattr(self, name), layers))
        if len(layers) < max(map(len, shapes)):
            self.said.append(
                f"Layers in common: {', '.join(map(str, layers))}; one has {len(shapes[0])} MoE layers, the other "
                f"{len(shapes[1])}."
            )

    def same_documents(self) -> None:
        one, other = (_documents(each) for each in (self.one, self.other))
        corpora = [each.manifest["corpus"].get("digest") for each in (self.one, self.other)]
        key = "document" if corpora[0] == corpora[1] else "id"
        by_tokens = self._by_tokens(one, other) if key == "id" else None
        if by_tokens is None:
            for each, frame in ((self.one, one), (self.other, other)):
                if frame[key].duplicated().any():
                    self.refuse(f"{each.path} holds documents of the same {key}. Give documents ids of their own.")
        joined = by_tokens if by_tokens is not None else one.merge(other, on=key, suffixes=("", "_b"), how="inner")
        if key == "document":
            joined["document_b"] = joined["document"]
        same = joined[self._same_tokens(joined)]
        if same.empty:
            self.refuse(
                f"of {len(one):,} and {len(other):,} documents, {len(joined):,} have the same {_KEY_WORDS[key]}, and "
                "none of them the same tokens. Record the same corpus with the same tokenizer and limits."
            )
        if by_tokens is not None:
            self.said.append("Documents were joined by their tokens, since their ids differ.")
        if len(same) < max(len(one), len(other)):
            self.said.append(
                f"Documents in common: {len(same):,}; one has {len(one):,}, the other {len(other):,}"
                + (f", and {len(joined) - len(same):,} differ in their tokens." if len(joined) > len(same) else ".")
            )
        for column in ("domain", "cluster"):
            labels = same[column], same[f"{column}_b"]
            if not (_alike(*labels) if by_tokens is not None else (labels[0] == labels[1]).all()):
                self.refuse(f"their documents have other {column}s. Record both with the same labels.")
        mine, theirs = (same[name].to_numpy().astype(np.int64) for name in ("document", "document_b"))
        if len(same) < len(one):
            self.one = of_documents(self.one, mine)
        if len(same) < len(other) or (mine != theirs).any():
            self.other = of_documents(self.other, theirs, as_numbers=mine)

    def _by_tokens(self, one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame | None:
        """Documents with the same token ids side by side, where these are more than those with the same id and tokens.

        Documents of the same tokens in one recording are paired in their order. None where ids serve as well, or token
        ids are not known.
        """
        if not (self.one.has("token") and self.other.has("token")):
            return None
        sides = []
        for each, frame in ((self.one, one), (self.other, other)):
            digests = _digests(each, token=True)
            side = frame.assign(digest=digests.loc[frame["document"]].to_numpy()).sort_values("document")
            sides.append(side.assign(nth=side.groupby(["digest", "tokens"]).cumcount()))
        joined = sides[0].merge(sides[1].assign(tokens_b=sides[1]["tokens"]), on=["digest", "tokens", "nth"],
                                suffixes=("", "_b"), how="inner")  # fmt: skip
        by_id = sides[0].merge(sides[1], on=["id", "digest", "tokens"], how="inner")
        return joined if len(joined) > len(by_id) else None

    def _same_tokens(self, joined: pd.DataFrame) -> np.ndarray:
        """Which documents have the same tokens: the same ids where they are known, else positions."""
        tokenizers = [(each.manifest.get("tokenizer") or {}).get("digest") for each in (self.one, self.other)]
        known = self.one.has("token") and self.other.has("token")
        if not known and tokenizers[0] != tokenizers[1]:
            self.refuse(
                f"one was read with the tokenizer {_short(tokenizers[0])}, the other with {_short(tokenizers[1])}, and "
                "token ids are not known. Record the same tokens: models of one tokenizer."
            )
        same = (joined["tokens"] == joined["tokens_b"]).to_numpy()
        if all("ids" not in each.lacks for each in (self.one, self.other)):
            sums = [_digests(each, token=known) for each in (self.one, self.other)]
            mine, theirs = (joined[name].to_numpy() for name in ("document", "document_b"))
            same = same & (sums[0].loc[mine].to_numpy() == sums[1].loc[theirs].to_numpy())
        if tokenizers[0] != tokenizers[1] and not same.all():
            self.refuse(
                f"one was read with the tokenizer {_short(tokenizers[0])}, the other with {_short(tokenizers[1])}, and "
                f"{(~same).sum():,} of {len(same):,} documents have other tokens. Record the same tokens: models of "
                "one tokenizer."
            )
        return same


def _alike(one: pd.Series, other: pd.Series) -> bool:
    """Whether two columns put the same rows together, whatever they call them."""
    return bool((pd.factorize(one)[0] == pd.factorize(other)[0]).all())


_KEY_WORDS = {"document": "number in the corpus", "id": "id"}


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "not stated"


def _shapes(recording: Recording) -> dict[int, list[int]]:
    """E of the routers of each layer; which site a model calls a router's is its own affair."""
    shapes: dict[int, list[int]] = {}
    for router in recording.topology.routers:
        shapes.setdefault(router.layer, []).append(router.n_experts)
    return shapes


def _documents(recording: Recording) -> pd.DataFrame:
    return recording.documents()[["document", "id", "domain", "cluster", "tokens"]]


def _digests(recording: Recording, *, token: bool) -> pd.Series:
    """By document number, a number that positions and token ids give; equal for equal tokens in any order of rows."""
    sums: dict[int, int] = {}
    for part in recording.parts([*text_columns(recording), *(["token"] if token else [])]):
        place_T = place(part)
        key_T = keyed_hash(place_T, part["token"] if token else place_T, seed=0)
        order = np.argsort(part["document"], kind="stable")
        document_N, start_N = np.unique(part["document"][order], return_index=True)
        sums |= dict(zip(document_N.tolist(), np.add.reduceat(key_T[order], start_N).tolist(), strict=True))
    return pd.Series(sums, dtype=np.uint64)


# Tokens side by side


def counterpart(stack: RouterStack, one: Recording, other: Recording) -> RouterStack:
    """The other recording's routers of a stack, layer by layer in the order of its sites."""
    found = [_of_layer(other, router.layer)[_of_layer(one, router.layer).index(router)] for router in stack.routers]
    return RouterStack(tuple(found), stack.n_experts, found[0].top_k)


def _of_layer(recording: Recording, layer: int) -> list[Router]:
    return [router for router in recording.topology.routers if router.layer == layer]


def stacks(one: Recording, other: Recording) -> Iterator[tuple[RouterStack, RouterStack]]:
    """Routers of one shape (E, K, K′) in both recordings."""
    for stack in router_stacks(one):
        theirs = counterpart(stack, one, other).routers
        for top_k in dict.fromkeys(router.top_k for router in theirs):
            rows = [i for i, router in enumerate(theirs) if router.top_k == top_k]
            yield (
                replace(stack, routers=tuple(stack.routers[i] for i in rows)),
                RouterStack(tuple(theirs[i] for i in rows), stack.n_experts, top_k),
            )


def side_by_side(
    one: Recording, other: Recording, stack: RouterStack, their_stack: RouterStack, *, top1: bool = False
) -> Iterator[tuple[Tokens, Tokens]]:
    """The same tokens of both, part by part of the first: the other's parts may be cut elsewhere."""
    part_of = np.full(len(document_rows(other)), -1, dtype=np.int64)
    for index, part in enumerate(other.parts(["document"], table="documents")):
        part_of[part["document"]] = index
    read: dict[int, Tokens] = {}
    for mine in token_parts(one, stack, top1=top1):
        part_T = part_of[mine.document_T]
        wanted = np.unique(part_T).tolist()
        read = {index: tokens for index, tokens in read.items() if index in wanted}  # parts go by in order
        for index in wanted:
            if index not in read:
                (read[index],) = token_parts(other.of_part(index), their_stack, top1=top1)
            here, found = np.flatnonzero(part_T == index), read[index]
            yield mine.of(here), found.of(np.flatnonzero(np.isin(found.document_T, mine.document_T[here])))


# Experts of different models


@dataclass(frozen=True, eq=False)
class Matching:
    """Experts of the other recording under the ids of the one's.

    Attributes:
        other: The other recording, its experts renamed.
        consistency: One row per router: `layer`, and `alike`, the share of choices whose expert has the same partner
            in both halves of the documents.
    """

    other: Recording
    consistency: pd.DataFrame


def matched(pair: Pair, *, analysis: str) -> Matching:
    """Matches the experts of every router in two halves of the documents, each by what the other half shows.

    Raises:
        AnalysisError: a recording has no experts of single tokens, so nothing is known of common tokens; or there is
            one document alone.
    """
    for each in (pair.one, pair.other):
        require(each, ("routing",), analysis, columns=("ids",))
    half_of = _halves(pair, analysis)
    label_of: dict[tuple[int, str], np.ndarray] = {}
    rows = []
    for stack, theirs in stacks(pair.one, pair.other):
        together_2LEE = np.zeros((2, len(stack.routers), stack.n_experts, stack.n_experts), dtype=np.int64)
        for mine, tokens in side_by_side(pair.one, pair.other, stack, theirs):
            half_T = half_of[mine.document_T]
            for h in (0, 1):
                for i, (bits_TW, other_TW) in enumerate(zip(mine.bits_LTW, tokens.bits_LTW, strict=True)):
                    of_half = half_T == h
                    together_2LEE[h, i] += joint_counts(bits_TW[of_half], other_TW[of_half], n_experts=stack.n_experts)
        label_2LE = match_experts(together_2LEE)
        chosen_LE = together_2LEE.sum(axis=(0, 2))
        alike_L = matching_consistency(label_2LE[0], label_2LE[1], weight_xE=chosen_LE)
        rows.append(stack.labels().assign(alike=alike_L))
        for i, router in enumerate(theirs.routers):
            label_of[router.layer, router.site] = label_2LE[::-1, i]  # each half by the other's
    return Matching(renamed(pair.other, half_of, label_of), pd.concat(rows, ignore_index=True))


def _halves(pair: Pair, analysis: str) -> np.ndarray:
    """0 or 1 for each document number; clusters stay together, and are dealt within domains."""
    documents = pair.one.documents().sort_values("document", ignore_index=True)
    clusters = documents.drop_duplicates("cluster")
    if len(clusters) < 2:
        raise AnalysisError(
            f"{analysis}: experts of different models are matched on other documents than those that are compared, and "
            f"{pair.one.path} has one document alone; record more, or take equal ids as equal: --experts same."
        )
    place = clusters.groupby("domain").cumcount() + clusters.groupby("domain", sort=False).ngroup()
    half = dict(zip(clusters["cluster"], place % 2, strict=True))
    half_of = np.zeros(int(documents["document"].max()) + 1, dtype=np.int64)
    half_of[documents["document"]] = documents["cluster"].map(half)
    return half_of
