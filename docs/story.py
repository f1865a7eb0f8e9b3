"""The story of `docs/example.md`: sentences around what the analyses say. It holds no result.

Numbers are filled in, and where a sentence could go either way, the interval decides which way it goes. A test refuses
digits in these sentences.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analyses.question import Answer, Question
from workbench.figures.spec import Figure
from workbench.recordings import demo
from workbench.recordings.recording import Recording

WIDTH = 120
ALPHA = 0.05
FAINT = 0.1  # what the sentences call next to nothing, of 1
MOST = 0.75  # share from which it is most of a gain
WEAK = 0.3  # a rank correlation that hardly foretells


@dataclass
class Story:
    """The page as it grows.

    Attributes:
        recording: Of the model.
        untrained: Of the same model before training.
        text: Markdown.
        figures: By name.
        commands: What makes each result again.
        doubts: What the sentences say and this run does not.
    """

    recording: Recording
    untrained: Recording
    text: str = ""
    figures: dict[str, Figure] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, recording: Recording, untrained: Recording) -> "Story":
        """Asks the analyses and tells the whole story."""
        story = cls(recording, untrained)
        for tell in SECTIONS:
            tell(story)
        story._end()
        return story

    def ask(self, name: str, *, against: Recording | None = None, **settings: Any) -> Answer:
        """Asks an analysis, and notes the command; of two recordings the untrained one comes first."""
        one, other = (self.recording, None) if against is None else (against, self.recording)
        pairs = tuple(f"{key}={value}" for key, value in settings.items())
        command = Question(one, name, pairs, against=other).command
        for path, word in ((self.recording.path, "trained"), (self.untrained.path, "untrained")):
            command = command.replace(str(path), f"recordings/{word}")
        self.commands.append(command)
        return Question(one, name, pairs, against=other).answer()

    def say(self, *paragraphs: str) -> None:
        """Adds paragraphs."""
        self.text += "".join(textwrap.fill(" ".join(each.split()), WIDTH) + "\n\n" for each in paragraphs)

    def head(self, title: str) -> None:
        """Begins a section."""
        self.text += f"## {title}\n\n"

    def hold(self, claim: str, *, so: object) -> None:
        """Notes a claim of the sentences around it, if the run does not bear it out."""
        if not bool(so):
            self.doubts.append(claim)

    def show(self, name: str, answer: Answer, figure: str) -> None:
        """Adds a figure with its caption, where the recording holds enough for it."""
        drawn = answer.figures.get(figure)
        if drawn is not None:
            self.figures[name] = drawn
            self.text += f'<img src="figures/example_{name}.png" width="480" alt="{_attribute(drawn.alt)}">\n\n'
            self.say(f"*{drawn.title}.* {drawn.caption}")

    def tabulate(self, columns: Mapping[str, Iterable[str]]) -> None:
        """Adds a table."""
        rows = [
            " | ".join(columns),
            " | ".join("---" for _ in columns),
            *map(" | ".join, zip(*columns.values(), strict=True)),
        ]
        self.text += "".join(f"| {row} |\n" for row in rows) + "\n"

    def _end(self) -> None:
        self.head("Make it again")
        self.say("`python -m docs.example` writes this page. Step by step:")
        names = [each.manifest["identity"]["model"] for each in (self.recording, self.untrained)]
        more = f" --fields {','.join(demo.DEMO_FIELDS)} --parent {demo.DEMO_PARENT}"
        self.text += f"```sh\nworkbench record {names[0]} --corpus demo{more} --out recordings/trained\n"
        self.text += f"workbench record {names[1]} --corpus demo --out recordings/untrained\n"
        self.text += "\n".join(dict.fromkeys(self.commands)) + "\n```\n"


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


# Numbers in words


def with_ends(
    table: pd.DataFrame, value: str = "value", form: str = ".2f", low: str = "low", high: str = "high"
) -> list[str]:
    """A value of each row with its interval."""
    ends = zip(table[value], table[low], table[high], strict=True)
    return [f"{v:{form}}" if np.isnan(a) else f"{v:{form}} ({a:{form}} to {b:{form}})" for v, a, b in ends]


def each(values: Iterable[float], form: str = ".2f") -> list[str]:
    """Numbers of a column."""
    return [f"{value:{form}}" for value in values]


def span(values: Iterable[float], form: str = ".2f") -> str:
    """From the least to the most."""
    ends = (f"{value:{form}}" for value in (min(values), max(values)))
    return " to ".join(
        dict.fromkeys(end if any(digit in end for digit in "123456789") else end.lstrip("-") for end in ends)
    )


def layers(table: pd.DataFrame, holds: "pd.Series[bool] | np.ndarray") -> str:
    """Which layers it holds for."""
    found = table["layer"].to_numpy()[np.asarray(holds, dtype=bool)].tolist()
    if len(found) in (0, len(table)):
        return "every layer" if found else "no layer"
    *most, last = map(str, found)
    return f"layers {', '.join(most)} and {last}" if most else f"layer {last}"


def percent(value: float, form: str = ".1f") -> str:
    """A share in per cent."""
    return f"{100 * value:{form}} %"


# The sections


def _opening(story: Story) -> None:
    recording, corpus = story.recording, story.recording.manifest["corpus"]
    topology = recording.topology
    router = topology.routers[0]
    model, before = (each.manifest["identity"]["model"] for each in (recording, story.untrained))
    story.text += f"# What the experts of {model} do\n\n"
    story.say(
        f"""A worked example, made by one command from the bundled model and corpus: `python -m docs.example`. Every
        number below comes from that run. {model} has {len(recording.moe_layers)} MoE layers with {router.n_experts}
        routed
        experts each, of which a token chooses {router.top_k}. It was read over {recording.n_tokens:,} tokens of
        {recording.n_documents:,} documents in {len(corpus["domains"])} domains
        ({", ".join(sorted(corpus["domains"]))}); and so was {before}, the same model before its experts were
        trained, for a pattern that is there already is not
        learned.""",
        """Numbers in brackets are intervals over clusters of documents. They say what other texts of these kinds
        would
        give. They do not say what another training run would give: of that there is one.""",
    )


def _balance(story: Story) -> None:
    story.head("Is the load balanced?")
    balance = story.ask("load_balance")
    load = story.ask("expert_load")
    tests, measures = balance.tables["tests"], balance.tables["layers"].set_index("measure")
    most = measures.loc["max violation"].reset_index()
    story.hold("no expert is dead", so=measures.loc["dead experts", "value"].sum() == 0)
    story.hold("balance is rejected", so=(tests["p"] <= ALPHA).any())
    story.say(
        f"""No, though nobody is idle. Balance is rejected in {layers(tests, tests["p"] <= ALPHA)}
        (p {span(tests["p"], ".3f")}); no expert is dead. The busiest expert takes
        {span(1 + most["estimate"], ".1f")} times its fair share. Tokens of one text are alike:
        {story.recording.n_tokens:,} of them tell as much about balance as {span(tests["effective_tokens"], ",.0f")}
        independent ones would, and a test that counts them all finds everything significant."""
    )
    story.tabulate(
        {
            "layer": each(tests["layer"], "d"),
            "imbalance, CV² (interval)": with_ends(measures.loc["imbalance"], "estimate", ".3f"),
            "largest under balance": each(tests["null_high"], ".3f"),
            "MaxVio (band)": with_ends(most, "estimate"),
            "floor of counting": each(most["floor"]),
        }
    )
    story.show("load", load, "load_map")


def _token(story: Story) -> None:
    story.head("By the token, or by its context?")
    found = story.ask("specialization", untrained=story.untrained.path)
    gains = found.tables["predictability"]
    own = gains[gains["label"] == "input token"].reset_index()
    context = story.ask("context").tables["gains"]
    token_first = context[context["order"] == "token first"]
    before = token_first[token_first["context"] == "previous token"]
    share = own["value"] / own["ceiling"]
    last = token_first[token_first["context"].isin(["position", "domain"])]
    story.hold("even the most lexical layer is below the hash", so=(own["high"] < own["hashed"]).all())
    story.hold("place and domain add next to nothing", so=last["added"].max() < before["added"].min())
    story.hold("the untrained router goes by the token too", so=own["untrained"].min() > own["low"].min() / 2)
    there = (own["untrained"] > MOST * own["value"]).all() and own["untrained"].iloc[0] > own["untrained"].iloc[-1]
    story.hold("most of the gain, and its fall, is there before", so=there)
    less, more = own["untrained"] > own["high"], own["untrained"] < own["low"]
    story.say(
        f"""First by the token. Knowing nothing but a token's id, a chosen expert is predicted better than from the
        load by
        {span(own["value"])} bits per choice on documents that were held out: {percent(share.max(), ".0f")} of what
        there
        is to know in layer {own["layer"][share.argmax()]}, {percent(share.min(), ".0f")} in layer
        {own["layer"][share.argmin()]}. A router that is a plain hash of the id would reach {span(own["hashed"])},
        so even
        the most lexical layer is not a lookup table. The token before adds {span(before["added"])} bits to the token;
        place and domain, after these two, add next to nothing that this simple predictor can use.""",
        f"""Is that learned? The untrained router lies below the trained one's interval in {layers(own, more)} and
        above it
        in {layers(own, less)}. Most of the gain, and its fall from the first layer to the last, is there before
        the experts are trained: the parent's hidden states hand it to any router.""",
    )
    story.tabulate(
        {
            "layer": each(own["layer"], "d"),
            "gain from the id, bits (interval)": with_ends(own),
            "untrained": each(own["untrained"]),
            "hash of the id": each(own["hashed"]),
            "whole set known": each(own["ceiling"]),
            "the token before adds": each(before["added"]),
        }
    )
    story.show("token", found, "predictability")


