"""Token files, vocabularies and sequence layouts: the interface between tokenizers and sequence models."""

from gritvq.tokens.files import TokenRow, iter_tokens, read_tokens, token_files, write_shards, write_tokens
from gritvq.tokens.layout import TokenLayout
from gritvq.tokens.vocabulary import BOS, EOS, PAD, Vocabulary

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "TokenLayout",
    "TokenRow",
    "Vocabulary",
    "iter_tokens",
    "read_tokens",
    "token_files",
    "write_shards",
    "write_tokens",
]
