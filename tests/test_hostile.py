"""Hostile text at every place that takes text, below the browser: it is refused in a sentence, or stays text.

The places are crossed with the classes of `tests/hostile.py`; `tests/pages/test_hostile_browser.py` has the browser.
"""

import csv
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analyses.question import Question
from tests.hostile import CANARY, HOSTILE
from tests.hosting import ScriptedProcess
from tests.tiers import often
from workbench.capture.record import record
from workbench.errors import WorkbenchError
from workbench.export.files import Provenance, write_figure, write_result, write_table
from workbench.figures.plotly.draw import screen
from workbench.jobs import queue
from workbench.jobs.limits import Limits, Rules
from workbench.jobs.service import Host
from workbench.models import loading
from workbench.recordings.corpus import Corpus
from workbench.recordings.recording import Recording

RULES = Rules(limits=Limits(jobs=100, jobs_per_minute=100))


def row(key: str, text: str) -> bytes:
    """A line of JSONL with the text at a key; json.dumps writes half a letter as an escape, as an attacker would."""
    return (json.dumps({"text": "Rain and bread.", key: text}) + "\n").encode()


ASKS: dict[str, Callable[[Host, str], object]] = {
    "prompt": lambda host, text: host.record(model="tiny-moe", prompt=text),
    "model": lambda host, text: host.record(model=text, prompt="a"),
    "model in a folder": lambda host, text: host.inspect(f"{host.data}/{text}"),
    "hub id": lambda host, text: host.inspect(f"org/{text}"),
    "model of a map": lambda host, text: host.attention(model=text, token_ids=[1], layer=0, head=0),
    "parent": lambda host, text: host.record(model="tiny-moe", prompt="a", fields=("weights",), parent=text),
    "corpus": lambda host, text: host.record(model="tiny-moe", corpus=text),
    "corpus in a folder": lambda host, text: host.record(model="tiny-moe", corpus=f"{host.data}/{text}.jsonl"),
    "fields": lambda host, text: host.record(model="tiny-moe", prompt="a", fields=(text,)),
    "name": lambda host, text: host.record(model="tiny-moe", prompt="a", name=text),
    "visitor": lambda host, text: host.record(model="tiny-moe", prompt="a", owner=text),
    "file name": lambda host, text: host.keep_upload(f"{text}.jsonl", row("id", "a")),
    "upload": lambda host, text: host.keep_upload("a.jsonl", text.encode("utf-8", errors="surrogatepass")),
    "job": lambda host, text: host.cancel(text),
    "unfinished": lambda host, text: host.resume(text),
    "recording to delete": lambda host, text: Host(host.data).delete(text),
    **{
        f"upload's {key}": lambda host, text, key=key: host.keep_upload("a.jsonl", row(key, text))
        for key in ("text", "id", "domain", "source", "cluster", "unknown")
    },
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_it_is_refused_in_a_sentence_or_stays_in_the_data_folder(tmp_path, monkeypatch, ask, text):
    monkeypatch.setattr(queue, "ModelProcess", ScriptedProcess)
    (tmp_path / "data").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    host = Host(tmp_path / "data", rules=RULES)
    try:
        ask(host, text)
    except WorkbenchError as error:
        assert len(str(error)) < 2_000 and str(error).endswith((".", "s", ">"))
    host.stop()
    assert [place.name for place in sorted(tmp_path.iterdir())] == ["cwd", "data"]
    assert list((tmp_path / "cwd").iterdir()) == []
    kept = [file.relative_to(host.data) for file in host.data.rglob("*") if file.is_file()]
    plain = r"(requests/[A-Za-z0-9_-][A-Za-z0-9._-]*\.json|uploads/[0-9a-f]{12}/[A-Za-z0-9_-]+\.jsonl|logs/.*\.log)"
    assert all(re.fullmatch(plain, file.as_posix()) for file in kept), kept


# What was recorded of it


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Recording:
    """The bundled model over documents that are hostile in text, id, domain, source and cluster."""
    folder = tmp_path_factory.mktemp("hostile")
    with (folder / "hostile.jsonl").open("w") as lines:
        for kind, text in HOSTILE.items():
            if kind == "malformed":  # refused, as above
                continue
            for n in range(3):
                named = dict.fromkeys(("domain", "source"), text[:300])
                lines.write(json.dumps({**named, "id": f"{text[:200]} {n}", "text": f"{text[:600]} {n}"}) + "\n")
    corpus = Corpus.read(folder / "hostile.jsonl")
    return record(loading.load("tiny-moe"), corpus, folder / "recording", check=False)


@pytest.fixture(scope="module", params=often(
    ["expert_load", "load_balance", "domain_load", "specialization", "expert_card", "token_routing",
     "router_confidence"], ["domain_load", "expert_card", "token_routing"],
))  # fmt: skip
def result(request, recording):
    kinds = [kind for kind in HOSTILE if kind != "malformed"]
    document = f"{HOSTILE[kinds[0]][:200]} 0"
    settings = [f"document={document}"] if request.param == "token_routing" else []
    said = Question(recording, request.param, settings).answer()
    return request.param, said


def shown_texts(node: object, key: str = ""):
    """All that plotly would read as its HTML; customdata and meta are data, and a legend's group is never drawn."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name not in ("customdata", "meta", "legendgroup"):
                yield from shown_texts(value, name)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from shown_texts(value, key)
    elif isinstance(node, str):
        yield node


def test_on_the_screen_it_is_letters(result):
    for figure in result[1].figures.values():
        for text in shown_texts(json.loads(screen(figure).to_json())):
            refuse_markup(text)
            assert not re.search("[\x00-\x08\x1b\u202e\u2066\u200b]", text)


def test_in_files_it_is_letters(result, recording, tmp_path):
    name, said = result
    how = Provenance(
        analysis=name, command=Question(recording, name).command, sources=Question(recording, name).sources
    )
    files = write_result(said.tables, said.figures, tmp_path / "out", provenance=how)
    assert {file.parent for file in files} == {tmp_path / "out"}
    for file in files:
        if file.suffix == ".csv":
            refuse_formulas(file)
        elif file.suffix == ".tex":
            refuse_commands(file)
        elif file.suffix == ".svg":
            refuse_scripts(file)
        elif file.suffix == ".pdf":
            assert not re.search(rb"/(JavaScript|JS|OpenAction|AA|Launch|URI)\b", file.read_bytes())


def refuse_markup(text: str) -> None:
    assert not re.search(r"<(?!br>|/?b>|/?i>|/?su[bp]>|extra>|/extra>)", text), text
    assert "<b>bold" not in text


def refuse_formulas(file: Path) -> None:
    with file.open(encoding="utf-8", newline="") as lines:
        for cells in csv.reader(lines):
            for cell in cells:
                assert not cell.startswith(("=", "@", "\t", "\r")), cell
                assert not cell.startswith(("+", "-")) or re.fullmatch(r"[+-][\d.einf-]+", cell), cell


def refuse_commands(file: Path) -> None:
    text = "\n".join(line for line in file.read_text(encoding="utf-8").split("\n") if not line.startswith("%"))
    assert not re.search(r"\\(input|write|immediate|def|catcode|include|openout|csname)\b", text)
    assert not re.search("[\x00-\x08\x1b\u202e\u2066\u200b\ud800-\udfff]", text)
    assert re.findall(r"(?<!\\)%", text) == []


def refuse_scripts(file: Path) -> None:
    for element in ET.parse(file).iter():
        assert element.tag.rpartition("}")[2] not in ("script", "foreignObject", "a", "iframe", "set", "animate")
        for key, value in element.attrib.items():
            assert not key.lower().startswith("on") and "javascript:" not in value.lower()
            assert not key.endswith("href") or value.startswith(("#", "data:image/png", "http://creativecommons.org"))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_table_and_its_words_of_any_text_are_letters(tmp_path, text):
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # no table can hold half a letter
        with pytest.raises(UnicodeEncodeError):
            pd.DataFrame({"text": [text]})
        return
    table = pd.DataFrame({text: [text, "plain"], "value": [1.5, -2.5]})
    how = Provenance(analysis=text, command=text)
    data, latex = write_table(table, tmp_path / "t", provenance=how, caption=text, label=text)
    refuse_formulas(data)
    refuse_commands(latex)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_figure_whose_words_are_any_text_runs_nothing(tmp_path, text):
    import dataclasses

    from tests.figures.examples import load_map

    figure = dataclasses.replace(load_map(2, 2), title=text[:300], caption=text, alt=text, x_label=text[:100])
    how = Provenance(analysis="a", command=text)
    pdf, svg, _ = write_figure(figure, tmp_path / "f", provenance=how)
    refuse_scripts(svg)
    assert not re.search(rb"/(JavaScript|JS|OpenAction|AA|Launch|URI)\b", pdf.read_bytes())
    for shown in shown_texts(json.loads(screen(figure).to_json())):
        ours = shown.replace("<br>", "").removesuffix("<extra></extra>")  # new lines, and the end of a hover's template
        assert CANARY not in ours or "<" not in ours


def test_a_message_has_a_bound_and_no_place_in_memory():
    assert len(str(WorkbenchError("x" * 5_000))) < 1_950
    assert str(WorkbenchError("read <ast.Name object at 0x7fab233bdf30>.")) == "read <ast.Name object>."
