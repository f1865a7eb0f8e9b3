"""Endpoints that are measured: whether they answer, what they call their model, and how an answer's length is fixed.

Nothing is loaded here and nothing timed: some small requests before the measurement, so that a wrong address is one
sentence and not an hour of errors. OpenAI-compatible servers differ in one thing that matters here: who takes
`ignore_eos`, and who refuses it.
"""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import MeasurementError

GREEDY: dict[str, Any] = {"temperature": 0}
FIXED: dict[str, dict[str, Any]] = {
    "ignore_eos": {"ignore_eos": True},  # vLLM, SGLang
    "generation_config": {"generation_config": json.dumps({"eos_token_id": -1, "do_sample": False})},  # transformers
    "nothing": {},
}
"""What may be sent so that no answer ends early, in the order in which it is tried."""


@dataclass(frozen=True)
class Endpoint:
    """A model behind a URL.

    Attributes:
        label: Its name in the tables.
        url: Of the server, without `/v1`.
        model: The name that the server knows it by.
        tokenizer: Folder or hub id of the tokenizer that prompts are cut with.
        fixed_by: Which of `FIXED` the server took.
        says: What it says of itself, as JSON values.
    """

    label: str
    url: str
    model: str
    tokenizer: str
    fixed_by: str = "nothing"
    says: dict[str, Any] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """What is sent with every request beside prompt and length."""
        return GREEDY | FIXED[self.fixed_by]

    def facts(self) -> dict[str, Any]:
        """For the manifest; what only the server knows is not stated."""
        return {
            "name": self.label, "revision": "", "weights": "served", "dtype": "not stated", "url": self.url,
            "served_as": self.model, "tokenizer": self.tokenizer, "fixed_by": self.fixed_by, "says": self.says,
        }  # fmt: skip


def reach(
    url: str, *, label: str = "", model: str = "", tokenizer: str = "", timeout_s: float = 60.0, option: str = "--moe",
) -> Endpoint:  # fmt: skip
    """Finds out what a server needs to be told, with requests of two tokens.

    Args:
        url: Of the server, with or without `/v1`.
        label: Name in the tables; the model's unless given.
        model: Name that the server knows the model by; asked of the server unless given.
        tokenizer: Folder or hub id; the model's name unless given.
        timeout_s: Until a request counts as unanswered.
        option: Of the command, for what is said.

    Raises:
        MeasurementError: it is no URL, nobody answers there, the server names no model or several, or it answers a
            plain completion with an error.
    """
    if not url.startswith(("http://", "https://")):
        raise MeasurementError(f"{option} is {url!r}; a URL was expected, e.g. http://127.0.0.1:8000, or --launch.")
    base = url.rstrip("/").removesuffix("/v1")
    name = model or _only_model(base, timeout_s, option)
    fixed_by, refused = "", ""
    for kind, extra in FIXED.items():
        body = {"model": name, "prompt": "One two", "max_tokens": 2, **GREEDY, **extra}
        status, answer = _post(f"{base}/v1/completions", body, timeout_s)
        if status == 200:
            fixed_by = kind
            break
        refused = f"HTTP {status}: {answer[:200]}"
        if status not in (400, 422):
            break
    if not fixed_by:
        raise MeasurementError(
            f"{base} answers a completion of two tokens by {name!r} with {refused}. Look at the server's log; "
            f"{option}-model names another model."
        )
    known, version = _get(f"{base}/version", timeout_s)
    says = {"version": version.get("version")} if known == 200 and isinstance(version, dict) else {}
    return Endpoint(label or name.rstrip("/").rpartition("/")[2], base, name, tokenizer or name, fixed_by, says)


def _only_model(base: str, timeout_s: float, option: str) -> str:
    status, told = _get(f"{base}/v1/models", timeout_s)
    rows = told.get("data", []) if isinstance(told, dict) else []
    names = [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]
    if status != 200 or len(names) != 1:
        found = f"names {', '.join(names)}" if names else f"names no model (HTTP {status})"
        raise MeasurementError(f"{base}/v1/models {found}; say which one is measured: {option}-model NAME.")
    return names[0]


def _get(url: str, timeout_s: float) -> tuple[int, Any]:
    status, answer = _answer(urllib.request.Request(url), timeout_s)
    try:
        return status, json.loads(answer)
    except ValueError:
        return status, None


def _post(url: str, body: dict[str, Any], timeout_s: float) -> tuple[int, str]:
    content = json.dumps(body).encode()
    return _answer(urllib.request.Request(url, content, {"Content-Type": "application/json"}), timeout_s)


def _answer(request: urllib.request.Request, timeout_s: float) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return int(answer.status), answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace")
    except TimeoutError as error:
        raise _silent(request.full_url, f"no answer in {timeout_s:g} s") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            reason = f"no answer in {timeout_s:g} s"
        raise _silent(request.full_url, str(reason)) from error


def _silent(url: str, reason: str) -> MeasurementError:
    return MeasurementError(
        f"{url} cannot be reached ({reason}); nothing was measured. Start the server, look at its address and port, or "
        "give it more time with --timeout."
    )
