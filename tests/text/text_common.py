"""What tests of text share."""

from __future__ import annotations

import random
from typing import Any

import torch

from gritvq.text import Segmentation, Subwords, TextBatch, TextFormat, TraceModel

SIZES: dict[str, Any] = dict(dim=6, width=16, depth=2, num_heads=2, length=64)


def toy_format(**settings: Any) -> TextFormat:
    """Bytes, short segments."""
    return TextFormat(Subwords.train([], 256), Segmentation(**{"max_tokens": 8, "max_segments": 4, **settings}))


def random_batch(vocab_size: int, counts: list[list[int]], seed: int = 0) -> TextBatch:
    """Documents of random tokens; ``counts`` has the tokens of each segment."""
    generator = torch.Generator().manual_seed(seed)
    length = max(map(sum, counts))
    tokens = torch.randint(0, vocab_size - 3, (len(counts), length), generator=generator)
    segments = torch.full_like(tokens, -1)
    for row, own in enumerate(counts):
        place = 0
        for number, count in enumerate(own):
            segments[row, place : place + count] = number
            place += count
            tokens[row, place - 1] = vocab_size - (2 if number == len(own) - 1 else 3)
    return TextBatch(tokens, segments)


def lively(model: TraceModel, seed: int = 0) -> TraceModel:
    """The model in eval mode with larger random weights, so that everything has an influence."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.7 / weight.shape[-1] ** 0.5)
    return model.eval()


SUBJECTS, VERBS, OBJECTS = "cat dog bird fish cow hen", "eats sees likes hears finds", "corn mice rain songs trees hats"


def toy_documents(num: int, seed: int) -> list[str | list[str]]:
    """Documents of one to three sentences of a grammar with 180 sentences, each by chance: 5.2 nats."""
    draw = random.Random(seed)
    parts = [words.split() for words in (SUBJECTS, VERBS, OBJECTS)]
    return [[f"{' '.join(map(draw.choice, parts))}." for _ in range(draw.choice((1, 2, 3)))] for _ in range(num)]