def _domains(story: Story) -> None:
    story.head("Are there experts for domains?")
    found = story.ask("domain_load", untrained=story.untrained.path)
    known = found.tables["information"]
    differences = story.ask("differences", against=story.untrained).tables["measures"]
    change = differences[differences["measure"] == "information (bits)"].reset_index()
    story.hold(
        "more than the hash, and than chance", so=(known["low"] > known[["hashed", "permuted"]].max(axis=1)).all()
    )
    story.hold("the story turns", so=(change["high"] < 0).sum() > len(change) / 2)
    given = story.ask("specialization", untrained=story.untrained.path).tables.get("given_token")
    story.say(
        f"""A chosen expert tells {span(known["estimate"])} bits about the domain. That is more than a hash of the
        token id
        tells ({span(known["hashed"], ".3f")}), and more than documents with permuted domains give by chance
        ({span(known["permuted"], ".3f")}; p {span(known["p"], ".3f")}). Many a paper would stop here and speak of
        domain
        experts.""",
        f"""Beside the untrained router, the story turns. It tells {span(known["untrained"])} bits. This training
        lowered the
        information in {layers(change, change["high"] < 0)} and raised it in {layers(change, change["low"] > 0)}
        (differences with intervals of paired documents below). The parent's hidden states separate the domains, and a
        random linear map of them does so too. What lowers it again is not shown by this: the load was balanced by a
        loss all the while, and no run was made without.""",
    )
    story.tabulate(
        {
            "layer": each(known["layer"], "d"),
            "information, bits (interval)": with_ends(known, "estimate"),
            "domains permuted": each(known["permuted"], ".3f"),
            "hash of the id": each(known["hashed"], ".3f"),
            "untrained": each(known["untrained"]),
            "trained − untrained (interval)": with_ends(change, "estimate"),
        }
    )
    if given is not None:
        story.hold("the routers read what is around a token", so=(given["low"] > 0).any())
        story.hold("and they did before", so=(given["untrained"] > 0).all())
        story.say(
            f"""Is it only that domains have words of their own? Among tokens with the same id, those of one domain
            share
            {span(given["value"])} more of their experts than those of different domains do, above zero in
            {layers(given, given["low"] > 0)}; for the untrained router it is {span(given["untrained"])}. So the
            routers do
            read what is around a token, and they did before."""
        )
    story.show("domains", found, "information")


