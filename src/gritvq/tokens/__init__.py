"""What tokenizers write and sequence models read."""

from gritvq.tokens.files import TokenizedImage, read_tokens, write_tokens

__all__ = ["TokenizedImage", "read_tokens", "write_tokens"]
