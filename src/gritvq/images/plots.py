"""Pictures of what a tokenizer does: reconstructions, code usage, the decoded codebook, methods against each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gritvq.images.evaluation import constant_tokens
from gritvq.images.files import save_png
from gritvq.images.tokenizer import ImageTokenizer
from gritvq.plotting import new_figure, save_figure
from gritvq.quantizers.functional import perplexity

__all__ = ["codebook_picture", "comparison_plot", "picture_grid", "reconstruction_grid", "usage_plot"]


def reconstruction_grid(
    originals: Iterable[Float[Tensor, "C H W"]], reconstructions: Iterable[Float[Tensor, "C H W"]], path: str | Path
) -> Path:
    """Originals above their reconstructions, with the PSNR of each picture.

    Args:
        originals: Pictures with values in [0, 1], of any sizes.
        reconstructions: What the tokenizer made of them.
        path: PNG to write.
    """
    images, decoded = (
        [picture.detach().float().cpu().clamp(0, 1) for picture in pictures]
        for pictures in (originals, reconstructions)
    )
    columns = min(8, len(images))
    bands = math.ceil(len(images) / columns)
    figure, axes = new_figure(1.45 * columns + 0.6, 3.15 * bands, 2 * bands, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    for number, (image, output) in enumerate(zip(images, decoded, strict=True)):
        band, column = divmod(number, columns)
        for row, picture in ((2 * band, image), (2 * band + 1, output)):
            shown = picture.permute(1, 2, 0).expand(-1, -1, 3)
            axes[row, column].imshow(shown.numpy(), interpolation="nearest")
        mse = float((image - output).square().mean())
        axes[2 * band + 1, column].set_xlabel(f"{-10 * math.log10(max(mse, 1e-10)):.1f} dB", fontsize=8)
    for band in range(bands):
        axes[2 * band, 0].set_ylabel("original", fontsize=9)
        axes[2 * band + 1, 0].set_ylabel("decoded", fontsize=9)
    figure.tight_layout(pad=0.4)
    return save_figure(figure, path)


def picture_grid(pictures: Iterable[Float[Tensor, "C H W"]], path: str | Path, columns: int = 8) -> Path:
    """Pictures of one size beside each other, row by row, each pixel a square of pixels where they are small.

    Args:
        pictures: Values in [0, 1].
        path: PNG to write.
        columns: Pictures in a row.
    """
    values = torch.stack([picture.detach().float().cpu() for picture in pictures])
    values = values.repeat_interleave(max(1, 96 // values.shape[-1]), -1)
    values = values.repeat_interleave(max(1, 96 // values.shape[-2]), -2)
    missing = -len(values) % columns if len(values) > columns else 0
    cells = F.pad(values, (2, 2, 2, 2, 0, 0, 0, missing), value=1.0)
    columns = min(columns, len(cells))
    grid = cells.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    return save_png(grid, path)


def usage_plot(counts: Int[Tensor, " K"], path: str | Path) -> Path:
    """How often each code was used, most frequent first, against the uniform share.

    Args:
        counts: Tokens per code; sparse for a large codebook.
        path: PNG to write.
    """
    size = counts.shape[0]
    kept = (counts.coalesce().values() if counts.is_sparse else counts).detach().cpu()
    values = kept.double().sort(descending=True).values
    total = float(values.sum())
    figure, axis = new_figure(6.4, 3.4)
    shares = values / max(total, 1.0)
    used = int((values > 0).sum())
    axis.fill_between(range(1, used + 1), shares[:used].numpy(), step="mid", color="#2a6f97", alpha=0.85, linewidth=0)
    axis.axhline(1 / size, color="#c1121f", linewidth=1, linestyle="--", label="every code equally often")
    axis.set_yscale("log")
    axis.set_xlim(1, max(2, len(values)))
    axis.set_xlabel(f"codes, most frequent first (of {size})")
    axis.set_ylabel("share of tokens")
    axis.set_title(
        f"usage {100 * used / size:.1f} %, perplexity {float(perplexity(kept)):.0f}, {total:.0f} tokens", fontsize=10
    )
    axis.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


@torch.no_grad()
def codebook_picture(
    tokenizer: ImageTokenizer, path: str | Path, counts: Tensor | None = None, max_codes: int = 4096
) -> Path:
    """What each code looks like: the center patch of a small field of the same token, sorted from dark to bright.

    The field is 3 x 3 tokens, or what the quantizer's layout asks for.

    Args:
        tokenizer: With one index channel; with more, the first one varies and the others stay at 0.
        path: PNG to write.
        counts: Tokens per code; if given the most used codes are shown first where not all fit.
        max_codes: At most so many codes.
    """
    size = tokenizer.quantizer.codebook_sizes[0]
    if counts is None:
        codes = torch.arange(min(size, max_codes))
    elif counts.is_sparse:
        seen = counts.cpu().coalesce()
        codes = seen.indices()[0][seen.values().argsort(descending=True, stable=True)][:max_codes]
    else:
        codes = counts.cpu().argsort(descending=True, stable=True)[:max_codes]
    if len(codes) == 0:
        codes = torch.zeros(1, dtype=torch.int64)
    factor = tokenizer.factor
    folded = tokenizer.fold()  # the codes made once
    fields = (folded.decode(constant_tokens(folded.quantizer, part)).cpu() for part in codes.split(256))
    patches = torch.cat([_center(field, factor) for field in fields])
    patches = patches[patches.mean((1, 2, 3)).argsort(stable=True)]
    columns = math.ceil(math.sqrt(len(patches)))
    rows = math.ceil(len(patches) / columns)
    mosaic = torch.ones(3, rows * (factor + 1), columns * (factor + 1))
    for number, patch in enumerate(patches):
        top, left = (factor + 1) * (number // columns), (factor + 1) * (number % columns)
        mosaic[:, top : top + factor, left : left + factor] = patch
    figure, axis = new_figure(7, 7 * rows / columns + 0.4)
    axis.imshow(mosaic.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_axis_off()
    shown = f"{len(codes)} codes" if len(codes) == size else f"the {len(codes)} most used of {size} codes"
    axis.set_title(f"{shown}, each decoded on its own, dark to bright", fontsize=10)
    return save_figure(figure, path)


def _center(field: Float[Tensor, "B C H W"], factor: int) -> Float[Tensor, "B C f f"]:
    """The patch in the middle."""
    top, left = (side // factor // 2 * factor for side in field.shape[-2:])
    return field[..., top : top + factor, left : left + factor]


def comparison_plot(
    rows: Sequence[Mapping[str, Any]], path: str | Path, against: Literal["perplexity", "usage"] = "perplexity"
) -> Path:
    """Use of the codes against PSNR: a small dot per seed, a large mark for a method's mean; only rows with codes.

    Args:
        rows: One mapping per run with ``method``, ``codebook_size``, ``psnr`` (dB), ``usage`` and ``perplexity``.
        path: PNG to write.
        against: What to show across: perplexity in percent of the codes, or the share of codes used.
    """
    rows = [row for row in rows if int(row["codebook_size"]) > 0]
    sizes = sorted({int(row["codebook_size"]) for row in rows})
    methods = sorted({str(row["method"]) for row in rows})
    columns = 1 + (len(methods) - 1) // 15
    width = 5.2 * len(sizes) + 2.4 * (columns - 1) * columns
    figure, axes = new_figure(width, max(3.8, 0.4 * len(methods) / columns), 1, len(sizes), squeeze=False)
    for axis, size in zip(axes[0], sizes, strict=True):
        for number, method in enumerate(methods):
            chosen = [row for row in rows if row["method"] == method and int(row["codebook_size"]) == size]
            if not chosen:
                continue
            whole = size if against == "perplexity" else 1
            x, y = [100 * float(row[against]) / whole for row in chosen], [float(row["psnr"]) for row in chosen]
            look = {"color": f"C{number % 10}", "marker": "osD^"[number // 10 % 4]}
            mean = {"s": 55, "alpha": 0.85, "label": method, "edgecolors": "white"}
            axis.scatter(x, y, s=10, alpha=0.5, linewidths=0, **look)
            axis.scatter([sum(x) / len(x)], [sum(y) / len(y)], **mean, **look)
        axis.set_xlabel("perplexity (% of the codes)" if against == "perplexity" else "codes in use (%)")
        axis.set_ylabel("PSNR (dB)")
        axis.set_title(f"K = {size}", fontsize=10)
        axis.grid(alpha=0.3)
    axes[0, -1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), ncols=columns)
    figure.tight_layout()
    return save_figure(figure, path)
