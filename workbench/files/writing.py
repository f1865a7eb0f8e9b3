"""Whether something can be written at a place, asked before work begins and without writing; and writing whole files.

`refuse_unwritable` foresees what the file system says at once: a file in the way, no permission, a read-only disk, a
name too long. What only writing shows (a full disk, a limit on files) is said then, by `write_whole`;
`make_folder` tries it for a folder that is made in any case.
"""

import errno
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from workbench.errors import WorkbenchError


def shortened(path: Path | str) -> str:
    """A path in a sentence: its end where it is very long."""
    text = str(path)
    return text if len(text) <= 200 else f"…{text[-150:]} ({len(text):,} characters)"


def refuse_unwritable(path: Path, kind: type[WorkbenchError], *, option: str = "--out") -> None:
    """Refuses a folder that cannot be made or written.

    Args:
        path: The folder, which need not be there.
        kind: What is raised.
        option: Where the folder was named.

    Raises:
        WorkbenchError: of this kind, with the reason.
    """
    try:
        there = Path(os.path.abspath(path))
        with suppress(FileNotFoundError, NotADirectoryError):
            os.stat(there)  # a name that cannot be is refused here
        while not there.exists() and not there.is_symlink():
            there = there.parent
        if not there.is_dir():
            raise kind(f"{shortened(path)} cannot be made: {shortened(there)} is a file. Name another {option}.")
        writable = os.access(there, os.W_OK | os.X_OK)
        read_only = bool(os.statvfs(there).f_flag & os.ST_RDONLY)
    except (OSError, ValueError) as error:
        raise kind(f"{shortened(path)} cannot be made ({reason(error)}); name another {option}.") from error
    if not writable or read_only:
        why = "the disk is read-only" if read_only else "no permission"
        raise kind(f"{shortened(path)} cannot be written: {why} in {shortened(there)}. Name another {option}.")


def make_folder(path: Path, kind: type[WorkbenchError], *, option: str) -> None:
    """Makes a folder, and tries whether a file can be made in it; no file stays.

    Args:
        path: The folder; it may be there.
        kind: What is raised.
        option: Where the folder was named.

    Raises:
        WorkbenchError: of this kind, with the reason.
    """
    refuse_unwritable(path, kind, option=option)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise kind(f"{shortened(path)} cannot be written ({reason(error)}); name another {option}.") from error


def reason(error: Exception) -> str:
    """Why the system refused, without the path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def write_whole(file: Path, content: bytes | memoryview, kind: type[WorkbenchError]) -> None:
    """Writes a file so that its name never stands for half of it: temporary name, fsync, rename, fsync of the folder.

    Args:
        file: Which; its folder is there.
        content: All of it.
        kind: What is raised.

    Raises:
        WorkbenchError: of this kind: the disk is full, or refuses the file; the temporary file is removed.
    """
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        with _open_for_writing(temporary) as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(file)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise kind(cannot_write(file, error, n_bytes=len(content))) from error
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _open_for_writing(file: Path) -> IO[bytes]:
    return file.open("wb")


def cannot_write(file: Path, error: OSError, *, n_bytes: int) -> str:
    """What failed while a file was written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(file.parent).free
        return (
            f"the disk is full: {file} needs {n_bytes:,} bytes, {free:,} are free. What was written before is whole; "
            "free some space and run the same command again, it resumes where it stopped."
        )
    if error.errno == errno.EFBIG:
        return (
            f"{file} needs {n_bytes:,} bytes, more than a file may have here (`ulimit -f` shows the limit). What was "
            "written before is whole; raise the limit, or write smaller parts with --shard-tokens."
        )
    return (
        f"{shortened(file)} cannot be written: {reason(error)}. What was written before is whole; name another --out."
    )
