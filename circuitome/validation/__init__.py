"""Is the circuit real: faithfulness beside random circuits, agreement of scores, comparison with a known circuit."""

from circuitome.validation.agreement import Agreement as Agreement
from circuitome.validation.agreement import agreement as agreement
from circuitome.validation.agreement import spread_edges as spread_edges
from circuitome.validation.faithfulness import Curve as Curve
from circuitome.validation.faithfulness import Faithfulness as Faithfulness
from circuitome.validation.faithfulness import default_sizes as default_sizes
from circuitome.validation.faithfulness import faithfulness as faithfulness
from circuitome.validation.faithfulness import faithfulness_curve as faithfulness_curve
from circuitome.validation.faithfulness import random_circuit as random_circuit
from circuitome.validation.roc import auroc as auroc
from circuitome.validation.roc import edge_auroc as edge_auroc
from circuitome.validation.roc import node_auroc as node_auroc
from circuitome.validation.roc import pessimistic_area as pessimistic_area
from circuitome.validation.roc import precision_recall as precision_recall
from circuitome.validation.roc import roc_points as roc_points
from circuitome.validation.roc import score_points as score_points
