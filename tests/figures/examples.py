"""Figures like those that analyses return, at the sizes of a small model and of Qwen2-57B-A14B, and awkward ones."""

import dataclasses

import numpy as np
import pandas as pd

from workbench.figures import Bars, Distribution, Figure, Flow, HeatMap, Lines, Points, TokenStrip

DOMAINS = ("chinese", "code", "english", "math", "multilingual")
CANARY = "<b>x</b><script>alert(1)</script>&amp;$a_1^2$ %{x} \\ ~#"
MIXED = (
    *("The", " router", " sends", " each", " token", " to", " eight", " experts", ".\n", "专家", "网络", "模型"),
    *(" Ταχύς", " эксперт", " خبير", "विशेषज्ञ", "\t", "    ", "def", " f", "(x):\n", "    ", "return", " x", "_", "$y$"),
    *("\u202e", "\x00", "�", "🙂", CANARY, "supercalifragilisticexpialidocious-and-more-of-it", "", " ", "\n\n"),
)
WORDS = {"caption": "What it shows, in nats, with 95 % jackknife intervals.", "alt": "In words."}


def loads(n_layers: int, n_experts: int, *, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    layer, expert = (grid.ravel() for grid in np.mgrid[:n_layers, :n_experts])
    load = rng.lognormal(0, 0.35, layer.size)
    load[rng.choice(layer.size, max(1, layer.size // 300), replace=False)] = 0.0
    return pd.DataFrame({"layer": layer, "expert": expert, "load": load, "tokens": (load * 8000).astype(int)})


def load_map(n_layers: int, n_experts: int) -> HeatMap:
    return HeatMap(
        *(loads(n_layers, n_experts), "expert", "layer", "load"),
        title="Load of each expert",
        x_label="expert",
        y_label="layer",
        value_label="load ÷ balanced load",
        center=1.0,
        log=True,
        hover=("tokens",),
        **WORDS,
    )


def domain_map(n_layers: int, n_experts: int) -> HeatMap:
    rng = np.random.default_rng(1)
    table = pd.concat([loads(n_layers, n_experts, seed=i).assign(domain=d) for i, d in enumerate(DOMAINS)])
    table["share"] = rng.beta(2, 14, len(table))
    table.loc[(table["domain"] == "code") & (table["expert"] % 7 == 0), "share"] = np.nan
    return HeatMap(
        *(table, "expert", "domain", "share"),
        title="How often each domain's tokens choose each expert",
        x_label="expert",
        y_label="domain",
        value_label="tokens that choose the expert (share)",
        panel="layer",
        **WORDS,
    )


def token_map() -> HeatMap:
    rng = np.random.default_rng(3)
    layer, position = (grid.ravel() for grid in np.mgrid[:28, :300])
    table = pd.DataFrame({"layer": layer, "position": position, "entropy": rng.beta(5, 2, layer.size)})
    return HeatMap(
        *(table, "position", "layer", "entropy"),
        title="Router entropy",
        x_label="position in the document (tokens)",
        y_label="layer",
        value_label="entropy ÷ ln E",
        **WORDS,
    )


def series(n_layers: int, *, seed: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    domain, layer = np.repeat(DOMAINS, n_layers), np.tile(np.arange(n_layers), len(DOMAINS))
    value = rng.uniform(0.3, 1.2, layer.size) + 0.5 * (domain == "code")
    width = rng.uniform(0.03, 0.12, layer.size)
    table = pd.DataFrame(
        {"layer": layer, "domain": domain, "value": value, "low": value - width, "high": value + width}
    )
    table["null"] = 0.14 + 0.01 * layer / n_layers
    table.loc[3, ["low", "high"]] = np.nan
    return table


def bars(table: pd.DataFrame, x: str, **options: object) -> Bars:
    labels = {"title": "Load imbalance", "x_label": x, "y_label": "squared coefficient of variation"}
    return Bars(
        *(table, x, "value"),
        **{
            **labels,
            "low": "low",
            "high": "high",
            "interval_label": "95 % interval, stratified jackknife",
            **WORDS,
            **options,
        },
    )


def lines(table: pd.DataFrame, **options: object) -> Lines:
    labels = {"title": "Maximal violation by layer", "x_label": "layer", "y_label": "MaxVio (unit 1)"}
    null = {"null": "null", "null_label": "uniform random routing at this many tokens"}
    return Lines(*(table, "layer", "value"), **{**labels, "low": "low", "high": "high", **null, **WORDS, **options})


def balance(n_layers: int) -> Lines:
    """Several statistics, each with a scale of its own."""
    names = ("MaxVio (unit 1)", "CV (unit 1)", "effective experts", "dead experts")
    parts = [series(n_layers, seed=i).query("domain == 'code'").assign(statistic=n) for i, n in enumerate(names)]
    for part, factor in zip(parts, (1, 0.4, 18, 2), strict=True):
        part[["value", "low", "high", "null"]] *= factor
    return lines(pd.concat(parts), panel="statistic", shared_y=False, y_label="value", title="Balance of the load")


def points(n: int = 60) -> Points:
    rng = np.random.default_rng(4)
    table = pd.DataFrame(
        {"flops": 10 ** rng.uniform(9, 11, n), "loss": rng.uniform(2, 4, n), "total": rng.uniform(1, 60, n)}
    )
    table["domain"] = [DOMAINS[i % len(DOMAINS)] for i in range(n)]
    table["name"] = [f"model_{i}" if i % 6 == 0 else None for i in range(n)]
    return Points(
        *(table, "flops", "loss"),
        title="Loss against cost",
        x_label="FLOPs per token",
        y_label="loss (nats)",
        group="domain",
        size="total",
        size_label="parameters (10⁹)",
        label="name",
        log_x=True,
        **WORDS,
    )


def entropies(n_layers: int, *, grouped: bool = False) -> Distribution:
    rng = np.random.default_rng(5)
    groups = DOMAINS[:2] if grouped else DOMAINS[:1]
    rows = [
        (layer, group, *np.quantile(rng.beta(6, 2 + layer / 9, 200), (0.05, 0.25, 0.5, 0.75, 0.95)))
        for layer in range(n_layers)
        for group in groups
    ]
    table = pd.DataFrame(rows, columns=["layer", "domain", "q05", "q25", "q50", "q75", "q95"])
    table["mean"] = table["q50"] * 0.98
    table["null"] = 0.97
    return Distribution(
        *(table, "layer"),
        title="Router entropy of tokens",
        x_label="layer",
        y_label="entropy ÷ ln E (unit 1)",
        group="domain" if grouped else None,
        null="null",
        null_label="untrained router",
        **WORDS,
    )


def strip(n: int, *, colour: str) -> TokenStrip:
    rng = np.random.default_rng(6)
    table = pd.DataFrame({"token": [MIXED[i % len(MIXED)] for i in range(n)], "expert": rng.integers(0, 64, n)})
    table["loss"] = rng.gamma(1.5, 1.5, n)
    table.loc[0, "loss"] = np.nan
    labels = {"expert": "expert with the largest weight, layer 3", "loss": "loss (nats)"}
    return TokenStrip(
        *(table, "token"),
        title="Tokens of document demo-code-03",
        value="loss" if colour == "loss" else None,
        category="expert" if colour == "expert" else None,
        value_label=labels[colour],
        hover=("expert", "loss"),
        **WORDS,
    )


def flow(n_experts: int, n_streams: int) -> Flow:
    """Streams between experts of two layers, some experts in none."""
    rng = np.random.default_rng(7)
    at = rng.choice(n_experts**2, n_streams, replace=False)
    table = pd.DataFrame({"expert": at // n_experts, "next": at % n_experts, "tokens": rng.integers(1, 900, n_streams)})
    return Flow(
        *(table, "expert", "next", "tokens"),
        title="Strongest flow, layer 3 to layer 4",
        source_label="expert of layer 3",
        target_label="of layer 4",
        value_label="tokens with both",
        **WORDS,
    )


def waterfall() -> Bars:
    """Bars that begin where others end."""
    factors = np.array([2.3, 0.5, 1.2, 0.8])
    edges = np.cumprod([1.0, *factors])
    table = pd.DataFrame({"step": ["FLOP", "weights", "cache", "host"], "before": edges[:-1], "after": edges[1:]})
    table["kind"] = np.where(factors > 1, "faster", "slower")
    table["text"] = [f"×{factor:.2f}" for factor in factors]
    table["low"], table["high"] = table["after"] * 0.9, table["after"] * 1.1
    return Bars(
        *(table, "step", "after"), base="before", group="kind", label="text", low="low", high="high",
        title="From FLOP to what was measured", x_label="step", y_label="ratio of speeds", **WORDS,
    )  # fmt: skip


def examples() -> dict[str, Figure]:
    """Every kind, small and large."""
    small, large = series(4), series(28)
    return {
        "load-4x32": load_map(4, 32),
        "load-28x64": load_map(28, 64),
        "domains-4x32": domain_map(4, 32),
        "domains-28x64": domain_map(28, 64),
        "tokens-28x300": token_map(),
        "bars-domain": bars(small[small["layer"] == 0], "domain", null="null", null_label="uniform random routing"),
        "bars-layer": bars(small, "layer", group="domain", null="null"),
        "bars-panels": bars(small, "domain", panel="layer", null="null"),
        "bars-28": bars(large[large["domain"] == "code"], "layer", null="null"),
        "waterfall": waterfall(),
        "lines-4": lines(small, group="domain"),
        "lines-28": lines(large, group="domain"),
        "lines-panels": lines(large, panel="domain"),
        "balance-4": balance(4),
        "points": points(),
        "entropies-4": entropies(4),
        "entropies-28": entropies(28, grouped=True),
        "flow": flow(64, 24),
        "strip-expert": strip(300, colour="expert"),
        "strip-loss": strip(120, colour="loss"),
    }


def as_categories(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(domain=pd.Categorical(table["domain"], ["missing", *reversed(DOMAINS)])).convert_dtypes()


def awkward() -> dict[str, Figure]:
    """One row, one value, names too long or like markup, many groups, a group that is not there."""
    one = series(1).head(1).assign(domain=CANARY)
    many = pd.DataFrame(
        {
            "layer": np.tile(np.arange(3), 12),
            "value": 1.0,
            "domain": np.repeat([f"group {i} " + "x" * i for i in range(12)], 3),
        }
    )
    absent = series(4).query("domain != 'code' or layer < 2")
    alone = pd.DataFrame([{"x": CANARY, "y": "y" * 80, "v": 0.0}])
    cell = HeatMap(alone, "x", "y", "v", title=CANARY, x_label=CANARY, y_label=CANARY, value_label=CANARY, **WORDS)
    long = "a label that goes on and on " * 8
    return {
        "one cell": cell,
        "one cell, log": dataclasses.replace(cell, log=True, center=1.0),
        "one cell, centred": dataclasses.replace(cell, center=0.0),
        "one bar": bars(one, "domain", null="null", title=long, y_label=long, null_label=long, interval_label=CANARY),
        "one point of a line": lines(one, group="domain"),
        "one point": dataclasses.replace(points(1), label="domain", group=None, log_x=False),
        "one box": dataclasses.replace(entropies(1), title=CANARY),
        "one stream": Flow(
            *(pd.DataFrame({"from": [CANARY], "to": [CANARY], "tokens": [1.0]}), "from", "to", "tokens"),
            title=CANARY,
            source_label=CANARY,
            target_label=CANARY,
            value_label=CANARY,
            **WORDS,
        ),
        "hundreds of streams": flow(200, 400),
        "streams without width": dataclasses.replace(
            flow(4, 16),
            table=flow(4, 16).table.assign(tokens=lambda t: t["tokens"].where(t["expert"] > 0) * (t["next"] > 1)),
        ),
        "one token": strip(1, colour="expert"),
        "equal values": bars(many, "layer", group="domain", low=None, high=None),
        "twelve lines": lines(many, group="domain", low=None, high=None, null=None),
        "twelve panels": lines(many, panel="domain", low=None, high=None, null=None),
        "group not in all panels": bars(absent, "layer", group="domain", panel="layer", null="null"),
        "ordered categories": dataclasses.replace(domain_map(1, 4), table=as_categories(domain_map(1, 4).table)),
        "bars of ordered categories": bars(as_categories(series(2)), "layer", group="domain"),
        "log": lines(series(28).query("domain == 'math'"), log=True),
        "panels of tokens": dataclasses.replace(strip(40, colour="loss"), panel="expert"),
        "few categories": dataclasses.replace(
            strip(30, colour="loss"),
            value=None,
            category="expert",
            table=strip(30, colour="loss").table.assign(expert=lambda t: [DOMAINS[i % 5] for i in t["expert"]]),
        ),
    }
