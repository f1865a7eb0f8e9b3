"""What may be asked of the model host: which models and corpora, how long a prompt, and how much by each visitor.

All of it is checked on the server, before a job exists or a byte is kept. A name that is a path must lie below a folder
that the operator named, links followed; of other places nothing is told, not even whether they exist.
"""

import contextlib
import json
import re
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

from workbench.errors import CorpusError, HostError
from workbench.models.bundled import MODELS, bundled_models, published_configs
from workbench.recordings.corpus import CORPORA, Corpus
from workbench.recordings.manifest import json_digest

LONGEST_PROMPT = 20_000  # characters
LARGEST_UPLOAD = 20 * 2**20  # bytes; as `server.maxUploadSize`
_UPLOAD_DOCUMENTS, _UPLOAD_DOMAINS, _UPLOAD_NAME = 50_000, 200, 300
_CORPORA = (".jsonl", ".parquet", ".txt")
_LISTED = 200  # of the models and corpora below the roots
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,100})?", re.ASCII)


@dataclass(frozen=True)
class Limits:
    """What one visitor of a shared app may ask for.

    Attributes:
        jobs: Waiting or running at once.
        jobs_per_minute: Asked for in any 60 s, prompts, looks and maps alike.
        upload_bytes_per_hour: In any 3,600 s.
        tokens_per_job: Cap over a corpus.
    """

    jobs: int = 3
    jobs_per_minute: int = 30
    upload_bytes_per_hour: int = 100 * 2**20
    tokens_per_job: int = 1_000_000

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) < 1:
                raise HostError(f"{each.name} is {getattr(self, each.name)}; at least 1 was expected.")


@dataclass(frozen=True)
class Rules:
    """Where models and corpora may come from, and what each visitor may ask for.

    Attributes:
        models: Folders below which a local model may lie, beside the data folder.
        corpora: Folders below which a corpus may lie, beside the data folder and the bundled ones.
        hub: Whether a model may be fetched from the hub; else it must be in the hub's cache on this machine.
        limits: Of each visitor that has a name; None for no limit.
    """

    models: tuple[Path, ...] = ()
    corpora: tuple[Path, ...] = ()
    hub: bool = True
    limits: Limits | None = None

    def checked_model(self, name: str, data: Path) -> str:
        """The name to load, of a local model its full path.

        Raises:
            HostError: a name that cannot be meant, or a place outside the roots.
        """
        _refuse_unprintable(name)
        bare = name.partition("@")[0]
        if bare in bundled_models():
            return name
        roots = [root.resolve() for root in (data, *self.models)]
        path = Path(name).expanduser() if name.startswith("~/") else Path(name)
        there = False
        for place in (path, *(root / name for root in roots)):
            with contextlib.suppress(OSError, RuntimeError, ValueError):  # what no file system can look up is no folder
                there = there or place.is_dir()
                if place.is_dir() and _lies_below(place, roots):
                    return str(place.resolve())
        if name.startswith(("/", ".", "~")) or "\\" in name or bare.count("/") > 1 or there:
            raise HostError(
                f"model {name[:200]!r} is no model folder below {', '.join(map(str, roots))}, links followed. Put it "
                "there, or start the app with its folder's place: workbench app --models DIR."
            )
        if bare not in published_configs() and "/" in name and not _HUB_ID.fullmatch(name):
            raise HostError(f"model {name[:200]!r} is no hub id; OWNER/NAME was expected, or OWNER/NAME@REVISION.")
        return name

    def checked_corpus(self, corpus: str, data: Path) -> Path:
        """The file of a corpus, links followed.

        Raises:
            CorpusError: it is neither bundled nor below a root.
        """
        bundled = CORPORA / f"{corpus}.jsonl"
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            file = (bundled if re.fullmatch(r"[\w-]+", corpus) and bundled.is_file() else Path(corpus)).resolve()
            if any(file.is_relative_to(root.resolve()) for root in (data, CORPORA, *self.corpora)) and file.is_file():
                return file
        known = ", ".join(sorted(found.stem for found in CORPORA.glob("*.jsonl")))
        raise CorpusError(
            f"corpus {corpus[:200]!r} is neither a bundled one ({known}) nor a file below "
            f"{', '.join(map(str, (data, *self.corpora)))}. Upload it, put it there, or start the app with its folder: "
            "workbench app --corpora DIR."
        )

    def checked_tokens(self, max_tokens: int | None, owner: str) -> int | None:
        """The cap over a corpus: what was asked for, and in a shared app no more than a visitor may.

        Raises:
            HostError: less than one token, or more than may be.
        """
        if max_tokens is not None and max_tokens < 1:
            raise HostError(f"max_tokens is {max_tokens}; at least 1 was expected, or none for the whole corpus.")
        if self.limits is None or not owner:
            return max_tokens
        most = self.limits.tokens_per_job
        if max_tokens is not None and max_tokens > most:
            raise HostError(f"max_tokens is {max_tokens:,}; this app records at most {most:,} tokens at a time.")
        return most if max_tokens is None else max_tokens

    def local_models(self, data: Path) -> list[str]:
        """The model folders below the roots, at most two levels down, to be chosen from."""
        roots = [data / "models", *self.models]
        depths = ("*/config.json", "*/*/config.json")
        found = {str(config.parent) for root in roots for depth in depths for config in root.glob(depth)}
        own = {str(MODELS / name) for name in bundled_models()}
        return sorted(each for each in found if not any(Path(each).is_relative_to(known) for known in own))[:_LISTED]

    def local_corpora(self, data: Path) -> list[str]:
        """The corpus files directly in the data folder's `corpora` and in the roots, to be chosen from."""
        folders = [folder for folder in (data / "corpora", *self.corpora) if folder.resolve() != CORPORA]
        files = (file for folder in folders if folder.is_dir() for file in folder.iterdir())
        return sorted(str(file) for file in files if file.suffix in _CORPORA and file.is_file())[:_LISTED]


