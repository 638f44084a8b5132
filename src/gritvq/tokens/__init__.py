"""What tokenizers write and sequence models read."""

from gritvq.tokens.files import TokenizedImage, read_tokens, write_tokens
from gritvq.tokens.vocabulary import BOS, EOS, PAD, Vocabulary

__all__ = ["BOS", "EOS", "PAD", "TokenizedImage", "Vocabulary", "read_tokens", "write_tokens"]
