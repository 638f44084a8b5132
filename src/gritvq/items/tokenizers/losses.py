"""Additional losses of RQ-VAE: alignment with user-item interactions, diversity of the codes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.component import Component
from gritvq.files import regular_file
from gritvq.items.tokenizers.kmeans import balanced_kmeans
from gritvq.quantizers.base import Codebook, Quantizer, QuantizerOutput
from gritvq.quantizers.functional import nearest_code

__all__ = ["CollaborativeLoss", "DiversityLoss", "ItemLoss"]


class ItemLoss(Component, ABC):
    """A loss of :class:`~gritvq.items.RQVAE` in addition to the reconstruction and the quantizer's losses."""

    @abstractmethod
    def forward(self, items: Int[Tensor, " B"], output: QuantizerOutput, quantizer: Quantizer) -> Float[Tensor, ""]:
        """The weighted loss of a batch.

        Args:
            items: Rows of the batch's items in the training embeddings.
            output: Output of the quantizer.
            quantizer: The quantizer.
        """

    def check(self, num_items: int, quantizer: Quantizer) -> None:
        """Check before training that the loss fits; does nothing unless overridden.

        Raises:
            ValueError: If the loss does not fit the data or the quantizer.
        """


class CollaborativeLoss(ItemLoss):
    """Aligns quantized vectors with frozen collaborative vectors of the items: InfoNCE over the batch.

    ``-weight * mean_i log(exp <z_i, h_i> / sum_j exp <z_i, h_j>)`` with quantized vectors z and collaborative vectors
    h, for example of SASRec.

    Args:
        vectors: ``.npy`` file (n, d): row i belongs to row i of the embeddings, d is the quantizer's ``dim``, as
            ``gritvq semantic-ids vectors`` writes it. Items with rows of NaN, of which nothing is known, are left out
            of the loss. Only needed for training.
        weight: The paper's alpha; 0.1 in the paper, 0.01 in the authors' script.

    Raises:
        ValueError: If the weight is negative; when training starts, if the file does not fit.

    References:
        Wang et al., "Learnable Item Tokenization for Generative Recommendation" (LETTER), CIKM 2024, arXiv 2405.07314,
        eq. 4.
    """

    def __init__(self, vectors: str, weight: float = 0.01) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"expected weight >= 0, got {weight}; give a larger one")
        self.vectors, self.weight = str(vectors), float(weight)
        self._loaded: Tensor | None = None

    def check(self, num_items: int, quantizer: Quantizer) -> None:
        """Read the vectors.

        Raises:
            ValueError: If the file is missing, or its shape or numbers do not fit.
        """
        try:
            vectors = torch.from_numpy(
                np.array(np.lib.format.open_memmap(regular_file(self.vectors), mode="r"), np.float32)
            )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"expected a .npy file of numbers, got {self.vectors} ({error}); write it with numpy.save"
            ) from error
        unknown = vectors.isnan().all(1) if vectors.ndim == 2 else vectors.new_zeros(0, dtype=torch.bool)
        fits = vectors.shape == (num_items, quantizer.dim) and bool(torch.isfinite(vectors[~unknown]).all())
        if not fits or bool(unknown.all()):
            raise ValueError(
                f"expected finite vectors ({num_items}, {quantizer.dim}), or NaN throughout where an item has none, in "
                f"{self.vectors}, got {tuple(vectors.shape)}; give one per item, of the quantizer's dim"
            )
        self._loaded = vectors

    def forward(self, items: Int[Tensor, " B"], output: QuantizerOutput, quantizer: Quantizer) -> Float[Tensor, ""]:
        """InfoNCE with the other items of the batch as negatives; copies of an item are not its negatives."""
        if self._loaded is None:
            raise ValueError("expected loaded vectors, got none; call check(num_items, quantizer) before training")
        vectors = self._loaded.to(output.quantized)[items.to(self._loaded.device)]
        known = ~vectors.isnan().any(1)
        if not bool(known.any()):
            return output.quantized.sum() * 0
        vectors, items, quantized = vectors[known], items[known], output.quantized[known]
        logits = quantized @ vectors.T
        same = (items[:, None] == items) & ~torch.eye(len(items), dtype=torch.bool, device=items.device)
        target = torch.arange(len(items), device=logits.device)
        return self.weight * F.cross_entropy(logits.masked_fill(same, -torch.inf), target)


