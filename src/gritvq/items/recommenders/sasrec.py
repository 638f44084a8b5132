"""SASRec, the sequential recommender used as a baseline for generative ones."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gritvq.component import check_integer, eval_mode
from gritvq.export import Format
from gritvq.items.interactions import Histories, Split, check_items
from gritvq.items.recommenders.backbones.base import mask_items_before
from gritvq.items.recommenders.ranking import ranking_metrics, ranks_by_scores, without_seen
from gritvq.training.optimizer import OptimizerSettings, take_steps

__all__ = ["SASRec"]

_WINDOW = 20  # batches that are sorted by length together


class SASRec(nn.Module):
    """Causal self-attention over the last items; an item's score is its embedding times the last hidden state.

    ``h = Transformer(e[items] sqrt(D) + p)`` and ``score(i) = <h_last, e_i>``, with one table e for inputs and outputs.
    The loss is the cross-entropy over the whole catalogue at every position. The paper uses binary cross-entropy with
    one sampled negative per position; tuned reimplementations use the full softmax, which is clearly better.

    Args:
        num_items: Number of items n.
        dim: Size D of embeddings and hidden states, a multiple of ``num_heads``.
        num_layers: Number of transformer layers.
        num_heads: Number of attention heads.
        max_length: Number of newest items that the model reads.
        dropout: Dropout rate in [0, 1).
        exclude_seen: Whether each item is a candidate only until a user has it: in the loss among the items that the
            model reads, and for scores, where all items of the history have minus infinity.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> model = SASRec(100, 16)
        >>> model.scores(Histories.of([[3, 7], [1]])).shape, model.item_vectors().shape
        (torch.Size([2, 100]), torch.Size([100, 16]))

    References:
        Kang, McAuley: Self-attentive sequential recommendation. ICDM 2018, arXiv 1808.09781.
        Klenitskiy, Vasilev: Turning dross into gold loss. RecSys 2023, arXiv 2309.07602 (the loss).
    """

    def __init__(
        self,
        num_items: int,
        dim: int = 64,
        *,
        num_layers: int = 2,
        num_heads: int = 2,
        max_length: int = 50,
        dropout: float = 0.5,
        exclude_seen: bool = False,
    ) -> None:
        super().__init__()
        if min(num_items, dim, num_layers, num_heads, max_length) < 1 or dim % num_heads or not 0 <= dropout < 1:
            raise ValueError(
                "expected positive sizes, dim a multiple of num_heads and dropout in [0, 1), got "
                f"num_items={num_items}, dim={dim}, num_layers={num_layers}, num_heads={num_heads}, "
                f"max_length={max_length}, dropout={dropout}; change the one that is out of range."
            )
        self.num_items, self.dim, self.max_length, self.exclude_seen = num_items, dim, max_length, exclude_seen
        self.embedding = nn.Embedding(num_items, dim)
        self.position = nn.Embedding(max_length, dim)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(
            dim, num_heads, 4 * dim, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        for table in (self.embedding, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, items: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Hidden states after each item.

        Args:
            items: Item rows, oldest first, padded on the right with -1; at most ``max_length`` columns.
        """
        length = items.shape[1]
        x = self.embedding(items.clamp_min(0)) * self.dim**0.5 + self.position.weight[:length] * self.dim**0.5
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=items.device)
        # Right padding needs no mask in a causal model.
        return self.layers(self.dropout(x), mask=mask, is_causal=True)

    def loss(self, histories: Histories) -> Tensor:
        """Mean cross-entropy of all items but the first, given those before; histories of one item are ignored."""
        rows = histories.aligned(self.max_length + 1).to(self.embedding.weight.device)
        target = rows[:, 1:]
        hidden = self(rows[:, :-1])[target >= 0]
        logits = hidden @ self.embedding.weight.T
        if self.exclude_seen:
            logits = mask_items_before(logits, rows, F.pad(target >= 0, (1, 0)).flatten().nonzero()[:, 0])
        return F.cross_entropy(logits, target[target >= 0])

    @torch.no_grad()
    def scores(self, histories: Histories) -> Float[Tensor, "B n"]:
        """Scores of all items, without dropout; zeros for an empty history.

        Raises:
            ValueError: If an item row is out of range.
        """
        check_items(histories.items, self.num_items)
        with eval_mode(self):
            scores = self.scores_of_rows(histories.aligned(self.max_length).to(self.embedding.weight.device))
        return without_seen(scores, histories) if self.exclude_seen else scores

    def scores_of_rows(self, items: Int[Tensor, "B T"]) -> Float[Tensor, "B n"]:
        """Scores of all items after the last of each row; zeros for a row without items.

        Args:
            items: As for :meth:`forward`.
        """
        length = (items >= 0).sum(1)
        last = (length - 1).clamp_min(0)[:, None, None].expand(-1, 1, self.dim)
        return (self(items).gather(1, last)[:, 0] * (length > 0)[:, None]) @ self.embedding.weight.T

    def export(self, folder: str | os.PathLike[str], format: Format = "onnx", *, k: int = 10) -> Path:
        """Write the model as one program ``recommender`` that runs without gritvq, for any number of users.

        It maps ``histories`` (B, max_length), item rows of int64, oldest first, padded with -1 behind the newest, and
        ``allowed`` (B, n), bool, to ``items`` (B, k), the allowed ones with the highest :meth:`scores`, and their
        ``scores`` (B, k), as the program of a :class:`gritvq.items.GenerativeRecommender` does.

        Args:
            folder: Folder of the file; one of the same name is replaced.
            format: See :func:`gritvq.export.write_programs`.
            k: Number of items.

        Raises:
            ValueError: If k is smaller than 1, packages are missing, or an operator cannot be exported.
        """
        from gritvq.items.recommenders.program import write_sasrec

        return write_sasrec(self, folder, format, check_integer("k", k))

    def item_vectors(self) -> Float[Tensor, "n D"]:
        """A copy of the item embeddings, float32 on the CPU, for :class:`gritvq.items.CollaborativeLoss`."""
        return self.embedding.weight.detach().float().cpu().clone()

    def fit(
        self,
        split: Split,
        *,
        max_epochs: int = 40,
        patience: int = 4,
        lr: float = 1e-3,
        batch_size: int = 128,
        seed: int = 0,
        progress: bool = False,
    ) -> list[dict[str, float]]:
        """Trains on the training parts and keeps the weights with the best NDCG@10 on the validation items.

        Test targets are not used. AdamW without weight decay, constant learning rate after 100 warm-up steps.

        Args:
            split: Leave-one-out split with ``num_items`` items.
            max_epochs: Largest number of epochs.
            patience: Epochs without improvement after which training stops.
            lr: Learning rate.
            batch_size: Users per step.
            seed: Seed of order and dropout. Initial weights depend on the global seed at construction.
            progress: Whether to print a line per epoch.

        Returns:
            For each epoch ``epoch``, ``loss``, ``seconds`` since the start, and the validation metrics.

        Raises:
            ValueError: If ``max_epochs`` is below 1, the split has another number of items, no user has two training
                events, or the loss is not finite.
        """
        check_integer("max_epochs", max_epochs, hint="40 is usual")
        if split.num_items != self.num_items:
            raise ValueError(
                f"expected a split with {self.num_items} items, got {split.num_items}; set num_items to that."
            )
        users = (split.train.lengths > 1).nonzero().squeeze(1)
        if not len(users):
            raise ValueError("expected a user with two training events, got none; use more events.")
        settings = OptimizerSettings(lr=lr, warmup_steps=100, schedule="constant", betas=(0.9, 0.98), gradient_clip=1.0)
        optimizer, schedule = settings.optimizer([{"params": list(self.parameters())}], -1)
        generator, begun = torch.Generator().manual_seed(seed), time.perf_counter()
        best, best_state, history = -1.0, {}, []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for epoch in range(1, max_epochs + 1):
                self.train()
                order = _batches(users, split.train.lengths, batch_size, generator)
                losses = (self.loss(split.train[batch]) for batch in order)
                total = sum(take_steps(losses, optimizer, schedule, gradient_clip=settings.gradient_clip))
                metrics = ranking_metrics(ranks_by_scores(self.scores, split.validation_inputs, split.validation))
                history.append({"epoch": epoch, "loss": total / len(order), **metrics})
                history[-1]["seconds"] = time.perf_counter() - begun
                if progress:
                    print(" ".join(f"{name} {value:.4g}" for name, value in history[-1].items()), flush=True)
                if metrics["ndcg@10"] > best:
                    best, best_epoch = metrics["ndcg@10"], epoch
                    best_state = {name: value.clone() for name, value in self.state_dict().items()}
                elif epoch - best_epoch >= patience:
                    break
        self.load_state_dict(best_state)
        self.eval()
        return history


def _batches(users: Tensor, lengths: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """Users in random batches of similar lengths, to reduce padding."""
    order = users[torch.randperm(len(users), generator=generator)]
    parts: list[Tensor] = []
    for window in order.split(size * _WINDOW):
        parts += window[lengths[window].argsort(stable=True)].split(size)
    return [parts[i] for i in torch.randperm(len(parts), generator=generator).tolist()]
