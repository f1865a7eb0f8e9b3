"""The model host: what an app asks of a model, though its process must never hold one.

The model lives in a process of its own (`host_worker.py`), which runs one job at a time, first come first served
(`host_queue.py`). This side checks what is asked (`host_rules.py`), and keeps what must outlive the app
(`host_kept.py`); it imports no torch, loads nothing and computes nothing. A crash of the model is a failed job with a
sentence; the process is started again and the queue goes on.
"""

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.errors import HostError
from workbench.figures.theme import printable
from workbench.files.writing import write_whole
from workbench.jobs import storage
from workbench.jobs.limits import Allowance, Rules, again, checked_prompt, checked_upload
from workbench.jobs.queue import ENDED_JOBS_KEPT, Job, Queue
from workbench.jobs.storage import Unfinished
from workbench.recordings.fields import FIELDS
from workbench.recordings.manifest import file_digest, json_digest

LONGEST_PROFILE_S = 600.0
_UPLOAD_BYTES = 4 * 2**30  # kept of uploads, those last used


class Host(Queue):
    """Jobs for the one model process of a data folder. Every method may be called from any thread.

    Args:
        data: The data folder: recordings go to `data/recordings/NAME`, logs to `data/logs`.
        rules: Where models and corpora may come from, and how much each visitor may ask for.
        cancel_grace_s: How long a cancelled job may take to end by itself before its process is ended.
    """

    def __init__(self, data: Path, *, rules: Rules | None = None, cancel_grace_s: float = 10.0) -> None:
        self.rules = rules or Rules()
        super().__init__(data, limits=self.rules.limits, hub=self.rules.hub, cancel_grace_s=cancel_grace_s)
        if self.rules.limits is not None:
            self._uploaded = Allowance(self.rules.limits.upload_bytes_per_hour, 3600)

    def record(
        self,
        *,
        model: str,
        corpus: str | None = None,
        prompt: str | None = None,
        fields: tuple[str, ...] = ("routing", "logprob"),
        max_tokens: int | None = None,
        parent: str | None = None,
        name: str | None = None,
        check: bool = True,
        owner: str = "",
    ) -> str:
        """Queues a recording.

        Args:
            model: A name that `load` knows.
            corpus: A bundled corpus, or a file where the rules let corpora lie; or give `prompt`.
            prompt: A text, recorded as a corpus of one document.
            fields: As of `workbench.record`.
            max_tokens: Cap over the corpus.
            parent: The dense model that the MoE was made from, a name that `load` knows; for the field `weights`.
            name: Folder of the recording in `data/recordings`; the default is made of a digest of all arguments and of
                the corpus' bytes, so that asking the same again finds the same recording, finished or to be resumed.
            check: Prove the capture first.
            owner: The visitor who asks, whose alone it is to cancel; empty in an app that is not shared.

        Returns:
            The job's id.

        Raises:
            HostError: an argument that cannot be meant, with what was expected; more than the visitor may ask for; the
                host was stopped.
            CorpusError: a corpus that is neither bundled nor where corpora may lie.
        """
        model = self.rules.checked_model(model, self.data)
        parent = None if parent is None else self.rules.checked_model(parent, self.data)
        if parent is not None and "weights" not in fields:
            raise HostError("parent: it is compared in the field weights, which is not asked for; add it to fields.")
        if not fields or set(fields) - set(FIELDS):
            raise HostError(
                f"fields are {', '.join(fields)[:200] or 'empty'}; some of {', '.join(FIELDS)} were expected."
            )
        max_tokens = self.rules.checked_tokens(max_tokens, owner)
        file = None
        if prompt is not None and corpus is None:
            what, title, content = "prompt", _excerpt(prompt), checked_prompt(prompt)
        elif corpus is not None and prompt is None:
            file = self.rules.checked_corpus(corpus, self.data)
            what, title, content = _slug(file.stem), file.stem, file_digest(file)
        else:
            raise HostError(
                f"{'both' if corpus is not None else 'neither'} corpus and prompt were given; give one of them."
            )
        if name is None:
            identity = [model, what, content, [kept for kept in FIELDS if kept in fields], max_tokens, check]
            identity += [] if parent is None else [parent]
            name = f"{_slug(model)}-{what}-{json_digest(identity)[:12]}"
        if not storage.NAME.fullmatch(name):
            raise HostError(
                f"name is {name[:130]!r}; up to 120 letters, digits, '.', '_' and '-' were expected, no '.' first."
            )
        arguments: dict[str, Any] = {
            "model": model,
            "corpus": str(file) if file is not None else None,
            "prompt": prompt,
            "fields": list(fields),
            "max_tokens": max_tokens,
            "parent": parent,
            "check": check,
        }
        request = {**arguments, "out": str(self.data / "recordings" / name)}
        title = f"{model} · {title}"
        kept = {"title": title, "owner": owner, "arguments": arguments}
        return self._submit("record", title, request, owner=owner, kept=kept)

    def profile(self, *, model: str, against: str | None = None, weights: str = "checkpoint", owner: str = "") -> str:
        """Queues a measurement of a model, or of two beside each other, with the settings of `workbench profile`.

        Args:
            model: A name that `load` knows.
            against: Another one.
            weights: `checkpoint` or `dummy`, of both.
            owner: As of `record`.

        Returns:
            The job's id. Its result names the `measurement`, a new folder in the data folder's `measurements`.

        Raises:
            HostError: a name that cannot be meant; more than the visitor may ask for; the host was stopped.
        """
        names = [model, *([] if against is None else [against])]
        folder = "-".join([*map(_slug, names), datetime.now(UTC).strftime("%Y%m%d-%H%M%S")])
        found = [self.rules.checked_model(name, self.data) for name in names]
        request = {
            "model": found[0],
            "against": None if against is None else found[1],
            "weights": weights,
            "limit_s": LONGEST_PROFILE_S,
            "out": str(self.data / "measurements" / folder),
        }
        return self._submit("profile", " beside ".join(names), request, owner=owner)

    def resume(self, name: str, *, owner: str = "") -> str:
        """Queues what a recording still lacks: one that was stopped, also with the app, or that never began.

        Returns:
            The job's id.

        Raises:
            HostError: nothing unfinished of that name was asked for here by this visitor; else as `record`.
            CorpusError: as `record`.
        """
        found = [each for each in self.unfinished(owner=owner) if each.name == name and each.arguments]
        if not found:
            raise HostError(f"there is no unfinished recording {name[:200]!r} that was asked for here; record it anew.")
        arguments = found[0].arguments
        return self.record(**{**arguments, "fields": tuple(arguments["fields"])}, name=name, owner=owner)

    def unfinished(self, *, owner: str = "") -> list[Unfinished]:
        """The recordings of a visitor, and of no visitor, that are not finished and that no job here is to finish."""
        active = {job.name for job in self.jobs() if job.state in ("queued", "running")}
        found = storage.unfinished(self.data)
        return [each for each in found if each.owner in ("", owner) and each.name not in active]

    def forget(self, name: str, *, owner: str = "") -> None:
        """Forgets what was asked for and never began.

        Raises:
            HostError: nothing of that name was asked for here by this visitor, or it was begun.
        """
        if not any(each.name == name and not each.of_parts for each in self.unfinished(owner=owner)):
            raise HostError(f"{name[:200]!r} is nothing that was asked for here and never began.")
        storage.drop_request(self.data, name, also_begun=False)

    def delete(self, name: str) -> None:
        """Deletes a recording, finished or not; there is no way back.

        Raises:
            HostError: the app is shared, where recordings are everybody's.
            RecordingError: there is none of that name, or it is being written.
        """
        if self.rules.limits is not None:
            raise HostError(
                f"{name[:200]!r} was not deleted: in a shared app recordings are everybody's; ask its operator."
            )
        storage.delete_recording(self.data, name)

    def keep_upload(self, name: str, content: bytes, *, owner: str = "") -> str:
        """Keeps an uploaded corpus in the data folder, whole, once it is one; the corpus to give to `record`.

        Raises:
            CorpusError: it is no corpus, with the line; or is larger than an upload may be.
            HostError: the visitor uploaded as much as may be within an hour.
        """
        name = Path(name).name[:100]
        digest = hashlib.sha256(content).hexdigest()[:12]
        stem = re.sub("[^A-Za-z0-9_-]+", "-", Path(name).stem)[:40] or "corpus"
        kept = self.data / "uploads" / digest / f"{stem}.jsonl"
        if kept.is_file():  # the digest names the content, which was checked
            kept.touch()
            return str(kept)
        if self.rules.limits is not None and owner and (wait_s := self._uploaded.take(owner, len(content))):
            most = self.rules.limits.upload_bytes_per_hour
            raise HostError(f"{name} was not kept: {most:,} bytes an hour may be uploaded; {again(wait_s)}")
        checked_upload(name, content)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, content, HostError)
        storage.trim(self.data / "uploads", _UPLOAD_BYTES)
        return str(kept)

    def inspect(self, model: str, *, check: bool = False, owner: str = "") -> str:
        """Queues a look at a model: what it is made of, and what it would take against what would be free for it.

        Args:
            model: A name that `inspect_topology` knows; its config alone is read.
            check: Load it too, and prove the capture.
            owner: As of `record`.

        Returns:
            The job's id.

        Raises:
            HostError: a name that cannot be meant; more than the visitor may ask for; the host was stopped.
        """
        model = self.rules.checked_model(model, self.data)
        return self._submit("inspect", model, {"model": model, "check": check}, owner=owner)

    def attention(self, *, model: str, token_ids: Sequence[int], layer: int, head: int, owner: str = "") -> str:
        """Queues a map of one attention head on one text; the file it ends in is kept in the data folder's `maps`.

        Args:
            model: A name that `load` knows.
            token_ids: Of the text.
            layer: Attention layer.
            head: Head.
            owner: As of `record`.

        Returns:
            The job's id. Its result names the `file` (NumPy, float16 [S, T]) and the `weights_digest` of the model.

        Raises:
            HostError: a name that cannot be meant; more than the visitor may ask for; the host was stopped.
        """
        model = self.rules.checked_model(model, self.data)
        digest = json_digest([model, list(token_ids), layer, head])[:24]
        request = {
            "model": model,
            "token_ids": list(token_ids),
            "layer": layer,
            "head": head,
            "out": str(self.data / "maps" / f"{digest}.npy"),
        }
        return self._submit("attention", f"{model} · layer {layer}, head {head}", request, owner=owner)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(text).name).strip(".-")[:40] or "model"


def _excerpt(prompt: str) -> str:
    text = printable(" ".join(prompt.split()))
    return f"“{text}”" if len(text) <= 40 else f"“{text[:39]}…”"


__all__ = ["ENDED_JOBS_KEPT", "Host", "Job"]
