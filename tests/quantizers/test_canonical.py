"""Choices made the same way on every machine: bases, signs, orders of equals, and who makes them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gritvq import ConvexAssignment, FreeCodebook, ProjectedQuantizer, VectorQuantizer, vq_vae
from gritvq.images.networks import patch_prior
from gritvq.quantizers.canonical import canonical_basis, canonical_eigh, inverse_root, ranked

SOURCE = Path(__file__).parents[2] / "src" / "gritvq"


def orthogonal(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q


def with_values(*values: float) -> Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    turn = orthogonal(len(values))
    matrix = turn @ torch.tensor(values, dtype=torch.float64).diag() @ turn.T
    return (matrix + matrix.T) / 2


class TestEigenvectors:
    @pytest.mark.parametrize(
        "values", [(5.0,), (4.0, 3.0, 1.0), (2.0, 2.0, 2.0), (7.0, 7.0, 1.0, 0.0, 0.0, 0.0, -3.0, -3.0), (0.0, 0.0)]
    )
    def test_they_are_eigenvectors_and_no_solver_chooses_them(
        self, values: tuple[float, ...], request: pytest.FixtureRequest
    ) -> None:
        matrix = with_values(*values)
        found, vectors = canonical_eigh(matrix)
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(matrix @ vectors, vectors * found, rtol=0, atol=1e-12)
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(len(values), dtype=torch.float64), rtol=0, atol=1e-12)
        plain = torch.linalg.eigh(matrix).eigenvectors
        request.getfixturevalue("other_lapack")
        assert not torch.allclose(torch.linalg.eigh(matrix).eigenvectors, plain, atol=1e-3)  # the patch does something
        torch.testing.assert_close(canonical_eigh(matrix)[1], vectors, rtol=0, atol=1e-12)

    def test_rounding_of_the_matrix_moves_nothing_where_symmetry_makes_values_equal(self) -> None:
        """All permutations of the axes leave the matrix: every pivot is a tie, and rounding must not break it."""
        matrix = 0.9 + 0.1 * torch.eye(6, dtype=torch.float64)
        vectors = canonical_eigh(matrix)[1]
        for seed in range(5):
            noise = 1e-14 * torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            torch.testing.assert_close(canonical_eigh(matrix + noise + noise.T)[1], vectors, rtol=0, atol=1e-11)

    def test_values_nearer_than_the_threshold_are_one_and_farther_ones_two(self) -> None:
        for gap, grouped in ((1e-11, True), (1e-7, False)):
            matrix = torch.tensor([[1 + gap, 0.0], [0.0, 1.0]], dtype=torch.float64)
            turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
            values, vectors = canonical_eigh(turn @ matrix @ turn.T)
            # One space of two dimensions is spanned by the axes; two of one each have their own directions.
            wanted = torch.eye(2, dtype=torch.float64) if grouped else turn
            torch.testing.assert_close(vectors, wanted, rtol=0, atol=1e-7)
            assert (values[0] == values[1]) == grouped

    def test_a_basis_depends_on_its_space_alone(self) -> None:
        space = orthogonal(9)[:, :4]
        found = canonical_basis(space)
        torch.testing.assert_close(found @ found.T, space @ space.T, rtol=0, atol=1e-13)
        for _ in range(5):
            torch.testing.assert_close(canonical_basis(space @ orthogonal(4)), found, rtol=0, atol=1e-13)
        assert canonical_basis(space[:, :0]).shape == (9, 0)


class TestWhatIsBuiltOnThem:
    @pytest.mark.parametrize("channels", [1, 3, 4])
    @pytest.mark.parametrize("factor", [2, 4, 8, 16])
    @pytest.mark.parametrize("share", [0.3, 1.0])  # a part of the components cuts through equal ones
    def test_the_image_prior(self, channels: int, factor: int, share: float, request: pytest.FixtureRequest) -> None:
        count = max(1, int(share * channels * factor**2))
        basis, deviation = patch_prior(channels, factor, count)
        request.getfixturevalue("other_lapack")
        other, its_deviation = patch_prior(channels, factor, count)
        # Float32 rounds vectors that agree to 1e-16 over the smallest gap of these matrices, 2e-9.
        torch.testing.assert_close(other, basis, rtol=0, atol=2e-7)
        torch.testing.assert_close(its_deviation, deviation, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("factor", [2, 4, 8, 16])
    def test_energies_of_the_image_prior_are_equal_or_clearly_apart(self, factor: int) -> None:
        """Else rounding would order them: products of a color's and a pattern's energy."""
        for channels in (2, 3, 4):
            deviation = patch_prior(channels, factor, channels * factor**2)[1].double()
            steps = (deviation[:-1] - deviation[1:]) / deviation[:-1]
            assert bool(((steps == 0) | (steps > 1e-6)).all()) and int((steps == 0).sum()) >= factor**2 * (channels > 2)

    def test_orthogonal_starts(self, request: pytest.FixtureRequest) -> None:
        def start() -> dict[str, Tensor]:
            torch.manual_seed(0)
            return ProjectedQuantizer(vq_vae(4, 16), 9).state_dict()

        one = start()
        request.getfixturevalue("other_lapack")
        two = start()
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_convex_weights(self, request: pytest.FixtureRequest) -> None:
        """Fewer codes than components: the solver works in a basis of their span."""
        quantizer, x = VectorQuantizer(FreeCodebook(8, 5), ConvexAssignment()).eval(), torch.randn(30, 8)
        before = quantizer(x).quantized
        request.getfixturevalue("other_lapack")
        torch.testing.assert_close(quantizer(x).quantized, before, rtol=0, atol=1e-6)


class TestRanking:
    @pytest.mark.parametrize("largest", [True, False])
    @pytest.mark.parametrize("count", [1, 3, 40])
    def test_equal_values_rank_by_place(self, count: int, largest: bool) -> None:
        values = torch.randint(5, (3, 7, 40)).float()
        keys = -values if largest else values
        wanted = [
            sorted(range(40), key=lambda place, row=row: (row[place], place))[:count]
            for row in keys.view(-1, 40).tolist()
        ]
        assert ranked(values, count, largest=largest).view(-1, count).tolist() == wanted
        if count == 40:  # all of them, also of whole numbers
            assert ranked(values.long(), count, largest=largest).view(-1, count).tolist() == wanted

    def test_distinct_values_are_topk_and_what_cannot_be_chosen_comes_last(self) -> None:
        values = torch.randn(50, 30)
        assert torch.equal(ranked(values, 8), values.topk(8).indices)
        values[:, 4:] = -torch.inf
        assert torch.equal(ranked(values, 8)[:, :4].sort(1).values, torch.arange(4).expand(50, 4))
        assert ranked(values[:0], 8).shape == (0, 8)

    def test_equal_codes_are_found_by_index(self) -> None:
        quantizer = vq_vae(4, 64)
        quantizer.codebook.write(torch.arange(64), torch.ones(64, 4))
        near = quantizer.nearest(torch.randn(5, 4), 6)
        assert torch.equal(near, torch.arange(6).expand(5, 6))


def test_the_inverse_root_and_its_gradient() -> None:
    """For equal eigenvalues too, and one that is nearly zero; a matrix that is not finite gives NaN, not an error."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(5, 5, dtype=torch.float64, generator=generator)
    for matrix in (
        factor @ factor.T,
        torch.eye(4, dtype=torch.float64),
        torch.diag(torch.tensor([1.0, 1e-6]).double()),
    ):
        root = inverse_root(matrix)
        torch.testing.assert_close(root @ matrix @ root, torch.eye(len(matrix), dtype=torch.float64))
        torch.testing.assert_close(root, root.T)
    symmetric = (lambda x: inverse_root((x + x.T) / 2), lambda x: inverse_root((x + x.T) / 2 + torch.eye(3)))
    assert torch.autograd.gradcheck(symmetric[0], ((factor @ factor.T).requires_grad_(),))
    assert torch.autograd.gradcheck(symmetric[1], (torch.zeros(3, 3, dtype=torch.float64).requires_grad_(),))
    assert torch.isnan(inverse_root(torch.full((2, 2), torch.inf))).all()


