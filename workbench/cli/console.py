"""What the commands say, and how: plain texts, a progress bar, a line while something runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.text import Text

# Names, paths and errors are other people's texts: a bracket or a colon in them is a bracket or a colon.
console = Console(markup=False, emoji=False)
error_console = Console(stderr=True, soft_wrap=True, markup=False, emoji=False)


@contextmanager
def token_progress(description: str, *, quiet: bool = False) -> Iterator:
    """A progress bar with tokens/s and time left; yields the callback that `record` takes."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
        TextColumn("{task.fields[rate]:,.0f} tokens/s"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=error_console, disable=quiet) as bar:
        task = bar.add_task(description, total=0, rate=0.0, visible=False)  # shown once the total is known

        def update(progress) -> None:
            bar.update(
                task,
                visible=True,
                completed=progress.done_tokens,
                total=progress.total_tokens,
                rate=progress.tokens_per_s,
            )

        yield update


def status(words: str) -> Status:
    """A line that says what is being done, while it is."""
    return console.status(Text(words))


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as ranges: 0–3, 5, 7–9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
