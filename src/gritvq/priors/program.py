"""One step of a prior as a program that runs without gritvq."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.export import Format, Program, load_program, write_programs
from gritvq.priors.base import Prior

__all__ = ["PriorProgram", "compare_prior", "write_prior"]


class PriorProgram(nn.Module):
    """Rows (B, T, Q), and classes (B,) if there are any, to logits (B, T, V): :meth:`Prior.logits` unchecked.

    Args:
        prior: The prior.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, rows: Int[Tensor, "B T Q"], classes: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B T V"]:
        """Logits."""
        own = rows[:, 0, 0] * 0 - 1 if classes is None else classes
        return self.prior.head.logits(self.prior._states(rows, self.prior._embedded_classes(own)), rows)


def write_prior(prior: Prior, folder: str | os.PathLike[str], format: Format) -> Path:
    """Write the program of a prior; see :meth:`Prior.export`."""
    program = PriorProgram(copy.deepcopy(prior).cpu())
    batch: dict[int, Any] = {0: torch.export.Dim("batch")}
    inputs = _random_rows(prior, 2, torch.Generator().manual_seed(0))
    of_inputs = tuple(batch for _ in inputs)
    names = (*("rows", "classes")[: len(inputs)], "logits")
    return write_programs(folder, {"prior": Program(program, inputs, of_inputs, names)}, format)["prior"]


def compare_prior(prior: Prior, path: Path, *, num: int = 16, seed: int = 0) -> tuple[Bool[Tensor, "B T S"], float]:
    """An exported prior against the one it was made of, on random rows, half of whose positions are not known.

    Args:
        prior: From which :meth:`Prior.export` made the program.
        path: Its file.
        num: Number of rows B.
        seed: Seed of rows and classes.

    Returns:
        Which of the most probable indices (of S softmaxes at each position) are identical, and the largest difference
        of logits.
    """
    inputs = _random_rows(prior, num, torch.Generator().manual_seed(seed))
    wanted, found = prior.logits(*inputs).cpu(), load_program(path)(*inputs)
    same = [
        own.argmax(-1) == other.argmax(-1)
        for own, other in zip(wanted.split(prior.head.sizes, -1), found.split(prior.head.sizes, -1), strict=True)
    ]
    return torch.stack(same, -1), float((wanted - found).abs().max())


def _random_rows(prior: Prior, num: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Rows, and classes if the prior has any."""
    present = prior.present.cpu()
    sizes = torch.tensor(prior.layout.vocabulary.codebook_sizes)
    rows = (torch.rand(num, *present.shape, generator=generator) * sizes).long()
    known = present & (torch.rand(num, len(present), 1, generator=generator) < 0.5)
    rows = rows.masked_fill(~known, -1)
    if prior.num_classes is None:
        return (rows,)
    return rows, torch.randint(0, prior.num_classes, (num,), generator=generator)
