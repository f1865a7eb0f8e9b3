"""One run of requests against one endpoint, made by guidellm, as rows of the table `requests`.

guidellm schedules, sends and reads (an optional extra: `pip install 'moe-workbench[serve]'`); what is kept of each
request is here, and what became of it. A request ends in one of `OUTCOMES`, and none is dropped.
"""

import asyncio
import math
import multiprocessing
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from workbench.efficiency.serving.endpoints import Endpoint
from workbench.errors import MeasurementError

COMPLETE = "complete"
OUTCOMES = (COMPLETE, "short", "long", "no stream", "not counted", "timed out", "no connection", "HTTP 4xx", "HTTP 5xx",
            "error in the stream", "not answered in time", "other error")  # fmt: skip
PER_PROCESS = 32
"""Streams that one process of the load generator reads; more get processes of their own, as far as there are CPUs."""
_CLASS = {
    "ConnectError": "no connection", "ConnectTimeout": "no connection", "ReadTimeout": "timed out",
    "WriteTimeout": "timed out", "PoolTimeout": "timed out",
}  # fmt: skip
START_S = 120.0
"""Until the first request of a run is sent: the load generator's first process imports much."""


@dataclass(frozen=True)
class Load:
    """How requests come.

    Attributes:
        kind: `concurrency`: a new one is sent when one is answered. `rate`: they come by a Poisson process.
        level: Requests in flight, or requests per second.
    """

    kind: str
    level: float

    def __str__(self) -> str:
        return f"{self.level:g} at a time" if self.kind == "concurrency" else f"{self.level:g} per second"


def require_guidellm() -> None:
    """Refuses where the load generator is not installed.

    Raises:
        MeasurementError: says what to install.
    """
    try:
        import guidellm  # noqa: F401  # whether it is there
    except ImportError as error:
        raise MeasurementError(
            f"serve-bench needs guidellm, which is not installed ({error}): pip install 'moe-workbench[serve]'."
        ) from error


