"""Rows of other packages, which the extra ``bench`` brings: SASRec of cornac, residual k-means of semantic-id."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gritvq.items import ResidualKMeans
from gritvq.items.interactions import Histories, Split

VALIDATION_USERS = 2000


def peer(name: str) -> Any:
    """A package of the extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"expected {name}, which is not installed; pip install 'gritvq[bench]'") from error


class SemanticIdKMeans(ResidualKMeans):
    """Tables fitted by ``RQKMeans`` of the package semantic-id; codes are found by our search, which is exact."""

    def _fit(self, x: Float[Tensor, "n D"], progress: bool) -> None:
        sizes = list(self.codebook_sizes)
        theirs = peer("semantic_id").RQKMeans(len(sizes), sizes, max_iter=self.iterations, random_state=self.seed)
        theirs.fit(x.numpy())
        self._allocate(x.shape[1])
        self.tables = torch.from_numpy(np.stack(theirs.codebooks_)).float()


def cornac_sasrec(
    split: Split, seed: int, settings: dict[str, Any]
) -> tuple[Callable[[Histories], Float[Tensor, "B n"]], int]:
    """Train SASRec of cornac on training parts, with the epoch of the best NDCG@10 of a sample of validation users.

    Returns:
        Scores of all items, one user after the other as cornac computes them, and the number of parameters.
    """
    model = peer("cornac").models.SASRec(
        **settings, seed=seed, model_selection="best", val_metric="ndcg", val_k=10, verbose=True
    )
    users = torch.randperm(len(split.users), generator=torch.Generator().manual_seed(0))[:VALIDATION_USERS].tolist()
    known = split.validation_inputs[torch.tensor(users)]
    chosen = [[*line.tolist(), int(split.validation[user])] for user, line in zip(users, known, strict=True)]
    train = [line.tolist() for line in split.train]
    model.fit(_sessions(train, split.num_items), _sessions(chosen, split.num_items))

    @torch.no_grad()
    def scores(histories: Histories) -> Tensor:
        lines = [np.asarray(model.score(0, line.tolist()), dtype=np.float32) for line in histories]
        return torch.from_numpy(np.stack(lines))

    return scores, sum(parameter.numel() for parameter in model.model.parameters())


def _sessions(histories: list[list[int]], num_items: int) -> Any:
    """Each history as one session of one user; items keep their rows."""
    events = [(user, user, item, time) for user, line in enumerate(histories) for time, item in enumerate(line)]
    rows = OrderedDict((item, item) for item in range(num_items))
    return peer("cornac").data.SequentialDataset.build(events, fmt="USIT", global_iid_map=rows)
