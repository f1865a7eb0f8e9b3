"""Several measurements in a row, each in a process of its own: a programme of pieces, which can be stopped and go on.

Only the end of a process surely gives a large model's memory back. A piece is `workbench profile` with the words that
the programme gives; it is done when its folder holds a whole measurement made by those words, and is not made again.
Each has a limit of time, after which it begins nothing new and writes what it has; one that does not end by itself soon
after is ended, and nothing of it is kept.
"""

import ctypes
import json
import math
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.efficiency.measurements.measurement import MANIFEST, TABLES, Measurement, is_measurement
from workbench.errors import MeasurementError
from workbench.paths import BUNDLED

PROGRAMMES = BUNDLED / "programmes"
GRACE_S = 60.0
"""How long a piece may go on after its limit: the run that was under way, and writing."""
LEAST_S = 30.0
"""A piece is not begun with less time than this."""


@dataclass(frozen=True)
class Piece:
    """One measurement.

    Attributes:
        name: Of its folder.
        words: Of `workbench profile`, without `--out` and `--limit`.
        limit_s: Seconds after which it begins nothing new.
    """

    name: str
    words: tuple[str, ...]
    limit_s: float


@dataclass(frozen=True)
class Programme:
    """Pieces, and which of them are put together.

    Attributes:
        name: Of the programme.
        pieces: In the order in which they are made.
        joins: By name, the pieces that make one measurement of two models.
        total_s: Seconds of one go; what is left then waits for the next.
    """

    name: str
    pieces: tuple[Piece, ...]
    joins: tuple[tuple[str, tuple[str, ...]], ...] = ()
    total_s: float = float("inf")


def known_programmes() -> list[str]:
    """The programmes that come with the workbench."""
    return sorted(file.stem for file in PROGRAMMES.glob("*.toml"))


def read_programme(name: str) -> Programme:
    """A programme by name, or from a file.

    Raises:
        MeasurementError: none of that name, a file that is no programme, a piece named twice, a join of unknown ones.
    """
    file = PROGRAMMES / f"{name}.toml" if name in known_programmes() else Path(name)
    try:
        told = tomllib.loads(file.read_text(encoding="utf-8"))
        common = shlex.split(told.get("words", ""))
        pieces = tuple(
            Piece(each["name"], ("profile", *shlex.split(each["words"]), *common), float(each["limit_s"]))
            for each in told["piece"]
        )
        joins = tuple((each["name"], tuple(each["of"])) for each in told.get("join", []))
    except OSError as error:
        raise MeasurementError(
            f"programme {name!r} is neither one of {', '.join(known_programmes())} nor a file that can be read."
        ) from error
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise MeasurementError(
            f"{file} is no programme: {type(error).__name__} {error}; [[piece]] with name, words and limit_s, and "
            "[[join]] with name and of, were expected."
        ) from error
    names = [piece.name for piece in pieces] + [join for join, _ in joins]
    if twice := [each for each in names if names.count(each) > 1]:
        raise MeasurementError(f"{file} names {twice[0]!r} twice; each piece and join wants a folder of its own.")
    if unknown := [each for _, of in joins for each in of if each not in names]:
        raise MeasurementError(f"{file} joins {unknown[0]!r}, which is no piece of it.")
    return Programme(file.stem, pieces, joins, float(told.get("total_s", "inf")))


