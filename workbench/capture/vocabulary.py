"""Token ids as bytes and as printable text, so that a recording is readable without its model's tokenizer."""

from typing import Any

import numpy as np
import pyarrow as pa
from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTE_OF = {character: value for value, character in bytes_to_unicode().items()}
_SHOWN = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """The bytes a token stands for; of a special token, its name."""
    piece = tokenizer.convert_ids_to_tokens(int(token))
    if piece is None:
        return b""
    if token in tokenizer.all_special_ids:
        return piece.encode()
    if _is_byte_level(tokenizer):
        return bytes(_BYTE_OF[character] for character in piece)
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):  # SentencePiece's byte fallback
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()


def printable(raw: bytes) -> str:
    """Bytes as text that always prints: stray bytes and control characters become escapes, line ends a sign."""
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(_SHOWN.get(c, c if c.isprintable() else f"\\x{ord(c):02x}") for c in text)


def vocabulary_table(tokenizer: Any | None, tokens: np.ndarray) -> pa.Table:
    """Columns `token`, `bytes`, `text` of the ids that occur, in their order.

    Without a tokenizer the bytes are empty and the text is the id in angle brackets.
    """
    ids = np.unique(tokens)
    raw = [token_bytes(tokenizer, token) if tokenizer is not None else b"" for token in ids]
    text = [printable(piece) if tokenizer is not None else f"<{token}>" for token, piece in zip(ids, raw, strict=True)]
    return pa.table({"token": pa.array(ids, pa.int32()), "bytes": pa.array(raw, pa.binary()), "text": text})


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in repr(backend.decoder)
