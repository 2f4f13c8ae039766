"""What weights alone say: circuits of heads, and how heads compose."""

from circuitome.weights.copying import copying_scores as copying_scores
from circuitome.weights.copying import ov_eigenvalues as ov_eigenvalues
