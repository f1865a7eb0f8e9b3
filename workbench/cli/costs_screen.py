"""What `workbench costs` prints: two models side by side in one screen, and each part where it is asked for."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from workbench.cli.console import console

if TYPE_CHECKING:
    from workbench.efficiency.costs.comparison import Costed

Facts = Mapping[str, Mapping[str, Any]]


def show(found: Facts, on: Any, *, dtype: str, parts: bool = False) -> None:
    """Prints the table: a column for each model, and how many times as much the second needs."""
    names = list(found)
    title = f"{dtype} on {on.name}: {on.peak(dtype) / 1e12:,.0f} TFLOP/s, {on.bandwidth_bytes / 1e12:,.2f} TB/s"
    table = Table(
        "", title=title, caption=f"Peaks: {on.source}.", title_justify="left", caption_justify="left", box=SIMPLE_HEAD
    )
    for name in names:
        table.add_column(name, justify="right")
    if len(names) == 2:
        table.add_column("2nd / 1st", justify="right")
    contexts = list(dict.fromkeys(point["context"] for point in found[names[0]]["points"]))

    def row(what: str, values: Sequence[float], words: Sequence[str] = ("", "")) -> None:
        cells = [f"{_number(value)}{word}" for value, word in zip(values, words, strict=False)]
        over = [f"{values[1] / values[0]:.3g}"] if len(values) == 2 and values[0] else []
        table.add_row(what, *cells, *over)

    def each(key: str, unit: float) -> list[float]:
        return [found[name][key] / unit for name in names]

    row("parameters, 10⁹", each("parameters_total", 1e9))
    row("  active per token", each("parameters_active", 1e9))
    row("cache per token, KiB", each("cache_bytes_per_token", 1024))
    for context in contexts:
        points = {name: [p for p in found[name]["points"] if p["context"] == context] for name in names}
        at = [points[name][0] for name in names]
        table.add_section()
        row(f"GFLOP per token at {context:,}", [sum(p["decode_flops_per_token"].values()) / 1e9 for p in at])
        row(f"prefill of {at[0]['batch']:,} × {context:,}, ms", *_floors(at, "prefill"))
        for many in zip(*points.values(), strict=True):
            met = many[0]["experts_met_uniform"]
            said = f", {sum(met) / len(met):.1f} experts" if met else ""
            row(f"step of {many[0]['batch']:,}{said}, ms", *_floors(many, "decode_step"))
        last = [points[name][-1] for name in names]
        held = [p["memory_bytes"][dtype] for p in last]
        row(
            f"weights, {last[0]['batch']:,} caches, GB",
            [(m["weights"] + m["cache"]) / 1e9 for m in held],
            words=["" if m["fits"] else " ✗" for m in held],
        )
    if parts:
        _parts(table, found, dtype)
    console.print(table)
    console.print(
        "ms: floors at these peaks, by c(omputing) or m(emory); experts met as under uniform random routing; ✗ does "
        "not fit" + ("" if parts else "; --parts shows what it is made of"),
        highlight=False, markup=False,
    )  # fmt: skip
    for name in names:
        for point in found[name]["points"]:
            for kind, said in point.get("measured", {}).items():
                mean = sum(said["experts_met"]) / len(said["experts_met"])
                console.print(
                    f"{name}, a step of {point['batch']:,}, {kind} routing: {mean:,.2f} experts met, "
                    f"{_number(said['bytes'] / 1e9)} GB, {_number(said['floor_ms'])} ms", highlight=False,
                )  # fmt: skip
        if found[name].get("is"):
            console.print(f"{name}: {found[name]['is']}", highlight=False)


def _floors(points: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[str]]:
    return [p[key]["floor_ms"] for p in points], [f" {p[key]['bound'][0]}" for p in points]


def story(subject: "Costed", on: Any, contexts: Sequence[int], *, dtype: str) -> None:
    """Prints at which batches the first model decodes faster, and, of the card's pair, what the card claims."""
    from analyses.costs import crossover

    settings = crossover.Settings(device=on.name, dtype=dtype, largest_context=max(*contexts, 128))
    found = crossover.run(subject, settings)
    for context in sorted(set(contexts) & set(found.map["context"])):
        at = found.crossings[found.crossings["context"] == context]
        fastest = found.map[(found.map["context"] == context) & (found.map["batch"] == 1)]["ratio"].iloc[0]
        turns = [f"{row.beyond} from {row.batch:,.0f}" for row in at.itertuples()]
        at_one = f"{_number(fastest)} × as fast at batch 1" if fastest >= 1 else f"slower at batch 1 ({fastest:.2f} ×)"
        console.print(
            f"decoding at context {context:,}: {subject.name} is {', '.join([at_one, *turns])} (floors, to batch "
            f"{found.map['batch'].max():,})", highlight=False,
        )  # fmt: skip
    _claim(subject, dtype)


