"""The training task of generative recommenders."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from gritvq.component import packages_of
from gritvq.items.interactions import Histories
from gritvq.items.recommenders import GenerativeRecommender, rank_in_list, ranking_metrics
from gritvq.training.optimizer import OptimizerSettings, RateSchedule
from gritvq.training.run_folder import RunFolder
from gritvq.training.task import Task, copy_weights

__all__ = ["BestRecommender", "RecommenderTask"]

log = logging.getLogger("gritvq")
_SELECTED_BY = "val/ndcg@10"


class RecommenderTask(Task):
    """Trains a recommender with AdamW; validates by Recall and NDCG of its lists of items.

    Args:
        recommender: The recommender to train.
        lr: Peak learning rate.
        warmup_steps: Steps of linear warm-up.
        schedule: Schedule after the warm-up, see :class:`gritvq.training.OptimizerSettings`.
        betas: AdamW's decay rates.
        weight_decay: Weight decay of matrices; vectors have none.
        beam: Beam size in validation, at least 10; unused if the recommender's backbone is parallel.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        recommender: GenerativeRecommender,
        *,
        lr: float = 1e-3,
        warmup_steps: int = 300,
        schedule: RateSchedule = "cosine",
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.1,
        beam: int = 20,
    ) -> None:
        super().__init__(
            OptimizerSettings(
                lr=lr, warmup_steps=warmup_steps, schedule=schedule, betas=betas, weight_decay=weight_decay
            )
        )
        if beam < 10:
            raise ValueError(f"expected beam >= 10, got {beam!r}; validation needs the first 10 items")
        self.recommender, self.beam = recommender, beam

    def run_callbacks(self, run: RunFolder | None) -> list[Callback]:
        """With a folder: :class:`BestRecommender`."""
        return [] if run is None else [BestRecommender(run.recommender)]

    def finish(self, run: RunFolder, training: Mapping[str, Any]) -> None:
        """Write ``recommender/``; weights of the best validation stay, and the last ones are in the last checkpoint."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        validated = any(isinstance(each, BestRecommender) and each.best >= 0 for each in callbacks)
        validated = validated and run.recommender.exists()  # not so if it was resumed in another folder
        recommender = self.load(run.recommender) if validated else self.recommender
        told = {**training, "weights": "of the best validation" if validated else "of the last step"}
        recommender.save_pretrained(run.recommender, told)

    def load(self, source: str | Path) -> GenerativeRecommender:
        """Load a recommender, trusting the packages that this one's classes come from."""
        return GenerativeRecommender.from_pretrained(source, trusted=packages_of(self.recommender))

    def start_from(self, recommender: GenerativeRecommender) -> None:
        """Copy the weights of a recommender with the same ids and backbone.

        Raises:
            ValueError: If ids or tensors differ.
        """
        if recommender.ids_digest != self.recommender.ids_digest:
            raise ValueError(
                "expected a recommender of these ids to start from, got one of other ids; give its ids with --ids"
            )
        copy_weights(self.recommender.backbone, recommender.backbone)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also save which ids the weights belong to."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["ids"] = self.recommender.ids_digest

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also check that the checkpoint was trained on the same ids.

        Raises:
            ValueError: If ids or settings differ.
        """
        if checkpoint.get("ids") != self.recommender.ids_digest:
            raise ValueError(
                "expected a checkpoint trained on these ids, got one of other ids; resume with the ids of that run, or "
                "start a new one"
            )
        if isinstance(began := checkpoint.get("settings"), dict):  # earlier versions listed seen items always
            checkpoint = {**checkpoint, "settings": {"exclude_seen": False, **began}}
        super().check_checkpoint(checkpoint)

    @property
    def settings(self) -> dict[str, Any]:
        """Also whether seen items are excluded."""
        return {**super().settings, "exclude_seen": self.recommender.exclude_seen}

    def losses(self, histories: Histories) -> list[Tensor]:
        """Loss of one batch in nats, see the backbone."""
        loss = self.recommender(histories)
        if self.measures_now:
            backbone = self.recommender.backbone
            levels = len(backbone.codebook_sizes) if backbone.mean_over_levels else 1
            self.check_finite(self.log_losses({"nats_per_item": levels * loss})["nats_per_item"])
        return [loss]

    def validation_step(self, batch: tuple[Histories, Tensor], batch_idx: int) -> None:
        """Measure histories and targets (B,)."""
        histories, targets = batch
        found = self.recommender.recommend(histories, 10, beam=self.beam)
        numbers = ranking_metrics(rank_in_list(found.cpu(), targets.cpu()))
        self.log_validation(numbers, len(targets))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices with weight decay, vectors without."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]


class BestRecommender(Callback):
    """Saves the recommender after each validation with the best NDCG@10 so far.

    Args:
        folder: Where to save it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.best = folder, -1.0

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value."""
        self.best = state_dict["best"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the recommender if it is the best so far."""
        now = float(trainer.callback_metrics[_SELECTED_BY])
        if now > self.best:
            self.best = now
            if trainer.is_global_zero:
                recommender: Any = pl_module.recommender
                recommender.save_pretrained(self.folder)
                log.info("step %d: NDCG@10 %.4f, the best so far", cast(Task, pl_module).step, now)
