"""What is typed: every command with options that are missing, double, huge, negative, of another type or odd letters.

Options are asked of the commands themselves, so that a new one cannot be forgotten. Nothing here measures for long or
starts a server; where somebody names a folder to write to, it lies in the input's own.
"""

import contextlib
import json
import shutil
import signal
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch

from tests.fuzz import bases
from tests.fuzz.mutate import NUMBERS, TEXTS
from tests.fuzz.trial import Trial

_FOLDERS = ("out", "data")  # options that say where to write
_LONG = ("profile", "serve-bench", "programme")  # here a large number is an order that takes as long as it says
_LEFT_OUT = ("launch", "sequential", "jobs", "all_")  # they start processes, or take a minute; `jobs` is given as 1
_NAMES = ("expert_load", "load_balance", "specialization", "layer_flow", "token_routing", "domain_load", "throughput")


def prepare(base: Path) -> None:
    """A model, a corpus, a trace, recordings and a measurement."""
    from tests.fuzz.kinds import measurement
    from workbench.capture.record import record
    from workbench.models.loading import load
    from workbench.recordings.corpus import Corpus

    bases.model_folder(base / "model")
    bases.write_rows(base / "corpus.jsonl", bases.corpus_rows())
    (base / "recordings").mkdir()
    record(load("tiny-moe"), Corpus.from_texts(bases.SENTENCES), base / "recordings" / "bundled", check=False)
    record(bases.model(), bases.short_corpus(8), base / "recordings" / "tiny", check=False)
    (base / "traces").mkdir()
    bases.write_traces(base / "traces")
    (base / "measurements").mkdir()
    measurement.prepare(base / "measurements")


def run(trial: Trial) -> None:
    """Types a command with something wrong."""
    rng = trial.rng
    name = rng.choice(COMMANDS)
    words = _plain(trial, name)
    for _ in range(rng.choice((1, 1, 2, 3))):
        words = _changed(trial, name, words)
    with _no_server():
        trial.command(*([name] if rng.random() < 0.98 else [rng.choice(TEXTS[:40])]), *map(_typed, words))
    torch.set_num_threads(1)


COMMANDS = (
    "record", "record", "inspect", "import", "import", "verify", "recordings", "analyze", "analyze", "analyze", "costs",
    "costs", "attention-map", "profile", "programme", "serve-bench", "app", "demo",
)  # fmt: skip


def _plain(trial: Trial, name: str) -> list[str]:
    """A command that is right."""
    base, out, rng = trial.base, str(trial.out / "o"), trial.rng
    recording = str(base / "recordings" / rng.choice(("bundled", "tiny")))
    small = ["--batch", "1", "--prompt-length", "4", "--output-length", "2", "--rounds", "1", "--warm-up", "0"]
    return {
        "record": [str(base / "model"), "--corpus", str(base / "corpus.jsonl"), "--out", out],
        "inspect": [rng.choice((str(base / "model"), "tiny-moe", "mixtral-8x7b"))],
        "import": ["numpy", str(base / "traces" / "arrays.npz"), "--out", out, "--experts", "4"],
        "verify": [recording],
        "recordings": [str(base / "recordings")],
        "analyze": [rng.choice((recording, str(base / "measurements" / "timed"))), rng.choice(_NAMES), "--out", out,
                    "--jobs", "1"],
        "costs": [rng.choice((str(base / "model"), "mixtral-8x7b"))],
        "attention-map": [recording, "--document", "texts-0", "--layer", "0", "--head", "0", "--out", out],
        "profile": [str(base / "model"), "--out", out, *small, "--no-parts", "--no-checks", "--threads", "1"],
        "programme": [str(_programme(rng, trial.inputs)), "--out", out],
        "serve-bench": ["--moe", "http://127.0.0.1:9", "--dense", "http://127.0.0.1:9", "--out", out],
        "app": ["--data", out, "--port", "0"],
        "demo": ["--out", out, rng.choice(("--help", "--no-such", "more", "--out"))],
    }[name]  # fmt: skip


def _programme(rng: Random, folder: Path) -> Path:
    """A file of pieces, none of which can be run."""
    file = folder / "pieces.toml"
    value = json.dumps(rng.choice((-1, 0, "a", [], 1e308, "x" * 300)))
    file.write_text(rng.choice(("", "[", "a = 1", f"[[pieces]]\nname = {value}", f"pieces = {value}", "\x00",
                                f"[[pieces]]\nname = 'a'\nmodel = {value}\nminutes = {value}")))  # fmt: skip
    return rng.choice((file, folder, folder / "no.toml", Path("no")))