def is_hub_id(name: str) -> bool:
    """Whether a name that was let in is one that the hub may be asked for: no folder, nothing that is bundled."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).is_dir() and name.partition("@")[0] not in bundled_models()


def _lies_below(folder: Path, roots: list[Path]) -> bool:
    """Whether a folder and every file in it lie below the roots, links followed."""
    places = [place.resolve() for place in (folder, *folder.iterdir())]
    return all(any(place.is_relative_to(root) for root in roots) for place in places)


def _refuse_unprintable(model: str) -> None:
    # 255 bytes is what file systems take of one name; a longer one is an OSError that says nothing.
    if not (model and len(model) <= 1000 and model.isprintable() and max(map(len, model.encode().split(b"/"))) <= 255):
        raise HostError(
            f"model is {model[:100]!r}; the name of a bundled model, a folder or a hub id was expected, printable and "
            "no longer than names can be."
        )


def checked_prompt(prompt: str) -> str:
    """The digest of a prompt that can be recorded.

    Raises:
        HostError: it is empty, too long, or no text.
    """
    if not prompt.strip():
        raise HostError("prompt is empty; at least one word was expected.")
    if len(prompt) > LONGEST_PROMPT:
        raise HostError(
            f"prompt has {len(prompt):,} characters, at most {LONGEST_PROMPT:,} were expected; "
            "upload a longer text as a corpus."
        )
    try:
        return json_digest(prompt)
    except UnicodeEncodeError as error:
        raise HostError("prompt holds half a character (a lone surrogate); delete what shows as a box.") from error


def checked_upload(name: str, content: bytes) -> None:
    """Reads an uploaded JSONL as the recorder will, and holds it against what an upload may be.

    Args:
        name: Of the file, for the messages.
        content: Of the file.

    Raises:
        CorpusError: it is too large, not UTF-8, or no corpus; the line is named.
    """
    if len(content) > LARGEST_UPLOAD:
        raise CorpusError(
            f"{name} has {len(content):,} bytes; an upload may have {LARGEST_UPLOAD:,}. Put the file into a folder "
            "that the app was started with, workbench app --corpora DIR."
        )
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "upload.jsonl"
        draft.write_bytes(content)
        try:
            corpus = Corpus.read(draft)
        except CorpusError as error:
            raise CorpusError(str(error).replace(str(draft), name)) from None
    if len(corpus.documents) > _UPLOAD_DOCUMENTS:
        raise CorpusError(f"{name} has {len(corpus.documents):,} lines; an upload may have {_UPLOAD_DOCUMENTS:,}.")
    if len(corpus.domains) > _UPLOAD_DOMAINS:
        raise CorpusError(f"{name} has {len(corpus.domains):,} domains; an upload may have {_UPLOAD_DOMAINS}.")
    for number, document in enumerate(corpus.documents, start=1):
        for key in ("id", "domain", "source", "cluster"):
            if len(getattr(document, key)) > _UPLOAD_NAME:
                raise CorpusError(
                    f"{name}, document {number}: {key!r} has {len(getattr(document, key)):,} characters; at most "
                    f"{_UPLOAD_NAME} were expected. Shorten it."
                )


@dataclass
class Allowance:
    """Counts what each visitor asked for within a time. Any thread may ask.

    Attributes:
        most: How much may be asked for.
        within_s: In any span of so many seconds.
        clock: Seconds.
    """

    most: int
    within_s: float
    clock: Callable[[], float] = time.monotonic
    _spent: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, visitor: str, amount: int = 1) -> float:
        """Takes an amount, or nothing.

        Returns:
            0 where it was taken; else the seconds until it could be, infinite where it never can.
        """
        with self._lock:
            now = self.clock()
            for each in list(self._spent):  # of those who left nothing is kept
                while self._spent[each] and self._spent[each][0][0] <= now - self.within_s:
                    self._spent[each].popleft()
                if not self._spent[each]:
                    del self._spent[each]
            if amount > self.most:
                return float("inf")
            spent = self._spent.get(visitor, deque())
            over = sum(n for _, n in spent) + amount - self.most
            for when, n in spent if over > 0 else ():
                over -= n
                if over <= 0:
                    return when + self.within_s - now
            self._spent.setdefault(visitor, deque()).append((now, amount))
            return 0.0


def again(wait_s: float) -> str:
    """When as much may be asked for again, in words."""
    return "a smaller one may be." if wait_s == float("inf") else f"ask again in {max(1, round(wait_s)):,} s."


def rules_from_json(text: str) -> Rules:
    """The rules as `rules_to_json` wrote them."""
    given = json.loads(text)
    return Rules(
        models=tuple(map(Path, given["models"])),
        corpora=tuple(map(Path, given["corpora"])),
        hub=given["hub"],
        limits=None if given["limits"] is None else Limits(**given["limits"]),
    )


def rules_to_json(rules: Rules) -> str:
    """The rules in one line, for the environment of the app's process."""
    limits = None if rules.limits is None else {each.name: getattr(rules.limits, each.name) for each in fields(Limits)}
    places = {"models": list(map(str, rules.models)), "corpora": list(map(str, rules.corpora))}
    return json.dumps({**places, "hub": rules.hub, "limits": limits})
