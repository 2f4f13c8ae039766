import pytest
import torch

from circuitome.errors import InputError
from circuitome.weights.factored import Factored


def product(*shape, seed=0):
    *batch, rows, rank, columns = shape
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(*batch, a, b, generator=generator) for a, b in ((rows, rank), (rank, columns)))
    return Factored(left, right)


@pytest.mark.parametrize("shape", [(9, 3, 7), (7, 3, 9), (2, 8, 3, 8), (3, 5, 4)])
def test_norm_and_singular_values_are_those_of_the_product(shape):
    thin = product(*shape)
    full = thin.full()
    values = torch.linalg.svdvals(full)[..., : shape[-2]]
    assert thin.shape == tuple(full.shape)
    torch.testing.assert_close(thin.norm().float(), torch.linalg.matrix_norm(full))
    torch.testing.assert_close(thin.singular_values()[..., : values.shape[-1]], values, atol=1e-5, rtol=1e-5)
    u, s, v = thin.svd()
    torch.testing.assert_close(u * s[..., None, :] @ v.mT, full, atol=1e-5, rtol=1e-5)


def test_eigenvalues_are_the_nonzero_ones():
    thin = product(12, 4, 12)
    full = torch.linalg.eigvals(thin.full().double())
    largest = full[full.abs().argsort(descending=True)[:4]]
    own = thin.eigenvalues()
    for power in (1, 2, 3, 4):
        torch.testing.assert_close((own**power).sum(), (largest**power).sum(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("ranks", [(2, 5), (5, 2)])
def test_products_keep_the_smaller_rank(ranks):
    a, b = product(6, ranks[0], 8), product(8, ranks[1], 7, seed=1)
    both = a @ b
    torch.testing.assert_close(both.full(), a.full() @ b.full(), atol=1e-4, rtol=1e-4)
    assert both.left.shape[-1] == 2
    torch.testing.assert_close(a.mT.full(), a.full().mT)


def test_a_small_difference_of_large_factors_keeps_its_norm():
    right = torch.tensor([[1.0, 0.0], [-1.0, 1e-4]])
    assert float(Factored(torch.tensor([[1.0, 1.0]]), right).norm()) == pytest.approx(1e-4, rel=1e-6)


def test_only_square_products_have_eigenvalues():
    with pytest.raises(InputError, match="this one is 4 by 5"):
        product(4, 2, 5).eigenvalues()
