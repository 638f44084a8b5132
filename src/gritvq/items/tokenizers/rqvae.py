"""RQ-VAE: a trained autoencoder of item embeddings around any quantizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import Component, from_config, packages_of, to_config
from gritvq.items.tokenizers.base import ItemTokenizer, tracked
from gritvq.items.tokenizers.losses import ItemLoss
from gritvq.items.tokenizers.search import CodeTable
from gritvq.quantizers.base import Quantizer, QuantizerOutput, check_quantizer
from gritvq.training.optimizer import OptimizerSettings, take_steps

__all__ = ["RQVAE"]

_ENCODER_TOLERANCE = 5e-6  # of |z|: layers in float32 were seen to be off by 3e-7
_WARM_UP = 50  # steps
_WEIGHT_DECAY = 0.01
_SCALE_WEIGHT = 0.1  # of what keeps latents at unit mean square, so that commitment does not have to shrink them


class RQVAE(ItemTokenizer):
    """Encoder, quantizer and decoder trained to reconstruct item embeddings; codes are the quantizer's.

    Training: embeddings are centered and divided by their overall standard deviation, kept with the weights. The first
    ``plain_share`` of the steps trains encoder and decoder alone, with latents held at unit mean square; then the codes
    are fitted to the latents of the whole catalogue, level by level, and everything is trained together. AdamW, cosine
    schedule, loss ``mean squared error / variance + quantizer's losses + others``. Quantizers made for a likelihood
    (``objective`` ``"arelbo"`` or ``"albo"``) get ``1/2 log`` of that error, or the error itself, per component, and
    their losses divided by D. Their variances start best at the latents' own, ``gm_vq(..., variance=1.0)`` and
    ``rsq_vae(..., initial_variance=1.0)``; with much smaller ones they collapse.

    ``fit`` starts from fresh weights drawn with ``seed``, so that it gives the same tokenizer every time, and leaves
    the tokenizer as it was if training fails. Latents are computed in float32; an item whose code would depend on
    rounding is encoded again in float64, so that its codes are the same in every batch.

    Args:
        quantizer: Any quantizer of single vectors, such as :func:`~gritvq.items.residual_stack` makes.
        encoder: Maps embeddings to latents, row by row; has ``input_dim``, ``dim`` and ``standardize(shift, scale)``,
            such as :class:`gritvq.items.ItemEncoder`.
        decoder: Maps quantized latents to embeddings; has the same.
        losses: Further losses.
        steps: Optimizer steps in all.
        batch_size: Items of a step.
        lr: Learning rate of encoder and decoder; codes have multiples of it (``Quantizer.parameter_groups``).
        seed: Of weights, batches and the quantizer's draws.

    Raises:
        ValueError: If the parts do not fit together or a number is out of range; in :meth:`fit`, if the loss is not
            finite any more.

    Example:
        >>> from gritvq import ResidualQuantizer, vq_vae
        >>> from gritvq.items import ItemDecoder, ItemEncoder
        >>> sizes = {"input_dim": 6, "dim": 4, "hidden": (8,)}
        >>> quantizer = ResidualQuantizer([vq_vae(4, 8) for _ in range(2)])
        >>> tokenizer = RQVAE(quantizer, encoder=ItemEncoder(**sizes), decoder=ItemDecoder(**sizes), steps=5)
        >>> tokenizer.fit(torch.randn(32, 6)).encode(torch.randn(3, 6)).shape
        torch.Size([3, 2])

    References:
        Rajput et al., "Recommender Systems with Generative Retrieval" (TIGER), NeurIPS 2023, arXiv 2305.05065; Lee et
        al., CVPR 2022, arXiv 2203.01941 (RQ-VAE). Deviations: AdamW, the plain start, the scale of the error.
    """

    plain_share = 0.2

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        encoder: Component,
        decoder: Component,
        losses: Sequence[ItemLoss] = (),
        steps: int = 2000,
        batch_size: int = 1024,
        lr: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_quantizer(quantizer)
        if encoder.input_dim != decoder.input_dim:
            raise ValueError(
                f"expected an encoder and a decoder of equal input_dim, got {encoder.input_dim} and {decoder.input_dim}"
            )
        for name, got, wanted in (
            ("the encoder", encoder.dim, quantizer.input_dim),
            ("the decoder", decoder.dim, quantizer.dim),
        ):
            if got != wanted:
                raise ValueError(f"expected {name} to have dim={wanted} as the quantizer has, got {got}")
        if quantizer.layout:
            raise ValueError(
                f"expected a quantizer of single vectors, got {type(quantizer).__name__} with the layout "
                f"{quantizer.layout}"
            )
        if quantizer.objective == "two_path":
            raise ValueError(
                f"expected a quantizer whose losses go beside one decoding, got {type(quantizer).__name__}, which "
                "wants two"
            )
        if steps < 1 or batch_size < 1 or not lr > 0:
            raise ValueError(f"expected steps >= 1, batch_size >= 1 and lr > 0, got {steps}, {batch_size}, {lr}")
        self.quantizer, self.encoder, self.decoder = quantizer, encoder, decoder
        self.losses = nn.ModuleList(losses)
        self.steps, self.batch_size, self.lr, self.seed = steps, batch_size, float(lr), seed
        self.codebook_sizes = tuple(quantizer.codebook_sizes)

    def _allocate(self, dim: int) -> None:
        if dim != self.encoder.input_dim:
            raise ValueError(f"expected an encoder of embeddings of size {dim}, got {self.encoder.input_dim}")

    def fold(self) -> RQVAE:
        """As for any tokenizer. The folded one has another quantizer, and so a fingerprint of its own."""
        folded = super().fold()
        folded._saved = None
        return folded

    # --- training -----------------------------------------------------------------------------------------------------

    def _fit(self, x: Float[Tensor, "n D"], progress: bool) -> None:
        self._allocate(x.shape[1])
        device = self._device()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
            torch.manual_seed(self.seed)
            fresh = cast("RQVAE", from_config(to_config(self), packages_of(self))).to(device)
            for loss in fresh._losses():
                loss.check(len(x), fresh.quantizer)
            fresh._train_all(x, progress)
        self.quantizer, self.encoder, self.decoder = fresh.quantizer, fresh.encoder, fresh.decoder

    def _losses(self) -> list[ItemLoss]:
        return cast("list[ItemLoss]", list(self.losses))

    def _train_all(self, x: Tensor, progress: bool) -> None:
        shift = x.mean(0)
        variance = (x - shift).square().mean()
        if not float(variance) > 0:
            raise ValueError("expected embeddings that differ, got a constant one; look at how they were made")
        for part in (self.encoder, self.decoder):
            part.standardize(shift, variance.sqrt().expand_as(shift))  # type: ignore[operator]
        networks = [*self.encoder.parameters(), *self.decoder.parameters()]
        groups = [{"params": networks}, *self.quantizer.parameter_groups(self.lr)]
        settings = OptimizerSettings(
            lr=self.lr, warmup_steps=_WARM_UP, schedule="cosine_from_start", weight_decay=_WEIGHT_DECAY
        )
        optimizer, schedule = settings.optimizer(groups, self.steps)
        num_plain = int(self.plain_share * self.steps)
        self.train()
        losses = self._step_losses(x, variance, num_plain, progress)
        for step, _ in enumerate(take_steps(losses, optimizer, schedule)):
            if step >= num_plain:
                self.quantizer.update_codebook(optimizer)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters()):
            raise ValueError(f"expected finite weights after training, got others; lower lr={self.lr:g}")

    def _step_losses(self, x: Tensor, variance: Tensor, num_plain: int, progress: bool) -> Iterator[Tensor]:
        """The loss of each step; the codes are fitted before the first that quantizes."""
        generator = torch.Generator().manual_seed(self.seed)
        batches = self._batches(len(x), generator)
        for step in tracked(range(self.steps), "training RQ-VAE", progress):
            if step == num_plain:
                self._initialize(x, generator)
            items = next(batches).to(x.device)
            yield self._loss(x[items], items, variance, step < num_plain)

    def _batches(self, num_items: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Row numbers, every item once in turn; the last few of a round are left out where they fill no batch."""
        size = min(self.batch_size, num_items)
        while True:
            order = torch.randperm(num_items, generator=generator)
            yield from order[: num_items // size * size].split(size)

    @torch.no_grad()
    def _initialize(self, x: Tensor, generator: torch.Generator) -> None:
        latents = torch.cat([self.encoder(rows) for rows in x[:65536].split(8192)])
        self.quantizer.initialize_codebook(latents, generator)

    def _loss(self, rows: Tensor, items: Tensor, variance: Tensor, plain: bool) -> Tensor:
        latents = self.encoder(rows)
        if plain:
            error = (self.decoder(latents) - rows).square().mean() / variance
            return error + _SCALE_WEIGHT * (latents.square().mean() - 1).square()
        output: QuantizerOutput = self.quantizer(latents)
        error = (self.decoder(output.quantized) - rows).square().mean() / variance
        others = sum((loss(items, output, self.quantizer) for loss in self._losses()), torch.zeros_like(error))
        if self.quantizer.objective == "reconstruction":
            return error + output.loss + others
        likelihood = 0.5 * error.clamp_min(1e-12).log() if self.quantizer.objective == "arelbo" else error
        return likelihood + output.loss / rows.shape[1] + others

    # --- encoding -----------------------------------------------------------------------------------------------------

    def _encoder(self) -> Callable[[Float[Tensor, "n D"]], Int[Tensor, "n L"]]:
        """Float32, and float64 where rounding may decide."""
        found = self.quantizer.level_tables()
        if found is None:  # all of it in float64
            encoder, folded = copy.deepcopy(self.encoder).double(), copy.deepcopy(self.quantizer).double().fold()
            return lambda x: folded.encode(encoder(x.double()))
        tables = [CodeTable(table) for table in found]

        def encode(x: Tensor) -> Tensor:
            codes, doubt = _residual_codes(self.encoder(x), tables)
            rows = doubt.nonzero().squeeze(1)
            if len(rows):
                latents = copy.deepcopy(self.encoder).double()(x[rows].double())
                codes[rows] = _decided_codes(latents, tables)
            return codes

        return encode

    def _decode(self, codes: Int[Tensor, "n L"]) -> Float[Tensor, "n D"]:
        values = self.quantizer.decode(codes)
        return torch.cat([values.new_empty(0, self.dim), *(self.decoder(part) for part in values.split(8192))])

    def _last_level(self, x: Float[Tensor, "n D"]) -> tuple[Tensor, Tensor]:
        tables = self.quantizer.level_tables()
        if tables is None:
            raise ValueError(
                f"expected a quantizer whose last level is a table, got {type(self.quantizer).__name__}; keep or "
                "append collisions instead"
            )
        codes, rest = self._encoder()(x), self.encoder(x)
        for own, table in zip(codes[:, :-1].unbind(1), tables, strict=False):
            rest = rest - table[own]
        return rest, tables[-1]


def _residual_codes(latents: Tensor, tables: Sequence[CodeTable]) -> tuple[Int[Tensor, "n L"], Bool[Tensor, " n"]]:
    """Codes level by level in float32, and the rows where rounding, the encoder's included, may decide."""
    length = latents.norm(dim=1)
    doubt = torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
    found = []
    for table in tables:
        indices, own = table.nearest_and_doubt(latents, _ENCODER_TOLERANCE, length)
        found.append(indices)
        doubt |= own
        latents = latents - table.codes[indices]
    return torch.stack(found, 1), doubt


def _decided_codes(latents: Tensor, tables: Sequence[CodeTable]) -> Int[Tensor, "n L"]:
    """Codes level by level of float64 latents."""
    found = []
    for table in tables:
        found.append(table.nearest(latents))
        latents = latents - table.double().codes[found[-1]]
    return torch.stack(found, 1)