def send(
    endpoint: Endpoint, texts: Sequence[str], load: Load, *, output_tokens: int, seed: int = 0, timeout_s: float = 60.0,
    limit_s: float = 600.0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Sends each text once and waits for all answers.

    Args:
        endpoint: Where to.
        texts: One prompt per request.
        load: How they come.
        output_tokens: Asked of each.
        seed: Of the Poisson process.
        timeout_s: Without a byte, until a request is given up.
        limit_s: Until the run is ended; what is not answered then has that outcome.

    Returns:
        As many rows as texts, in the order in which they were sent; times in seconds of the wall clock.
    """
    with _settings(len(texts), load):
        told, broken = asyncio.run(
            _answers(
                endpoint, texts, load, output_tokens=output_tokens, seed=seed, timeout_s=timeout_s, limit_s=limit_s
            )
        )
    rows = [_row(response, info, output_tokens) for response, info in told]
    rows.sort(key=lambda row: row["sent_s"] if not math.isnan(row["sent_s"]) else math.inf)
    why = broken or f"not answered {limit_s:g} s after the first was sent"
    return rows + [_nothing(why) for _ in range(len(texts) - len(rows))]


async def _answers(
    endpoint: Endpoint, texts: Sequence[str], load: Load, *, output_tokens: int, seed: int, timeout_s: float,
    limit_s: float,
) -> tuple[list[tuple[Any, Any]], str]:  # fmt: skip
    """What guidellm tells at the end of each request, and what broke it.

    One request more is handed to it than is sent: `chunk_times` holds it. Else guidellm 0.8.1 ends with the last
    answer, and on a busy machine loses that answer, or waits forever where it came too soon. Here the run ends when
    every other request has ended.
    """
    from guidellm.scheduler import AsyncPoissonStrategy, ConcurrentStrategy, NonDistributedEnvironment, Scheduler
    from guidellm.schemas import GenerationRequestArguments

    from workbench.efficiency.serving import guidellm_backend

    backend: Any = guidellm_backend.ChunkTimes(
        guidellm_backend.ChunkTimesArgs(
            target=endpoint.url,
            model=endpoint.model,
            max_tokens=output_tokens,
            timeout=timeout_s,
            http2=False,
            api_routes={guidellm_backend.FORMAT: guidellm_backend.PATH},
            extras=GenerationRequestArguments(body=endpoint.body),
            timeout_connect=timeout_s,
            validate_backend=False,
        )
    )
    if load.kind == "concurrency":
        strategy: Any = ConcurrentStrategy(streams=int(load.level))
    else:
        strategy = AsyncPoissonStrategy(rate=load.level, max_concurrency=len(texts) + 1, random_seed=seed)
    requests: Any = [guidellm_backend.request(text) for text in (*texts, guidellm_backend.HELD)]
    told: dict[str, tuple[Any, Any]] = {}
    broken = ""
    updates: Any = Scheduler().run(requests, backend, strategy, NonDistributedEnvironment())
    try:
        async with asyncio.timeout(START_S) as limit:
            async for response, request, info, _ in updates:
                if info.status == "in_progress" and not told and limit.when() is not None:
                    limit.reschedule(asyncio.get_running_loop().time() + limit_s)
                if info.status in ("completed", "errored", "cancelled") and not guidellm_backend.is_held(request):
                    told[request.request_id] = (response, info)
                if len(told) == len(texts):
                    break
    except TimeoutError:
        pass  # what was not answered is counted
    except RuntimeError as error:  # its processes ended
        broken = f"load generator: {error}"
    finally:
        await updates.aclose()
    return list(told.values()), broken


@contextmanager
def _settings(n_requests: int, load: Load) -> Iterator[None]:
    """What guidellm is told of itself, for the time of a run.

    Its processes are forked from one that has imported everything (2 s less a run), all requests are handed to them
    before the first is sent, and it says nothing, for the table does.
    """
    from guidellm.logger import configure_logger
    from guidellm.settings import LoggingSettings, settings

    in_flight = int(load.level) if load.kind == "concurrency" else n_requests
    processes = min(settings.max_worker_processes, os.cpu_count() or 1, math.ceil(in_flight / PER_PROCESS))
    wanted = {
        "mp_context_type": "forkserver", "max_worker_processes": processes, "mp_poll_interval": 0.05,
        "scheduler_start_delay_non_distributed": 0.1, "mp_max_pending_buffer_percent": n_requests / in_flight + 1,
    }  # fmt: skip
    before = {name: getattr(settings, name) for name in wanted}
    multiprocessing.set_forkserver_preload(["workbench.efficiency.serving.guidellm_backend"])
    for name, value in wanted.items():
        setattr(settings, name, value)
    configure_logger(LoggingSettings(console_log_level=None))
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


def _row(response: Any, info: Any, asked: int) -> dict[str, Any]:
    """One request, as guidellm tells of it."""
    row, times = _nothing(info.error or ""), info.timings
    if (sent_s := times.request_start) is not None:
        row |= {"due_s": times.targeted_start, "sent_s": sent_s, "end_s": times.request_end or times.resolve_end}
    if response is not None and sent_s is not None:
        noted = (response.response_metrics or {}).get("chunks", [])
        row |= {
            "chunk_s": [at - sent_s for at, _ in noted],
            "chunk_chars": [chars for _, chars in noted],
            "read_tokens": _number(response.input_metrics.text_tokens),
            "cached_tokens": _number(response.input_metrics.cached_tokens),
            "written_tokens": _number(response.output_metrics.text_tokens),
        }
    row["outcome"] = _outcome(info.status, row, asked)
    return row


def _nothing(error: str) -> dict[str, Any]:
    """A request of which nothing is known but that it was not answered."""
    missing = dict.fromkeys(("due_s", "sent_s", "end_s", "read_tokens", "cached_tokens", "written_tokens"), math.nan)
    return {"outcome": "not answered in time", "error": error, **missing, "chunk_s": [], "chunk_chars": []}


def _number(count: int | None) -> float:
    return math.nan if count is None else float(count)


def _outcome(status: str, row: dict[str, Any], asked: int) -> str:
    """What became of a request, one of `OUTCOMES`."""
    if status == "cancelled":
        return "not answered in time"
    if status != "completed":
        return _failure(row["error"])
    if sum(chars > 0 for chars in row["chunk_chars"]) < min(asked, 2):  # one chunk of many tokens has no first token
        return "no stream"
    if math.isnan(row["written_tokens"]):
        return "not counted"
    written = int(row["written_tokens"])
    return COMPLETE if written == asked else "short" if written < asked else "long"


def _failure(error: str) -> str:
    """The outcome that an exception means, of which guidellm keeps the text."""
    name = error.partition("(")[0]
    if name == "HTTPStatusError" and (code := re.search(r"'([45])\d\d ", error)):
        return f"HTTP {code[1]}xx"
    if "[UNUSABLE_BACKEND_RESPONSE]" in error:
        return "no stream"
    if "Streaming response returned an error" in error or name in ("RemoteProtocolError", "ReadError"):
        return "error in the stream"
    return _CLASS.get(name, "other error")
