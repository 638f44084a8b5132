"""Codebooks: identity starts, who moves with whom, writing codes, drift, folding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gritvq import (
    AffineCodebook,
    BridgeCodebook,
    Codebook,
    FreeCodebook,
    MLPCodebook,
    PowerRadius,
    RadialSurrogate,
    StraightThrough,
    TransformerCodebook,
    VectorQuantizer,
    from_config,
    grit_vq,
    simvq,
    to_config,
)
from zoo import CODEBOOKS, DIM, SEEDS, SIZE, trained_a_little

each = pytest.mark.parametrize("make", CODEBOOKS.values(), ids=CODEBOOKS.keys())
STRUCTURES = ("full", "diagonal", "low_rank")


def double(book: Codebook) -> Codebook:
    return book.double()


@each
class TestEveryCodebook:
    def test_starts_as_the_identity(self, make: Callable[[int, int], Codebook]) -> None:
        book = make(DIM, SIZE)
        if book.writes is None:
            return  # maps of the whole table start as their papers say, which their own tests check
        base = dict(book.named_parameters()).get("base", next(book.parameters()))
        expected = torch.nn.functional.normalize(base, dim=1) if book.normalize else base
        assert torch.equal(book.codes(), expected)
        if book.normalize:
            torch.testing.assert_close(book.codes().norm(dim=1), torch.ones(SIZE))

    def test_written_codes_read_back_and_others_stay(self, make: Callable[[int, int], Codebook]) -> None:
        torch.manual_seed(1)
        book = make(DIM, SIZE)
        for parameter in book.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
        before = book.codes().detach().clone()
        rows, vectors = torch.tensor([3, 17, 30]), torch.randn(3, DIM)
        if book.writes is None:
            with pytest.raises(ValueError, match=r"expected a codebook whose codes can be written.*writes=None"):
                book.write(rows, vectors)
            assert torch.equal(book.codes(), before)
            return
        if book.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        written = book.write(rows, vectors)
        after = book.codes().detach()
        others = torch.ones(SIZE, dtype=torch.bool)
        others[rows] = False
        assert torch.equal(after[others], before[others])
        assert torch.equal(after[rows[~written]], before[rows[~written]])
        error = (after[rows[written]] - vectors[written]).norm(dim=1)
        assert bool((error <= 0.03 * vectors[written].norm(dim=1)).all())
        if isinstance(book, FreeCodebook):
            assert bool(written.all())

    def test_codes_stay_float32(self, make: Callable[[int, int], Codebook]) -> None:
        book = trained_a_little(torch.nn.Sequential(make(DIM, SIZE)))[0]  # type: ignore[arg-type]
        expected = book.codes()
        for _ in range(2):
            book.half()
        assert torch.equal(book.codes(), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(book.codes(), expected)
        assert book.double().codes().dtype == torch.float64

    def test_bad_sizes(self, make: Callable[[int, int], Codebook]) -> None:
        for dim, size, name in ((0, 4, "dim"), (4, 0, "codebook_size"), (4, -1, "codebook_size"), (4, 2.5, "codebook")):
            with pytest.raises(ValueError, match=f"expected {name}"):
                make(dim, size)  # type: ignore[arg-type]


@pytest.mark.parametrize("book", [FreeCodebook, AffineCodebook, MLPCodebook])
def test_bad_arguments(book: type[Codebook]) -> None:
    with pytest.raises(ValueError, match=r"expected lr_scale > 0.*got 0"):
        book(4, 8, lr_scale=0)
    with pytest.raises(ValueError, match="expected initialization 'normal', 'samples' or 'kmeans', got 'random'"):
        book(4, 8, initialization="random")  # type: ignore[arg-type]
    if book is not FreeCodebook:
        with pytest.raises(ValueError, match="expected base 'trained' or 'frozen', got 'free'"):
            book(4, 8, base="free")  # type: ignore[call-arg]
    if book is AffineCodebook:
        with pytest.raises(ValueError, match="expected structure"):
            AffineCodebook(4, 8, structure="dense")  # type: ignore[arg-type]
    if book is MLPCodebook:
        with pytest.raises(ValueError, match="expected hidden_dim >= 1, got 0"):
            MLPCodebook(4, 8, hidden_dim=0)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_affine_codes_are_written_exactly(structure: str) -> None:
    book = double(AffineCodebook(DIM, SIZE, structure=structure))  # type: ignore[arg-type]
    for parameter in book.parameters():
        torch.nn.init.normal_(parameter)
    vectors = torch.randn(SIZE, DIM, dtype=torch.float64)
    assert bool(book.write(torch.arange(SIZE), vectors).all())
    torch.testing.assert_close(book.codes(), vectors, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", [AffineCodebook, MLPCodebook])
def test_codes_are_written_in_full_precision_under_autocast(make: type[Codebook]) -> None:
    book, vectors = make(DIM, SIZE), torch.randn(SIZE, DIM)
    with torch.no_grad():
        for parameter in book.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    with torch.autocast("cpu", torch.bfloat16):
        assert book.write(torch.arange(SIZE), vectors).all()
    torch.testing.assert_close(book.codes(), vectors, rtol=0, atol=1e-5)


def test_moments_are_matched_in_full_precision_under_autocast() -> None:
    book, x = TransformerCodebook(DIM, SIZE), torch.randn(400, DIM) + 3
    with torch.autocast("cpu", torch.bfloat16):
        book.match_moments(x)
    torch.testing.assert_close(book.codes().mean(0), x.mean(0), rtol=0, atol=1e-5)


def test_a_singular_map_refuses_to_be_written() -> None:
    book = AffineCodebook(DIM, SIZE)
    torch.nn.init.zeros_(book.weight)
    before = book.codes().detach().clone()
    assert not book.write(torch.arange(3), torch.randn(3, DIM)).any()
    assert torch.equal(book.codes(), before)


# --- movement of codes under one plain gradient step (spec section 7) -------------------------------------------------


def one_step(book: Codebook, chosen: Tensor, gradient: Tensor, lr: float = 1e-3) -> Tensor:
    """Change of all codes by one gradient step on the chosen ones."""
    before = book.codes().detach().clone()
    optimizer = torch.optim.SGD([p for p in book.parameters() if p.requires_grad], lr=lr)
    (book.codes()[chosen] * gradient).sum().backward()
    optimizer.step()
    return book.codes().detach() - before


class TestMovement:
    size, dim, lr = 64, 8, 1e-3

    def chosen(self) -> tuple[Tensor, Tensor]:
        return torch.arange(0, 50, 10), torch.randn(5, self.dim, dtype=torch.float64)

    def test_table_moves_only_what_was_chosen(self) -> None:
        chosen, gradient = self.chosen()
        moved = one_step(double(FreeCodebook(self.dim, self.size)), chosen, gradient)
        torch.testing.assert_close(moved[chosen], -self.lr * gradient)
        moved[chosen] = 0
        assert not moved.any()

    @pytest.mark.parametrize("bias", [True, False])
    def test_affine_moves_every_row_by_the_kernel(self, bias: bool) -> None:
        book = double(AffineCodebook(self.dim, self.size, base="frozen", bias=bias))
        chosen, gradient = self.chosen()
        base = book.codes().detach().clone()
        moved = one_step(book, chosen, gradient)
        kernel = base @ base[chosen].T + (1 if bias else 0)
        torch.testing.assert_close(moved, -self.lr * kernel @ gradient, rtol=1e-10, atol=1e-12)
        assert bool((moved.norm(dim=1) > 0).all()) and int(torch.linalg.matrix_rank(moved, rtol=1e-9)) == 5
        assert torch.equal(dict(book.named_parameters())["base"], base)

    def test_low_rank_moves_every_row_within_its_kernel(self) -> None:
        book = double(AffineCodebook(self.dim, self.size, base="frozen", structure="low_rank"))
        down = book.get_parameter("down").detach().clone()
        chosen, gradient = self.chosen()
        base = book.codes().detach().clone()
        moved = one_step(book, chosen, gradient)
        kernel = (base @ down) @ (base[chosen] @ down).T + 1
        torch.testing.assert_close(moved, -self.lr * kernel @ gradient, rtol=1e-10, atol=1e-12)

    def test_diagonal_and_network_move_every_row_too(self) -> None:
        for make in (
            lambda: AffineCodebook(self.dim, self.size, base="frozen", structure="diagonal"),
            lambda: MLPCodebook(self.dim, self.size, base="frozen"),
        ):
            moved = one_step(double(make()), *self.chosen())
            assert bool((moved.norm(dim=1) > 0).all()) and int(torch.linalg.matrix_rank(moved)) >= 5

    def test_trained_base_adds_its_own_share_to_the_chosen(self) -> None:
        chosen, gradient = self.chosen()
        books = [double(AffineCodebook(self.dim, self.size, base=base)) for base in ("trained", "frozen")]
        books[1].load_state_dict(books[0].state_dict())
        both, frozen = (one_step(book, chosen, gradient) for book in books)
        others = torch.ones(self.size, dtype=torch.bool)
        others[chosen] = False
        torch.testing.assert_close(both[others], frozen[others])
        # The map moves too: the product of its step and the base's is of second order in the rate, 2e-3 of the first.
        torch.testing.assert_close(both[chosen] - frozen[chosen], -self.lr * gradient, rtol=0.05, atol=1e-5)


def test_smallest_distance_is_bounded_by_the_smallest_singular_value() -> None:
    book = double(AffineCodebook(DIM, SIZE, base="frozen"))
    torch.nn.init.normal_(book.get_parameter("weight"))
    sigma = torch.linalg.svdvals(book.get_parameter("weight").detach()).min()
    assert torch.pdist(book.codes().detach()).min() >= sigma * torch.pdist(book.get_parameter("base").detach()).min()


def test_gradient_of_the_map_under_each_radius() -> None:
    x, g = torch.randn(100, DIM, dtype=torch.float64), torch.randn(100, DIM, dtype=torch.float64)
    for surrogate, learns in ((StraightThrough(), False), (RadialSurrogate(PowerRadius(1.0)), True)):
        book = double(AffineCodebook(DIM, SIZE, base="frozen"))
        quantizer = VectorQuantizer(book, surrogate=surrogate, learning=[])
        z, indices, _ = quantizer(x)
        (z * g).sum().backward()
        weight = book.get_parameter("weight").grad
        assert book.get_parameter("base").grad is None
        if not learns:
            assert weight is None or not weight.any()
            continue
        e = z.detach() - x
        grad_q = (g * e).sum(-1, keepdim=True) / e.square().sum(-1, keepdim=True) * e
        assert weight is not None
        torch.testing.assert_close(weight, book.get_parameter("base")[indices[:, 0]].T @ grad_q, rtol=1e-9, atol=1e-9)


# --- drift (spec section 10): latents move away, the codes have to follow ---------------------------------------------


def usage_after_translation(book: Codebook) -> float:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(book, surrogate=RadialSurrogate())
    optimizer = torch.optim.Adam(quantizer.parameter_groups(5e-3))
    basis = torch.randn(8, 8) / 8**0.5
    direction = torch.nn.functional.normalize(torch.randn(8), dim=0)
    steps = 600
    for step in range(steps):
        z = torch.randn(256, 8) @ basis + 6 * step / steps * direction
        loss = 0.5 * (quantizer(z).quantized - z).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fresh = torch.randn(20000, 8) @ basis + 6 * direction
    return quantizer.encode(fresh).unique().numel() / 256


# How a table and the map of grit_vq fare is in benchmarks/test_drift.py as well.
@pytest.mark.parametrize(
    ("make", "follows"),
    [
        (lambda: AffineCodebook(8, 256), True),
        (lambda: AffineCodebook(8, 256, base="frozen", bias=False), False),
        pytest.param(lambda: MLPCodebook(8, 256), True, marks=pytest.mark.soak),
        pytest.param(lambda: FreeCodebook(8, 256), False, marks=pytest.mark.soak),
    ],
    ids=["affine", "without bias", "network", "table"],
)
def test_shared_maps_with_a_bias_follow_a_translation_and_tables_do_not(
    make: Callable[[], Codebook], follows: bool
) -> None:
    torch.manual_seed(4)
    used = usage_after_translation(make())
    assert used > 0.9 if follows else used < 0.5, used


# --- maps of the whole table (methods of TransVQ and FVQ) -------------------------------------------------------------

WHOLE: dict[str, Callable[[], Codebook]] = {
    "transformer": lambda: TransformerCodebook(8, 64, width=32),
    "bridge": lambda: BridgeCodebook(8, 64, codes_per_token=4, width=32),
    "bridge-uneven": lambda: BridgeCodebook(8, 61, codes_per_token=7, width=16, depth=1),
    "bridge-registers": lambda: BridgeCodebook(8, 64, codes_per_token=4, width=16, num_registers=3, base="frozen"),
}
whole = pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE.keys())


def awake(book: Codebook) -> Codebook:
    """A bridge past its zero start; other codebooks as they are."""
    if isinstance(book, BridgeCodebook):
        torch.nn.init.xavier_uniform_(book.recover.weight)
    return book


@whole
class TestMapsOfTheWholeTable:
    def test_one_step_moves_every_code(self, make: Callable[[], Codebook]) -> None:
        moved = one_step(double(awake(make())), torch.tensor([5, 17, 40]), torch.randn(3, 8, dtype=torch.float64))
        assert bool((moved.norm(dim=1) > 0).all())

    def test_moments_are_those_of_the_data(self, make: Callable[[], Codebook]) -> None:
        book = awake(make())
        x = torch.randn(500, 8) * torch.linspace(0.01, 30, 8) + torch.linspace(-50, 50, 8)
        book.fit(x)
        codes = book.codes().detach()
        torch.testing.assert_close(codes.mean(0), x.mean(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(codes.std(0, correction=0), x.std(0, correction=0), rtol=1e-3, atol=1e-4)
        book.fit(x[:1])  # no spread to take over: codes stay apart, around the vector
        assert bool((book.scale == 1).all()) and torch.pdist(book.codes().detach()).min() > 0
        torch.testing.assert_close(book.codes().mean(0), x[0], rtol=1e-4, atol=1e-4)

    def test_folding_leaves_a_plain_table_with_the_same_codes(self, make: Callable[[], Codebook]) -> None:
        quantizer = VectorQuantizer(awake(make()))
        x = torch.randn(300, 8)
        quantizer.initialize_codebook(x)
        folded = quantizer.fold()
        indices = quantizer.encode(x)
        assert indices.unique().numel() > 10
        assert torch.equal(folded.encode(x), indices)
        assert torch.equal(folded.decode(indices), quantizer.decode(indices))
        assert [name for name, _ in folded.named_parameters()] == ["codebook.weight"]
        assert list(folded.state_dict()) == ["codebook.weight"]

    def test_rebuilds_and_counts_every_parameter(self, make: Callable[[], Codebook]) -> None:
        book = make()
        other = from_config(to_config(book))
        assert isinstance(other, Codebook)
        other.load_state_dict(book.state_dict())
        assert torch.equal(other.codes(), book.codes())
        assert set(book.learning_rate_scales()) == {p for p in book.parameters() if p.requires_grad}


def test_the_transformers_table_is_frozen_and_its_positions_are_not_small() -> None:
    book = TransformerCodebook(8, 64)
    book.codes().square().sum().backward()
    assert book.base.grad is None and not book.base.requires_grad
    assert book.positions.shape == (64, 256) and bool((book.positions.grad != 0).any(1).all())
    assert book.codes().std().item() == pytest.approx(3**-0.5, rel=0.1)


def test_linear_attention_is_the_normalized_kernel_sum() -> None:
    book = TransformerCodebook(3, 10, width=4).double()
    h = book.base @ book.enter.weight.T + book.positions
    query, key, value = (book.norm_attention(h) @ book.qkv.weight.T).split(4, dim=1)
    feature = [torch.where(t > 0, t + 1, t.exp()) for t in (query, key)]
    attended = torch.stack(
        [sum((q @ k) * v for k, v in zip(feature[1], value, strict=True)) for q in feature[0]]  # type: ignore[misc]
    ) / torch.stack([sum(q @ k for k in feature[1]) for q in feature[0]]).unsqueeze(1)  # type: ignore[misc]
    h = h + attended @ book.mix.weight.T
    h = h + book.down(torch.nn.functional.gelu(book.up(book.norm_mlp(h))))
    torch.testing.assert_close(book.codes(), book.norm_leave(h) @ book.leave.weight.T)


def test_a_bridge_reaches_the_whole_base_table_and_a_map_of_single_codes_does_not() -> None:
    x = 0.3 * torch.randn(40, 8)
    reached, moved, chosen = {}, {}, {}
    for name, book in (
        ("bridge", awake(BridgeCodebook(8, 256, width=32))),
        ("linear", AffineCodebook(8, 256)),
        ("table", FreeCodebook(8, 256)),
    ):
        quantizer = VectorQuantizer(book)
        optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
        before = book.codes().detach().clone()
        output = quantizer(x)
        output.loss.backward()
        rows = book.get_parameter("weight" if name == "table" else "base").grad
        optimizer.step()
        assert rows is not None
        reached[name] = (rows != 0).any(1).float().mean().item()
        moved[name] = ((book.codes() - before) != 0).any(1).float().mean().item()
        chosen[name] = output.indices.unique().numel() / 256
    assert moved["bridge"] == moved["linear"] == 1.0 and moved["table"] == chosen["table"]
    assert reached["bridge"] == 1.0 and reached["linear"] == chosen["linear"] and reached["table"] == chosen["table"]
    assert max(chosen.values()) < 0.2


def test_permuting_groups_permutes_the_codes() -> None:
    book = awake(BridgeCodebook(8, 64, codes_per_token=4, width=32, num_registers=2)).double()
    order = torch.randperm(16)
    before = book.codes().detach().view(16, 4, 8)
    with torch.no_grad():
        book.base.copy_(book.base.view(16, 4, 8)[order].reshape(64, 8))
    after = book.codes().detach().view(16, 4, 8)
    torch.testing.assert_close(after, before[order], rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        book.base.copy_(book.base.view(16, 4, 8).flip(1).reshape(64, 8))  # inside groups there is an order
    assert not torch.allclose(book.codes().view(16, 4, 8), after.flip(1), atol=1e-3)


def test_what_fills_the_last_group_up_is_dropped() -> None:
    torch.manual_seed(3)
    uneven = awake(BridgeCodebook(8, 61, codes_per_token=7, width=16)).double()
    full = BridgeCodebook(8, 63, codes_per_token=7, width=16).double()
    state = uneven.state_dict()
    full.load_state_dict({**state, "base": torch.cat([state["base"], torch.zeros(2, 8, dtype=torch.float64)])})
    assert uneven.num_tokens == full.num_tokens == 9
    torch.testing.assert_close(uneven.codes(), full.codes()[:61])


class TestZeroStart:
    def quantizer(self) -> VectorQuantizer:
        return VectorQuantizer(BridgeCodebook(8, 256, codes_per_token=16, width=32))

    @pytest.mark.parametrize("seed", SEEDS)
    def test_codes_wake_one_place_in_all_groups_per_step(self, seed: int) -> None:
        torch.manual_seed(seed)
        quantizer = self.quantizer()
        book = quantizer.codebook
        assert not book.codes().any() and not quantizer.encode(torch.randn(5, 8)).any()
        assert bool((book.get_parameter("base").abs() <= 1 / 256).all())
        optimizer, x, distinct, reached = torch.optim.Adam(quantizer.parameters(), lr=1e-3), torch.randn(512, 8), [], []
        for _ in range(4):
            optimizer.zero_grad()
            quantizer(x).loss.backward()
            reached.append(int((book.get_parameter("base").grad != 0).any(1).sum()))  # type: ignore[union-attr]
            optimizer.step()
            distinct.append(len(book.codes().unique(dim=0)))
        assert distinct == [17, 33, 49, 65]
        assert reached == [0, 256, 256, 256]

    @pytest.mark.parametrize("fitted", [False, True])
    def test_far_from_the_data_they_wake_only_after_a_fit(self, fitted: bool) -> None:
        quantizer = self.quantizer()
        if fitted:
            quantizer.initialize_codebook(5 + torch.randn(1000, 8))
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-3)
        for _ in range(150):
            optimizer.zero_grad()
            quantizer(5 + torch.randn(256, 8)).loss.backward()
            optimizer.step()
        used = quantizer.encode(5 + torch.randn(5000, 8)).unique().numel()
        assert used > 200 if fitted else used <= 16


def after_a_bad_start(make: Callable[[], Codebook], seed: int, steps: int = 800) -> tuple[float, float]:
    """Usage and error on a mixture of 16 clusters far from all codes, after a warm-up and a linear decay."""
    torch.manual_seed(seed)
    book = make()
    centers = 5 * torch.nn.functional.normalize(torch.randn(16, 8), dim=1)

    def sample(count: int) -> Tensor:
        return centers[torch.randint(16, (count,))] + 0.5 * torch.randn(count, 8)

    quantizer = VectorQuantizer(book)
    optimizer = torch.optim.Adam(quantizer.parameter_groups(2e-3))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 80) * (1 - 0.99 * max(0.0, step / steps - 0.3) / 0.7)
    )
    for _ in range(steps):
        optimizer.zero_grad()
        quantizer(sample(128)).loss.backward()
        optimizer.step()
        schedule.step()
    x = sample(10000)
    indices = quantizer.encode(x)
    return indices.unique().numel() / book.codebook_size, (quantizer.decode(indices) - x).square().mean().item()


def near_zero() -> Codebook:
    book = FreeCodebook(8, 256)
    torch.nn.init.uniform_(book.weight, -1 / 256, 1 / 256)
    return book


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bridge_recovers_from_a_bad_start(seed: int) -> None:
    # Rounding decides much in 800 steps. A table uses .04 to .06 of its codes at an error of 1.6 to 1.7, a bridge .35
    # to .85 at .18 to .21; a factor of four lies between.
    used, error = after_a_bad_start(near_zero, seed)
    bridge = after_a_bad_start(lambda: BridgeCodebook(8, 256, codes_per_token=4, width=32), seed)
    assert bridge[0] >= 4 * used and bridge[1] <= error / 4, (used, error, bridge)


def test_bad_arguments_of_maps_of_the_whole_table() -> None:
    for settings, message in (
        ({"codes_per_token": 0}, "expected codes_per_token >= 1, got 0"),
        ({"depth": 0}, "expected depth >= 1, got 0"),
        ({"num_registers": -1}, "expected num_registers >= 0, got -1"),
        ({"width": 6}, "expected width > 0, a multiple of the 4 heads, got 6"),
        ({"base": "free"}, "expected base 'trained' or 'frozen', got 'free'"),
        ({"lr_scale": (1.0, 0.0)}, "expected lr_scale > 0, or two such numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            BridgeCodebook(4, 16, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected width >= 1, got 0"):
        TransformerCodebook(4, 16, width=0)
    rates = BridgeCodebook(4, 16, width=8, lr_scale=(2.0, 3.0)).learning_rate_scales()
    assert sorted(set(rates.values())) == [2.0, 3.0] and list(rates.values()).count(3.0) == 1


# --- learning rates ---------------------------------------------------------------------------------------------------


def test_parameter_groups_cover_every_parameter_once() -> None:
    for quantizer in (grit_vq(DIM, SIZE), simvq(DIM, SIZE, lr_scale=3.0)):
        groups = quantizer.parameter_groups(1e-3)
        listed = [p for group in groups for p in group["params"]]
        assert len(listed) == len(set(listed))
        assert set(listed) == {p for p in quantizer.parameters() if p.requires_grad}
        assert [g["lr"] for g in groups] == [pytest.approx(1e-3 * quantizer.codebook.lr_scale)]
        assert [g["weight_decay"] for g in groups] == [0.0]
    assert simvq(DIM, SIZE).get_parameter("codebook.base").requires_grad is False


def test_map_and_base_table_may_have_their_own_rates() -> None:
    quantizer = grit_vq(DIM, SIZE, lr_scale=(10.0, 60.0))
    rates = {p: group["lr"] for group in quantizer.parameter_groups(1e-3) for p in group["params"]}
    for name, parameter in quantizer.named_parameters():
        assert rates[parameter] == pytest.approx(0.06 if name == "codebook.base" else 0.01), name
    rebuilt = from_config(to_config(quantizer))
    assert isinstance(rebuilt, VectorQuantizer) and len(rebuilt.parameter_groups(1.0)) == 2
    for bad in ((1.0,), (1.0, 0.0), (1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match="expected lr_scale > 0, or two such numbers"):
            grit_vq(DIM, SIZE, lr_scale=bad)  # type: ignore[arg-type]


def test_folded_grit_vq_is_a_plain_table() -> None:
    quantizer = trained_a_little(grit_vq(DIM, SIZE))
    folded = quantizer.fold()
    assert isinstance(folded, VectorQuantizer) and isinstance(folded.codebook, FreeCodebook)
    assert torch.equal(folded.codebook.codes(), quantizer.codebook.codes())
