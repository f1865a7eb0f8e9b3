"""A question: what is asked of what. Command, provenance and address follow from it; pages, batch and export share it.

`Question(...).answer()` runs an analysis, `.write(out)` writes its tables and figures, `.command` makes them again.
"""

import dataclasses
import hashlib
import inspect
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from analyses import catalogue, compare
from analyses.settings import parse_settings
from workbench.efficiency.costs.comparison import Costed
from workbench.efficiency.measurements.measurement import Measurement, is_measurement
from workbench.errors import AnalysisError, ModelError
from workbench.export.files import Provenance, Source, is_name, write_result
from workbench.figures.theme import Width
from workbench.recordings.recording import Recording

Subject = Recording | Measurement | Costed
CONTROLS = ("ceiling", "untrained")  # settings that name the folder of another recording


def open_input(path: Path) -> Recording | Measurement:
    """The recording or measurement in a folder."""
    return Measurement.open(path) if is_measurement(path) else open_recording(path)


def open_recording(path: Path) -> Recording:
    """The recording in a folder, every digest of it compared: a byte that was turned over must not end in a table."""
    recording = Recording.open(path)
    recording.verify()
    return recording


def kind_of(subject: Subject) -> str:
    """What a subject is, as analyses state theirs in `INPUT`."""
    return {Measurement: "measurement", Costed: "costs"}.get(type(subject), "recording")