def _changed(trial: Trial, name: str, words: list[str]) -> list[str]:  # noqa: PLR0911  a line for each change
    """The words with one of them gone, double, replaced, or another option behind them."""
    rng = trial.rng
    at = rng.randrange(len(words) + 1)
    to_write = at > 0 and words[at - 1].lstrip("-") in _FOLDERS  # what stands behind such an option
    kind = rng.choice(("drop", "double", "replace", "replace", "option", "option", "option", "odd", "order"))
    if name == "demo":
        return words  # it records into the checkout, so only what it refuses is typed
    if kind == "option":
        return [*words, *_option(trial, name)]
    if kind == "odd":
        return [*words, rng.choice(("--no-such", "-x", "--", "--help", "-", "extra", "--version"))]
    if at == len(words) or to_write or words[at] in ("--jobs", "1") or (name == "app" and words[at] == "--data"):
        return words
    if kind == "drop" and words[at].lstrip("-") not in _FOLDERS:
        return words[:at] + words[at + 1 :]
    if kind == "double" and words[at].lstrip("-") not in _FOLDERS:
        return [*words[:at], words[at], *words[at:]]
    if kind == "replace" and words[at].lstrip("-") not in _FOLDERS:
        return [*words[:at], _value(trial, name, "text"), *words[at + 1 :]]
    return words


def _option(trial: Trial, name: str) -> list[str]:
    """An option of the command, with a value of chance."""
    options = [option for option in _options(name) if option[0] not in _LEFT_OUT]
    if not options:
        return []
    option, flag, kind = trial.rng.choice(options)
    if option in _FOLDERS:
        return [flag, _folder(trial)] if name != "app" else []
    return [flag] if kind == "flag" else [flag, _value(trial, name, kind)]


@cache
def _options(command: str) -> list[tuple[str, str, str]]:
    """Name, flag and type of each option, as the command itself declares them."""
    import typer

    from workbench.cli.main import command_line

    found: Any = typer.main.get_command(command_line())
    declared = found.commands[command]
    hints = typing.get_type_hints(declared.callback)
    return [
        (each.name, each.opts[0], "flag" if each.is_flag else "number" if _is_number(hints.get(each.name)) else "text")
        for each in declared.params
        if each.opts[0].startswith("-")
    ]


def _is_number(hint: Any) -> bool:
    return bool({int, float} & {hint, *typing.get_args(hint)})


def _value(trial: Trial, name: str, kind: str) -> str:
    rng, base = trial.rng, trial.base
    numbers = (-1, 0, 1, 2, "1e3", "x", "1,2", "nan", "") if name in _LONG else NUMBERS
    if kind == "number" and rng.random() < 0.8:
        return str(rng.choice(numbers))
    if rng.random() < 0.5:
        return rng.choice((
            str(base), str(base / "recordings" / "tiny"), str(base / "recordings" / "bundled"), str(base / "model"),
            str(base / "corpus.jsonl"), str(base / "no"), "tiny-moe", "tiny-dense", "mixtral-8x7b", "key=value", "=",
            "layer=0", "expert=99", "document=d0", "routing,logprob", "logits", "all", "1-3", "9-1", "0-99999999999",
            "1,1", "same", "cpu", "cuda", "cuda:99", "meta", "2xh100", "0xh100", "float8", "a/b", "a/b@c", "http://127.0.0.1:9/",
            str(base / "measurements" / "timed"), "y" * 300, f"{base}/{'y' * 300}",
        ))  # fmt: skip
    return rng.choice(TEXTS) if name not in _LONG else rng.choice(TEXTS[:24])


def _folder(trial: Trial) -> str:
    """A folder to write to: new, there already, or none; always the input's own."""
    inputs = trial.inputs
    (inputs / "file").write_text("a")
    shutil.copytree(trial.base / "recordings" / "tiny", trial.out / "there", dirs_exist_ok=True)
    return trial.rng.choice((
        str(trial.out / "a" / "b"), str(inputs / "file"), str(inputs / "file" / "under"), str(trial.out / "there"), "",
        str(trial.out / ("z" * 300)), "/proc/none", "/dev/null", "/dev/null/under", str(trial.out / "été 中"), ".",
        "relative",
    ))  # fmt: skip


def _typed(word: str) -> str:
    """What a shell can hand over: no byte 0, and half a letter only as Python shows a byte that is none."""
    return word.replace("\x00", "").replace("\ud800", "\udcff")


@contextlib.contextmanager
def _no_server() -> Iterator[None]:
    """`workbench app` gets as far as the server, which stands for itself."""
    from workbench.cli import app

    class Server:
        def __init__(self, *_: Any, **__: Any) -> None: ...
        def __enter__(self) -> "Server":
            return self

        def __exit__(self, *_: object) -> None: ...
        def terminate(self) -> None: ...
        def wait(self) -> int:
            return 0

    before = app.subprocess, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    app.subprocess = types.SimpleNamespace(Popen=Server)  # type: ignore[assignment]
    try:
        yield
    finally:
        app.subprocess = before[0]
        signal.signal(signal.SIGTERM, before[1])
        signal.signal(signal.SIGINT, before[2])
