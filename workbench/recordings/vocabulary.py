"""Token ids as bytes and as printable text, so that a recording is readable without its model's tokenizer."""

import re
from typing import Any

import numpy as np
import pyarrow as pa

_BYTE_FALLBACK = re.compile("<0x[0-9A-Fa-f]{2}>")  # SentencePiece's
_SHOWN = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


class TokenBytes:
    """The bytes that a tokenizer's ids stand for; defined for every id, for it is asked when all has been recorded."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        self._tokenizer = tokenizer
        self._byte_of = {character: value for value, character in bytes_to_unicode().items()}
        self._special = set(tokenizer.all_special_ids)
        self._added = set(tokenizer.added_tokens_decoder)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._byte_level = backend is not None and "ByteLevel" in repr(backend.decoder)

    def __call__(self, token: int) -> bytes:
        """The bytes of one; of a special token its name; of an id that only pads the vocabulary none."""
        piece = self._piece(int(token))
        if not isinstance(piece, str):
            return piece if isinstance(piece, bytes) else b""
        if self._byte_level:
            # An added token is text as it stands, in which a letter is no byte.
            if token not in self._added and all(character in self._byte_of for character in piece):
                return bytes(self._byte_of[character] for character in piece)
        elif token not in self._special:
            if _BYTE_FALLBACK.fullmatch(piece):
                return bytes([int(piece[3:5], 16)])
            piece = piece.replace("▁", " ")
        return piece.encode("utf-8", "backslashreplace")  # half a surrogate pair has no bytes

    def _piece(self, token: int) -> Any:
        try:
            return self._tokenizer.convert_ids_to_tokens(token)
        except (IndexError, KeyError, ValueError, OverflowError):  # as tokenizers without a table of ids do
            return None


def printable(raw: bytes) -> str:
    """Bytes as text that always prints: stray bytes and control characters become escapes, line ends a sign."""
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(_SHOWN.get(c, c if c.isprintable() else f"\\x{ord(c):02x}") for c in text)


def vocabulary_table(tokenizer: Any | None, tokens: np.ndarray) -> pa.Table:
    """Columns `token`, `bytes`, `text` of the ids that occur, in their order.

    Without a tokenizer the bytes are empty and the text is the id in angle brackets.
    """
    ids = np.unique(tokens)
    raw = list(map(TokenBytes(tokenizer), ids)) if tokenizer is not None else [b""] * len(ids)
    text = [printable(piece) if tokenizer is not None else f"<{token}>" for token, piece in zip(ids, raw, strict=True)]
    return pa.table({"token": pa.array(ids, pa.int32()), "bytes": pa.array(raw, pa.binary()), "text": text})
