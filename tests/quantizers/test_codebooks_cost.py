"""What codebooks keep: no graph of K rows in training, and no codes that could become stale."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gritvq import AffineCodebook, MLPCodebook, VectorQuantizer
from gritvq.quantizers.codebooks import recomputed
from test_contract import data, made
from zoo import DIM, QUANTIZERS, SIZE

ROW_MAPS: dict[str, Callable[[], Any]] = {
    "mlp": lambda: MLPCodebook(DIM, SIZE),
    "frozen": lambda: MLPCodebook(DIM, SIZE, base="frozen"),
    "full": lambda: AffineCodebook(DIM, SIZE),
    "diagonal": lambda: AffineCodebook(DIM, SIZE, structure="diagonal"),
    "low rank": lambda: AffineCodebook(DIM, SIZE, structure="low_rank", bias=False),
    "unit length": lambda: AffineCodebook(DIM, SIZE, normalize=True),
}
row_maps = pytest.mark.parametrize("make", ROW_MAPS.values(), ids=ROW_MAPS.keys())


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


def by_data(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, tensor in tensors(module).items():
        tensor.data.copy_(values[name])


def by_numpy(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, tensor in tensors(module).items():
        tensor.detach().numpy()[...] = values[name].numpy()


def by_foreach(module: nn.Module, values: dict[str, Tensor]) -> None:
    own = tensors(module)
    torch._foreach_copy_([tensor.data for tensor in own.values()], [values[name] for name in own])


def in_place(module: nn.Module, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in tensors(module).items():
            tensor.copy_(values[name])


def by_assignment_of_data(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, tensor in tensors(module).items():
        tensor.data = values[name].clone()


def by_state_dict(module: nn.Module, values: dict[str, Tensor]) -> None:
    module.load_state_dict(values, strict=False)


def by_new_parameters(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name in tensors(module):
        owner, _, own = name.rpartition(".")
        part, new = module.get_submodule(owner), values[name].clone()
        setattr(part, own, nn.Parameter(new) if own in part._parameters else new)


WAYS = [by_data, by_numpy, by_foreach, in_place, by_assignment_of_data, by_state_dict, by_new_parameters]
CASES = [  # every quantizer by the commonest way, every kind of codebook by all
    pytest.param(make, write, id=f"{name}-{write.__name__}")
    for name, make in QUANTIZERS.items()
    for write in (WAYS if name.startswith("codebook-") else [by_data])
]


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, also those that no state dict holds; shared ones under each of their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


@pytest.mark.parametrize(("make", "write"), CASES)
def test_weights_swapped_in_eval_are_used_at_once(
    make: Callable[[int, int], Any], write: Callable[[nn.Module, dict[str, Tensor]], None]
) -> None:
    """As averages of weights enter a model for validation: nothing may be left of the old ones, whatever the way."""
    quantizer, other = (made(make, seed).eval() for seed in (1, 2))
    x = data(quantizer, 40)
    new = {name: tensor.detach().clone() for name, tensor in tensors(other).items()}
    with torch.no_grad():
        wanted, old = other(x), quantizer(x)
        quantizer.decode(old.indices)
        write(quantizer, new)
        found = quantizer(x)
        assert torch.equal(found.indices, wanted.indices) and torch.equal(found.quantized, wanted.quantized)
        assert torch.equal(quantizer.decode(wanted.indices), other.decode(wanted.indices))
        assert torch.equal(quantizer.encode(x), wanted.indices)


def test_a_model_built_in_inference_mode_works() -> None:
    with torch.inference_mode():
        quantizer = VectorQuantizer(AffineCodebook(DIM, SIZE)).eval()
        indices = quantizer.encode(torch.randn(3, DIM))
        assert quantizer.decode(indices).shape == (3, DIM)
