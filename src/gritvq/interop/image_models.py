"""Quantizers of image models: diffusers, taming-transformers, LlamaGen.

All of them see latents (B, C, H, W) and count codes row by row, flat. Here vectors have their channels last, and so do
indices: latents (B, H, W, C), indices (B, H, W, 1). So for their latents ``h``, what the encoder returns, before
``quant_conv``::

    indices = quantizer.encode(h.movedim(1, -1))        # (B, H, W, 1)
    codes = indices.flatten()                           # theirs
    quant = quantizer.decode(indices).movedim(-1, 1)    # what their decoder gets, after post_quant_conv

The two 1 x 1 convolutions are the maps of a :class:`gritvq.ProjectedQuantizer`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gritvq.component import Component
from gritvq.images import ImageTokenizer, VQGANDecoder, VQGANEncoder
from gritvq.interop.assembling import affine_of, between, refuse, table_quantizer
from gritvq.interop.weights import Weights
from gritvq.quantizers.base import Assignment, LearningRule, Quantizer
from gritvq.quantizers.codebooks.rowwise import plain_table
from gritvq.quantizers.functional import at_least_float32
from gritvq.quantizers.learning import CodebookLoss, CommitmentLoss
from gritvq.quantizers.structures import NormalizedQuantizer
from gritvq.quantizers.vector_quantizer import VectorQuantizer

__all__ = [
    "LogitAssignment",
    "from_diffusers",
    "from_llamagen",
    "from_taming",
    "tokenizer_from_llamagen",
]

_OTHER_PARTS = r"(encoder|decoder|loss|model_ema)\..*"
_PAIRS = 1 << 22  # logits of a block: 16 MB


class LogitAssignment(Assignment):
    """The code of the largest logit of a linear layer, whatever the codes are: ``argmax_k <w_k, x> + b_k``.

    What remains of a quantizer that was trained with Gumbel noise on its logits, without the noise. The layer is not
    trained: no gradient passes the choice. Logits are computed in blocks of 4 million.

    Args:
        dim: Size D of a vector.
        codebook_size: Number of codes K.

    Example:
        >>> indices, q = LogitAssignment(2, 4)(torch.randn(5, 2), torch.randn(4, 2))
        >>> indices.shape, q.shape
        (torch.Size([5]), torch.Size([5, 2]))

    References:
        Ramesh et al., "Zero-Shot Text-to-Image Generation", ICML 2021, arXiv 2102.12092 (tokens by argmax after a
        training with Gumbel noise).
    """

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__()
        self.logits = nn.Linear(dim, codebook_size).requires_grad_(False)

    @torch.no_grad()
    def _choice(self, x: Float[Tensor, "N D"]) -> Int[Tensor, " N"]:
        weight, bias = at_least_float32(self.logits.weight), at_least_float32(self.logits.bias)
        rows = x.to(weight.dtype).split(max(1, _PAIRS // len(weight)))
        return torch.cat([F.linear(block, weight, bias).argmax(1) for block in rows])

    def forward(
        self, x: Float[Tensor, "N D"], codes: Float[Tensor, "K D"]
    ) -> tuple[Int[Tensor, " N"], Float[Tensor, "N D"]]:
        """Indices (N,) and the rows of ``codes`` they name (N, D)."""
        indices = self._choice(x)
        return indices, F.embedding(indices, codes)


def from_diffusers(
    state: Mapping[str, Tensor], prefix: str = "", *, beta: float = 0.25, legacy: bool = True
) -> Quantizer:
    """The quantizer of diffusers' ``VQModel``, or its ``VectorQuantizer`` alone.

    Latents are (B, H, W, C) here and indices (B, H, W, 1); theirs are (B, C, H, W) and flat.

    Args:
        state: State dict of the model, with or without encoder and decoder, or of its ``quantize``.
        prefix: Beginning of the names, such as ``"vqvae."`` in a larger model.
        beta: Weight in their loss. It is in no state dict.
        legacy: Whether ``beta`` weighs the codebook loss, as it does unless they are told otherwise, or the commitment
            loss. The other one has weight 1.

    Returns:
        A quantizer in eval mode: projected where the state dict has ``quant_conv`` and ``post_quant_conv``, plain where
        it has neither.

    Raises:
        ValueError: If a tensor is missing or left over, or indices are remapped.

    Example:
        >>> quantizer = from_diffusers({"embedding.weight": torch.randn(16, 4)})
        >>> quantizer.encode(torch.randn(2, 8, 8, 4)).shape
        torch.Size([2, 8, 8, 1])
    """
    weights = Weights(state, prefix)
    quantizer = _with_maps(weights, _taming_table(weights, beta, legacy))
    weights.finish()
    return quantizer.eval()


def from_taming(state: Mapping[str, Tensor], prefix: str = "", *, beta: float = 0.25, legacy: bool = True) -> Quantizer:
    """The quantizer of a VQGAN of taming-transformers, or of a latent diffusion model's first stage.

    Latents are (B, H, W, C) here and indices (B, H, W, 1); theirs are (B, C, H, W) and flat.

    A Gumbel quantizer (``quantize.embed``, ``quantize.proj``) draws its codes at random, in eval too. Here every vector
    gets the most probable one, the largest logit without the noise, as :class:`LogitAssignment` says. That is for
    tokens: its layer of logits and its codes are not trained further.

    Args:
        state: ``checkpoint["state_dict"]``, or the state dict of ``quantize`` alone. Encoder, decoder and losses in it
            are left out.
        prefix: Beginning of the names, such as ``"first_stage_model."``.
        beta: Weight in their loss. It is in no state dict.
        legacy: Whether ``beta`` weighs the codebook loss, as it does unless they are told otherwise, or the commitment
            loss. The other one has weight 1.

    Returns:
        A quantizer in eval mode: projected where the state dict has ``quant_conv`` and ``post_quant_conv``, plain where
        it has neither.

    Raises:
        ValueError: If a tensor is missing or left over, or indices are remapped; or if the logits of a Gumbel quantizer
            are of vectors of another size than its codes.

    Example:
        >>> state = {"quantize.embedding.weight": torch.randn(16, 4)}
        >>> for name, shape in (("quant_conv", (4, 8, 1, 1)), ("post_quant_conv", (8, 4, 1, 1))):
        ...     state |= {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.randn(shape[0])}
        >>> from_taming(state)(torch.randn(2, 6, 6, 8)).quantized.shape
        torch.Size([2, 6, 6, 8])

    References:
        Esser et al., "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021, arXiv 2012.09841.
    """
    weights = Weights(state, prefix)
    gumbel = {"embed.weight", "quantize.embed.weight"} & set(weights.names)
    quantizer = _with_maps(weights, _gumbel_table(weights) if gumbel else _taming_table(weights, beta, legacy))
    weights.finish()
    return quantizer.eval()


def from_llamagen(
    state: Mapping[str, Tensor], prefix: str = "", *, l2_norm: bool = True, beta: float = 0.25
) -> Quantizer:
    """The quantizer of LlamaGen's image tokenizers.

    Latents are (B, H, W, C) here and indices (B, H, W, 1); theirs are (B, C, H, W) and flat.

    Args:
        state: State dict of the model (``checkpoint["model"]``), or of its ``quantize``. Encoder and decoder in it are
            left out; :func:`tokenizer_from_llamagen` reads them, too.
        prefix: Beginning of the names.
        l2_norm: Whether codes are taken by direction and have unit length: their ``codebook_l2_norm``.
        beta: Weight of the commitment loss if training goes on. Their entropy loss, off by default, is not added.

    Returns:
        A quantizer in eval mode: projected where the state dict has ``quant_conv`` and ``post_quant_conv``, plain where
        it has neither.

    Raises:
        ValueError: If a tensor is missing or left over.

    Example:
        >>> quantizer = from_llamagen({"embedding.weight": torch.randn(16, 4), "codebook_used": torch.zeros(8)})
        >>> bool((quantizer(torch.randn(5, 4)).quantized.norm(dim=-1) - 1 < 1e-6).all())
        True

    References:
        Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation", 2024, arXiv 2406.06525.
    """
    weights = Weights(state, prefix)
    quantizer = _with_maps(weights, _llamagen_table(weights, l2_norm, beta))
    weights.finish()
    return quantizer.eval()


def tokenizer_from_llamagen(
    state: Mapping[str, Tensor], prefix: str = "", *, l2_norm: bool = True, beta: float = 0.25
) -> ImageTokenizer:
    """LlamaGen's whole image tokenizer, VQ-8 or VQ-16: the sizes are those of its tensors.

    Pictures have values in [0, 1] here and in [-1, 1] there.

    Args:
        state: State dict of the model (``checkpoint["model"]``).
        prefix: Beginning of the names.
        l2_norm: Whether codes are taken by direction and have unit length: their ``codebook_l2_norm``.
        beta: Weight of the commitment loss if training goes on.

    Returns:
        A tokenizer in eval mode.

    Raises:
        ValueError: If a tensor is missing, left over or of another size.

    Example:
        >>> tokenizer_from_llamagen({"quantize.embedding.weight": torch.randn(16, 4)})
        Traceback (most recent call last):
        ValueError: expected a tensor encoder.conv_in.weight, got none left; check which module the state dict is of

    References:
        Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation", 2024, arXiv 2406.06525.
    """
    weights = Weights(state, prefix)
    quantizer = _llamagen_table(weights, l2_norm, beta)
    encoder = _network(weights, VQGANEncoder, "encoder.", "quant_conv.", quantizer.dim)
    decoder = _network(weights, VQGANDecoder, "decoder.", "post_quant_conv.", quantizer.dim)
    weights.finish()
    return ImageTokenizer(encoder, quantizer, decoder).eval()


def _taming_table(weights: Weights, beta: float, legacy: bool) -> VectorQuantizer:
    """The codes, with their two losses."""
    own = _own_part(weights)
    _refuse_remapping(own)
    rules: list[LearningRule] = [CodebookLoss(beta if legacy else 1.0), CommitmentLoss(1.0 if legacy else beta)]
    quantizer = table_quantizer(own.take("embedding.weight", (None, None)), rules)
    own.finish()
    return quantizer


def _gumbel_table(weights: Weights) -> VectorQuantizer:
    """The codes, chosen by logits."""
    own = _own_part(weights)
    _refuse_remapping(own)
    codes, logits = at_least_float32(own.take("embed.weight", (None, None))), affine_of(own, "proj")
    own.finish()
    if logits.weight.shape != codes.shape or logits.bias is None:
        raise ValueError(
            f"expected a layer of logits with weights {tuple(codes.shape)}, as the codes, and a bias, got "
            f"{tuple(logits.weight.shape)}{' without one' if logits.bias is None else ''}; a quantizer here takes and "
            "returns vectors of one size"
        )
    choice = LogitAssignment(codes.shape[1], codes.shape[0]).to(codes.device)
    choice.logits.weight = nn.Parameter(logits.weight.clone(), requires_grad=False)
    choice.logits.bias = nn.Parameter(logits.bias.clone(), requires_grad=False)
    return VectorQuantizer(plain_table(codes), choice, learning=[])


def _refuse_remapping(weights: Weights) -> None:
    refuse(
        weights,
        "used",
        "their indices are remapped to the codes in use, which a lookup alone does not tell; build the module without "
        "`remap` and map the indices yourself",
    )


def _llamagen_table(weights: Weights, l2_norm: bool, beta: float) -> Quantizer:
    own = _own_part(weights)
    own.ignore("codebook_used")  # indices of recent steps, for a count of codes in use
    codes = own.take("embedding.weight", (None, None))
    own.finish()
    quantizer = table_quantizer(codes, [CodebookLoss(), CommitmentLoss(beta)], normalize=l2_norm)
    return NormalizedQuantizer(quantizer) if l2_norm else quantizer


def _own_part(weights: Weights) -> Weights:
    """The tensors of ``quantize``, which may be all there are."""
    inside = any(name.startswith("quantize.") for name in weights.names)
    return weights.part("quantize.") if inside else weights


def _with_maps(weights: Weights, quantizer: Quantizer) -> Quantizer:
    """The quantizer between the convolutions around it, if there are any; the other parts of the model left out."""
    weights.ignore(_OTHER_PARTS)
    if not any(name.startswith(("quant_conv.", "post_quant_conv.")) for name in weights.names):
        return quantizer
    maps = affine_of(weights, "quant_conv"), affine_of(weights, "post_quant_conv")
    return between(maps[0], quantizer, maps[1], "quant_conv and post_quant_conv")


def _network(weights: Weights, kind: type[Component], part: str, convolution: str, dim: int) -> Component:
    """A network of ours, of the size of its tensors, with all of them."""
    if f"{part}conv_in.weight" not in weights:
        weights.take(f"{part}conv_in.weight")  # says what is missing
    own = weights.part(part)
    tensors = {name: own.take(name) for name in own.names}
    around = weights.part(convolution)
    tensors |= {convolution + name: around.take(name) for name in around.names}
    try:
        first, last = tensors["conv_in.weight"], tensors["conv_out.weight"]
        stages = [
            [name for name in tensors if name.startswith(f"conv_blocks.{i}.res.") and name.endswith("conv1.weight")]
            for i in range(sum(name.endswith("res.0.conv1.weight") for name in tensors))
        ]
        widths = [tensors[names[0]].shape[0] for names in stages]
        if kind is VQGANDecoder:
            widths = widths[::-1]
            channels, width, hidden, num_blocks = last.shape[0], last.shape[1], first.shape[1], len(stages[0]) - 1
        else:
            channels, width, hidden, num_blocks = first.shape[1], first.shape[0], last.shape[0], len(stages[0])
        settings = {
            "channels": channels,
            "width": width,
            "multipliers": [wide // width for wide in widths],
            "num_blocks": num_blocks,
            "hidden_dim": hidden,
        }
        network = kind(dim, **settings).to(first.device)
        network.load_state_dict(tensors)
    except (IndexError, KeyError, RuntimeError) as error:
        told = " ".join(str(error).split())
        raise ValueError(
            f"expected the tensors of LlamaGen's {part[:-1]}, got others ({told}); read the quantizer alone with "
            "from_llamagen"
        ) from error
    return network
