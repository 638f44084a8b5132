"""A recommender as a program that runs without gritvq: its model, the codes of the items, and their trie."""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.export import Format, Program, load_program, write_programs
from gritvq.items.ids import FilteredOrder
from gritvq.items.recommenders.beam_search import beam_search
from gritvq.items.recommenders.parallel import RankedItems, channel_log_probs
from gritvq.quantizers.canonical import ranked

if TYPE_CHECKING:
    from gritvq.items.recommenders.generative import GenerativeRecommender
    from gritvq.items.recommenders.sasrec import SASRec

__all__ = ["RecommenderProgram", "SASRecProgram", "compare_recommender", "write_recommender", "write_sasrec"]


class RecommenderProgram(nn.Module):
    """Histories (B, T) and which items are allowed (B, n) to items (B, k) and their scores (B, k).

    It computes what :meth:`GenerativeRecommender.best` does, with operators that programs have: the beam search along
    the trie, or the exact scores of a parallel backbone for all items at once.

    Args:
        recommender: The recommender.
        k: Number of items.
        beam: Beam size; unused if the backbone is parallel.
    """

    codes: Tensor
    order: Tensor
    columns: Tensor

    def __init__(self, recommender: GenerativeRecommender, k: int, beam: int) -> None:
        super().__init__()
        self.backbone, self.k, self.beam = recommender.backbone, k, beam
        self.exclude_seen = recommender.exclude_seen
        self.trie = None if recommender.backbone.parallel else recommender.trie
        self.register_buffer("codes", recommender.codes)
        self.register_buffer("order", recommender.order)
        sizes = torch.tensor(recommender.backbone.codebook_sizes)
        self.register_buffer("columns", recommender.codes[self.order] + sizes.cumsum(0) - sizes)

    def forward(
        self, histories: Int[Tensor, "B T"], allowed: Bool[Tensor, "B n"]
    ) -> tuple[Int[Tensor, "B k"], Float[Tensor, "B k"]]:
        """Items and scores, best first, padded with -1 and minus infinity."""
        known = histories >= 0
        codes = self.codes[histories.clamp(min=0)] * known[..., None]
        context = self.backbone.read(codes, known.sum(1))
        allowed = (_unseen(allowed, histories) if self.exclude_seen else allowed)[:, self.order]
        if self.trie is not None:
            listed = FilteredOrder(F.pad(allowed.cumsum(1), (1, 0)), None)
            beams = beam_search(self.backbone, context, self.trie, self.beam, listed=listed)
            items, places = self.trie.expand_places(beams.leaves, self.k, listed)
            return items, beams.scores.gather(1, places).masked_fill(items < 0, -math.inf)
        log_probs = channel_log_probs(self.backbone, context)
        scores = log_probs[:, self.columns[:, 0]]
        for channel in range(1, self.columns.shape[1]):  # in the order of the channels, as in ParallelScorer
            scores = scores + log_probs[:, self.columns[:, channel]]
        places, scores = _best(scores, allowed, self.k)
        return torch.where(places >= 0, self.order[places.clamp(min=0)], -1), scores


class SASRecProgram(nn.Module):
    """Histories (B, T) and which items are allowed (B, n) to items (B, k) and their scores (B, k), by :class:`SASRec`.

    Args:
        model: The recommender.
        k: Number of items.
    """

    def __init__(self, model: SASRec, k: int) -> None:
        super().__init__()
        self.model, self.k = model, k

    def forward(
        self, histories: Int[Tensor, "B T"], allowed: Bool[Tensor, "B n"]
    ) -> tuple[Int[Tensor, "B k"], Float[Tensor, "B k"]]:
        """Items and scores, best first, padded with -1 and minus infinity."""
        allowed = _unseen(allowed, histories) if self.model.exclude_seen else allowed
        return _best(self.model.scores_of_rows(histories), allowed, self.k)


def _unseen(allowed: Tensor, histories: Tensor) -> Tensor:
    """Which items are allowed and not in the histories, which are padded with -1."""
    rows = histories.where(histories >= 0, torch.full_like(histories, allowed.shape[1]))
    return F.pad(allowed, (0, 1)).scatter(1, rows, False)[:, :-1]


def _best(scores: Tensor, allowed: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Places and scores of the best ones, padded with -1 and minus infinity."""
    scores = scores.masked_fill(~allowed, -math.inf)
    places = ranked(scores, min(k, scores.shape[1]))
    scores = scores.gather(1, places)
    short = (0, k - places.shape[1])
    return F.pad(places.masked_fill(scores == -math.inf, -1), short, value=-1), F.pad(scores, short, value=-math.inf)


def write_recommender(
    recommender: GenerativeRecommender, folder: str | os.PathLike[str], format: Format, k: int, beam: int
) -> Path:
    """Write the program of a recommender; see :meth:`GenerativeRecommender.export`."""
    program = RecommenderProgram(copy.deepcopy(recommender).cpu(), k, beam)  # a program is traced in eval mode
    return _written(program, recommender.max_history, recommender.num_items, folder, format)


def write_sasrec(model: SASRec, folder: str | os.PathLike[str], format: Format, k: int) -> Path:
    """Write the program of a SASRec; see :meth:`SASRec.export`."""
    return _written(SASRecProgram(copy.deepcopy(model).cpu(), k), model.max_length, model.num_items, folder, format)


def _written(program: nn.Module, length: int, num_items: int, folder: str | os.PathLike[str], format: Format) -> Path:
    batch = torch.export.Dim("batch")
    example = torch.full((2, length), -1)
    example[0, 0] = 0
    inputs = example, torch.ones(2, num_items, dtype=torch.bool)
    names = ("histories", "allowed", "items", "scores")
    written = write_programs(folder, {"recommender": Program(program, inputs, ({0: batch}, {0: batch}), names)}, format)
    return written["recommender"]


def compare_recommender(
    recommender: GenerativeRecommender, path: Path, k: int, beam: int | None, *, num: int = 64, seed: int = 0
) -> tuple[Bool[Tensor, "B k"], float]:
    """An exported recommender against the one it was made of, on random histories, half of the items allowed.

    Args:
        recommender: From which :meth:`GenerativeRecommender.export` made the program.
        path: Its file.
        k: Number of items it was made with.
        beam: Beam size it was made with.
        num: Number of histories B, of 0 to ``max_history`` items.
        seed: Seed of histories and filters.

    Returns:
        Which places of the lists have the same item, and the largest difference of scores at the same place.
    """
    generator = torch.Generator().manual_seed(seed)
    histories = torch.randint(0, recommender.num_items, (num, recommender.max_history), generator=generator)
    lengths = torch.randint(0, recommender.max_history + 1, (num, 1), generator=generator)
    allowed = torch.rand(num, recommender.num_items, generator=generator) < 0.5
    histories = histories.masked_fill(torch.arange(recommender.max_history) >= lengths, -1)
    rows = [row[row >= 0].tolist() for row in histories]
    wanted = RankedItems(*(part.cpu() for part in recommender.best(rows, k, beam=beam, allowed=allowed)))
    items, scores = load_program(path)(histories, allowed)
    both = (scores > -math.inf) & (wanted.scores > -math.inf)
    return items == wanted.items, float((scores - wanted.scores)[both].abs().amax()) if bool(both.any()) else 0.0
