"""What tokenizers write and sequence models read."""

from gritvq.tokens.files import TokenizedImage, read_tokens, write_tokens
from gritvq.tokens.layout import TokenLayout
from gritvq.tokens.vocabulary import BOS, EOS, PAD, Vocabulary

__all__ = ["BOS", "EOS", "PAD", "TokenLayout", "TokenizedImage", "Vocabulary", "read_tokens", "write_tokens"]
