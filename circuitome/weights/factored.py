"""A product of two thin matrices that is never multiplied out: norm, singular values, eigenvalues through its core."""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from circuitome.errors import InputError


@dataclass(frozen=True)
class Factored:
    """left @ right, of a rank far below its size; leading axes are a batch. Everything is computed in float32 or more.

    Source of the idea: TransformerLens, FactoredMatrix.
    """

    left: Float[Tensor, "*batch rows rank"]
    """Left factor."""
    right: Float[Tensor, "*batch rank columns"]
    """Right factor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product."""
        return (*self.left.shape[:-1], self.right.shape[-1])

    @property
    def mT(self) -> "Factored":
        """The transposed product."""
        return Factored(self.right.mT, self.left.mT)

    def full(self) -> Float[Tensor, "*batch rows columns"]:
        """The product itself; for small ones."""
        return self.left @ self.right

    def __matmul__(self, other: "Factored") -> "Factored":
        """The product with another, in the smaller of the two ranks."""
        core = self.right @ other.left
        if core.shape[-2] <= core.shape[-1]:
            return Factored(self.left, core @ other.right)
        return Factored(self.left @ core, other.right)

    def __getitem__(self, index: int) -> "Factored":
        """One product of a batch."""
        return Factored(self.left[index], self.right[index])

    def norm(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm, the root of the sum of squares of all entries; from the factors' inner products, float64."""
        left, right = self.left.double(), self.right.double()
        return ((left.mT @ left) * (right @ right.mT)).sum((-2, -1)).clamp(min=0).sqrt()

    def singular_values(self) -> Float[Tensor, "*batch least"]:
        """Singular values, largest first, as many as the smallest side of the factors; the others are 0."""
        return torch.linalg.svdvals(self._orthogonal()[1])

    def svd(
        self,
    ) -> tuple[
        Float[Tensor, "*batch rows least"], Float[Tensor, "*batch least"], Float[Tensor, "*batch columns least"]
    ]:
        """Left singular vectors, singular values (largest first) and right singular vectors, as columns."""
        before, core, after = self._orthogonal()
        u, s, vh = torch.linalg.svd(core, full_matrices=False)
        return before @ u, s, after @ vh.mT

    def eigenvalues(self) -> Complex[Tensor, "*batch rank"]:
        """Eigenvalues of a square product: all that can differ from 0, those of right @ left; complex128, in no order.

        Raises `InputError` for a product that is not square.
        """
        if self.shape[-1] != self.shape[-2]:
            raise InputError(
                f"Only square matrices have eigenvalues, this one is {self.shape[-2]} by {self.shape[-1]}."
            )
        return torch.linalg.eigvals((self.right @ self.left).double())

    def _orthogonal(self) -> tuple[Tensor, Tensor, Tensor]:
        """Orthonormal columns, a small core, orthonormal columns: their product (last one transposed) is this one."""
        before, upper = torch.linalg.qr(self.left.float())
        after, lower = torch.linalg.qr(self.right.float().mT)
        return before, upper @ lower.mT, after
