"""Training of text models."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import torch
from jaxtyping import Float
from lightning import Callback
from torch import Tensor, nn

from gritvq.component import check_integer, check_number, packages_of
from gritvq.distributed import all_reduce_sum, all_reduce_sums, joined_mean, process_number
from gritvq.quantizers.base.schedules import Schedule
from gritvq.quantizers.metrics import CodebookUsage
from gritvq.text.data import TextData
from gritvq.text.networks.model import TraceModel
from gritvq.text.segments import TextBatch
from gritvq.text.tokenizer import TextTokenizer
from gritvq.training.callbacks import CodebookInitialization, CodebookUpdate, CollapseWarning
from gritvq.training.optimizer import OptimizerSettings, RateSchedule
from gritvq.training.run_folder import RunFolder
from gritvq.training.task import Task, copy_weights

__all__ = ["CyclicSchedule", "TextTask", "TextTokenizerTask"]

_WINDOW = 100  # steps over which the codes in use are counted


class CyclicSchedule(Schedule):
    """From ``start`` to ``end`` on a straight line in the first part of each cycle, ``end`` in the rest.

    Args:
        start: Value at the start of a cycle.
        end: Value after the line, and after the last cycle.
        period: Steps of a cycle.
        num_cycles: Number of cycles.
        share: Length of the line over that of the cycle, in (0, 1].

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> schedule = CyclicSchedule(period=10, num_cycles=2)
        >>> [round(schedule.at(torch.tensor(float(step))).item(), 1) for step in (0, 1, 5, 9, 10, 12, 30)]
        [0.0, 0.2, 1.0, 1.0, 0.0, 0.4, 1.0]

    References:
        Fu et al., Cyclical annealing schedule, NAACL 2019, arXiv 1903.10145: a share of a half.
    """

    def __init__(
        self, start: float = 0.0, end: float = 1.0, *, period: int = 500, num_cycles: int = 4, share: float = 0.5
    ) -> None:
        super().__init__()
        self.start, self.end = float(start), float(end)
        self.period, self.num_cycles = check_integer("period", period), check_integer("num_cycles", num_cycles)
        self.share = check_number("share", share, 1e-6, 1.0)

    def at(self, step: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The formula above."""
        passed = (step % self.period) / (self.share * self.period)
        grown = torch.where(step < self.num_cycles * self.period, passed.clamp(max=1.0), 1.0)
        return self.start + (self.end - self.start) * grown


