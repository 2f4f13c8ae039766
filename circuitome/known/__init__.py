"""Models whose circuit is known: their tasks, and their true circuits, computed."""

from circuitome.known.programs import PROGRAMS as PROGRAMS
from circuitome.known.tasks import NAMES as NAMES
from circuitome.known.tasks import task as task
from circuitome.known.truth import edge_effects as edge_effects
from circuitome.known.truth import true_circuit as true_circuit
