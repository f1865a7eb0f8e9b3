"""Tokenizers: the text part of a model, read without its weights."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from workbench.models.foreign import quiet
from workbench.models.sources import Source

_GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")


def read_tokenizer(source: Source) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model; None where there is none."""
    if source.kind == "config":
        return None
    try:
        with quiet():
            # AutoTokenizer swaps in the model type's own class, which splits text by its own rules even where
            # tokenizer.json says otherwise. A checkpoint that states the generic class means its tokenizer.json.
            stated = get_tokenizer_config(source.folder, revision=source.hub_revision).get("tokenizer_class")
            kind = PreTrainedTokenizerFast if stated in _GENERIC_TOKENIZERS else AutoTokenizer
            tokenizer = kind.from_pretrained(source.folder, revision=source.hub_revision, trust_remote_code=False)
            # Without files transformers makes one that knows special tokens alone.
            return tokenizer if len(tokenizer) > len(tokenizer.all_special_ids) else None
    except (OSError, ValueError, KeyError):
        return None  # a corpus of token ids needs none; one of text is refused by name when it is recorded