def _structure(story: Story) -> None:
    story.head("Do experts belong together?")
    pairs, flow = story.ask("coactivation"), story.ask("layer_flow")
    rates = story.ask("repetition").tables["rates"]
    of_layer, first = pairs.tables["layers"], pairs.tables["pairs"].nlargest(1, "lift_over_matched").iloc[0]
    information = flow.tables["layers"].query("measure == 'information'")
    story.hold(
        "far from random sets, documents or not", so=(of_layer["displaced_sample"] > of_layer["swapped_high"]).all()
    )
    story.hold("one expert hardly foretells one of the next layer", so=information["high"].max() < FAINT)
    kept = rates[(rates["domain"] == "all domains") & (rates["measure"] == "share in common")]
    story.say(
        f"""Of the pairs of experts that a token chooses, {span(100 * of_layer["estimate"], ".0f")} % would have to
        change for
        those of random sets with the same loads. Documents alone, whose loads differ, would make
        {span(100 * of_layer["swapped"], ".0f")} % (in a sample, where the model has
        {span(100 * of_layer["displaced_sample"], ".0f")} %). The strongest pair, experts {first["a"]:.0f} and
        {first["b"]:.0f} of
        layer {first["layer"]:.0f}, stands together {first["lift_over_matched"]:.1f} times as often as in random
        sets; it was
        picked after looking.""",
        f"""What one layer's expert tells about the next layer's is {span(100 * information["estimate"], ".1f")} %
        of its
        maximum ({span(100 * information["permuted"], ".1f")} % from the documents alone): one expert hardly
        foretells one of the next layer. Single streams are stronger (below), and what several experts foretell
        together is not in it.
        Neighbouring
        tokens share {span(100 * kept["value"], ".0f")} % of their experts, where the same document's sets in
        another order
        share {span(100 * kept["permuted"], ".0f")} %.""",
    )
    story.show("pairs", pairs, "by_layer")
    story.show("flow", flow, "strongest_streams")


