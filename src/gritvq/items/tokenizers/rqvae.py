"""RQ-VAE: an autoencoder of item embeddings with any quantizer."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gritvq.component import Component, from_config, packages_of, to_config
from gritvq.items.tokenizers.base import ItemTokenizer, tracked
from gritvq.items.tokenizers.kmeans import kmeans
from gritvq.items.tokenizers.losses import ItemLoss
from gritvq.items.tokenizers.search import CodeTable
from gritvq.quantizers.base import Codebook, Quantizer, QuantizerOutput, check_quantizer
from gritvq.quantizers.canonical import canonical_eigh
from gritvq.quantizers.structures import ProductQuantizer, ResidualQuantizer
from gritvq.quantizers.vector_quantizer import VectorQuantizer
from gritvq.training.optimizer import OptimizerSettings, take_steps

__all__ = ["RQVAE"]

_ENCODER_TOLERANCE = 5e-6  # of |z|: measured errors of float32 layers are 3e-7
_WARM_UP = 50  # steps
_WEIGHT_DECAY = 0.01
_SAMPLE = 65536  # items that codes are initialized from, at random
_MOST_CLUSTERED = 1024  # codes that k-means++ starts from; each takes a step of its own
_SCALE_WEIGHT = 0.1  # weight of the loss that keeps the latents' mean square at 1 before quantization starts


class RQVAE(ItemTokenizer):
    """Encoder, quantizer and decoder trained to reconstruct item embeddings.

    Embeddings are centered and divided by their overall standard deviation, which are saved with the weights. For the
    first ``plain_share`` of the steps only encoder and decoder are trained, with a loss that keeps the latents' mean
    square at 1; networks with ``skip`` start as principal component analysis instead, and need no such steps. Then the
    codebook is initialized from the latents of at most 65,536 items. Tables of up to 1,024 codes that start at k-means,
    alone, in residual levels or in parts of a product, get that of :class:`gritvq.items.ResidualKMeans`. Then all is
    trained together with AdamW and a cosine schedule. The loss is
    ``mean squared error / variance + quantizer's losses + others``. For quantizers of a variational bound
    (``objective`` ``"arelbo"`` or ``"albo"``) it is ``1/2 log`` of that error, or the error, per component, plus their
    losses divided by D. Start these with the latents' variance, ``gm_vq(..., variance=1.0)`` or
    ``rsq_vae(..., initial_variance=1.0)``; with much smaller ones they collapse.

    ``fit`` draws new weights with ``seed``, so it always gives the same tokenizer; if training fails, the tokenizer is
    unchanged. Latents are computed in float32; items whose indices would depend on rounding are encoded again in
    float64, so indices do not depend on the batch.

    Args:
        quantizer: Any quantizer of single vectors, such as :func:`~gritvq.items.residual_stack`.
        encoder: Maps embeddings to latents, row by row; has ``input_dim``, ``dim`` and ``standardize(shift, scale)``,
            such as :class:`gritvq.items.ItemEncoder`.
        decoder: Maps quantized latents to embeddings; has the same attributes.
        losses: Additional losses.
        steps: Total number of optimizer steps.
        batch_size: Items per step.
        lr: Learning rate of encoder and decoder; codes have multiples of it (``Quantizer.parameter_groups``).
        seed: Random seed of weights, batches and the quantizer.

    Raises:
        ValueError: If the parts do not fit together or a number is out of range; in :meth:`fit`, if the loss is not
            finite.

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
        al., CVPR 2022, arXiv 2203.01941 (RQ-VAE). Deviations: AdamW, the steps without quantization, the error's scale.
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
                f"expected equal input_dim of encoder and decoder, got {encoder.input_dim} and {decoder.input_dim}; "
                "change one"
            )
        for name, got, wanted in (
            ("the encoder", encoder.dim, quantizer.input_dim),
            ("the decoder", decoder.dim, quantizer.dim),
        ):
            if got != wanted:
                raise ValueError(
                    f"expected {name} to have dim={wanted} as the quantizer has, got {got}; make them equal"
                )
        if quantizer.layout:
            raise ValueError(
                f"expected a quantizer of single vectors, got {type(quantizer).__name__} with the layout "
                f"{quantizer.layout}; use one without a layout"
            )
        if quantizer.objective == "two_path":
            raise ValueError(
                f"expected a quantizer that needs one decoding per step, got {type(quantizer).__name__}, which needs "
                "two; use another one"
            )
        if steps < 1 or batch_size < 1 or not lr > 0:
            raise ValueError(
                f"expected steps >= 1, batch_size >= 1 and lr > 0, got {steps}, {batch_size}, {lr}; give larger ones"
            )
        self.quantizer, self.encoder, self.decoder = quantizer, encoder, decoder
        self.losses = nn.ModuleList(losses)
        self.steps, self.batch_size, self.lr, self.seed = steps, batch_size, float(lr), seed
        self.codebook_sizes = tuple(quantizer.codebook_sizes)

    def _allocate(self, dim: int) -> None:
        if dim != self.encoder.input_dim:
            raise ValueError(
                f"expected an encoder of embeddings of size {dim}, got {self.encoder.input_dim}; set its input_dim"
            )

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
            raise ValueError("expected embeddings that differ, got equal ones; check how they were made")
        for part in (self.encoder, self.decoder):
            part.standardize(shift, variance.sqrt().expand_as(shift))  # type: ignore[operator]
        linear = [getattr(part, "skip", None) is not None for part in (self.encoder, self.decoder)]
        if linear[0] != linear[1]:
            raise ValueError("expected encoder and decoder both with skip or both without, got one; make them alike")
        if starts_linear := all(linear):
            self._start_at_axes((x - shift) / variance.sqrt())
        networks = [*self.encoder.parameters(), *self.decoder.parameters()]
        groups = [{"params": networks}, *self.quantizer.parameter_groups(self.lr)]
        settings = OptimizerSettings(
            lr=self.lr, warmup_steps=_WARM_UP, schedule="cosine_from_start", weight_decay=_WEIGHT_DECAY
        )
        optimizer, schedule = settings.optimizer(groups, self.steps)
        num_plain = 0 if starts_linear else int(self.plain_share * self.steps)
        self.train()
        losses = self._step_losses(x, variance, num_plain, progress)
        for step, _ in enumerate(take_steps(losses, optimizer, schedule)):
            if step >= num_plain:
                self.quantizer.update_codebook(optimizer)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters()):
            raise ValueError(f"expected finite weights after training, got NaN or infinity; lower lr={self.lr:g}")

    @torch.no_grad()
    def _start_at_axes(self, x: Tensor) -> None:
        """Latents are principal components, scaled alike to a mean square of 1; the decoder turns them back."""
        dim: int = self.encoder.dim  # type: ignore[assignment]
        if self.decoder.dim != dim or dim > x.shape[1]:
            raise ValueError(
                f"expected latents of one size up to {x.shape[1]} for networks with skip, got {dim} and "
                f"{self.decoder.dim}; change dim, or leave skip out"
            )
        values, axes = canonical_eigh(x.double().T @ x.double() / len(x))
        factor = (dim / values[:dim].sum()).sqrt()
        self.encoder.start_linear((factor * axes[:, :dim].T).to(x))  # type: ignore[operator]
        self.decoder.start_linear((axes[:, :dim] / factor).to(x))  # type: ignore[operator]

    def _step_losses(self, x: Tensor, variance: Tensor, num_plain: int, progress: bool) -> Iterator[Tensor]:
        """The loss of each step; the codebook is initialized before the first step that quantizes."""
        generator = torch.Generator().manual_seed(self.seed)
        batches = self._batches(len(x), generator)
        for step in tracked(range(self.steps), "training RQ-VAE", progress):
            if step == num_plain:
                self._initialize(x, generator)
            items = next(batches).to(x.device)
            yield self._loss(x[items], items, variance, step < num_plain)

    def _batches(self, num_items: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Rows of each batch, a new permutation every epoch; incomplete last batches are dropped."""
        size = min(self.batch_size, num_items)
        while True:
            order = torch.randperm(num_items, generator=generator)
            yield from order[: num_items // size * size].split(size)

    @torch.no_grad()
    def _initialize(self, x: Tensor, generator: torch.Generator) -> None:
        if len(x) > _SAMPLE:
            x = x[torch.randperm(len(x), generator=generator)[:_SAMPLE].to(x.device)]
        latents = torch.cat([self.encoder(rows) for rows in x.split(8192)])
        self.quantizer.initialize_codebook(latents, generator)
        _cluster(self.quantizer, latents, generator, set())

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
        """Encodes in float32, and in float64 if rounding may decide."""
        return self._encoder_with(functools.cache(self._wide_encoder))

    def _program_encoder(self) -> Callable[[Float[Tensor, "n D"]], Int[Tensor, "n L"]]:
        wide = self._wide_encoder()
        return self._encoder_with(lambda: wide)

    def _encoder_with(self, wide: Callable[[], nn.Module]) -> Callable[[Float[Tensor, "n D"]], Int[Tensor, "n L"]]:
        found = self.quantizer.level_tables()
        if found is None:  # encode everything in float64
            folded = copy.deepcopy(self.quantizer).double().fold().requires_grad_(False)
            return lambda x: folded.encode(wide()(x.double()))
        tables = [CodeTable(table) for table in found]

        def encode(x: Tensor) -> Tensor:
            if torch.compiler.is_exporting():
                return _decided_codes(wide()(x.double()), tables)
            codes, doubt = _residual_codes(self.encoder(x), tables)
            rows = doubt.nonzero().squeeze(1)
            if len(rows):
                codes[rows] = _decided_codes(wide()(x[rows].double()), tables)
            return codes

        return encode

    def _wide_encoder(self) -> nn.Module:
        """A copy of the encoder in float64."""
        return copy.deepcopy(self.encoder).double().requires_grad_(False)

    def _decode(self, codes: Int[Tensor, "n L"]) -> Float[Tensor, "n D"]:
        values = self.quantizer.decode(codes)
        if torch.compiler.is_exporting():
            return self.decoder(values)
        return torch.cat([values.new_empty(0, self.dim), *(self.decoder(part) for part in values.split(8192))])

    def _searches(self, x: Float[Tensor, "n D"]) -> dict[str, tuple[Quantizer, Tensor]]:
        return {"": (self.quantizer, self.encoder(x))}

    def _last_level(self, x: Float[Tensor, "n D"]) -> tuple[Tensor, Tensor]:
        tables = self.quantizer.level_tables()
        if tables is None:
            raise ValueError(
                f"expected a quantizer whose last level is a table, got {type(self.quantizer).__name__}; choose "
                "'append' or 'keep' for collisions"
            )
        codes, rest = self._encoder()(x), self.encoder(x)
        for own, table in zip(codes[:, :-1].unbind(1), tables, strict=False):
            rest = rest - table[own]
        return rest, tables[-1]


def _cluster(quantizer: Quantizer, rows: Tensor, generator: torch.Generator, seen: set[Codebook]) -> None:
    """Where codes start at k-means, run it to its end: a few hundred codes can afford what thousands cannot."""
    if isinstance(quantizer, ResidualQuantizer):
        for level in cast("list[Quantizer]", list(quantizer.quantizers)):
            _cluster(level, rows, generator, seen)
            rows = rows - level.decode(level.encode(rows))
    elif isinstance(quantizer, ProductQuantizer) and quantizer.split == "channels":
        for part, own in zip(quantizer.quantizers, rows.split(quantizer.dims, 1), strict=True):
            _cluster(cast(Quantizer, part), own.contiguous(), generator, seen)
    elif isinstance(quantizer, VectorQuantizer) and quantizer.level_tables() is not None:
        book = quantizer.codebook
        fits = book.codebook_size <= _MOST_CLUSTERED and len(rows) > book.codebook_size and book not in seen
        if fits and book.initialization == "kmeans" and book.writes is not None:
            seen.add(book)
            found = kmeans(rows, book.codebook_size, generator).codes
            book.write(torch.arange(book.codebook_size, device=rows.device), found)


def _residual_codes(latents: Tensor, tables: Sequence[CodeTable]) -> tuple[Int[Tensor, "n L"], Bool[Tensor, " n"]]:
    """Indices of all levels in float32, and the rows where rounding (the encoder's included) may decide."""
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
    """Indices of all levels of float64 latents."""
    found = []
    for table in tables:
        found.append(table.nearest(latents))
        latents = latents - table.double().codes[found[-1]]
    return torch.stack(found, 1)
