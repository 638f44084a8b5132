"""Exported item tokenizers: the same indices and embeddings as the tokenizer has; and what is found wrong inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gritvq import fsq
from gritvq.export import load_program
from gritvq.items import (
    RQVAE,
    ItemDecoder,
    ItemEncoder,
    ItemTokenizer,
    MultiViewTokenizer,
    ProductKMeans,
    ResidualKMeans,
    grit_product,
    grit_stack,
)
from gritvq.items.tokenizers.program import compare_item_programs
from gritvq.quantizers.diagnosis import examine

DIM, SIZE = 16, 16


def embeddings(num: int = 400) -> Tensor:
    """Around twelve centers."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(12, DIM, generator=generator)
    places = torch.randint(0, 12, (num,), generator=generator)
    return centers[places] + 0.5 * torch.randn(num, DIM, generator=generator)


def rqvae(quantizer: Any) -> RQVAE:
    encoder = ItemEncoder(DIM, quantizer.input_dim, hidden=(24,))
    decoder = ItemDecoder(DIM, quantizer.dim, hidden=(24,))
    return RQVAE(quantizer, encoder=encoder, decoder=decoder, steps=200, batch_size=128)


MADE: dict[str, Callable[[], ItemTokenizer]] = {
    "residual": lambda: ResidualKMeans(SIZE, 3),
    "normalized": lambda: ResidualKMeans(SIZE, 3, normalize_residuals=True),
    "balanced": lambda: ResidualKMeans(SIZE, 2, balanced=True),
    "product": lambda: ProductKMeans(SIZE, 4, rotate=False),
    "rotated": lambda: ProductKMeans(SIZE, 4),
    "rqvae": lambda: rqvae(grit_stack(8, SIZE)),
    "parts": lambda: rqvae(grit_product(8, SIZE, num_parts=4)),
    "fsq": lambda: rqvae(fsq(3, 64)),
    "views": lambda: MultiViewTokenizer(ResidualKMeans(SIZE, 2), (9, 7), (1.0, 2.0)),
}
QUICK = {"rqvae", "normalized"}  # in torch's format; the others go the same ways and are soaked


def cases() -> list[Any]:
    pairs = [(name, format) for name in MADE for format in ("onnx", "torch")]
    soak = [pytest.mark.soak]
    return [pytest.param(*p, marks=[] if p[0] in QUICK and p[1] == "torch" else soak, id="-".join(p)) for p in pairs]


@pytest.mark.parametrize(("name", "format"), cases())
def test_a_program_is_the_tokenizer(name: str, format: Any, tmp_path: Path) -> None:
    if name == "rotated":
        pytest.importorskip("faiss")
    x = embeddings()
    tokenizer = MADE[name]().fit(x)
    places = tokenizer.export(tmp_path, format)
    assert [place.stem for place in places] == ["encoder", "decoder"]
    encode, decode = map(load_program, places)
    middle = (x[:50] + x[50:100]) / 2
    for rows in (x, x[:1], 3 * middle):
        indices = tokenizer.encode(rows)
        assert torch.equal(encode(rows), indices)
        torch.testing.assert_close(decode(indices), tokenizer.decode(indices), rtol=1e-5, atol=1e-5)
    identical, difference = compare_item_programs(tokenizer, *places)
    assert identical.all() and difference < 1e-4


def test_equal_distances_are_decided_as_the_tokenizer_decides_them(tmp_path: Path) -> None:
    """Also where float32 would see none, or another one: rows in the middle of two codes, far from the origin."""
    x = torch.arange(8.0)[:, None].repeat(4, 3) + 1000
    tokenizer = ResidualKMeans(8, 1).fit(x)
    encode = load_program(tokenizer.export(tmp_path, "torch")[0])
    rows = torch.cat([x + 0.5, x + 0.5 + 6e-5, x + 0.5 - 6e-5])
    assert torch.equal(encode(rows), tokenizer.encode(rows))


def test_missing_views(tmp_path: Path) -> None:
    x = embeddings()
    x[:100, 9:], x[100:200, :9] = torch.nan, torch.nan
    tokenizer = MADE["views"]().fit(x)
    encode = load_program(tokenizer.export(tmp_path, "torch")[0])
    assert torch.equal(encode(x), tokenizer.encode(x))
    many = MultiViewTokenizer(ResidualKMeans(SIZE, 2), (4, 4, 4, 2, 2)).fit(embeddings())
    with pytest.raises(ValueError, match="expected at most 4 views in a program, got 5"):
        many.export(tmp_path / "many", "torch")
    assert not (tmp_path / "many").exists()


# --- what is wrong inside ---------------------------------------------------------------------------------------------


def findings(tokenizer: ItemTokenizer, x: Tensor) -> list[tuple[str, str]]:
    return [
        (name, finding.name)
        for name, (quantizer, latents) in tokenizer.searches(x, batch_size=130).items()
        for finding in examine(quantizer, latents)
    ]


@pytest.mark.parametrize("name", MADE)
def test_searches_are_those_of_encode_and_healthy(name: str) -> None:
    if name == "rotated":
        pytest.importorskip("faiss")
    x = embeddings()
    tokenizer = MADE[name]().fit(x)
    found = tokenizer.searches(x)
    if name != "balanced":  # whose prices are left out
        indices = torch.cat([quantizer.encode(latents) for quantizer, latents in found.values()], 1)
        assert torch.equal(indices, tokenizer.encode(x))
    assert findings(tokenizer, x) == []


def test_planted_faults_are_named_with_their_level() -> None:
    x = embeddings()
    residual, product = ResidualKMeans(SIZE, 3).fit(x), ProductKMeans(SIZE, 4, rotate=False).fit(x)
    stack = MADE["rqvae"]().fit(x)
    residual.tables[1, 4:] += 100 + torch.arange(12.0)[:, None]  # type: ignore[index]
    product.tables[3, :8] = product.tables[3, 8:] * (1 + 1e-6)  # type: ignore[index]
    with torch.no_grad():
        stack.quantizer.quantizers[1].codebook.base[2:] = torch.nan  # type: ignore[union-attr,index]
    assert ("level2", "dead codes") in findings(residual, x)
    assert findings(product, x)[0] == ("part4", "codes are duplicates")
    assert findings(stack, x) == [("", "codes are not finite")]
