"""What circuits are good for: models edited, pruned and merged by what their parts do."""

from circuitome.applications import structure as structure
from circuitome.applications.pruning import Pruned as Pruned
from circuitome.applications.pruning import prune as prune
from circuitome.applications.structure import BlockParts as BlockParts
from circuitome.applications.structure import cut as cut
