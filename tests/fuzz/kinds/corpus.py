"""Corpora: JSONL, Parquet and text as people's tools leave them, and as no tool should."""

import json
import os
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa

from tests.fuzz import bases
from tests.fuzz.kinds.model import record_with
from tests.fuzz.mutate import NUMBERS, TEXTS, damaged, encoded, mutated, strange
from tests.fuzz.tables import mutated_table, written
from tests.fuzz.trial import Trial
from workbench.recordings.corpus import Corpus

SHAPES: tuple[Any, ...] = (
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"text": "a"}]}]},
    {"input_ids": [1, 2, 3]}, {"content": "a text"}, {"text": "a", "meta": {"pile_set_name": "Github"}},
    {"prompt": "a", "completion": "b"}, {"doc": {"question": "a"}, "resps": [["b"]], "target": "c"},
    {"text": "a", "metadata": {"domain": "x"}}, {"instruction": "a", "output": "b"}, {"token_ids": [1.0]},
    {"text": None, "token_ids": [1, 2]}, {"text": "a", "label": 1}, ["a", "b"], "a", 1, None,
)  # fmt: skip


def prepare(base: Path) -> None:
    """A model that records what is read."""
    bases.model_folder(base / "model")


def run(trial: Trial) -> None:
    """Writes a damaged corpus, reads it, and records some."""
    rng = trial.rng
    trial.untouched = rng.random() < 0.03
    makers = (jsonl, jsonl, jsonl, blanks, parquet, parquet, text, place, many, bounds)
    make = whole if trial.untouched else rng.choice(makers)
    trial.note(make.__name__)
    path = make(rng, trial.inputs)
    out = trial.out / "recording"
    folder = str(trial.base / "model")
    if rng.random() < 0.1:
        words = [] if rng.random() < 0.6 else ["--max-tokens", str(rng.choice(NUMBERS))]
        if not trial.command("record", folder, "--corpus", path, "--out", str(out), *words):
            trial.refuse_leftovers(out, whole=False)
        return
    corpus = trial.attempt("read", Corpus.read, path)
    if corpus is not None:
        trial.attempt("digest", lambda: (corpus.digest, corpus.domains))
        if rng.random() < 0.5:
            _record(trial, folder, corpus, out)
    if rng.random() < 0.2 and Path(path).is_file():
        with suppress(OSError):  # what a visitor's own machine cannot read is not sent
            content = Path(path).read_bytes()
            trial.attempt("upload", _upload, trial.out / "data", Path(path).name, content)


def _record(trial: Trial, folder: str, corpus: Corpus, out: Path) -> None:
    short = Corpus(corpus.name, corpus.documents[:8])
    recording = record_with(trial, bases.model_with_tokenizer(folder), out, short)
    if recording is not None:
        from analyses import catalogue
        from analyses.question import Question

        name = trial.rng.choice(catalogue.of_recordings())
        trial.attempt(f"analysis {name}", Question(recording, name).answer)


def _upload(data: Path, name: str, content: bytes) -> None:
    """As a visitor's file, by the rules of an app that others use."""
    from unittest.mock import patch

    from tests.hosting import ScriptedProcess
    from workbench.jobs import queue
    from workbench.jobs.limits import Limits, Rules
    from workbench.jobs.service import Host

    data.mkdir()
    with patch.object(queue, "ModelProcess", ScriptedProcess):
        host = Host(data, rules=Rules(limits=Limits(jobs=100, jobs_per_minute=100)))
        try:
            host.keep_upload(name, content, owner="visitor")
        finally:
            host.stop()


def whole(rng: Random, folder: Path) -> str:
    """A corpus with nothing wrong."""
    return str(bases.write_rows(folder / "corpus.jsonl", bases.corpus_rows(with_ids=rng.random() < 0.5)))


def blanks(rng: Random, folder: Path) -> str:
    """Lines whose ends are CR, LF or both, with blank ones between them, and blanks where names and texts are."""
    rows = bases.corpus_rows()
    for row in rows:
        for key in rng.sample(list(row), 2):
            row[key] = rng.choice((row[key] + "\r", "\r" + row[key], f" {row[key]}\t", "\r\n", " \u00a0\u3000", ""))
    ends = rng.choice(("\r", "\r\n", "\n\r", "\n \n", "\r\r\n", "\n\t\n\n"))
    raw = ends.join(json.dumps(row) for row in rows).encode()
    return _written(rng, folder, rng.choice((".jsonl", ".jsonl", ".txt")), raw)


def jsonl(rng: Random, folder: Path) -> str:
    """Lines with strange values, in strange encodings."""
    rows: list[Any] = bases.corpus_rows(with_ids=rng.random() < 0.4)
    kind = rng.choice(("values", "values", "values", "shape", "ids", "line", "same"))
    if kind == "values":
        rows = [mutated(rng, row) if rng.random() < 0.4 else row for row in rows]
    elif kind == "shape":
        shape = rng.choice(SHAPES)
        rows = [mutated(rng, shape) if rng.random() < 0.2 else shape for _ in rows]
    elif kind == "ids":
        rows[rng.randrange(len(rows))]["token_ids"] = rng.choice(
            ([], [rng.choice(NUMBERS)], [True], [[1]], "1 2", None, [1] * 5_000, [-1], {}, [None], [1, "a"], [2**40])
        )
    elif kind == "same":
        rows = [rows[0]] * 3
    lines = [json.dumps(row, ensure_ascii=rng.random() < 0.5) for row in rows]
    if kind == "line":
        lines[rng.randrange(len(lines))] = rng.choice(
            ("{", "[" * 100_000, "9" * 5_000, "NaN", '{"text": "a"} {"text": "b"}', "\x00", '{"text": "\\ud800"}', "//",
             '{"text": "a", "text": "b"}', '{"text": 1e999}', "'a'", json.dumps(strange(rng)))
        )  # fmt: skip
    raw = encoded(rng, "\n".join(lines) + rng.choice(("\n", "", "\n\n")))
    raw = damaged(rng, raw) if rng.random() < 0.2 else raw
    return _written(rng, folder, ".jsonl", raw)


