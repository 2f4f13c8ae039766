"""What circuits are good for: models edited, pruned and merged by what their parts do."""

from circuitome.applications import structure as structure
from circuitome.applications.curves import Curves as Curves
from circuitome.applications.curves import compare_trainings as compare_trainings
from circuitome.applications.pruning import Pruned as Pruned
from circuitome.applications.pruning import prune as prune
from circuitome.applications.structure import BlockParts as BlockParts
from circuitome.applications.structure import cut as cut
from circuitome.applications.subcloning import SELECTIONS as SELECTIONS
from circuitome.applications.subcloning import Subclone as Subclone
from circuitome.applications.subcloning import subclone as subclone
