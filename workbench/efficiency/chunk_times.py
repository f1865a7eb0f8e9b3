"""guidellm's requests, with the time of every chunk: guidellm itself keeps the first, the last and their number.

A kind of backend of guidellm's own registry, whose answers are read by its own reader; the reader notes when each
chunk came and how much text it held, and hands that on in the answer. guidellm's processes import this module, and
nothing else here imports guidellm when it is imported: it is an optional extra.
"""

import time
from typing import Any, Literal

from guidellm.backends.backend import Backend
from guidellm.backends.openai.http import OpenAIHTTPBackend
from guidellm.backends.openai.request_handlers import OpenAIRequestHandlerFactory, TextCompletionsRequestHandler
from guidellm.schemas import GenerationRequest, GenerationRequestArguments, GenerationResponse
from guidellm.schemas.backends import BackendArgs, OpenAIHTTPBackendArgs

KIND = "moe_workbench"
FORMAT = "moe_workbench/completions"
PATH = "v1/completions"
NOTED = "chunks"


@BackendArgs.register(KIND)
class ChunkTimesArgs(OpenAIHTTPBackendArgs):
    """guidellm's arguments for an endpoint, of this kind."""

    kind: Literal["moe_workbench"] = KIND  # type: ignore[assignment]  # guidellm tells its kinds apart by this value
    request_format: Literal["moe_workbench/completions"] = FORMAT  # type: ignore[assignment]  # and its readers by this


@Backend.register(KIND)
class ChunkTimes(OpenAIHTTPBackend):
    """guidellm's backend, of this kind."""


@OpenAIRequestHandlerFactory.register(FORMAT)
class TimedCompletions(TextCompletionsRequestHandler):
    """guidellm's reader of a streamed completion, which also notes the time and text of every chunk with a choice."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._chunks: list[tuple[float, int]] = []

    def add_streaming_line(self, line: str) -> int | None:
        """Reads a line of the stream."""
        self._now_s = time.time()
        return super().add_streaming_line(line)

    def extract_choices_and_usage(self, response: dict[str, Any]) -> Any:
        """What a line holds; called for each line of the stream."""
        choices, usage = super().extract_choices_and_usage(response)
        if choices:
            self._chunks.append((self._now_s, len(choices[0].get("text") or "")))
        return choices, usage

    def compile_streaming(
        self, request: GenerationRequest, arguments: GenerationRequestArguments
    ) -> GenerationResponse:
        """The whole answer, with the chunks beside what the server said of itself."""
        response = super().compile_streaming(request, arguments)
        response.response_metrics = {**(response.response_metrics or {}), NOTED: self._chunks}
        return response