def parquet(rng: Random, folder: Path) -> str:
    """Columns of other types, with nulls, of other tools; damaged pages."""
    kind = rng.choice(("table", "table", "table", "shape", "bytes"))
    rows = bases.corpus_rows(with_ids=rng.random() < 0.4)
    if kind == "shape":
        shapes = [shape for shape in SHAPES if isinstance(shape, dict)]
        rows = [rng.choice(shapes)] * 3
    try:
        table = pa.Table.from_pylist(rows)
    except pa.ArrowException:  # a shape that no Parquet file has
        table = pa.Table.from_pylist(bases.corpus_rows())
    raw = written(mutated_table(rng, table) if kind == "table" else table, rng)
    return _written(rng, folder, ".parquet", damaged(rng, raw) if kind == "bytes" else raw)


def text(rng: Random, folder: Path) -> str:
    """Blocks of text with any letters and any blanks between them."""
    blocks = [rng.choice((*bases.SENTENCES, rng.choice(TEXTS))) for _ in range(rng.choice((1, 3, 6)))]
    between = rng.choice(("\n\n", "\n \t\n", "\r\r", "\r\n\r\n", "\n\n\n\n", "\f", "\n\u2029\n", "\x00", "\v\v"))
    raw = encoded(rng, between.join(blocks))
    return _written(rng, folder, ".txt", damaged(rng, raw) if rng.random() < 0.2 else raw)


def place(rng: Random, folder: Path) -> str:
    """A name that is no corpus: missing, a folder, a device, too long, or of another ending."""
    file = bases.write_rows(folder / "corpus.jsonl", bases.corpus_rows())
    link = folder / "link.jsonl"
    link.symlink_to(rng.choice((file.name, "link.jsonl", "no", "/dev/null", ".")))
    pipe = folder / "pipe.jsonl"
    os.mkfifo(pipe)
    (folder / "folder.parquet").mkdir()
    for ending in (".csv", ".json", ".jsonl.gz", ".tsv", ".arrow", ".md", ".JSONL", ""):
        (folder / f"corpus{ending}").write_bytes(rng.choice((file.read_bytes(), b"text\na\n", b"")))
    return rng.choice((
        *(str(found) for found in sorted(folder.iterdir())), str(folder), "", " ", "demo", "demo.jsonl", "x" * 300,
        f"{folder}/{'y' * 300}.jsonl", "a\x00b.jsonl", "\ud800.jsonl", "../../../etc/passwd", "/dev/zero",
        "/proc/self/mem", "a/" * 3_000, "~/corpus.jsonl", "http://localhost:1/a.jsonl", "*.jsonl",
    ))  # fmt: skip


def many(rng: Random, folder: Path) -> str:
    """Many rows in few bytes, or one of many letters."""
    kind = rng.choice(("rows", "ids", "letters", "lines", "same lines"))
    if kind == "rows":
        n_rows = rng.choice((10**6, 5 * 10**7))
        raw = written_large(pa.nulls(n_rows, pa.string()), "text")
        return _written(rng, folder, ".parquet", raw)
    if kind == "ids":
        inner = pa.array([0] * 10**6, pa.int32())
        raw = written_large(pa.ListArray.from_arrays(pa.array([0, 10**6], pa.int32()), inner), "token_ids")
        return _written(rng, folder, ".parquet", raw)
    row = (
        {"text": "word " * 200_000}
        if kind == "letters"
        else {"text": "a", "id": "x" * 100_000, "domain": "y" * 100_000}
    )
    raw = (json.dumps(row) + "\n").encode() if kind != "lines" else b"\n" * 5 * 10**6
    return _written(rng, folder, ".jsonl", raw * (20 if kind == "same lines" else 1))


def written_large(column: pa.Array, name: str) -> bytes:
    """A file of one column that says little and claims much."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: column}), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def bounds(rng: Random, folder: Path) -> str:
    """Names without a limit, and of every kind of letter."""
    rows = bases.corpus_rows()
    for row in rows:
        for key in rng.sample(("id", "domain", "source", "cluster"), 2):
            row[key] = rng.choice((*TEXTS, "z" * rng.choice((200, 5_000, 100_000)))) + (
                row["id"] if key == "id" else ""
            )
    return _written(rng, folder, ".jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def _written(rng: Random, folder: Path, ending: str, raw: bytes) -> str:
    name = rng.choice(("corpus", "corpus", "corpus", "a b", "été", "-x", "a.b", "z" * 200))
    file = folder / f"{name}{ending}"
    file.write_bytes(raw)
    return str(file)
