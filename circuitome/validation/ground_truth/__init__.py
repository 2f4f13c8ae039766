"""Models whose circuit is known: programs, prompts, true circuits, and how well scores find them."""

from circuitome.validation.ground_truth.programs import PROGRAMS as PROGRAMS
from circuitome.validation.ground_truth.prompts import NAMES as NAMES
from circuitome.validation.ground_truth.prompts import task as task
from circuitome.validation.ground_truth.truth import edge_effects as edge_effects
from circuitome.validation.ground_truth.truth import true_circuit as true_circuit
