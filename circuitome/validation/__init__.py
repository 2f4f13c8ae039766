"""Is the circuit real: faithfulness beside random circuits."""

from circuitome.validation.faithfulness import Curve as Curve
from circuitome.validation.faithfulness import Faithfulness as Faithfulness
from circuitome.validation.faithfulness import default_sizes as default_sizes
from circuitome.validation.faithfulness import faithfulness as faithfulness
from circuitome.validation.faithfulness import faithfulness_curve as faithfulness_curve
from circuitome.validation.faithfulness import random_circuit as random_circuit