def test_no_other_code_leaves_such_a_choice_to_a_library() -> None:
    """Eigenvectors and ``topk`` come from `canonical`; orders are stable unless only values are read.

    Exponential and Bernoulli draws come from MKL on processors of one maker and from PyTorch on others, so whatever is
    built on them is another draw under the same seed (dropout is; nothing else may be). Random numbers are ranked by
    ``topk`` itself: equal ones are rare, and either is as good a draw.
    """
    random_keys = {"quantizers/base/statistics.py", "quantizers/learning/transport.py"}
    # The search sorts rows by the group of their best code; the order of rows inside a group decides nothing.
    any_order = {"quantizers/kernels/blocked.py"}
    for path in SOURCE.rglob("*.py"):
        name = str(path.relative_to(SOURCE))
        if name == "quantizers/canonical.py":
            continue
        tree = ast.parse(path.read_text())
        values_only = {
            id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "values"
        }
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            where, settings = f"{name}:{node.lineno}", {keyword.arg for keyword in node.keywords}
            assert node.func.attr not in {"eigh", "eig", "svd", "pca_lowrank", "svd_lowrank", "lobpcg"}, where
            assert node.func.attr not in {"multinomial", "bernoulli", "bernoulli_", "exponential_"}, where
            if node.func.attr == "topk":
                assert name in random_keys or id(node) in values_only, where
            if node.func.attr in {"sort", "argsort"} and name not in any_order:
                assert settings & {"stable", "kind", "key"} or id(node) in values_only, where
