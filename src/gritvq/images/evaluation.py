"""Evaluation of a tokenizer: on a set of images, and without data. Does not need Lightning."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gritvq.component import eval_mode
from gritvq.distributed import all_reduce_sum
from gritvq.export import load_program
from gritvq.images.losses import PerceptualDistance
from gritvq.images.metrics import ReconstructionError, StructuralSimilarity
from gritvq.images.tokenizer import ImageTokenizer
from gritvq.quantizers.base import Quantizer
from gritvq.quantizers.functional import effective_rank
from gritvq.quantizers.metrics import CodebookUsage, decoded_codes

__all__ = ["compare_programs", "constant_tokens", "evaluate", "token_statistics"]


@torch.no_grad()
def evaluate(
    tokenizer: ImageTokenizer,
    batches: Iterable[Tensor],
    *,
    device: str | torch.device = "cpu",
    perceptual: PerceptualDistance | None = None,
) -> tuple[dict[str, float], Tensor]:
    """Reconstruction error and code usage over a whole set, every token counted once.

    Args:
        tokenizer: Evaluated in eval mode; its mode is restored afterwards.
        batches: Images (B, C, H, W) in [0, 1]; with several processes, this one's share of them.
        device: Where to run.
        perceptual: A distance to measure besides, such as ``PerceptualLoss(VGG16Features())``.

    Returns:
        Numbers by name (``psnr``, ``mse``, ``psnr_per_image``, ``ssim`` of pictures of at least 11 x 11 pixels,
        ``perceptual_distance`` where asked for, ``usage``, ``uniform_usage``, ``perplexity``,
        ``dead_codes``, ``pictures``, ``tokens``, ``bits_per_token``, ``bits_per_pixel``) and the first channel's code
        counts (K,), sparse for large codebooks.
        Bits count existing tokens only, so a channel that is -1 at some positions counts less.
    """
    tokenizer = tokenizer.to(device)
    used, error = CodebookUsage(tokenizer.quantizer.codebook_sizes), ReconstructionError()
    similarity, look = StructuralSimilarity(), torch.zeros((), dtype=torch.float64)
    perceptual = None if perceptual is None else perceptual.to(device)
    pixels = pictures = 0
    with eval_mode(tokenizer):
        folded = ImageTokenizer(tokenizer.encoder, tokenizer.quantizer.fold(), tokenizer.decoder)  # the codes made once
        for images in batches:
            images = images.to(device)
            output = folded(images)
            used.update(output.quantization.indices)
            decoded = output.reconstruction.float()
            error.update(decoded, images)
            similarity.update(decoded, images)
            if perceptual is not None:
                look += len(images) * perceptual(decoded.clamp(0, 1), images).double().cpu()
            pictures += len(images)
            pixels += images.shape[0] * images.shape[-2] * images.shape[-1]
    numbers = {**error.compute(), **similarity.compute(), **used.compute()}
    bits = used.bits_per_token()
    total, seen = all_reduce_sum(torch.tensor([pixels, pictures])).tolist()
    numbers |= {"pictures": float(seen), "bits_per_token": bits}
    if perceptual is not None:
        numbers["perceptual_distance"] = float(all_reduce_sum(look)) / seen if seen else math.nan
    numbers["bits_per_pixel"] = bits * numbers["tokens"] / total if total else math.nan
    return numbers, used.histograms()[0]


@torch.no_grad()
def token_statistics(tokenizer: ImageTokenizer) -> dict[str, float]:
    """Numbers of a tokenizer that need no data: sizes, bits, effective rank of the decoded codes.

    The rank is that of the first channel's codes with 0 in the others; where vectors are quantized together, that of
    the middle vectors of grids of one code (of 4,096 codes at most).
    """
    quantizer = tokenizer.quantizer
    grid = (1, *(1, 1, *quantizer.layout)[-2:])
    positions, vectors, bits = math.prod(quantizer.token_shape(grid)), math.prod(grid), quantizer.bits(grid)
    if quantizer.layout:
        size = min(quantizer.codebook_sizes[0], 4096)
        folded = quantizer.fold()  # the codes made once
        fields = [folded.decode(constant_tokens(folded, part)) for part in torch.arange(size).split(64)]
        values = torch.cat([field[:, field.shape[1] // 2, field.shape[2] // 2] for field in fields])
    else:
        values = decoded_codes(quantizer)
    return {
        "codes": float(sum(quantizer.codebook_sizes)),
        "dim": float(quantizer.dim),
        "parameters": float(sum(p.numel() for p in tokenizer.parameters())),
        "pixels_per_token": vectors * tokenizer.factor**2 / positions,
        "bits_per_token": bits / positions,
        "bits_per_pixel": bits / (vectors * tokenizer.factor**2),
        "effective_rank": effective_rank(values),
    }


def compare_programs(
    tokenizer: ImageTokenizer, encoder: Path, decoder: Path, size: tuple[int, int] | None = None
) -> tuple[Bool[Tensor, "B *tokens Q"], float]:
    """Exported programs against the tokenizer that they were made of, on three random images.

    Args:
        tokenizer: From which :meth:`ImageTokenizer.export` made them.
        encoder: The encoder's file.
        decoder: The decoder's file.
        size: (H, W) of the images; eight tokens a side where None.

    Returns:
        Which indices are identical, and the largest difference of decoded pixels.
    """
    height, width = size or (8 * tokenizer.factor, 8 * tokenizer.factor)
    images = torch.rand(3, tokenizer.channels, height, width, generator=torch.Generator().manual_seed(0))
    tokens = tokenizer.encode(images)
    difference = (load_program(decoder)(tokens) - tokenizer.decode(tokens)).abs().max()
    return load_program(encoder)(images) == tokens, float(difference)


def constant_tokens(quantizer: Quantizer, codes: Int[Tensor, " n"]) -> Int[Tensor, "n *tokens Q"]:
    """For every code a small grid of tokens with that code in the first channel and 0 in the others.

    The grid is 3 x 3 tokens, or the next larger one that fits the quantizer's layout. Where a quantizer leaves a
    channel open (the other levels of a hierarchy) it stays -1.

    Example:
        >>> from gritvq import grit_vq
        >>> constant_tokens(grit_vq(4, 16), torch.tensor([5, 7]))[1, :, 0, 0]
        tensor([7, 7, 7])
    """
    parameter = next(iter(quantizer.parameters()), torch.empty(0))
    pattern = quantizer.encode(torch.zeros(1, *_small_grid(quantizer), quantizer.input_dim, device=parameter.device))
    tokens = torch.where(pattern.cpu() >= 0, 0, -1).repeat(len(codes), *(1,) * (pattern.ndim - 1))
    own = codes.cpu().view(-1, *(1,) * (pattern.ndim - 2))
    tokens[..., 0] = torch.where(tokens[..., 0] >= 0, own, -1)
    return tokens


def _small_grid(quantizer: Quantizer, least: int = 3) -> tuple[int, int]:
    """A grid of at least that side, or the quantizer's own where it takes no other."""
    height, width = (1, 1, *quantizer.layout)[-2:]
    larger = tuple(side * -(-least // side) for side in (height, width))
    try:
        quantizer.token_shape((1, *larger))
    except ValueError:
        return height, width
    return larger[0], larger[1]