class TextTask(Task):
    """Trains a model of text with AdamW on the bound per token; validation logs it with its parts.

    The loss is ``(sum -log p(x_ti | ...) + weight * sum KL_t) / number of tokens`` over a batch, in nats per token.
    Weight 1 and no free bits are the negative bound itself.

    Args:
        model: The model; one without latents ignores the settings of the KL divergence and of the bag of words.
        lr: Peak learning rate.
        warmup_steps: Steps of linear warm-up.
        schedule: After the warm-up, see :class:`gritvq.training.OptimizerSettings`.
        betas: AdamW's decay rates.
        weight_decay: For matrices; vectors, embeddings and the recurrence get none.
        kl_weight: Weight of the KL divergence, or a schedule of it over optimizer steps: ``gritvq.LinearSchedule`` or
            :class:`CyclicSchedule`.
        free_bits: Nats of each latent component that cost nothing: the loss has ``max(mean KL, free_bits)`` with the
            mean over the segments of a batch. 0 for none.
        bag_of_words: Weight of a loss that predicts the tokens of a segment from its latent alone, in any order, by
            one linear layer; 0 for none. The layer is not a part of the model.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> from gritvq.text import trace
        >>> task = TextTask(trace(300, dim=4, width=16, depth=1, num_heads=2), kl_weight=CyclicSchedule(period=100))
        >>> task.kl_weight_at(25)
        0.5

    References:
        Kingma et al., Improving variational inference with inverse autoregressive flow, NeurIPS 2016, arXiv 1606.04934
        (free bits, there per group of components); Zhao et al., ACL 2017, arXiv 1703.10960 (bag of words).
    """

    def __init__(
        self,
        model: TraceModel,
        *,
        lr: float = 1e-3,
        warmup_steps: int = 100,
        schedule: RateSchedule = "cosine",
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
        kl_weight: float | Schedule = 1.0,
        free_bits: float = 0.0,
        bag_of_words: float = 0.0,
    ) -> None:
        super().__init__(
            OptimizerSettings(
                lr=lr, warmup_steps=warmup_steps, schedule=schedule, betas=betas, weight_decay=weight_decay
            )
        )
        self.model = model
        self.kl_weight = kl_weight if isinstance(kl_weight, Schedule) else check_number("kl_weight", kl_weight)
        self.free_bits = check_number("free_bits", free_bits)
        self.bag_of_words = check_number("bag_of_words", bag_of_words)
        self.words: nn.Linear | None = None
        if bag_of_words and model.decoder.dim is not None:
            self.words = nn.Linear(model.decoder.dim, model.vocab_size - 1)

    def kl_weight_at(self, step: int) -> float:
        """Weight of the KL divergence at an optimizer step."""
        if isinstance(self.kl_weight, Schedule):
            return float(self.kl_weight.at(torch.tensor(float(step))))
        return self.kl_weight

    def check_data(self, data: TextData) -> None:
        """Check that the model takes the documents, and give it their vocabulary and segmentation.

        Raises:
            ValueError: If it does not.
        """
        self.model.use(data.format)

    def run_callbacks(self, run: RunFolder | None) -> list[Callback]:
        """No callbacks."""
        return []

    def finish(self, run: RunFolder, training: Mapping[str, Any]) -> None:
        """Write ``text-model/``."""
        self.model.save_pretrained(run.text_model, training)

    def load(self, source: str) -> TraceModel:
        """Load a model, trusting the packages that this one's classes come from."""
        return TraceModel.from_pretrained(source, trusted=packages_of(self.model))

    def start_from(self, model: TraceModel) -> None:
        """Copy the weights of a model of the same architecture and vocabulary.

        Raises:
            ValueError: If a part or the vocabulary differs.
        """
        check_vocabulary(fingerprint_of(model), fingerprint_of(self.model), "model")
        copy_weights(self.model, model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save also the fingerprint of the vocabulary."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["vocabulary"] = fingerprint_of(self.model)

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint was trained with the same vocabulary.

        Raises:
            ValueError: If it was not, or a setting differs.
        """
        check_vocabulary(checkpoint.get("vocabulary"), fingerprint_of(self.model), "checkpoint")
        super().check_checkpoint(checkpoint)

    @property
    def settings(self) -> dict[str, Any]:
        """Also free bits and bag of words."""
        return {**super().settings, "free_bits": self.free_bits, "bag_of_words": self.bag_of_words}

    def losses(self, batch: TextBatch) -> list[Tensor]:
        """Loss of one batch."""
        terms, output = self.terms(batch)
        weights = {"reconstruction": 1.0, "kl": self.kl_weight_at(self.step), "bag_of_words": self.bag_of_words}
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        if self.measures_now:
            kl, num_segments = all_reduce_sum(output.sum()), all_reduce_sum(batch.present.sum())
            self.check_finite(self.log_losses({**terms, "loss": loss})["loss"])
            self.log("train/kl_weight", weights["kl"])
            self.log("train/kl_per_segment", kl / num_segments)
        return [loss]

    def terms(self, batch: TextBatch) -> tuple[dict[str, Tensor], Float[Tensor, "B T D"]]:
        """Parts of the loss in nats per token, without their weights; and the KL divergences, detached."""
        output = self.model(batch)
        count, num_segments = all_reduce_sums(batch.valid.sum(), batch.present.sum())
        found = {"reconstruction": joined_mean(-output.log_probs.sum(), count)}
        if self.model.latents is not None:
            means = all_reduce_sum(output.kl.sum((0, 1))) / num_segments
            found["kl"] = means.clamp(min=self.free_bits).sum() * num_segments / count
        if self.words is not None:
            scores = self.words(output.latents).log_softmax(-1)
            rows = torch.arange(len(batch.tokens), device=batch.tokens.device)[:, None]
            each = scores[rows, batch.segments.clamp(min=0), batch.tokens]
            found["bag_of_words"] = joined_mean(-(each * batch.valid).sum(), count)
        return found, output.kl.detach()

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        """Log metrics of one batch: the bound from one draw of the latents, the same in every validation."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # a validation must not change the training
            rank, world = process_number()
            torch.manual_seed(batch_idx * world + rank)  # the batch's number among those of all processes
            output = self.model(batch)
        count, num_segments = int(batch.valid.sum()), int(batch.present.sum())
        reconstruction, kl = -output.log_probs.sum() / count, output.kl.sum() / count
        numbers = {"nats_per_token": reconstruction + kl, "reconstruction": reconstruction}
        self.log_validation(numbers, count)
        if self.model.latents is not None:
            self.log_validation({"kl_per_segment": output.kl.sum() / num_segments}, num_segments)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices, and without weight decay vectors, embeddings and the recurrence."""
        return groups_of(self)


class TextTokenizerTask(Task):
    """Trains a text tokenizer with AdamW; logs nats per token, usage and perplexity.

    The loss is the mean negative log-probability of the tokens given the quantized latents, in nats per token, plus the
    quantizer's losses. Those of a quantizer whose losses are a bound (``objective`` ``"arelbo"`` or ``"albo"``) are in
    nats per segment and count once per segment.

    Args:
        tokenizer: The tokenizer.
        lr: Peak learning rate of encoder and decoder; the quantizer sets those of its own parameters.
        warmup_steps: Steps of linear warm-up.
        schedule: After the warm-up, see :class:`gritvq.training.OptimizerSettings`.
        betas: AdamW's decay rates.
        weight_decay: For matrices; vectors, embeddings and codebooks get none.

    Raises:
        ValueError: If a number is out of range, or the quantizer needs an objective of its own that text does not have.

    Example:
        >>> from gritvq import grit_vq
        >>> from gritvq.text import segment_tokenizer
        >>> task = TextTokenizerTask(segment_tokenizer(grit_vq(8, 64), 300, width=16, depth=1, num_heads=2))
        >>> task.tokenizer.quantizer.codebook_sizes
        (64,)
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        lr: float = 1e-3,
        warmup_steps: int = 100,
        schedule: RateSchedule = "cosine",
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(
            OptimizerSettings(
                lr=lr, warmup_steps=warmup_steps, schedule=schedule, betas=betas, weight_decay=weight_decay
            )
        )
        if tokenizer.quantizer.objective not in ("reconstruction", "arelbo", "albo"):
            raise ValueError(
                f"expected a quantizer with the objective 'reconstruction', 'arelbo' or 'albo', got "
                f"{tokenizer.quantizer.objective!r} from {type(tokenizer.quantizer).__name__}; its loss needs errors "
                "of numbers, not of text"
            )
        self.tokenizer = tokenizer
        sizes = tokenizer.quantizer.codebook_sizes
        self.codebook_usage, self.window_usage = CodebookUsage(sizes), CodebookUsage(sizes)
        self._keeps_codes, self._window = False, 0
        self._data: TextData | None = None

    def check_data(self, data: TextData) -> None:
        """Check that the tokenizer takes the documents, and give it their vocabulary and segmentation.

        Raises:
            ValueError: If it does not.
        """
        self.tokenizer.use(data.format)
        self._data = data

    def run_callbacks(self, run: RunFolder | None) -> list[Callback]:
        """Codebook initialization and updates; with a folder also a collapse warning."""
        fitting: list[Callback] = [] if self._keeps_codes else [CodebookInitialization()]
        needed: list[Callback] = [*fitting, CodebookUpdate()]
        return needed if run is None else [*needed, CollapseWarning()]

    def finish(self, run: RunFolder, training: Mapping[str, Any]) -> None:
        """Write ``tokenizer/``; its ``config.json`` also describes the data that :meth:`check_data` has seen."""
        if self._data is not None:
            training = {**training, "data": {**self._data.settings(), "splits": self._data.describe()["splits"]}}
        self.tokenizer.save_pretrained(run.tokenizer, training)

    def load(self, source: str) -> TextTokenizer:
        """Load a tokenizer, trusting the packages that this one's classes come from."""
        return TextTokenizer.from_pretrained(source, trusted=packages_of(self.tokenizer))

    def start_from(self, tokenizer: TextTokenizer) -> None:
        """Copy the weights of a tokenizer of the same architecture and vocabulary; its codes are kept.

        Raises:
            ValueError: If a part or the vocabulary differs.
        """
        check_vocabulary(fingerprint_of(tokenizer), fingerprint_of(self.tokenizer), "tokenizer")
        copy_weights(self.tokenizer, tokenizer)
        self._keeps_codes = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save also the fingerprint of the vocabulary, and the counts of the window whose usage is logged."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["vocabulary"] = fingerprint_of(self.tokenizer)
        checkpoint["window_usage"] = {"window": self._window, **self.window_usage.state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also restore the counts."""
        super().on_load_checkpoint(checkpoint)
        self._window = checkpoint["window_usage"]["window"]
        self.window_usage.restore(checkpoint["window_usage"])

    def check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint was trained with the same vocabulary.

        Raises:
            ValueError: If it was not, or a setting differs.
        """
        check_vocabulary(checkpoint.get("vocabulary"), fingerprint_of(self.tokenizer), "checkpoint")
        super().check_checkpoint(checkpoint)

    def losses(self, batch: TextBatch) -> list[Tensor]:
        """Loss of one batch."""
        output = self.tokenizer(batch)
        count, num_segments = all_reduce_sums(batch.valid.sum(), batch.present.sum())
        bounded = self.tokenizer.quantizer.objective != "reconstruction"
        share = num_segments / count if bounded else 1.0
        terms = {"reconstruction": joined_mean(-output.reconstruction.sum(), count)}
        terms |= {name: share * loss for name, loss in output.quantization.losses.items()}
        loss = torch.stack(list(terms.values())).sum()
        if self._window != self.step // _WINDOW:
            self._window = self.step // _WINDOW
            self.window_usage.reset()
        self.window_usage.update(output.quantization.indices)
        if self.measures_now:
            self.check_finite(torch.stack(list(self.log_losses(terms).values())).sum())
            counts = self.window_usage.compute()
            self.log("train/usage", counts["usage"])
            self.log("train/perplexity", counts["perplexity"])
        return [loss]

    def on_validation_epoch_start(self) -> None:
        """Reset the counts."""
        super().on_validation_epoch_start()
        self.codebook_usage.reset()

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        """Log nats per token, and count codes."""
        output, count = self.tokenizer(batch), int(batch.valid.sum())
        self.codebook_usage.update(output.quantization.indices)
        self.log_validation({"nats_per_token": -output.reconstruction.sum() / count}, count)

    def on_validation_epoch_end(self) -> None:
        """Log also usage and perplexity of the codes."""
        super().on_validation_epoch_end()
        self.log_dict({f"val/{name}": value for name, value in self.codebook_usage.compute().items()})

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Encoder and decoder as for :class:`TextTask`, and the quantizer's own groups."""
        quantizer, lr = self.tokenizer.quantizer, self.optimizer_settings.lr
        own = groups_of(self, set(quantizer.parameters()))
        return [*own, *({"weight_decay": 0.0, **group} for group in quantizer.parameter_groups(lr))]


def groups_of(module: nn.Module, skip: Set[Tensor] = frozenset()) -> list[dict[str, Any]]:
    """Parameters with weight decay, and those without: vectors, embeddings, and what decay does not shrink."""
    tables = {part.weight for part in module.modules() if isinstance(part, nn.Embedding)}
    tables |= {weight for name, weight in module.named_parameters() if name.endswith("recurrence.weight")}
    parameters = [p for p in module.parameters() if p.requires_grad and p not in skip]
    decayed = [p for p in parameters if p.ndim > 1 and p not in tables]
    kept = [p for p in parameters if p.ndim <= 1 or p in tables]
    return [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]


def fingerprint_of(model: Any) -> str | None:
    """Fingerprint of a model's vocabulary."""
    return None if model.format is None else str(model.format.subwords.fingerprint)


def check_vocabulary(given: Any, own: str | None, what: str) -> None:
    """Check that two vocabularies are the same; one that is not known is not compared.

    Raises:
        ValueError: If they differ.
    """
    if given is not None and own is not None and given != own:
        raise ValueError(
            f"expected a {what} of this vocabulary, fingerprint {own[:12]}, got one of {str(given)[:12]}, whose tokens "
            "mean something else; give its vocabulary, or start a new run"
        )
