"""What circuits are good for: models edited, pruned and merged by what their parts do."""

from circuitome.applications import structure as structure
from circuitome.applications.distance import CircuitDistance as CircuitDistance
from circuitome.applications.distance import circuit_distance as circuit_distance
from circuitome.applications.merging import Recipe as Recipe
from circuitome.applications.merging import merge as merge
from circuitome.applications.pruning import Pruned as Pruned
from circuitome.applications.pruning import prune as prune
from circuitome.applications.structure import BlockParts as BlockParts
from circuitome.applications.structure import cut as cut
from circuitome.applications.unlearning import Unlearned as Unlearned
from circuitome.applications.unlearning import unlearn as unlearn