def _attention(story: Story) -> None:
    story.head("Does it matter where a token attends?")
    heads = story.ask("attention_heads")
    overlap = story.ask("attention_routing").tables["layers"]
    roles = heads.tables["roles"].groupby("role", sort=False)["heads"].sum()
    held = [f"{count} {role}" for role, count in roles.items() if count]
    none = [str(role) for role, count in roles.items() if not count]
    story.hold("slightly more", so=(overlap["low"] > overlap["permuted_high"]).all() and overlap["high"].max() < FAINT)
    n_heads = len(heads.tables["heads"])
    story.say(
        f"""Of {n_heads} heads, by thresholds that are conventions, some have a role: {_listed(held) or "none"}. Of
        other
        roles ({_listed(none) or "none"}) there is no head. Tokens that attend alike choose slightly more of the same
        experts than tokens of their document and place that attend otherwise:
        {span(100 * overlap["value"], ".1f")} points of overlap more, beside
        {span(100 * overlap["permuted"], ".1f")} when
        tokens are permuted. It is an association, and the token itself can be behind both."""
    )
    story.show("heads", heads, "landscape")


def _listed(words: list[str]) -> str:
    return ", ".join(words)


def _experts(story: Story) -> None:
    story.head("What does an expert add?")
    found, shared = story.ask("contribution"), story.ask("shared_expert")
    of_layer = found.tables["layers"]
    story.hold("load hardly foretells it", so=of_layer["spearman"].abs().max() < WEAK)
    story.say(
        f"""Held against the other experts on its own tokens, the expert that adds least adds
        {span(of_layer["smallest"])} of what they do, the one that adds most {span(of_layer["largest"])}; load hardly
        foretells it (rank correlation {span(of_layer["spearman"])}). Being chosen often and mattering are two
        things, in
        norm at least: a norm says nothing of direction."""
    )
    share = shared.tables.get("share_layers")
    if share is not None:
        story.say(
            f"""Beside them stands a shared expert that every token uses. Of the two outputs' norms it holds
            {span(100 * share["mean"], ".0f")} %."""
        )
    story.show("contribution", found, "against_load")


def _lineage(story: Story) -> None:
    story.head("What is left of the dense parent?")
    found = story.ask("upcycling_lineage")
    table = found.tables["layers"].pivot_table(index="layer", columns="candidates", values="mean")
    story.hold(
        "most like the parent's same layer",
        so=(table["parent, same layer"] > table[["parent, next layer", "parent, shuffled"]].max(axis=1)).all(),
    )
    above = found.tables["experts"]["above_null"]
    story.say(
        f"""The experts were cut from a dense model, and half of each was drawn anew. After training, a neuron's
        best match in
        the parent's same layer has a similarity of {span(table["parent, same layer"])}; in the next layer's it is
        {span(table["parent, next layer"])}, among shuffled neurons {span(table["parent, shuffled"])}. Of an expert's
        neurons {span(100 * above, ".0f")} % match better than nearly all shuffled ones would. These are parameters
        and not
        a sample, so there is no interval; and what was copied and what was drawn cannot be told apart any more."""
    )
    story.show("lineage", found, "similarity")


def _not_shown(story: Story) -> None:
    story.head("What cannot be concluded")
    story.text += "".join(
        textwrap.fill(" ".join(each.split()), WIDTH, initial_indent="- ", subsequent_indent="  ") + "\n"
        for each in (
            "Nothing about large models: this one is tiny, and was made to try tools on.",
            """Nothing about another run of training. Intervals are over documents; one seed was trained, and
            whether a
            second one would give experts of the same kinds is not known.""",
            """Nothing causal. No expert was switched off and no router edited; that an expert is chosen for a token
            does not
            say that the token needs it.""",
            """Nothing about domains in general. The corpus is small, its domains are few, and its documents of one
            domain
            come from few sources.""",
            """No ranking. The strongest pair, the busiest expert, the most extreme contribution were picked after
            looking,
            and lean outwards.""",
            """Nothing about decoding: only given text was read, and text that the model writes itself can be routed
            otherwise.""",
        )
    )
    story.text += "\n"


SECTIONS: tuple[Callable[[Story], None], ...] = (
    _opening, _balance, _token, _domains, _structure, _attention, _experts, _lineage, _not_shown,
)  # fmt: skip
