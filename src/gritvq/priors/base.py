"""The base class of priors: generative models of tokens."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gritvq.component import Component, check_integer, check_number, eval_mode
from gritvq.export import Format
from gritvq.priors.heads import Head, HeadName, head_for
from gritvq.priors.sampling import Guidance, Noise, Sampler, Seeds, seeds_of
from gritvq.priors.transformer import Transformer
from gritvq.saving import load_weights, local_folder, read_config, rebuilt, write_folder
from gritvq.tokens import TokenLayout

__all__ = ["Prior", "Progress"]

_KIND = "prior"
_Self = TypeVar("_Self", bound="Prior")
Progress: TypeAlias = Callable[[int, int], object]


class Prior(Component, ABC):
    """A generative model of the tokens of one layout, class-conditional or not.

    A prior depends on the layout of the tokens, not on the quantizer that made them. Classes are numbers
    0 .. num_classes - 1. In training a class is dropped with probability ``class_dropout``, so that one model gives
    conditional logits c and unconditional logits u. Guidance is ``u + s (c - u)``: s = 1 is none, s = 0 ignores the
    class.

    Args:
        layout: Positions and channels.
        num_classes: Number of classes; None for an unconditional prior.
        width: Width D of the transformer's states.
        depth: Number of layers.
        num_heads: Number of attention heads.
        dropout: Dropout of the inputs and of the output of each attention and feed-forward block, in [0, 1).
        class_dropout: Probability of dropping the class in training, in [0, 1); guidance needs more than 0.
        head: Head, or its name (see :func:`gritvq.priors.head_for`); chosen by the layout if None.

    Attributes:
        fingerprint: Fingerprint of the tokenizer whose tokens the prior was trained on, or None; saved and loaded.
        trained: What a loaded prior says of its training and data, plain values by name.
        transformer: Its transformer.
        training_progress: Fraction of the training that is done, set by :class:`gritvq.priors.PriorTask`.

    Raises:
        ValueError: If a number is out of range, the head does not fit, or the class cannot learn where the samples of a
            ragged layout end.
    """

    takes_ragged: ClassVar[bool] = False  # whether it learns where the samples of a ragged layout end
    transformer: Transformer

    def __init__(
        self,
        layout: TokenLayout,
        *,
        num_classes: int | None = None,
        width: int = 256,
        depth: int = 6,
        num_heads: int = 4,
        dropout: float = 0.1,
        class_dropout: float = 0.1,
        head: Head | HeadName | None = None,
    ) -> None:
        super().__init__()
        if layout.ragged and not self.takes_ragged:
            raise ValueError(
                f"expected a prior that learns where samples end, for a ragged layout, got {type(self).__name__}; use "
                "an AutoregressivePrior of order 'raster'"
            )
        self.layout, self.num_classes = layout, num_classes
        self.width, self.depth = check_integer("width", width), check_integer("depth", depth)
        self.num_heads = check_integer("num_heads", num_heads)
        for name, value in (("dropout", dropout), ("class_dropout", class_dropout)):
            check_number(name, value, most=1.0)
            if value == 1:
                raise ValueError(f"expected {name} in [0, 1), got 1")
        if num_classes is not None:
            check_integer("num_classes", num_classes, hint="None makes the prior unconditional")
        self.dropout, self.class_dropout = dropout, class_dropout
        self.fingerprint: str | None = None
        self.trained: dict[str, Any] = {}
        self.training_progress = 0.0
        sizes = layout.vocabulary.codebook_sizes
        present = self._present()
        self.head = head if isinstance(head, Head) else head_for(head, sizes, width, int(present.sum(1).max()), dropout)
        if self.head.codebook_sizes != sizes or self.head.width != width:
            raise ValueError(
                f"expected a head for the codebook sizes {list(sizes)} and width {width}, got one for "
                f"{list(self.head.codebook_sizes)} and {self.head.width}; give its name and it is made to fit"
            )
        self.classes = nn.Embedding(1 + (num_classes or 0), width)  # the last row: no class
        self.places = nn.Embedding(layout.length, width)
        for table in (self.classes, self.places):
            nn.init.normal_(table.weight, std=0.02)
        self.register_buffer("present", present, persistent=False)

    present: Tensor

    # --- what a prior gives -------------------------------------------------------------------------------------------

    def loss(self, indices: Int[Tensor, "B *tokens Q"], condition: Int[Tensor, " B"] | None) -> dict[str, Tensor]:
        """Training loss: the sum of the returned scalars.

        Args:
            indices: As a tokenizer's ``encode`` gives them; of a ragged layout -1 behind the end of each sample.
            condition: Classes; None for an unconditional prior.

        Returns:
            ``nats_per_token``: mean nats per index, ends of ragged samples included; in training with dropout and class
            dropout.

        Raises:
            ValueError: If the indices do not fit the layout, or the classes are missing, superfluous or out of range.
        """
        rows = self.rows_of(indices)
        classes = self._classes_of(condition, len(rows))
        if self.training and self.num_classes is not None:
            classes = classes.masked_fill(torch.rand(classes.shape, device=classes.device) < self.class_dropout, -1)
        return self._loss(rows, self._embedded_classes(classes))

    @abstractmethod
    def log_prob(
        self, indices: Int[Tensor, "B *tokens Q"], condition: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, " B"]:
        """Log-probability of whole samples in nats.

        Args:
            indices: As for :meth:`loss`.
            condition: As for :meth:`loss`.

        Raises:
            ValueError: As for :meth:`loss`.
        """

    @torch.no_grad()
    def logits(self, rows: Int[Tensor, "B T Q"], condition: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B T V"]:
        """What :meth:`sample` draws from at each position, at temperature 1 and without guidance.

        Each position is given what it depends on: the positions before it, the earlier scales, or, of a masked prior,
        the positions that are known. The V = ``sum(head.sizes)`` logits are those of one softmax after the other.

        Args:
            rows: Indices by position, as of :meth:`rows_of`; -1 where they are not known yet.
            condition: Classes; None for an unconditional prior.

        Raises:
            ValueError: If the shape is wrong, an index is beyond its codes, or the classes are missing, superfluous or
                out of range.

        Example:
            >>> from gritvq.priors import MaskedPrior
            >>> prior = MaskedPrior(TokenLayout((16,), (2, 2)), width=16, depth=1, num_heads=2)
            >>> prior.logits(torch.full((1, 4, 1), -1)).shape
            torch.Size([1, 4, 16])
        """
        if rows.ndim != 3 or rows.shape[1:] != self.present.shape:
            raise ValueError(f"expected rows (B, {', '.join(map(str, self.present.shape))}), got {tuple(rows.shape)}")
        rows = rows.to(self.present.device)
        sizes = self.head.codebook_sizes
        if rows.is_floating_point() or bool(((rows < -1) | (rows >= torch.tensor(sizes, device=rows.device))).any()):
            raise ValueError(
                f"expected integers below {sizes}, the codes of each channel, and -1 where they are not known, got "
                f"{rows.dtype} from {rows.min().item()} to {rows.max().item()}; take the rows of rows_of"
            )
        with eval_mode(self):
            states = self._states(rows, self._embedded_classes(self._classes_of(condition, len(rows))))
            return self.head.logits(states, rows)

    def export(self, folder: str | os.PathLike[str], format: Format = "onnx") -> Path:
        """Write one step of sampling as a program ``prior`` that runs without gritvq, for any number of samples.

        It maps ``rows`` (B, T, Q), int64, and, if there are classes, ``classes`` (B,), -1 for none, to ``logits``
        (B, T, V) as :meth:`logits` does. A loop around it draws a position, or a scale, or what the masked prior keeps,
        writes it into the rows, and calls it again; nothing is cached between the calls.

        Args:
            folder: Folder of the file; one of the same name is replaced.
            format: See :func:`gritvq.export.write_programs`.

        Raises:
            ValueError: If packages are missing, or an operator cannot be exported.
        """
        from gritvq.priors.program import write_prior

        return write_prior(self, folder, format)

    @torch.no_grad()
    def sample(
        self,
        num: int,
        condition: Int[Tensor, " num"] | Sequence[int] | int | None = None,
        *,
        guidance: float | Guidance = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: Seeds = None,
        progress: Progress | None = None,
        cache: bool = True,
    ) -> Int[Tensor, "num *tokens Q"]:
        """Draw samples.

        Equal seeds give equal samples, whatever the batch size: each sample has its own random generator.

        Args:
            num: Number of samples.
            condition: Class of each sample, or one class for all; None for an unconditional prior.
            guidance: Scale s of ``u + s (c - u)``, or a schedule of it over positions, scales or steps; s = 1 is none.
            temperature: Divides the logits; 0 takes the most probable token.
            top_k: Draw from the k most probable tokens.
            top_p: Draw from the smallest set of most probable tokens whose probabilities sum to at least this.
            generator: Seed of all samples, a seed for each sample (see :func:`gritvq.priors.sample_seeds`), or a
                generator to draw the seed from; PyTorch's global generator if None.
            progress: Called with the number of steps done and the total after each step.
            cache: Whether to cache keys and values of earlier positions. The samples do not depend on it.

        Returns:
            Indices for a tokenizer's ``decode``; of a ragged layout -1 behind the end of each sample.

        Raises:
            ValueError: If a number is out of range, or guidance or classes do not fit the prior.
        """
        num = check_integer("num", num)
        if isinstance(condition, Integral):
            condition = torch.full((num,), int(condition))
        elif condition is not None and not isinstance(condition, Tensor):
            try:
                condition = torch.as_tensor(condition)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"expected classes ({num},) as integers, got {condition!r}; one for each sample"
                ) from error
        classes = self._classes_of(condition, num)
        noise = Noise(seeds_of(generator, num), classes.device)
        sampler = Sampler(noise, guidance=guidance, temperature=temperature, top_k=top_k, top_p=top_p)
        if sampler.is_guided and (self.num_classes is None or not self.class_dropout):
            what = "an unconditional prior" if self.num_classes is None else "one trained with class_dropout 0"
            raise ValueError(
                f"expected guidance 1, which is none, for {what}, got {guidance}; guidance needs classes, and a share "
                "of them forgotten in training"
            )
        if sampler.is_guided:
            classes = torch.cat([classes, torch.full_like(classes, -1)])
        with eval_mode(self):
            embedded = self._embedded_classes(classes).unflatten(0, (-1, num))
            return self.indices_of(self._sample(embedded, sampler, progress or _silent, cache))

    @abstractmethod
    def _loss(self, rows: Int[Tensor, "B T Q"], classes: Float[Tensor, "B D"]) -> dict[str, Tensor]:
        """Training loss of rows, given the embeddings of their classes."""

    @abstractmethod
    def _states(self, rows: Int[Tensor, "B T Q"], classes: Float[Tensor, "B D"]) -> Float[Tensor, "B T D"]:
        """States of all positions, given what each depends on; rows are -1 where they are not known."""

    @abstractmethod
    def _sample(
        self, classes: Float[Tensor, "streams B D"], sampler: Sampler, progress: Progress, cache: bool
    ) -> Int[Tensor, "B T Q"]:
        """Draw rows, given the embeddings of their classes: one stream, or two for guidance."""

    # --- tokens and classes -------------------------------------------------------------------------------------------

    def rows_of(self, indices: Int[Tensor, "B *tokens Q"]) -> Int[Tensor, "B T Q"]:
        """Indices in the order of the layout's positions, -1 for channels that a position does not have.

        Rows of a ragged layout have its ``end`` in channel 0 behind the last position, and -1 in all that follows.

        Raises:
            ValueError: If they do not fit the layout, or some are masked.
        """
        layout, channels = self.layout, self.layout.channel_ids
        tokens = layout.to_sequence(indices.to(self.present.device))
        if tokens.ndim != channels.ndim + 1:
            raise ValueError(f"expected indices (B, *{layout.shape}, Q), got {tuple(indices.shape)}")
        rows = layout.vocabulary.indices_of(tokens, channels.clamp(min=0)).masked_fill(channels < 0, -1)
        if layout.interleaving == "flat":
            flat = rows[..., None]
            rows = torch.full((*rows.shape, self.present.shape[1]), -1, device=rows.device)
            rows.scatter_(2, channels[None, :, None].expand_as(flat), flat)
        if not layout.ragged and bool(((rows >= 0) != self.present).any()):
            raise ValueError("expected whole samples, got masked indices (-1); leave such samples out")
        return rows

    def indices_of(self, rows: Int[Tensor, "B T Q"]) -> Int[Tensor, "B *tokens Q"]:
        """The inverse of :meth:`rows_of`."""
        layout, channels = self.layout, self.layout.channel_ids
        if layout.interleaving == "flat":
            rows = rows.gather(2, channels[None, :, None].expand(len(rows), -1, 1))[..., 0]
        return layout.from_sequence(layout.vocabulary.tokens_of(rows, channels.clamp(min=0)))

    @property
    def num_tokens(self) -> int:
        """Number of indices of a sample, of the channels that each position has; the most if the layout is ragged."""
        return int(self.present.sum())

    def count(self, indices: Int[Tensor, "B *tokens Q"]) -> int:
        """Number of indices of these samples that a probability is given to, ends of ragged ones included."""
        return int((self.rows_of(indices) >= 0).sum())

    def _present(self) -> Tensor:
        """(T, Q): which channels a position has."""
        channels = self.layout.channel_ids
        every = torch.arange(len(self.layout.vocabulary.codebook_sizes), device=channels.device)
        return channels[:, None] == every if channels.ndim == 1 else channels >= 0

    def _classes_of(self, condition: Tensor | None, batch: int) -> Tensor:
        """Checked classes (B,); -1 for an unconditional prior.

        Raises:
            ValueError: If they are missing, superfluous or out of range.
        """
        device = self.classes.weight.device
        if self.num_classes is None:
            if condition is not None:
                raise ValueError("expected no classes for an unconditional prior, got some; leave condition out")
            return torch.full((batch,), -1, device=device)
        if condition is None:
            raise ValueError(f"expected a class 0 .. {self.num_classes - 1} for each sample, got none; give condition")
        if condition.shape != (batch,) or condition.is_floating_point():
            raise ValueError(
                f"expected classes ({batch},) as integers, got {tuple(condition.shape)} {condition.dtype}; one for "
                "each sample"
            )
        if batch and not 0 <= int(condition.min()) <= int(condition.max()) < self.num_classes:
            wrong = int(condition.min()) if int(condition.min()) < 0 else int(condition.max())
            raise ValueError(
                f"expected classes 0 .. {self.num_classes - 1}, got {wrong}; the prior was made with num_classes="
                f"{self.num_classes}"
            )
        return condition.to(device, torch.int64)

    def _embedded_classes(self, classes: Tensor) -> Tensor:
        return self.classes(classes % self.classes.num_embeddings)  # -1 is the last row

    # --- folders ------------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str], training: Mapping[str, Any] | None = None) -> Path:
        """Write ``config.json``, with the layout and the tokenizer's fingerprint, and ``model.safetensors``; no pickle.

        Args:
            folder: New, empty, or one that holds a prior, which is replaced.
            training: Plain values about the run, for ``config.json``; ``trained`` where None.

        Raises:
            ValueError: If the path is a file, or a folder that holds something else.
        """
        extra = {"fingerprint": self.fingerprint, "training": dict(self.trained if training is None else training)}
        return write_folder(folder, _KIND, self, extra)

    @staticmethod
    def is_saved_in(folder: str | os.PathLike[str]) -> bool:
        """Whether a folder has the ``config.json`` of a prior, not of something else."""
        try:
            return _KIND in read_config(Path(folder), _KIND)
        except ValueError:
            return False

    @classmethod
    def from_pretrained(
        cls: type[_Self],
        folder: str | os.PathLike[str],
        *,
        layout: TokenLayout | None = None,
        fingerprint: str | None = None,
        trusted: Iterable[str] = (),
        revision: str | None = None,
    ) -> _Self:
        """Load a prior from a folder or, by name, from the Hugging Face Hub; in eval mode.

        Args:
            folder: What :meth:`save_pretrained` wrote, or ``"owner/name"`` (needs ``huggingface_hub``).
            layout: Layout of the tokens to use it with; not compared if None.
            fingerprint: Fingerprint of the tokenizer to use it with; not compared if None.
            trusted: Modules besides ``gritvq`` that its classes may come from.
            revision: Branch, tag or commit on the Hub.

        Raises:
            ValueError: If files are missing or damaged, it is another kind of prior, or layout or fingerprint differ.
        """
        folder = local_folder(folder, revision=revision, what="the folder of a prior")
        config = read_config(folder, _KIND)
        saved = config.get("fingerprint")
        if not isinstance(saved, str | None):
            raise ValueError(f"expected a fingerprint as text in {folder}, got {saved!r}; the file is damaged")
        if fingerprint is not None and saved is not None and fingerprint != saved:
            raise ValueError(
                f"expected the tokenizer that the prior {folder} was trained with, fingerprint {saved[:12]}, got "
                f"{fingerprint[:12]}, whose tokens mean something else; train a prior on its tokens"
            )
        prior = rebuilt(config[_KIND], folder, trusted)
        if not isinstance(prior, cls):
            raise ValueError(f"expected a {cls.__name__} in {folder}, got {type(prior).__name__}; load it with Prior")
        if layout is not None:
            _check_layout(prior.layout, layout, folder)
        load_weights(prior, folder, config)
        prior.fingerprint, prior.trained = saved, config.get("training") or {}
        return prior.eval()


def _check_layout(own: TokenLayout, given: TokenLayout, folder: Path) -> None:
    """Check that a layout is that of the prior.

    Raises:
        ValueError: If a part differs; the message names it.
    """
    parts = (
        ("codebook sizes", list(own.vocabulary.codebook_sizes), list(given.vocabulary.codebook_sizes)),
        ("scales", [list(scale.grid) for scale in own.scales], [list(scale.grid) for scale in given.scales]),
        ("shape", list(own.shape), list(given.shape)),
        ("channels", own.channel_ids.tolist(), given.channel_ids.tolist()),
        ("code that ends a sample", own.end, given.end),
    )
    for name, mine, other in parts:
        if mine != other:
            raise ValueError(
                f"expected the {name} {mine} that the prior {folder} was trained on, got {other}; a prior belongs to "
                "one layout of tokens: train another one, or use the tokenizer of this one"
            )


def _silent(done: int, total: int) -> None:
    """Default of ``progress``."""
