"""What codebooks keep: no graph of K rows in training, made once in eval; same values and gradients either way."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gritvq import AffineCodebook, Codebook, MLPCodebook, VectorQuantizer
from gritvq.codebooks import recomputed
from zoo import CODEBOOKS, DIM, SIZE

ROW_MAPS: dict[str, Callable[[], Any]] = {
    "mlp": lambda: MLPCodebook(DIM, SIZE),
    "frozen": lambda: MLPCodebook(DIM, SIZE, base="frozen"),
    "full": lambda: AffineCodebook(DIM, SIZE),
    "diagonal": lambda: AffineCodebook(DIM, SIZE, structure="diagonal"),
    "low rank": lambda: AffineCodebook(DIM, SIZE, structure="low_rank", bias=False),
    "unit length": lambda: AffineCodebook(DIM, SIZE, normalize=True),
}
row_maps = pytest.mark.parametrize("make", ROW_MAPS.values(), ids=ROW_MAPS.keys())
each = pytest.mark.parametrize("make", CODEBOOKS.values(), ids=CODEBOOKS.keys())


def shaken(book: Any) -> Any:
    with torch.no_grad():
        for parameter in book.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return book


@row_maps
@pytest.mark.parametrize("every", [False, True], ids=["chosen rows", "all rows"])
def test_gradients_are_those_of_the_whole_graph(
    make: Callable[[], Any], every: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recomputed, "_BLOCK_ROWS", 5)
    torch.manual_seed(0)
    book = shaken(make()).double()
    indices = torch.arange(SIZE) if every else torch.randint(SIZE, (7,))
    upstream = torch.randn(len(indices), DIM, dtype=torch.float64)
    whole = book.transform(book.base)
    whole = nn.functional.normalize(whole, dim=1) if book.normalize else whole
    trained = [p for p in book.parameters() if p.requires_grad]
    expected = torch.autograd.grad(whole[indices], trained, upstream)
    codes = book.codes()
    found = torch.autograd.grad(codes[indices], trained, upstream)
    torch.testing.assert_close(codes, whole, rtol=1e-12, atol=1e-12)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)


def test_only_rows_with_a_gradient_are_mapped_again() -> None:
    mapped: list[int] = []

    class Counting(AffineCodebook):
        def transform(self, base: Tensor) -> Tensor:
            mapped.append(len(base))
            return super().transform(base)

    book = Counting(DIM, SIZE)
    book.codes()[torch.tensor([3, 3, 9])].sum().backward()
    assert mapped == [SIZE, 2]
    assert book.base.grad is not None and book.base.grad.any(1).nonzero().flatten().tolist() == [3, 9]


def test_a_step_without_any_gradient_to_the_codes_gives_zeros() -> None:
    book = MLPCodebook(DIM, SIZE)
    (0 * book.codes()).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in book.parameters())


def test_nothing_inside_the_map_is_kept_for_the_backward_pass() -> None:
    book = MLPCodebook(DIM, 4096, hidden_dim=8 * DIM)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        codes = book.codes()
    assert codes.requires_grad and max(kept) == 4096 * DIM
    assert sum(kept) == sum(p.numel() for p in book.parameters())


def test_parameters_swapped_in_from_outside_get_the_gradient() -> None:
    book = AffineCodebook(DIM, SIZE)
    swapped = {name: shaken(copy.deepcopy(book)).get_parameter(name).detach().clone() for name in ("weight", "bias")}
    swapped = {name: value.requires_grad_() for name, value in swapped.items()}
    torch.func.functional_call(book, swapped, ()).sum().backward()
    assert all(value.grad is not None for value in swapped.values()) and book.weight.grad is None


def counted(book: Codebook, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often the table is made."""
    calls: list[int] = []
    table = type(book).table

    def spy(self: Codebook) -> Tensor:
        calls.append(1)
        return table(self)

    monkeypatch.setattr(type(book), "table", spy)
    return calls


@each
class TestKeptInEval:
    def test_made_once_and_again_after_every_change(
        self, make: Callable[[int, int], Codebook], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        book = make(DIM, SIZE).eval()
        state = {k: v.clone() for k, v in book.state_dict().items() if isinstance(v, Tensor)}
        calls = counted(book, monkeypatch)
        changes: list[Callable[[], Any]] = [
            lambda: shaken(book),
            lambda: book.load_state_dict(state, strict=False),
            lambda: nn.utils.vector_to_parameters(
                torch.randn(sum(p.numel() for p in book.parameters())), book.parameters()
            ),
            lambda: [p.data.mul_(0.5) for p in book.parameters()] and book.eval(),
            lambda: book.double(),
        ]
        with torch.no_grad():
            for change in changes:
                book.codes()
                made = len(calls)
                assert book.codes() is book.codes() and len(calls) == made
                change()
                codes = book.codes()
                assert len(calls) == made + 1
                assert torch.equal(codes, copy.deepcopy(book).codes())

    def test_not_while_training_or_with_gradients(
        self, make: Callable[[int, int], Codebook], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        book = make(DIM, SIZE)
        calls = counted(book, monkeypatch)
        with torch.no_grad():
            book.codes(), book.codes()
        book.eval().codes(), book.codes()
        assert len(calls) == 4

    def test_an_edit_of_the_result_is_no_edit_of_the_codes(self, make: Callable[[int, int], Codebook]) -> None:
        book = make(DIM, SIZE).eval()
        with torch.no_grad():
            before = book.codes().clone()
            if book.codes().data_ptr() in {p.data_ptr() for p in book.parameters()}:
                return  # a plain table is its own parameter
            book.codes().zero_()
            assert torch.equal(book.codes(), before)

    def test_inference_mode_keeps_them_for_others(
        self, make: Callable[[int, int], Codebook], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        book = make(DIM, SIZE).eval()
        calls = counted(book, monkeypatch)
        with torch.inference_mode():
            book.codes()
        with torch.no_grad():
            assert not book.codes().is_inference() and len(calls) == 1

    def test_parameters_that_take_the_place_of_others_are_seen(self, make: Callable[[int, int], Codebook]) -> None:
        book = make(DIM, SIZE).eval()
        owner, name = next((m, n) for m in book.modules() for n, p in m._parameters.items() if p is not None)
        shape = getattr(owner, name).shape
        with torch.no_grad():
            for _ in range(20):  # memory that one gives back goes to the next, at the same address and version
                setattr(owner, name, nn.Parameter(torch.randn(shape)))
                assert torch.equal(book.codes(), book._materialize())
                setattr(owner, name, None)

    def test_copies_carry_none(self, make: Callable[[int, int], Codebook]) -> None:
        book = make(DIM, SIZE).eval()
        file, empty = io.BytesIO(), io.BytesIO()
        torch.save(book, empty)
        with torch.no_grad():
            book.codes()
        torch.save(book, file)
        assert file.getbuffer().nbytes == empty.getbuffer().nbytes


def test_a_model_built_in_inference_mode_works() -> None:
    with torch.inference_mode():
        quantizer = VectorQuantizer(AffineCodebook(DIM, SIZE)).eval()
        indices = quantizer.encode(torch.randn(3, DIM))
        assert quantizer.decode(indices).shape == (3, DIM)