def _claim(subject: "Costed", dtype: str) -> None:
    """The card's claim, where the two models are those of its pair."""
    from dataclasses import replace

    from analyses.costs import card_claim
    from workbench.efficiency.costs.claims import published_claims

    claims = published_claims()
    if [claim.config for claim in claims] != [subject.name, subject.against]:
        return
    pair = replace(subject, published={subject.name: subject.topology, subject.against: subject.other})
    settings = card_claim.Settings(dtype=dtype)
    found = card_claim.run(pair, settings)
    published = found.ratios["published"].iloc[0]
    splits = found.ratios[(found.ratios["requests"] == "different") & ~found.ratios["impossible"]]
    nearest = splits.iloc[(splits["serial"] - published).abs().argmin()]
    console.print(
        f"the card: {claims[0].requests_per_s} over {claims[1].requests_per_s} requests/s = {published:.3f}, of "
        f"{' or '.join(map(str, found.lengths))} tokens each ({claims[0].devices}); FLOP alone would give "
        f"{found.flop_ratio:.3f}; of the splits tried, the floors come nearest at {nearest['read']} read + "
        f"{nearest['written']} written ({nearest['serial']:.2f}), and allow {splits['serial'].min():.2f} to "
        f"{splits['serial'].max():.2f} on {settings.device}", highlight=False,
    )  # fmt: skip


def _parts(table: Table, found: Facts, dtype: str) -> None:
    """Rows by part, of the first batch and context."""
    names = list(found)
    first = {name: {**found[name], **found[name]["points"][0]} for name in names}
    batch, context = (first[names[0]][key] for key in ("batch", "context"))

    def rows(title: str, key: str, unit: float, *, pick: str = "") -> None:
        table.add_section()
        parts = list(dict.fromkeys(part for name in names for part in first[name][key]))
        numbers = {n: {p: v[pick] if pick else v for p, v in first[n][key].items()} for n in names}
        table.add_row(f"[bold]{title}", *[f"[bold]{_number(sum(numbers[n].values()) / unit)}" for n in names])
        for part in parts:
            table.add_row(
                f"  {part}", *[_number(numbers[n][part] / unit) if part in numbers[n] else "–" for n in names]
            )

    rows("parameters, 10⁶", "parameters", 1e6, pick="total")
    rows("active per token, 10⁶", "parameters", 1e6, pick="active")
    rows(f"decode, GFLOP per token at context {context:,}", "decode_flops_per_token", 1e9)
    rows(f"prefill of {context:,} tokens, TFLOP", "prefill_flops_per_sequence", 1e12)
    rows(f"decode step of {batch:,}, GB read", "decode_step_bytes", 1e9)
    table.add_section()
    for kept in first[names[0]]["memory_bytes"]:
        cells = [first[n]["memory_bytes"][kept] for n in names]
        table.add_row(
            f"memory as {kept}, GB",
            *[f"{_number((c['weights'] + c['cache']) / 1e9)}{'' if c['fits'] else ' ✗'}" for c in cells],
        )


def _number(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:,.1f}" if value >= 1000 else f"{value:.4g}"
