"""Heads: distributions over the indices of a position, in little memory for large codebooks."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gritvq.items import DepthDecoder
from gritvq.priors import BitHead, DepthHead, Head, SoftmaxHead, head_for
from gritvq.quantizers.lookup_free import BSQ, FSQ, LFQ


def bytes_of(make: Callable[[], Head], width: int, indices: Tensor) -> int:
    """Parameters, and what one training step keeps for its gradients beside them; less than the true peak."""
    head = make()
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    for parameter in head.parameters():
        keep(parameter)
    states = torch.randn(*indices.shape[:-1], width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = head.loss(states + head.embed(indices), indices)
    assert math.isfinite(float(loss))
    return sum(storage.nbytes() for storage in storages.values())


def test_bits_of_a_large_codebook_take_a_twentieth_of_a_softmax() -> None:
    size, width = 2**18, 64
    indices = torch.randint(size, (64, 1))
    softmax = bytes_of(lambda: SoftmaxHead((size,), width), width, indices)
    assert softmax > 4 * size * (2 * width + 64)  # two tables, and the logits of 64 positions
    for settings in (
        {},
        {"levels": [[2] * 18]},
        {"autoregressive": False},
        {"levels": [[2] * 18], "autoregressive": False},
    ):
        assert bytes_of(lambda settings=settings: BitHead((size,), width, **settings), width, indices) <= softmax / 20


@pytest.mark.parametrize("quantizer", [FSQ([5, 4, 3]), LFQ(6), BSQ(6)], ids=["fsq", "lfq", "bsq"])
def test_digits_are_those_of_the_quantizers(quantizer: FSQ | LFQ | BSQ) -> None:
    """Codes whose indices have one digit in common have one component in common."""
    (size,) = quantizer.codebook_sizes
    levels = [[5, 4, 3]] if isinstance(quantizer, FSQ) else [[2] * 6]
    head = BitHead((size,), 8, levels=levels)
    indices = torch.arange(size)[:, None]
    digits, codes = head.digits_of(indices), quantizer.decode(indices)
    for n, level in enumerate(levels[0]):
        assert len({(int(d), round(float(c), 4)) for d, c in zip(digits[:, n], codes[:, n], strict=True)}) == level
    assert torch.equal((digits * head.weights).sum(1), indices[:, 0])
    assert head.digits_of(torch.tensor([[-1]])).tolist() == [[-1] * len(levels[0])]


def test_depth_sees_how_channels_depend_on_each_other() -> None:
    """Two channels that are always equal: independent channels cost log 4 at least, a chain half of it."""
    indices = torch.randint(4, (256, 1)).expand(256, 2)
    states = torch.ones(256, 16)
    losses = {}
    for head in (SoftmaxHead((4, 4), 16), DepthHead((4, 4), 16), BitHead((4, 4), 16, levels=[[2, 2], [4]])):
        optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
        for _ in range(100):
            loss = head.loss(states, indices)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[type(head).__name__] = float(loss.detach())
    assert losses["SoftmaxHead"] > math.log(4) - 0.03  # the sample's own frequencies are not quite uniform
    assert losses["DepthHead"] < math.log(4) / 2 + 0.01 and losses["BitHead"] < math.log(4) / 2 + 0.01


@pytest.mark.parametrize("name", ["softmax", "depth", "bits", "parallel_bits"])
def test_absent_channels_count_nothing(name: str) -> None:
    head = head_for(name, (4, 6), 16, 2).eval()
    states, indices = torch.randn(5, 16), torch.tensor([[1, 5], [1, -1], [-1, 5], [-1, -1], [3, 0]])
    log_probs = head.log_prob(states, indices)
    assert log_probs.shape == (5,) and float(log_probs[3]) == 0
    torch.testing.assert_close(head.loss(states, indices), -log_probs.sum() / 6)
    assert torch.equal(head.embed(indices)[3], torch.zeros(16))
    torch.testing.assert_close(head.embed(indices)[0], head.embed(indices[0]))

    def first(logits: Tensor, present: Tensor) -> Tensor:
        return logits[0].argmax(-1).masked_fill(~present, -1)

    found = head.sample(states[None], first, indices >= 0)
    assert torch.equal(found >= 0, indices >= 0) and bool((found < torch.tensor([4, 6])).all())
    one = head.sample(states[None, :1], first, torch.tensor([True, True]))
    assert torch.equal(one, found[:1])


def test_a_recommender_and_a_prior_share_the_transformer_over_channels() -> None:
    """Equal weights, equal probabilities: the states of an item's indices are those of a position's channels."""
    head = DepthHead((4, 6), 16).eval()
    recommender = DepthDecoder((4, 6), 16, num_layers=1, num_heads=1, hidden_dim=64).eval()
    recommender.codes.load_state_dict(head.channels.state_dict())
    with torch.no_grad():
        recommender.embedding.weight[3:].copy_(head.embedding.weight)
        head.output.weight.copy_(head.embedding.weight)  # the recommender has one table for both
    states = torch.randn(3, 16)
    indices = torch.tensor([[0, 5], [3, 1], [2, 2]])
    written = recommender._write(states, indices[:, :1])
    logits = [recommender._logits(written[:, q], q).log_softmax(-1)[torch.arange(3), indices[:, q]] for q in range(2)]
    torch.testing.assert_close(head.log_prob(states, indices), logits[0] + logits[1])


def test_heads_are_chosen_by_the_tokens() -> None:
    for sizes, at_once, kind in (
        ((1024,), 1, SoftmaxHead),
        ((256, 256), 2, DepthHead),
        ((256, 256), 1, SoftmaxHead),
        ((2**18,), 1, BitHead),
    ):
        assert type(head_for(None, sizes, 16, at_once)) is kind
    assert BitHead((2**16, 1000, 67 * 2, 1), 16).levels == ((64, 64, 16), (40, 25), (2, 67), (1,))
    for call, said in (
        (lambda: BitHead((8,), 16, levels=[[2, 2]]), "whose product is its codebook size"),
        (lambda: BitHead((8, 8), 16, levels=[[2, 4]]), "whose product is its codebook size"),
        (lambda: DepthHead((8,), 16, depth=0), "depth >= 1"),
        (lambda: SoftmaxHead((0,), 16), "codebook size >= 1"),
        (lambda: head_for("conv", (4,), 16, 1), "expected head 'softmax', 'depth'"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    assert isinstance(DepthHead((4,), 32, depth_width=8).narrow, nn.Linear)
