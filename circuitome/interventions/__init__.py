"""Change activations: what replaces a value, and running a model with edges cut."""

from circuitome.interventions.batches import Batch as Batch
from circuitome.interventions.batches import batches as batches
from circuitome.interventions.batches import check_aligned as check_aligned
from circuitome.interventions.batches import first_difference as first_difference
from circuitome.interventions.batches import group_rows as group_rows
from circuitome.interventions.batches import make_batch as make_batch
from circuitome.interventions.batches import tokens_within as tokens_within
from circuitome.interventions.dense import Continuation as Continuation
from circuitome.interventions.dense import dense_copies as dense_copies
from circuitome.interventions.edges import Baseline as Baseline
from circuitome.interventions.edges import baseline as baseline
from circuitome.interventions.edges import check_graph as check_graph
from circuitome.interventions.edges import circuit_logits as circuit_logits
from circuitome.interventions.edges import run_circuit as run_circuit
from circuitome.interventions.knockout import KnockOut as KnockOut
from circuitome.interventions.live import LiveCircuit as LiveCircuit
from circuitome.interventions.live import copies_within as copies_within
from circuitome.interventions.readout import Readout as Readout
from circuitome.interventions.values import ABLATIONS as ABLATIONS
from circuitome.interventions.values import Ablation as Ablation
from circuitome.interventions.values import AblationValues as AblationValues
from circuitome.interventions.values import WriterValues as WriterValues
from circuitome.interventions.values import ablated_values as ablated_values
from circuitome.interventions.values import check_ablation as check_ablation
from circuitome.interventions.values import corrupted_values as corrupted_values
from circuitome.interventions.values import writer_vectors as writer_vectors