class DiversityLoss(ItemLoss):
    """Pulls codes toward codes of their group and away from others, so that items spread over the codes.

    The codes of each level are grouped by balanced k-means every ``interval`` steps. With the code ``e_i`` of an item
    at a level and a random other code ``e_+`` of its group, the loss is
    ``-weight * log(exp <e_i, e_+> / sum_{j != i} exp <e_i, e_j>)``, averaged over items and levels.

    Args:
        weight: The paper's beta; 0.1 in the paper, 0.0001 in the authors' script.
        num_groups: Groups per level.
        interval: Steps between two groupings.

    Raises:
        ValueError: If a number is out of range; when training starts, unless the quantizer has one table per level.

    References:
        Wang et al., "Learnable Item Tokenization for Generative Recommendation" (LETTER), CIKM 2024, arXiv 2405.07314,
        eq. 5. Deviation: groups are found by our balanced k-means.
    """

    def __init__(self, weight: float = 1e-4, *, num_groups: int = 10, interval: int = 100) -> None:
        super().__init__()
        if weight < 0 or num_groups < 1 or interval < 1:
            raise ValueError(
                f"expected weight >= 0, num_groups >= 1 and interval >= 1, got {weight}, {num_groups}, {interval}; "
                "give larger ones"
            )
        self.weight, self.num_groups, self.interval = float(weight), num_groups, interval
        self._groups: list[Tensor] = []
        self._step = 0

    def check(self, num_items: int, quantizer: Quantizer) -> None:
        """Check that every level has a table of at least two codes per group.

        Raises:
            ValueError: If a level has none.
        """
        sizes = tuple(book.codebook_size for book in _codebooks(quantizer))
        if sizes != tuple(quantizer.codebook_sizes):
            raise ValueError(
                f"expected one codebook per level, got {sizes} for the levels {quantizer.codebook_sizes}; use a "
                "quantizer with a codebook at every level"
            )
        if min(sizes) < 2 * self.num_groups:
            raise ValueError(
                f"expected at least {2 * self.num_groups} codes per level, got {min(sizes)}; reduce num_groups"
            )
        self._groups, self._step = [], 0

    def forward(self, items: Int[Tensor, " B"], output: QuantizerOutput, quantizer: Quantizer) -> Float[Tensor, ""]:
        """The loss, a mean over items and levels."""
        tables = [book.codes() for book in _codebooks(quantizer)]
        if self._step % self.interval == 0:
            self._groups = [_grouped(codes.detach(), self.num_groups) for codes in tables]
        self._step += 1
        losses = []
        for level, (codes, groups) in enumerate(zip(tables, self._groups, strict=True)):
            own = output.indices[:, level]
            itself = F.one_hot(own, len(codes)).bool()
            mates = (groups[own][:, None] == groups) & ~itself
            alone = ~mates.any(1)
            candidates = mates | (alone[:, None] & ~itself)
            mate = torch.where(candidates, torch.rand(candidates.shape, device=own.device), -1).argmax(1)
            logits = (codes[own] @ codes.T).masked_fill(itself, -torch.inf)
            each = F.cross_entropy(logits, mate, reduction="none")
            losses.append(torch.where(alone, 0, each).mean())
        return self.weight * torch.stack(losses).mean()


def _codebooks(quantizer: Quantizer) -> list[Codebook]:
    return [module for module in quantizer.modules() if isinstance(module, Codebook)]


def _grouped(codes: Tensor, num_groups: int) -> Int[Tensor, " K"]:
    clusters = balanced_kmeans(codes, num_groups, torch.Generator().manual_seed(0), iterations=10)
    padded = codes if clusters.prices is None else F.pad(codes, (0, 1))
    return nearest_code(padded, clusters.table())
