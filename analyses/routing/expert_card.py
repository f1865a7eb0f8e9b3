"""What is this one expert used for?

Not shown: what it computes. Domains differ in their words, so an expert of a domain can be an expert of its words, and
the other way round: a domain's rate stands beside that of its token ids in other documents. A random hash of the token
id has no expert that would be this one: what such a router shows of all experts is in `domain_load` and
`specialization`; `--against` a recording of an earlier checkpoint shows the expert as it was. The tokens are the
foremost of many, picked after looking: their shares lean upwards. Contexts are drawn at random from all occurrences;
they are examples, not a finding.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.read.design import design, rates_note, require, sample_words
from analyses.read.neighbours import single_texts
from analyses.routing._expert_facts import expert_facts
from analyses.routing._expert_tokens import ExpertTokens, by_token, read_tokens
from analyses.routing._partners import partners
from workbench.errors import AnalysisError
from workbench.figures.spec import Bars, Figure, TokenStrip
from workbench.metrics import structure
from workbench.metrics.vocabulary import rate_elsewhere
from workbench.recordings.recording import Recording
from workbench.statistics.design import MIN_CLUSTERS, Clusters
from workbench.statistics.intervals import domain_ratio_interval, ratio_interval

INPUT = "recording"
NEEDS = ("routing",)
METRICS = (structure.matched_pairs, rate_elsewhere)
NO_CONTEXTS = "positions are not known: no contexts"
TOKENS_DRAWN = 10  # as many names as fit under the bars of a figure of column width
PARTNERS_DRAWN = 12


@dataclass(frozen=True)
class Settings:
    """Settings of the analysis.

    Attributes:
        layer: Decoder layer of the expert; the middle one of the MoE layers unless given.
        expert: The expert; the busiest of the layer unless given.
        n_tokens: Tokens shown.
        min_count: Occurrences that a token needs to be shown.
        n_contexts: Occurrences shown in their context.
        window: Tokens shown before and after an occurrence.
        level: Coverage of the intervals.
        seed: Of the draw of contexts.
    """

    layer: int | None = None
    expert: int | None = None
    n_tokens: int = 20
    min_count: int = 5
    n_contexts: int = 8
    window: int = 8
    level: float = 0.95
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """One expert's use.

    Attributes:
        domains: One row per domain: `rate` (share of its tokens that choose the expert) with `low` and `high`, the
            corpus' rate, `lift` (their ratio), the balanced rate K/E; `by_token`, the rate if each token id chose the
            expert as often as it does in other clusters of documents, and `unseen`, the share of tokens whose id no
            other cluster has, which count with the corpus' rate.
        tokens: One row per token id, the most assignments beyond the corpus' rate first: `chosen` of its `count`
            occurrences, `share` (their ratio) with `low` and `high`, the corpus' rate, `lift`, and `clusters` of
            documents that hold it; fewer than 8, or a share of 1, give no interval.
        hidden: What is not in `tokens`, in words.
        partners: One row per other expert, the most surprising first: tokens that choose both (`together`), share of
            the expert's tokens that choose the other (`probability`) with `low` and `high`, `matched_probability` in
            random sets with the same loads, `lift_over_matched` (their ratio). Without rows where a token chooses one.
        contexts: One row per drawn occurrence: where it is, the text around it, the routing weight (where recorded).
        facts: What is known of the expert beside its use, a row each, `low` and `high` where it is a mean over text:
            its contribution (field `experts`), norms of its parameters and router row, the expert nearest to it (field
            `weights`). Without rows where neither was recorded.
        context_tokens: One row per token of these contexts: the expert's routing weight there, or 1 where weights were
            not recorded, NaN where not chosen.
        layer: The expert's layer.
        expert: Its id.
        sample: The sample in words.
        level: Coverage of the intervals.
        note: How often intervals of rates hold the truth, and what is missing, and why.
    """

    domains: pd.DataFrame
    tokens: pd.DataFrame
    hidden: str
    partners: pd.DataFrame
    contexts: pd.DataFrame
    context_tokens: pd.DataFrame
    facts: pd.DataFrame
    layer: int
    expert: int
    sample: str
    level: float
    note: str


def run(recording: Recording, settings: Settings = Settings()) -> Result:
    """Computes one expert's load by domain, its foremost tokens, and draws some of their contexts.

    Raises:
        AnalysisError: the recording holds no routing, there is no such layer or expert, or a number of things to show
            is under 1.
    """
    require(recording, NEEDS, "expert_card", columns=("ids", "token"))
    layer, expert, counts_DE = _place(recording, settings)
    clusters = design(recording)
    tokens = read_tokens(recording, layer, expert)
    top_k = recording.router(layer).top_k
    domains, note = _domains(counts_DE, expert, top_k=top_k, clusters=clusters, level=settings.level)
    domains = domains.merge(by_token(tokens, clusters), on="domain")
    contexts, context_tokens = _contexts(tokens, recording, settings)
    if not recording.has("weights"):
        contexts = contexts.drop(columns="weight")
    beside = partners(tokens.ids_NK, tokens.row_N, counts_DE, expert, clusters=clusters, level=settings.level)
    return Result(
        domains=domains,
        tokens=_foremost(tokens, recording.vocabulary, clusters=clusters, settings=settings),
        hidden=_hidden(tokens, settings),
        partners=beside,
        contexts=contexts,
        context_tokens=context_tokens,
        facts=expert_facts(recording, layer, expert, clusters=clusters, level=settings.level),
        layer=layer,
        expert=expert,
        sample=sample_words(recording),
        level=settings.level,
        note=rates_note(domains, note, "" if recording.has("position") else NO_CONTEXTS),
    )


def _place(recording: Recording, settings: Settings) -> tuple[int, int, np.ndarray]:
    """The layer, the expert, and the layer's counts_DE."""
    for name in ("n_tokens", "n_contexts", "window"):
        if getattr(settings, name) < 1:
            raise AnalysisError(f"expert_card: {name} is {getattr(settings, name)}; 1 or more was expected.")
    layer = settings.layer if settings.layer is not None else recording.moe_layers[len(recording.moe_layers) // 2]
    if layer not in recording.moe_layers:
        raise AnalysisError(
            f"expert_card: layer {layer} has no router; set layer to one of {list(recording.moe_layers)}."
        )
    counts_DE = recording.counts(layer)
    expert = settings.expert if settings.expert is not None else int(counts_DE.sum(axis=0).argmax())
    if not 0 <= expert < counts_DE.shape[1]:
        raise AnalysisError(
            f"expert_card: layer {layer} has no expert {expert}; set expert to one of 0 to {counts_DE.shape[1] - 1}."
        )
    return layer, expert, counts_DE


def _domains(
    counts_DE: np.ndarray, expert: int, *, top_k: int, clusters: Clusters, level: float
) -> tuple[pd.DataFrame, str]:
    chosen_D, tokens_D = counts_DE[:, expert].astype(np.float64), counts_DE.sum(axis=1) / top_k
    rate = domain_ratio_interval(chosen_D, tokens_D, clusters=clusters, level=level, share=True)
    corpus_rate = chosen_D.sum() / tokens_D.sum()
    frame = pd.DataFrame(
        {
            "domain": clusters.domains,
            "rate": rate.value,
            "low": rate.low,
            "high": rate.high,
            "corpus_rate": corpus_rate,
            "lift": rate.value / (corpus_rate or np.nan),
            "balanced": top_k / counts_DE.shape[1],
        }
    )
    return frame.sort_values("domain", ignore_index=True), rate.note


def _foremost(
    tokens: ExpertTokens, vocabulary: pd.DataFrame, *, clusters: Clusters, settings: Settings
) -> pd.DataFrame:
    """The tokens with the most assignments beyond what the corpus' rate gives."""
    count_V, chosen_V, rate = tokens.count_V, tokens.chosen_V, tokens.rate
    known = np.flatnonzero((chosen_V > 0) & (count_V >= settings.min_count))
    beyond = chosen_V[known] - rate * count_V[known]
    top_N = known[np.lexsort((known, -beyond))][: settings.n_tokens]
    place_V = np.full(len(count_V), -1)
    place_V[top_N] = np.arange(len(top_N))
    count_DN, chosen_DN = (np.zeros((len(clusters.domain_D), len(top_N)), dtype=np.int64) for _ in range(2))
    for row_T, token_T, chosen_T in tokens.parts():
        place_T = place_V[token_T]
        shown_T = place_T >= 0
        cell_T = row_T[shown_T] * len(top_N) + place_T[shown_T]
        count_DN += np.bincount(cell_T, minlength=count_DN.size).reshape(count_DN.shape)
        chosen_DN += np.bincount(cell_T[chosen_T[shown_T]], minlength=chosen_DN.size).reshape(chosen_DN.shape)
    share = ratio_interval(chosen_DN, count_DN, clusters=clusters, level=settings.level, share=True)
    clusters_N = (clusters.sum(count_DN) > 0).sum(axis=0)
    # Few texts, or a token without exception, show hardly a variance, and the interval would shrink to a point.
    unknown_N = (clusters_N < MIN_CLUSTERS) | (share.value >= 1)
    return pd.DataFrame(
        {
            "token": top_N,
            "text": vocabulary.set_index("token")["text"].reindex(top_N).to_numpy(),
            "chosen": chosen_V[top_N],
            "count": count_V[top_N],
            "share": share.value,
            "low": np.where(unknown_N, np.nan, share.low),
            "high": np.where(unknown_N, np.nan, share.high),
            "corpus_rate": rate,
            "lift": share.value / (rate or np.nan),
            "clusters": clusters_N,
        }
    )


def _hidden(tokens: ExpertTokens, settings: Settings) -> str:
    """What the list of tokens leaves out, in token ids and in assignments."""
    count_V, chosen_V = tokens.count_V, tokens.chosen_V
    used, rare = chosen_V > 0, (chosen_V > 0) & (count_V < settings.min_count)
    if not used.any():
        return "No token chooses it."
    ids, share = int(rare.sum()), chosen_V[rare].sum() / chosen_V.sum()
    told = f"{ids:,} of the {int(used.sum()):,} token ids that choose it occur fewer than {settings.min_count} times"
    cut = max(int(used.sum()) - ids - settings.n_tokens, 0)
    return f"{told} and are hidden, with {100 * share:.1f} % of its assignments; {cut:,} more are below the list's end."


def _contexts(tokens: ExpertTokens, recording: Recording, settings: Settings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Occurrences drawn at random, whatever the order of rows on disk, with the text around them."""
    text_of = recording.vocabulary.set_index("token")["text"]
    named = recording.documents().set_index("document")[["id", "domain"]]
    found = np.lexsort((tokens.place_N, tokens.document_N))
    found = found[np.isin(tokens.document_N[found], single_texts(recording))]
    size = min(settings.n_contexts, len(found))
    drawn = np.random.default_rng(settings.seed).choice(len(found), size=size, replace=False) if size else found[:0]
    contexts, around = [], []
    for row in found[np.sort(drawn)]:
        document, position = int(tokens.document_N[row]), int(tokens.place_N[row])
        text = recording.of_document(document, ["position", "token"])
        rows = np.flatnonzero(np.abs(text["position"] - position) <= settings.window)
        rows = rows[np.argsort(text["position"][rows])]
        position_T, texts = text["position"][rows], text_of.reindex(text["token"][rows]).tolist()
        mine = tokens.document_N == document
        weight_of = dict(zip(tokens.place_N[mine].tolist(), tokens.weight_N[mine].tolist(), strict=True))
        weights = [weight_of.get(each, np.nan) for each in position_T.tolist()]
        at = int(np.flatnonzero(position_T == position)[0])
        name, domain = named.loc[document]
        about = {"domain": domain, "document": name, "position": position}
        before, after = "".join(texts[:at]), "".join(texts[at + 1 :])
        contexts.append({**about, "before": before, "text": texts[at], "after": after, "weight": weights[at]})
        label = f"{name}, token {position}"
        around.append(pd.DataFrame({"context": label, "position": position_T, "text": texts, "weight": weights}))
    columns = ["domain", "document", "position", "before", "text", "after", "weight"]
    nothing = pd.DataFrame({"context": [], "position": [], "text": [], "weight": []})
    return pd.DataFrame(contexts, columns=columns), pd.concat(around, ignore_index=True) if around else nothing


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """`domains`, `tokens`, `contexts`, `context_tokens`, and where there are any, `partners` and `facts`."""
    known = {"partners": result.partners, "facts": result.facts}
    return {
        "domains": result.domains,
        "tokens": result.tokens,
        "contexts": result.contexts,
        "context_tokens": result.context_tokens,
        **{name: table for name, table in known.items() if len(table)},
    }


def figures(result: Result) -> dict[str, Figure]:
    """`by_domain`, and `by_token`, `partners` and `contexts` of an expert that was chosen at all."""
    level = f"{result.level:.0%} interval".replace("%", " %")
    name = f"expert {result.expert} of layer {result.layer}"
    how = f"{level}: ratio over clusters of documents, log-odds, t ({result.sample})."
    most = result.domains.nlargest(1, "rate").iloc[0]
    weighted = "weight" in result.contexts
    of_domain = result.domains.assign(tokens="of the domain")
    elsewhere = of_domain.assign(rate=of_domain["by_token"], low=np.nan, high=np.nan, tokens="same ids elsewhere")
    drawn: dict[str, Figure] = {
        "by_domain": Bars(
            pd.concat([of_domain, elsewhere], ignore_index=True),
            "domain",
            "rate",
            group="tokens",
            low="low",
            high="high",
            interval_label=level,
            null="corpus_rate",
            null_label="rate in the corpus",
            title=f"Use of {name} by domain",
            x_label="domain",
            y_label="share of tokens",
            hover=("lift", "balanced"),
            caption=f"Share of each domain's tokens that choose {name}, beside the share that they would have if each "
            "token id chose it as often as in other clusters of documents, which is what the domain's words alone make "
            f"of it, and beside its share in the corpus. A balanced expert would have "
            f"{result.domains['balanced'].iloc[0]:.3f}. {how} {result.note}".strip(),
            alt=f"{most['domain']} uses it most: {most['rate']:.1%} of its tokens, {most['by_token']:.1%} by their ids "
            "alone.".replace("%", " %"),
        )
    }
    if len(result.tokens):
        foremost = result.tokens.head(TOKENS_DRAWN)
        first = foremost.iloc[0]
        drawn["by_token"] = Bars(
            foremost.assign(label=_labels(foremost)),
            "label",
            "share",
            low="low",
            high="high",
            interval_label=level,
            null="corpus_rate",
            null_label="rate in the corpus",
            title=f"Tokens that choose {name}",
            x_label="token",
            y_label="share of its occurrences",
            hover=("chosen", "count", "lift", "clusters"),
            caption=f"Share of a token's occurrences that choose {name}, for the tokens with the most assignments "
            "beyond what the corpus' rate gives, which is what a router that does not look at the token has. Picked "
            f"after looking: shares lean upwards. {how} No interval for tokens in fewer than {MIN_CLUSTERS} clusters, "
            f"or of share 1. {result.note}".strip(),
            alt=f"First is {first['text']!r}: {first['chosen']} of its {first['count']} occurrences choose it.",
        )
    if len(result.partners):
        best = result.partners.head(PARTNERS_DRAWN)
        first = best.iloc[0]
        drawn["partners"] = Bars(
            best.assign(partner=best["other"].astype(str)),
            "partner",
            "probability",
            low="low",
            high="high",
            interval_label=level,
            null="matched_probability",
            null_label="random sets, same loads",
            title=f"Partners of {name}",
            x_label="other expert",
            y_label="share of its tokens",
            hover=("together", "lift_over_matched"),
            caption=f"Share of the tokens of {name} that also choose another expert, beside that share in random sets "
            f"with the same loads; the most surprising {len(best)} of {len(result.partners)}. Picked after looking: "
            f"shares lean upwards. {how} {result.note}".strip(),
            alt=f"First is expert {first['other']:.0f}: {first['probability']:.1%} of its tokens choose both, "
            f"{first['matched_probability']:.1%} in random sets.".replace("%", " %"),
        )
    if len(result.context_tokens):
        drawn["contexts"] = TokenStrip(
            result.context_tokens,
            "text",
            value="weight",
            value_label=f"{'routing weight' if weighted else 'choice'} of {name}",
            panel="context",
            title=f"{name.capitalize()} in context",
            hover=("position",),
            caption=f"{len(result.contexts)} of the tokens that choose {name}, drawn at random, with the text around "
            f"them ({result.sample}); grey tokens do not choose it.",
            alt=f"{len(result.contexts)} short pieces of text, coloured by routing weight{'' if weighted else ' (1)'}.",
        )
    return drawn


def _labels(tokens: pd.DataFrame) -> pd.Series:
    """A token's text with its blanks to be seen, and with its id where two ids have one text."""
    text = tokens["text"].str.replace(" ", "␣")
    return text.where(~text.duplicated(keep=False), text + " #" + tokens["token"].astype(str))
