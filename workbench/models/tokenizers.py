"""Tokenizers: the text part of a model, read without its weights.

A model whose tokenizer cannot be read is a model all the same: token ids need none. So the reason is kept, for whoever
gives it a text.
"""

import contextlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from workbench.errors import ModelError
from workbench.models.library_errors import foreign_errors, quiet, reason
from workbench.models.sources import Source

_GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
# What tokenizers are read from, by transformers' classes.
_FILES = ("tokenizer.json", "*.model", "*.tiktoken", "tekken.json", "vocab.*", "vocab-*", "merges*.txt")
_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
_LARGEST_ID = 2**22  # published vocabularies have a million tokens at most
_IDS = "Give 'token_ids' instead of 'text', or {}."


@dataclass(frozen=True)
class TokenizerReading:
    """A model's tokenizer, or why there is none.

    Attributes:
        tokenizer: The tokenizer; None where there is none, or none that can be read here.
        problem: Why, with the next step; empty where there is one.
    """

    tokenizer: PreTrainedTokenizerBase | None
    problem: str = ""


def read_tokenizer(source: Source) -> TokenizerReading:
    """The tokenizer of a model, or why there is none; code of its own is never run."""
    if source.kind == "config":
        return TokenizerReading(None, f"a published config has none. {_IDS.format('name the model itself')}")
    try:
        with quiet(), foreign_errors("", ""):
            tokenizer = auto_tokenizer(source.folder, revision=source.hub_revision)
    except ModelError as error:
        return TokenizerReading(None, _problem(source, error.__cause__ or error))
    # Without files transformers makes one that knows special tokens alone.
    if len(tokenizer) > len(tokenizer.all_special_ids):
        return TokenizerReading(tokenizer)
    return TokenizerReading(None, _problem(source, None))


def auto_tokenizer(name: str, *, revision: str | None = None, as_servers: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer by transformers, which has read a text; errors are the library's own, and a `ValueError` of ours.

    Args:
        name: A folder or a hub id.
        revision: Of a hub id.
        as_servers: `AutoTokenizer` whatever the files say, as inference servers read them. It swaps in the model type's
            own class, which splits text by its own rules even where tokenizer.json says otherwise; a checkpoint that
            states the generic class means its tokenizer.json.
    """
    _refuse_ids(name, revision)
    given: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    stated = None if as_servers else get_tokenizer_config(name, revision=revision).get("tokenizer_class")
    kind = PreTrainedTokenizerFast if stated in _GENERIC_TOKENIZERS else AutoTokenizer
    tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(name, **given)
    tokenizer("", verbose=False)  # some files are read, and fail at the first text, whichever it is
    return tokenizer


def _refuse_ids(name: str, revision: str | None) -> None:
    """Refuses ids so large that the library, which keeps every id that is missing below, would end the process."""
    largest = 0
    with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        file = cached_file(name, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
        vocabulary = json.loads(Path(file or "").read_text(encoding="utf-8"))["model"]["vocab"]
        largest = max(value for value in vocabulary.values() if isinstance(value, int))
    if largest >= _LARGEST_ID:
        raise ValueError(f"its vocabulary has the id {largest}; ids below {_LARGEST_ID:,} were expected")


def _problem(source: Source, error: BaseException | None) -> str:
    """Why a source has no tokenizer, by its files and a library's error, with the next step."""
    if source.kind == "hub":
        found = "its tokenizer cannot be read" if error is not None else "its files hold no more than special tokens"
        return f"{found}{_because(error)}. {_IDS.format('name a folder with a tokenizer.json')}"
    folder = Path(source.folder)
    files = sorted({file.name for pattern in _FILES for file in folder.glob(pattern) if file.is_file()})
    if not files:
        return (
            f"none of a tokenizer's files (tokenizer.json, tokenizer.model, vocab.json) lies in {folder}. "
            + _IDS.format("put the tokenizer's files beside the weights")
        )
    for name in _JSON:
        broken = _broken_json(folder / name)
        if broken is not None:
            return f"{name} is cut or no JSON{broken}. {_IDS.format('copy the file again, whole')}"
    named = ", ".join(files[:4])
    if error is None:
        return f"{named} hold no more than special tokens. {_IDS.format('put the whole tokenizer there')}"
    packages = f"tokenizers {version('tokenizers')}, transformers {version('transformers')}"
    return f"{named} cannot be read by {packages}{_because(error)}. " + _IDS.format(
        "save it where it can be read (AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER))"
    )


def _because(error: BaseException | None) -> str:
    return f" ({reason(error)})" if error is not None else ""


def _broken_json(file: Path) -> str | None:
    """What is wrong with a JSON file; None where it is whole, or not there."""
    if not file.is_file():
        return None
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return _because(error)
    return None
