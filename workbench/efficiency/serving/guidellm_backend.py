"""guidellm's requests, with the time of every chunk: guidellm itself keeps the first, the last and their number.

Its backend with a reader that notes when each chunk came and how much text it held, and hands that on in the answer,
among what a server said of itself. guidellm's processes import this module, and
nothing else here imports guidellm when it is imported: it is an optional extra.
"""

import asyncio
import time
from typing import Any, Literal

from guidellm.backends.openai.http import OpenAIHTTPBackend
from guidellm.backends.openai.request_handlers import OpenAIRequestHandlerFactory, TextCompletionsRequestHandler
from guidellm.scheduler.schemas.conversation_graph import GenerativeConversationGraph, GenerativeConversationNode
from guidellm.schemas import GenerationRequest, GenerationRequestArguments, GenerationResponse, RequestSettings
from guidellm.schemas.backends import OpenAIHTTPBackendArgs

FORMAT = "moe_workbench/completions"
PATH = "v1/completions"
HELD = "\0"
"""The prompt of a request that is never sent, and so keeps a run from ending by itself."""


def request(prompt: str) -> GenerativeConversationGraph:
    """A request of its own, as guidellm schedules it."""
    asked = GenerationRequest(columns={"text_column": [prompt]})
    node = GenerativeConversationNode(node_id="0", agent_id="0", request=asked, settings=RequestSettings())
    return GenerativeConversationGraph.from_nodes_with_parents(
        nodes={"0": node}, parents_by_node={"0": []}, graph_id=asked.request_id
    )


def is_held(asked: GenerationRequest) -> bool:
    """Whether it is the one that is not sent."""
    return bool(asked.columns["text_column"] == [HELD])


class ChunkTimesArgs(OpenAIHTTPBackendArgs):
    """guidellm's arguments for an endpoint, whose answers the reader below reads."""

    request_format: Literal["moe_workbench/completions"] = FORMAT  # type: ignore[assignment]  # finds the reader


class ChunkTimes(OpenAIHTTPBackend):
    """guidellm's backend, which holds one request."""

    async def resolve(self, request: Any, request_info: Any, history: Any = None) -> Any:
        """Sends a request and hands on what comes, until it is done; the held one stays until the run is ended."""
        if is_held(request):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                request_info.status = "cancelled"  # guidellm would tell of it, over queues that it has closed
                raise
        async for each in super().resolve(request, request_info, history):
            yield each


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
        response.response_metrics = {**(response.response_metrics or {}), "chunks": self._chunks}
        return response
