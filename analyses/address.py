"""A question as an address of the app says it: recordings by their names, until somebody opens them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from analyses.question import CONTROLS, Question
from workbench.recordings.recording import Recording


@dataclass(frozen=True)
class Address:
    """What makes an answer again, in words.

    Attributes:
        recording: Its name in the data folder.
        analysis: The analysis.
        names: Figures and tables of it.
        against: Name of the second recording.
        experts: As of `Question`.
        phase: Of the recording.
        settings: `key=value` texts; of one that names another recording, its name.
    """

    recording: str
    analysis: str
    names: tuple[str, ...]
    against: str = ""
    experts: str = "auto"
    phase: str = ""
    settings: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = {"of": self.recording, "analysis": self.analysis, "names": ",".join(self.names)}
        said |= {"against": self.against, "experts": self.experts, "phase": self.phase}
        pairs = [(key, value) for key, value in said.items() if value and (key, value) != ("experts", "auto")]
        return urlencode([*pairs, *(("set", pair) for pair in self.settings)])

    @classmethod
    def read(cls, text: str) -> "Address | None":
        """What a text says; None where it says no question."""
        pairs = parse_qsl(text)
        said = {key: value for key, value in pairs if key != "set"}
        names = tuple(dict.fromkeys(filter(None, said.get("names", "").split(","))))
        if not (said.get("of") and said.get("analysis") and names):
            return None
        rest = {key: said[key] for key in ("against", "experts", "phase") if key in said}
        settings = tuple(value for key, value in pairs if key == "set")
        return cls(said["of"], said["analysis"], names, settings=settings, **rest)

    @classmethod
    def of(cls, question: Question, folder: Path) -> "Address | None":
        """Of a question about recordings in this folder; None of any other, which no address can say."""
        if not isinstance(question.of, Recording):
            return None
        both = (question.of, *([] if question.against is None else [question.against]))
        if any(each.path.parent != folder for each in both):
            return None
        return cls(
            recording=question.of.path.name,
            analysis=question.analysis,
            names=tuple(question.only),
            against=question.against.path.name if question.against is not None else "",
            experts=question.experts,
            phase=question.phase or "",
            settings=tuple(map(in_words, question.settings)),
        )

    def question(self, opened: Callable[[str], Recording]) -> Question:
        """The question, its recordings opened by their names.

        Raises:
            AnalysisError: what `Question` refuses.
            RecordingError: what `opened` refuses, or a phase that the recording does not hold.
        """
        recording = opened(self.recording)
        pairs = [pair.partition("=")[::2] for pair in self.settings]
        return Question(
            recording.of_phase(self.phase) if self.phase else recording,
            self.analysis,
            tuple(f"{key}={opened(value).path if key in CONTROLS else value}" for key, value in pairs),
            against=opened(self.against) if self.against else None,
            experts=self.experts,
        )


def in_words(pair: str) -> str:
    """A setting as it can be said: of one that names another recording, the recording's name."""
    key, _, value = pair.partition("=")
    return f"{key}={Path(value).name}" if key in CONTROLS else pair
