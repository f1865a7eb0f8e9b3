"""What one served request's times are called: the same arrivals, read as each tool reads them.

`TTFT`, `TPOT` and `ITL` mean other things in other tools, and the difference can be larger than that between two
models. All times of a request are seconds since it was sent. Axes: C chunks, in the order of their arrival.
"""

from dataclasses import dataclass

import numpy as np

from workbench.errors import MeasurementError


@dataclass(frozen=True, eq=False)
class Arrivals:
    """When the pieces of one answer were there.

    Attributes:
        chunk_s_C: When each chunk with a choice in it arrived, with text or without.
        chunk_chars_C: Characters of text in each.
        end_s: When the answer was over.
        due_s: When the schedule wanted the request sent: 0 or less.
        tokens: Written, as the server counts them.
    """

    chunk_s_C: np.ndarray
    chunk_chars_C: np.ndarray
    end_s: float
    due_s: float
    tokens: int

    def __post_init__(self) -> None:
        if len(self.chunk_s_C) != len(self.chunk_chars_C):
            raise MeasurementError(
                f"{len(self.chunk_s_C)} chunks have times and {len(self.chunk_chars_C)} have lengths; one of each was "
                "expected. Measure again."
            )

    @property
    def text_s_C(self) -> np.ndarray:
        """When each chunk with text arrived."""
        return np.asarray(self.chunk_s_C, dtype=float)[np.asarray(self.chunk_chars_C) > 0]


@dataclass(frozen=True)
class Word:
    """One reading.

    Attributes:
        name: What it is called here.
        as_in: Which tools read it so, and under what name.
        formula: Of what.
    """

    name: str
    as_in: str
    formula: str


TTFT = Word("TTFT", "vLLM, SGLang, guidellm, LLMPerf: TTFT", "first chunk with text − sent")
TTFT_DUE = Word("TTFT since due", "none: counts the client's own queue", "first chunk with text − due")
TPOT = Word("TPOT", "vLLM: TPOT; GenAI-Perf, guidellm: ITL", "(last − first chunk with text) / (tokens − 1)")
TPOT_WHOLE = Word("TPOT with the first", "guidellm: TPOT; LLMPerf: ITL", "(last chunk with text − sent) / tokens")
ITL = Word("ITL", "vLLM: ITL", "gap between chunks with text, whatever they hold")
E2E = Word("E2E", "vLLM: E2EL", "last chunk with text − sent")
E2E_CLOSED = Word("E2E until closed", "guidellm: request latency", "answer closed − sent")
WORDS = (TTFT, TTFT_DUE, TPOT, TPOT_WHOLE, ITL, E2E, E2E_CLOSED)
"""All readings; the first of a kind is the one that figures show."""


def readings_s(arrivals: Arrivals) -> dict[str, list[float]]:
    """Seconds of one request under each word's name: one value, for ITL one per gap; none where a word has no meaning.

    TPOT of one token has no meaning, and nothing has where no text arrived: a server that streams no text has no
    first chunk, whatever it counts.

    Source:
        vLLM's `vllm bench serve` (every chunk with a choice counts there, also an empty last one: here those with text
        alone, so that servers that close with an empty chunk are read like those that do not); guidellm 0.8.1
        `request_stats.py`; LLMPerf's `token_benchmark_ray.py`; NVIDIA GenAI-Perf's `inter_token_latency`.
    """
    text_s_C, tokens = arrivals.text_s_C, arrivals.tokens
    if not len(text_s_C) or tokens < 1:
        return {word.name: [] for word in WORDS}
    first_s, last_s = float(text_s_C[0]), float(text_s_C[-1])
    return {
        TTFT.name: [first_s],
        TTFT_DUE.name: [first_s - arrivals.due_s],
        TPOT.name: [(last_s - first_s) / (tokens - 1)] if tokens > 1 else [],
        TPOT_WHOLE.name: [last_s / tokens],
        ITL.name: np.diff(text_s_C).tolist(),
        E2E.name: [last_s],
        E2E_CLOSED.name: [arrivals.end_s],
    }
