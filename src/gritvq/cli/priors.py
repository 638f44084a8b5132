"""What priors of pictures and of texts do not share: the layout of their tokens, what is measured, what is shown."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from gritvq.cli.images import size_of
from gritvq.cli.output import report
from gritvq.cli.run_folder import check_places
from gritvq.cli.text import check_tokens, text_place, write_page, write_texts
from gritvq.cli.tokens import loaded
from gritvq.text.tokenizer import TextTokenizer
from gritvq.training.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from gritvq.priors import Prior
    from gritvq.tokens import TokenLayout, TokenRow

__all__ = ["Held", "PriorDomain", "domain_of", "export_prior", "is_prior"]

_GRID, _PICTURES, _SHOWN = "grid.png", "pictures", 64
_TEXTS_SHOWN = 12


class Held(NamedTuple):
    """What held-out samples cost.

    Attributes:
        nats: Negative log-probability of all of them.
        rows: Their number.
        samples: The same, but that the parts of a long text count once.
        positions: Their positions that have tokens: segments of texts.
        tokens: Their indices, ends of texts included.
    """

    nats: float
    rows: int
    samples: int
    positions: int
    tokens: int


class PriorDomain(ABC):
    """What a prior's samples are, for ``fit prior`` and ``generate``.

    Args:
        tokenizer: What made the tokens.

    Attributes:
        length: See :class:`gritvq.priors.TokenData`.
        num_elements: See :class:`gritvq.priors.PriorTask`; known once :meth:`check` has seen a row.
        about: What the saved prior says of its samples besides their classes; known likewise.
    """

    what: ClassVar[str]

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.length: int | None = None
        self.num_elements: int | None = None
        self.about: dict[str, Any] = {}

    @abstractmethod
    def check(self, row: TokenRow) -> None:
        """Raises a ValueError unless a row has tokens of this domain like the rows before."""

    @abstractmethod
    def layout(self, **settings: Any) -> TokenLayout:
        """The layout of the samples, with these settings of its order."""

    @abstractmethod
    def measured(self, held: Held) -> tuple[dict[str, float], list[tuple[str, str]]]:
        """Metrics of held-out samples, by name and as rows of a table."""

    @abstractmethod
    def show(self, prior: Prior, run: RunFolder) -> Path:
        """Write some samples; returns the file."""

    @abstractmethod
    def generate(
        self, config: Any, prior: Prior, device: Any, labels: Sequence[str | int] | None, drawn: Iterator[Tensor]
    ) -> None:
        """Write samples, see :func:`gritvq.cli.generate.generate_arguments`.

        Args:
            config: The arguments.
            prior: What draws them.
            device: Where to decode.
            labels: Class of each sample, if there are classes.
            drawn: Indices in batches; nothing is computed before the first is asked for.
        """


class _Pictures(PriorDomain):
    what = "pictures"

    def check(self, row: TokenRow) -> None:
        height, width = size_of(row)
        about = {"height": height, "width": width}
        if self.about not in ({}, about):
            raise ValueError(f"expected pictures of one size, got {[self.about, about]}; encode them with --size")
        self.about, self.num_elements = about, height * width

    def layout(self, **settings: Any) -> TokenLayout:
        from gritvq.tokens import TokenLayout

        grid = [-(-side // self.tokenizer.factor) for side in self.about.values()]
        return TokenLayout.of(self.tokenizer.quantizer, grid, **settings)

    def measured(self, held: Held) -> tuple[dict[str, float], list[tuple[str, str]]]:
        bits = held.nats / held.rows / (math.log(2) * (self.num_elements or 1))
        return {"bits_per_pixel": bits}, [("bits per pixel", f"{bits:.4f}")]

    def show(self, prior: Prior, run: RunFolder) -> Path:
        from gritvq.images.plots import picture_grid

        indices = prior.sample(_SHOWN, _in_turn(prior, _SHOWN), generator=0)
        picture_grid(self.tokenizer.fold().decode(indices.cpu(), tuple(self.about.values())), run.samples)
        return run.samples

    def generate(
        self, config: Any, prior: Prior, device: Any, labels: Sequence[str | int] | None, drawn: Iterator[Tensor]
    ) -> None:
        from gritvq.images.files import picture_paths, save_png
        from gritvq.images.plots import picture_grid

        out = Path(config.out or "samples")
        sides = [side for side in map(prior.trained.get, ("height", "width")) if isinstance(side, int)]
        if len(sides) != 2:
            raise ValueError(
                f"expected a prior of 'gritvq fit prior', got {RunFolder(config.run).prior}, which does not say how "
                "large its pictures are; sample and decode it from Python"
            )
        names = [f"{number:05}" for number in range(config.num)]
        if labels is not None:
            names = [f"{name}-{label}" for name, label in zip(names, labels, strict=True)]
        paths = [Path(_PICTURES) / path for path in picture_paths(names)]
        check_places(out, [*paths, _GRID], config.overwrite)
        folded, shown, rest = self.tokenizer.fold().to(device), list[Any](), iter(paths)
        for indices in drawn:
            for picture in folded.decode(indices, (sides[0], sides[1])).cpu():
                save_png(picture, out / next(rest))
                if len(shown) < _SHOWN:
                    shown.append(picture)
        picture_grid(shown, out / _GRID)
        classes_said = "none" if labels is None else f"{len(set(labels)):,}"
        report(
            "generated",
            [("pictures", f"{config.num:,}"), ("classes", classes_said), ("guidance", f"{config.guidance:g}")],
            {"pictures": out / _PICTURES, "grid": out / _GRID},
        )


class _Texts(PriorDomain):
    what = "texts"

    def __init__(self, tokenizer: TextTokenizer) -> None:
        super().__init__(tokenizer)
        if tokenizer.format is None:
            raise ValueError("expected a tokenizer with a vocabulary, got one without; train it with 'gritvq fit text'")
        self.length = tokenizer.format.segmentation.max_segments
        self._fingerprint = tokenizer.fingerprint()

    def check(self, row: TokenRow) -> None:
        check_tokens(self.tokenizer, row, self._fingerprint)

    def layout(self, **settings: Any) -> TokenLayout:
        from gritvq.tokens import TokenLayout

        return TokenLayout.of(self.tokenizer.quantizer, [self.length or 1], ragged=True, **settings)

    def measured(self, held: Held) -> tuple[dict[str, float], list[tuple[str, str]]]:
        nats, bits = held.nats / held.samples, held.nats / (math.log(2) * held.positions)
        fixed = sum(map(math.log2, self.tokenizer.quantizer.codebook_sizes))
        numbers = {"nats_per_document": nats, "bits_per_segment": bits}
        numbers |= {"bits_per_segment_at_fixed_length": fixed, "documents": held.samples, "segments": held.positions}
        rows = [
            ("nats per document", f"{nats:.3f}"),
            ("bits per segment", f"{bits:.3f} ({fixed:.2f} at fixed length)"),
            ("documents", f"{held.samples:,}, of {held.positions:,} segments"),
        ]
        return numbers, rows

    def show(self, prior: Prior, run: RunFolder) -> Path:
        indices = prior.sample(_TEXTS_SHOWN, _in_turn(prior, _TEXTS_SHOWN), generator=0)
        title = "Samples (codes drawn from the prior, temperature 1, seed 0; the most probable tokens given them)"
        write_page(run.texts, {title: self.tokenizer.fold().decode(list(indices.cpu()))})
        return run.texts

    def generate(
        self, config: Any, prior: Prior, device: Any, labels: Sequence[str | int] | None, drawn: Iterator[Tensor]
    ) -> None:
        out = text_place(config.out or "samples.jsonl", (".jsonl", ".md"), config.overwrite)
        guided = [] if labels is None else ["guidance", "guidance_schedule", "guidance_power"]
        sampling = {name: config[name] for name in ("temperature", "top_k", "top_p", *guided, "seed")}
        folded = self.tokenizer.fold().to(device)
        texts = [text for indices in drawn for text in folded.decode(list(indices))]
        more: list[Mapping[str, Any]] = [{} if labels is None else {"class": label} for label in labels or texts]
        write_texts(out, "Texts", texts, sampling, more)


def domain_of(source: str, trusted: Sequence[str]) -> PriorDomain:
    """The domain of a tokenizer's tokens.

    Raises:
        ValueError: If there is no tokenizer, or one of neither pictures nor texts.
    """
    tokenizer = loaded(source, trusted)[0]
    return _Texts(tokenizer) if isinstance(tokenizer, TextTokenizer) else _Pictures(tokenizer)


def is_prior(source: str) -> bool:
    """Whether this is the folder of a prior, or of a run that made one."""
    from gritvq.priors import Prior

    return RunFolder(source).prior.is_dir() or Prior.is_saved_in(source)


def export_prior(config: Any) -> None:
    """Export one step of a prior, see :func:`gritvq.cli.measure.export_arguments`."""
    from gritvq.priors import Prior
    from gritvq.priors.program import compare_prior

    check_places(Path(config.out), [f"prior.{'onnx' if config.format == 'onnx' else 'pt2'}"], config.overwrite)
    prior = Prior.from_pretrained(_folder_of(config.tokenizer), trusted=config.trusted)
    path = prior.export(config.out, config.format)
    identical, difference = compare_prior(prior, path)
    rows = [
        ("positions", f"{prior.layout.length:,}"),
        ("identical most probable indices for random tokens", f"{int(identical.sum()):,} of {identical.numel():,}"),
        ("largest difference of logits", f"{difference:.1e}"),
    ]
    report("exported", rows, {"prior": path})


def _folder_of(source: str) -> Path:
    run = RunFolder(source)
    return run.prior if run.prior.is_dir() else run.path


def _in_turn(prior: Prior, num: int) -> Tensor | None:
    """All classes in turn."""
    import torch

    return None if prior.num_classes is None else torch.arange(num) % prior.num_classes
