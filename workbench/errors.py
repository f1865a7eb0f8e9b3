"""The errors a user can meet. Each message names what, what it got, what it expected, and the next step."""

import re

_LONGEST = 1_900  # with what is put before it and behind, under 2,000
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class WorkbenchError(Exception):
    """Base of every error that is the input's or the machine's fault and not a bug.

    What a message quotes is a stranger's (names of tensors, ids, paths): it is cut to 1,900 characters, and halves of a
    surrogate pair, which no terminal and no file takes, become question marks. Where an object of Python's lies in
    memory, which some libraries say, is left out: it differs each time.
    """

    def __init__(self, message: str = "") -> None:
        message = _ADDRESS.sub("", message)
        shown = message if len(message) <= _LONGEST else f"{message[:_LONGEST]} …"
        super().__init__(shown.encode("utf-8", "replace").decode("utf-8"))


class ModelError(WorkbenchError):
    """A model cannot be found, read, or held in memory."""


class CaptureError(WorkbenchError):
    """What was captured of a model does not agree with what the model did."""


class CorpusError(WorkbenchError):
    """A corpus cannot be read, or a line of it is not a document."""


class RecordingError(WorkbenchError):
    """A recording is missing, damaged, incomplete, of another schema, or in the way."""


class TraceError(WorkbenchError):
    """A trace that another tool made cannot be imported, or does not say enough to be."""


class MeasurementError(WorkbenchError):
    """A measurement cannot be made on this machine as asked, or what is on disk is none."""


class AnalysisError(WorkbenchError):
    """An analysis was asked for something that its recording or settings cannot give."""


class HostError(WorkbenchError):
    """The model host was asked for what it cannot do: an unknown job, or arguments that cannot be meant."""


class MissingExtra(WorkbenchError, ImportError):
    """A package is not installed that comes with an extra of the workbench; the message has the pip command."""


class Cancelled(WorkbenchError):
    """A long job was cancelled by its caller; what is on disk is whole and can be resumed."""
