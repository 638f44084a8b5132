r"""Codes that are the minimal vectors of a lattice, at unit length: spread evenly over a sphere, without a table.

Three shapes make up the minimal vectors of all lattices here, and each has its own exact search:

- pairs: two components of magnitude a, all others zero, with any signs;
- words: components of magnitude b at the places of a code word, zeros elsewhere, with an even number of minus signs;
- full: signs of a word of the binary Golay code in all components of magnitude 1, and one of them times -3.

What is stored for the 196,560 codes in 24 dimensions are signs of 4,096 words and places of 759.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gritvq.component import check_number
from gritvq.quantizers.base import QuantizerOutput
from gritvq.quantizers.functional import at_least_float32, to_unit_length
from gritvq.quantizers.lookup_free.fixed import FixedCodes, commitment
from gritvq.quantizers.surrogates import StraightThrough

__all__ = ["SIZES", "Lattice", "SphericalLattice"]

Lattice = Literal["D4", "E8", "BW16", "Leech"]
SIZES: dict[Lattice, int] = {"D4": 24, "E8": 240, "BW16": 4320, "Leech": 196560}  # minimal vectors
_DIMS: dict[Lattice, int] = {"D4": 4, "E8": 8, "BW16": 16, "Leech": 24}
_PAIR: dict[Lattice, float] = {"D4": 1.0, "E8": 1.0, "BW16": 2.0, "Leech": 4.0}  # magnitude a
_WORD: dict[Lattice, float] = {"D4": 0.0, "E8": 0.5, "BW16": 1.0, "Leech": 2.0}  # magnitude b
_GOLAY = 0b101011100011  # x^11 + x^9 + x^7 + x^6 + x^5 + x + 1, which generates the binary code of length 23
_BLOCK, _LARGE_BLOCK = 256, 4096  # vectors at a time on the CPU, where sums stay in its cache, and elsewhere


class SphericalLattice(FixedCodes):
    r"""The nearest of the minimal vectors of a lattice, all at unit length, to the direction of a vector.

    ``q = argmax_c <x / |x|, c>``, exact. No two codes are closer than 60 degrees. In 4, 8 and 24 dimensions no more
    unit vectors can be that far apart (their number is the kissing number); in 16 dimensions no larger set is known. So
    no table has to learn to spread, and no entropy loss is needed.

    ============================ ==== ======== ====
    lattice                      D    K        bits
    ============================ ==== ======== ====
    ``"D4"``                     4    24       4.6
    ``"E8"``                     8    240      7.9
    ``"BW16"`` (Barnes and Wall) 16   4,320    12.1
    ``"Leech"``                  24   196,560  17.6
    ============================ ==== ======== ====

    Sums are taken in float64, which MPS devices do not have, so that the choice for a float32 vector does not depend on
    its batch; between equally near codes it is arbitrary. The Leech lattice takes 16 kB per vector in the search, in
    blocks of 256 vectors (4,096 on a GPU), compiled or exported of all at once. The index counts pairs first, then
    words, then full vectors.

    Args:
        lattice: Which one.
        commitment_weight: Weight of ``mean |x / |x| - q|^2 / D`` in training.

    Raises:
        ValueError: If there is no such lattice, or the weight is negative.

    Example:
        >>> quantizer = SphericalLattice("E8")
        >>> quantized, indices, losses = quantizer(torch.randn(5, 8))
        >>> quantizer.codebook_sizes, quantized.norm(dim=1).round(decimals=5), losses
        ((240,), tensor([1., 1., 1., 1., 1.]), {})

    References:
        The Leech lattice: Zhao et al., "Spherical Leech Quantization for Visual Tokenization and Generation", 2025,
        arXiv 2512.14697, there with a table. The vectors are those of Conway and Sloane, "Sphere Packings, Lattices and
        Groups", chapter 4. The smaller lattices, the search by shapes and the commitment loss, which is off by default,
        are ours.
    """

    positions: Tensor
    signs: Tensor

    def __init__(self, lattice: Lattice = "Leech", *, commitment_weight: float = 0.0) -> None:
        super().__init__()
        if lattice not in get_args(Lattice):
            raise ValueError(f"expected a lattice of {', '.join(get_args(Lattice))}, got {lattice!r}; choose one")
        self.lattice, self.dim = lattice, _DIMS[lattice]
        self.commitment_weight = check_number("commitment_weight", commitment_weight)
        self.surrogate = StraightThrough()
        self.exact = self.surrogate.exact
        self.norm = math.sqrt(2) * _PAIR[lattice]
        self._write_constants(None)
        pairs, (words, places) = 2 * self.dim * (self.dim - 1), self.positions.shape
        self.ends = (pairs, pairs + words * 2 ** (places - 1), SIZES[lattice])
        self.codebook_sizes = (SIZES[lattice],)

    def _constants(self) -> dict[str, Tensor]:
        """Places of words, and signs of full vectors."""
        positions, signs = _tables(self.lattice)
        return {"positions": positions, "signs": signs}

    def before(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The vector at unit length, float32 or wider."""
        with torch.autocast(x.device.type, enabled=False):
            return to_unit_length(at_least_float32(x))

    def quantize(self, x: Float[Tensor, "*batch D"], valid: Bool[Tensor, "*batch"]) -> QuantizerOutput:
        """The nearest code."""
        with torch.autocast(x.device.type, enabled=False):
            rows = x.detach().reshape(-1, self.dim).double()
            size = _BLOCK if x.device.type == "cpu" else _LARGE_BLOCK
            if torch.compiler.is_compiling() or rows.shape[0] <= size:
                index = self._nearest(rows)
            else:
                index = torch.cat([self._nearest(block) for block in rows.split(size)])
            index = index.reshape(x.shape[:-1])
            q, losses = self._vectors(index), {}
            if self.training and self.commitment_weight:
                losses["commitment"] = self.commitment_weight * commitment(x, q, valid)
            return QuantizerOutput(q, torch.where(valid, index, -1).unsqueeze(-1), losses)

    def lookup(self, indices: Int[Tensor, "*batch 1"]) -> Float[Tensor, "*batch D"]:
        """Vectors of indices; zeros for -1."""
        return torch.where(indices < 0, 0, self._vectors(indices[..., 0].clamp_min(0)))

    def fold(self) -> SphericalLattice:
        """The same lattice without the loss."""
        return SphericalLattice(self.lattice).eval()

    # --- search -------------------------------------------------------------------------------------------------------

    def _nearest(self, x: Float[Tensor, "n D"]) -> Int[Tensor, " n"]:
        """Index of a code with the largest product."""
        found = [self._nearest_pair(x)]
        if len(self.positions):
            found.append(self._nearest_word(x))
        if len(self.signs):
            found.append(self._nearest_full(x))
        products, indices = (torch.stack(each, 1) for each in zip(*found, strict=True))
        return indices.gather(1, products.argmax(1, keepdim=True))[:, 0]

    def _nearest_pair(self, x: Float[Tensor, "n D"]) -> tuple[Tensor, Tensor]:
        """The two largest components with their signs."""
        sizes = x.abs()
        first = sizes.argmax(1, keepdim=True)
        second = sizes.scatter(1, first, -1.0).argmax(1, keepdim=True)
        product = _PAIR[self.lattice] * (sizes.gather(1, first) + sizes.gather(1, second))[:, 0]
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        pair = low * (2 * self.dim - low - 1) // 2 + high - low - 1
        minus = [(x.gather(1, place) < 0).long() for place in (low, high)]
        return product, (4 * pair + 2 * minus[0] + minus[1])[:, 0]

    def _nearest_word(self, x: Float[Tensor, "n D"]) -> tuple[Tensor, Tensor]:
        """For each word the signs of the vector; where that makes an odd number of minuses, the smallest flips."""
        total = least = x.new_zeros(())
        odd = torch.zeros((), dtype=torch.bool, device=x.device)
        for place in self.positions.unbind(1):  # one place of all words at a time: the memory of one component each
            own = x[:, place]
            least = own.abs() if least.ndim == 0 else torch.minimum(least, own.abs())
            total, odd = total + own.abs(), odd ^ (own < 0)
        product, word = (total - 2 * odd * least).max(1)
        own = x.gather(1, self.positions[word])
        minus = own < 0
        smallest = own.abs().argmin(1, keepdim=True)
        minus = minus.scatter(1, smallest, minus.gather(1, smallest) ^ (minus.sum(1, keepdim=True) % 2 == 1))
        free = self.positions.shape[1] - 1
        bits = (minus[:, :free] * 2 ** torch.arange(free, device=x.device)).sum(1)
        return _WORD[self.lattice] * product, self.ends[0] + 2**free * word + bits

    def _nearest_full(self, x: Float[Tensor, "n D"]) -> tuple[Tensor, Tensor]:
        """For each place j the best word, once with a plus at j and once with a minus; then the best place.

        The product with the signs s of a word is ``<s, x> - 4 s_j x_j``, and a word and its complement, of which only
        one is looked at, have opposite signs.
        """
        half = self.signs.shape[0] // 2
        signs = self.signs[:half].to(x.dtype)
        sums = x @ signs.T
        plus, minus = [], []
        for place in signs.unbind(1):
            own = sums * place  # sums of words, or of their complements, that have a plus here
            plus.append(own.amax(1))
            minus.append(-own.amin(1))
        both = torch.stack([torch.stack(plus, 1) - 4 * x, torch.stack(minus, 1) + 4 * x], 2).flatten(1)
        product, best = both.max(1)
        place, sign = best // 2, 1 - 2 * (best % 2)
        own = sums * signs.T[place] * sign[:, None]
        word = own.argmax(1)
        word = word + half * (signs[word, place] * sign < 0)
        return product, self.ends[1] + self.dim * word + place

    # --- codes --------------------------------------------------------------------------------------------------------

    def _vectors(self, index: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        """Codes of indices in range, float32."""
        q = self._pairs(index.clamp_max(self.ends[0] - 1))
        if len(self.positions):
            own = (index - self.ends[0]).clamp(0, self.ends[1] - self.ends[0] - 1)
            q = torch.where((index >= self.ends[0]).unsqueeze(-1), self._words(own), q)
        if len(self.signs):
            own = (index - self.ends[1]).clamp_min(0)
            word, place = self.signs[own // self.dim].float(), (own % self.dim).unsqueeze(-1)
            full = word.scatter(-1, place, -3 * word.gather(-1, place))
            q = torch.where((index >= self.ends[1]).unsqueeze(-1), full, q)
        return q / self.norm

    def _pairs(self, index: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        pair, axis = (index // 4).unsqueeze(-1), torch.arange(self.dim, device=index.device)
        starts = axis * (2 * self.dim - axis - 1) // 2  # number of the first pair of each lower place
        low = (pair >= starts[:-1]).sum(-1, keepdim=True) - 1
        high = pair - starts[low] + low + 1
        minus = [(index // 2 % 2).unsqueeze(-1), (index % 2).unsqueeze(-1)]
        marks = [(axis == place) * (1 - 2 * sign) for place, sign in zip((low, high), minus, strict=True)]
        return _PAIR[self.lattice] * (marks[0] + marks[1]).float()

    def _words(self, index: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        free = self.positions.shape[1] - 1
        word, bits = index // 2**free, (index % 2**free).unsqueeze(-1)
        minus = bits // 2 ** torch.arange(free, device=index.device) % 2
        minus = torch.cat([minus, minus.sum(-1, keepdim=True) % 2], -1)
        zeros = torch.zeros(*index.shape, self.dim, device=index.device)
        return zeros.scatter(-1, self.positions[word], _WORD[self.lattice] * (1.0 - 2.0 * minus))


def _tables(lattice: Lattice) -> tuple[Tensor, Tensor]:
    """Places of the ones of words (words, places), int64, and signs of the Golay code (4096, 24), int8; on the CPU."""
    with torch.device("cpu"):  # also where modules are made on the meta device
        return _words_of(_DIMS[lattice], lattice)


def _words_of(dim: int, lattice: Lattice) -> tuple[Tensor, Tensor]:
    signs = torch.empty(0, dim, dtype=torch.int8)
    if lattice == "D4":
        return torch.empty(0, 1, dtype=torch.int64), signs
    if lattice == "E8":
        return torch.arange(dim)[None], signs
    if lattice == "BW16":  # affine functions of four bits, but for the constant ones: the Reed-Muller code
        bits = _bits(torch.arange(16), 4)
        linear = bits[1:] @ bits.T % 2
        words = torch.cat([linear, 1 - linear])
    else:
        shifts = torch.stack([_bits(torch.tensor(_GOLAY << n), 23) for n in range(12)])
        code = _bits(torch.arange(2**12), 12) @ shifts % 2
        code = torch.cat([code, code.sum(1, keepdim=True) % 2], 1)
        code = torch.cat([code[code[:, 0] == 0], 1 - code[code[:, 0] == 0]])  # a word n and its complement 2048 + n
        words, signs = code[code.sum(1) == 8], (1 - 2 * code).to(torch.int8)
    return words.nonzero()[:, 1].reshape(len(words), -1), signs


def _bits(numbers: Int[Tensor, "*batch"], count: int) -> Int[Tensor, "*batch count"]:
    return numbers.unsqueeze(-1) // 2 ** torch.arange(count) % 2