def run_programme(programme: Programme, out: Path, *, say: Callable[[str], None] = print) -> list[Measurement]:
    """Makes the pieces that are not done, joins them, and writes what was made into `programme.json`.

    Args:
        programme: What is measured.
        out: Folder of the pieces and joins.
        say: Told each line of progress.

    Returns:
        The joined measurements, or the pieces where nothing is joined.

    Raises:
        MeasurementError: a piece failed, did not end, or the time of this go is up; another go goes on from there. A
            folder of its own holds something else.
    """
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    done: dict[str, Measurement] = {}
    for number, piece in enumerate(programme.pieces, start=1):
        where = f"piece {number} of {len(programme.pieces)}, {piece.name}"
        folder = out / piece.name
        if (found := _done(folder, piece.words)) is not None:
            say(f"{where}: done before, digest {found.digest[:16]}")
        else:
            left_s = programme.total_s - (time.monotonic() - began)
            if left_s < LEAST_S:
                raise MeasurementError(
                    f"{where} was not begun: the {programme.total_s:g} s of this go are used up. Run the same command "
                    "again: it goes on with this piece."
                )
            limit_s = min(piece.limit_s, left_s)
            most = f", {limit_s:.0f} s at most" if math.isfinite(limit_s) else ""
            say(f"{where}: {shlex.join(('workbench', *piece.words))}{most}")
            found = _make(piece, folder, limit_s=limit_s)
            say(f"{where}: {found.manifest['seconds']:.0f} s, digest {found.digest[:16]}")
        for line in found.manifest["left_out"]:
            say(f"{where}: left out: {line}")
        done[piece.name] = found
    joined = [_join(name, [done[each] for each in of], of, out, say) for name, of in programme.joins]
    told: dict[str, Any] = {
        "programme": programme.name,
        "pieces": [
            {"name": piece.name, "command": shlex.join(("workbench", *piece.words)), "limit_s": piece.limit_s,
             "seconds": done[piece.name].manifest["seconds"], "digest": done[piece.name].digest}
            for piece in programme.pieces
        ],
        "joins": [
            {"name": name, "of": list(of), "digest": each.digest}
            for (name, of), each in zip(programme.joins, joined, strict=True)
        ],
        "machine": done[programme.pieces[0].name].manifest["machine"],
        "versions": done[programme.pieces[0].name].manifest["versions"],
    }  # fmt: skip
    (out / "programme.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return joined or list(done.values())


def _done(folder: Path, words: Sequence[str]) -> Measurement | None:
    """The measurement of a piece that was made before; None where there is none, and what a killed one left is removed.

    Raises:
        MeasurementError: the folder holds a measurement by other words, or something that is none, or was damaged.
    """
    if is_measurement(folder):
        found = Measurement.open(folder)
        found.verify()
        if found.manifest.get("command") == list(words):
            return found
        made = shlex.join(["workbench", *found.manifest.get("command", ["?"])])
        raise MeasurementError(f"{folder} was made by `{made}`, not by this piece; name another --out, or delete it.")
    if folder.exists():
        ours = {f"{name}.parquet{more}" for name in TABLES for more in ("", ".tmp")} | {f"{MANIFEST}.tmp"}
        strange = sorted(file.name for file in folder.iterdir() if file.name not in ours)
        if strange:
            raise MeasurementError(
                f"{folder} holds {strange[0]}, which no measurement wrote; name another --out, or move it."
            )
        shutil.rmtree(folder)
    return None


def _make(piece: Piece, folder: Path, *, limit_s: float) -> Measurement:
    limited = math.isfinite(limit_s)
    words = [*piece.words, "--out", str(folder), *(["--limit", f"{limit_s:.0f}"] if limited else [])]
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-P", "-m", "workbench.cli", *words]
        process = subprocess.Popen(
            command, stdout=said, stderr=said,
            preexec_fn=_end_with_the_parent,  # noqa: PLW1509  this process has one thread
        )  # fmt: skip
        try:
            status = process.wait(timeout=limit_s + GRACE_S if limited else None)
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(
                f"piece {piece.name} did not end within {limit_s + GRACE_S:.0f} s and was ended; nothing of it is kept."
                " Run the same command again, or give the piece more time or less to do."
            ) from error
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if status != 0:
            said.seek(0)
            text = " ".join(said.read().split())
            last = text.rpartition("workbench: ")[2] if "workbench: " in text else text[-300:]
            raise MeasurementError(
                f"piece {piece.name} ended with status {status}: {last} What was done before it is kept; run the same "
                "command again to go on."
            )
    return Measurement.open(folder)


def _end_with_the_parent() -> None:
    """On Linux a piece ends when what started it is killed: a second go must not meet the first one's writing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _join(
    name: str, pieces: Sequence[Measurement], of: Sequence[str], out: Path, say: Callable[[str], None]
) -> Measurement:
    from workbench.efficiency.measurements.merge import join

    words = ["join", *(piece.digest for piece in pieces)]
    folder = out / name
    found = _done(folder, words)
    if found is None:
        found = join(dict(zip(of, pieces, strict=True)), folder, command=words)
    say(f"{name}: {', '.join(of)} together, digest {found.digest[:16]}")
    return found