class Asked(Protocol):
    """What an answer is the answer to: a `Question`, or the map of a head."""

    @property
    def analysis(self) -> str:
        """Its name, of the analysis or of the command."""

    @property
    def of(self) -> Subject:
        """What was asked."""

    @property
    def settings(self) -> Sequence[str]:
        """As `key=value`."""

    @property
    def key(self) -> str:
        """Of all that the answer depends on."""

    @property
    def command(self) -> str:
        """What writes the answer again."""

    @property
    def provenance(self) -> Provenance:
        """Where the answer comes from."""

    def narrowed(self, *, only: Sequence[str] = (), label: str = "", width: Width = "column") -> "Asked":
        """The same, of which this is written."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What an analysis says.

    Attributes:
        question: What was asked.
        result: As the analysis gave it; of two recordings without a question of their own, the comparison.
        tables: By name.
        figures: By name; none where the recording holds too little for them.
        missing: Why there are no figures; empty where there are.
    """

    question: Asked
    result: Any
    tables: Mapping[str, Any]
    figures: Mapping[str, Any]
    missing: str = ""

    def picked(self, names: Sequence[str]) -> "Answer":
        """The answer with the figures and tables of these names alone; of none, all.

        Raises:
            AnalysisError: one of them is not there.
        """
        if not names:
            return self
        known = list(dict.fromkeys([*self.figures, *self.tables]))
        if unknown := [each for each in names if each not in known]:
            raise AnalysisError(
                f"{self.question.analysis}: --only {unknown[0]!r} is neither a figure nor a table; there are "
                f"{', '.join(known)}."
            )
        tables, figures = ({k: v for k, v in held.items() if k in names} for held in (self.tables, self.figures))
        return dataclasses.replace(self, tables=tables, figures=figures, missing="")


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of what, and what of the answer is written.

    Attributes:
        of: A recording (or one phase of it), a measurement, or two models whose costs are compared.
        analysis: Name of the analysis.
        settings: Those that are not defaults, as `key=value`; controls among them, by the folder of their recording.
        against: A second recording: compared with, or the other one of an analysis of two.
        experts: Of two recordings: `auto`, `same` or `matched`.
        only: Figures and tables that are written; all unless given.
        label: Name of their folder; the analysis' unless given.
        width: Of the figures.

    Raises:
        AnalysisError: there is no such analysis, or the label is no name of a folder.
    """

    of: Subject
    analysis: str
    settings: Sequence[str] = ()
    against: Recording | None = None
    experts: str = "auto"
    only: Sequence[str] = ()
    label: str = ""
    width: Width = "column"

    def __post_init__(self) -> None:
        catalogue.input_of(self.analysis)  # that there is one
        if self.label and not is_name(self.label):
            raise AnalysisError(
                f"--label is {self.label!r}; letters, digits, '_', '-' and '.' were expected, no blank or slash."
            )

    def _refuse_other_inputs(self, expected: str) -> None:
        name, given = self.analysis, kind_of(self.of)
        path = "" if isinstance(self.of, Costed) else self.of.path
        if expected == "costs" and given != "costs":
            raise AnalysisError(
                f"{name}: it is asked of costs, not of a {given}; run workbench analyze MODEL {name} --against MODEL."
            )
        if given == "costs" and expected != "costs":
            costs = ", ".join(catalogue.names("costs"))
            raise AnalysisError(f"{name}: it is not asked of costs, but of a {expected}; of costs these are: {costs}.")
        if given != expected and (given, expected) != ("recording", "two recordings"):
            raise AnalysisError(
                f"{name}: it is asked of a {expected}, and {path} holds a {given}; `workbench analyze {path} --all` "
                "runs those that can be asked of it."
            )
        if given == "measurement" and self.against is not None:
            raise AnalysisError(f"{name}: a measurement holds both models that it compares; leave --against out.")
        if expected == "two recordings" and self.against is None:
            raise AnalysisError(
                f"{name}: it compares two recordings, and one was given; give another of the same corpus: "
                "--against RECORDING."
            )

    @cached_property
    def chosen(self) -> Any:
        """The analysis' `Settings`.

        Raises:
            AnalysisError: what `parse_settings` refuses.
        """
        of_two = catalogue.input_of(self.analysis) == "two recordings"
        experts = [f"experts={self.experts}"] if of_two and self.experts != "auto" else []
        return parse_settings(catalogue.get(self.analysis), [*experts, *self.settings])

    @property
    def controls(self) -> dict[str, str]:
        """The folders of the recordings that numbers stand beside, by the setting that names them."""
        found = {name: getattr(self.chosen, name, "") for name in CONTROLS}
        return {name: folder for name, folder in found.items() if folder}

    @property
    def phase(self) -> str | None:
        """The phase of the recording, where one of several was chosen."""
        return self.of.chosen_phase if isinstance(self.of, Recording) else None

    @property
    def key(self) -> str:
        """A digest of all that the answer depends on, the analysis' source among it; not of what of it is written."""
        code = [catalogue.get(self.analysis), *([] if self.against is None else [compare])]
        parts = [
            self.analysis, self.of.digest, self.phase or "", self.against.digest if self.against is not None else "",
            self.experts, *self.settings, *map(inspect.getsource, code),
        ]  # fmt: skip
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def narrowed(self, *, only: Sequence[str] = (), label: str = "", width: Width = "column") -> "Question":
        """The same question, of whose answer this is written."""
        return dataclasses.replace(self, only=tuple(only), label=label, width=width)

    def answer(self) -> Answer:
        """Runs the analysis.

        Raises:
            AnalysisError: the analysis is asked of something else; or what the settings or the analysis refuse.
        """
        self._refuse_other_inputs(catalogue.input_of(self.analysis))
        module = catalogue.get(self.analysis)
        two = catalogue.input_of(self.analysis) == "two recordings"
        if self.against is not None and not two:
            assert isinstance(self.of, Recording)
            found = compare.compare(module, self.of, self.against, self.chosen, experts=self.experts)
            return Answer(self, found, found.tables, compare.figures(self.analysis, found))
        try:
            result = module.run(*([self.of, self.against] if two else [self.of]), self.chosen)
        except ModelError as error:
            raise AnalysisError(f"{self.analysis}: {error}") from error
        return self.answered(result)

    def answered(self, result: Any) -> Answer:
        """The answer of a result that the analysis gave."""
        module = catalogue.get(self.analysis)
        try:
            return Answer(self, result, module.tables(result), module.figures(result))
        except AnalysisError as error:  # one short prompt has no pairs of documents to compare
            return Answer(self, result, module.tables(result), {}, str(error))

    def write(self, out: Path) -> tuple[list[Path], Mapping[str, Any]]:
        """Runs the analysis and writes its tables and figures, or those in `only`, into a folder of `out`.

        Returns:
            The files written, and the figures by name.

        Raises:
            AnalysisError: what the settings, the analysis or the export refuse.
        """
        answer = self.answer().picked(self.only)
        if answer.missing:
            raise AnalysisError(answer.missing)
        folder = out / (self.label or self.analysis)
        files = write_result(answer.tables, answer.figures, folder, provenance=self.provenance, width=self.width)
        return files, answer.figures

    @property
    def command(self) -> str:
        """The command that writes the answer again, with recordings named as they were opened."""
        if isinstance(self.of, Costed):
            words = ["workbench", "analyze", self.of.name, self.analysis, "--against", self.of.against]
        else:
            words = ["workbench", "analyze", str(self.of.path), self.analysis]
            words += ["--against", str(self.against.path)] if self.against is not None else []
        words += ["--experts", self.experts] if self.experts != "auto" else []
        words += [word for pair in self.settings for word in ("--set", pair)]
        words += [word for each in self.only for word in ("--only", each)]
        words += ["--label", self.label] if self.label else []
        words += ["--width", self.width] if self.width != "column" else []
        words += ["--phase", self.phase] if self.phase else []
        return shlex.join([*words, "--out", "out"])

    @property
    def sources(self) -> tuple[Source, ...]:
        """What the answer is made of; controls among it."""
        if isinstance(self.of, Costed):
            return (Source(digest=self.of.digest, model=self.of.name, revision=None),)
        if isinstance(self.of, Measurement):
            models, digest = self.of.models.values(), self.of.digest
            return tuple(Source(digest=digest, model=m["name"], revision=m["revision"] or None) for m in models)
        controls = [Recording.open(folder) for folder in self.controls.values()]
        return sources_of([self.of, *([] if self.against is None else [self.against]), *controls])

    @property
    def provenance(self) -> Provenance:
        """Where the answer comes from."""
        return Provenance(
            analysis=self.analysis,
            command=self.command,
            sources=self.sources,
            settings=dataclasses.asdict(self.chosen),
        )


def sources_of(recordings: Iterable[Recording]) -> tuple[Source, ...]:
    """Recordings as the sources of a result."""
    models = [(each.digest, each.manifest["model"]) for each in recordings]
    return tuple(Source(digest=d, model=model["name"], revision=model["revision"] or None) for d, model in models)
