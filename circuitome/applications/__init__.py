"""What circuits are good for: models edited, pruned and merged by what their parts do."""

from circuitome.applications import instructions as instructions
from circuitome.applications import structure as structure
from circuitome.applications.curves import Curves as Curves
from circuitome.applications.curves import compare_trainings as compare_trainings
from circuitome.applications.distillation import Distillation as Distillation
from circuitome.applications.distillation import HeadPair as HeadPair
from circuitome.applications.distillation import distil as distil
from circuitome.applications.distillation import linear_cka as linear_cka
from circuitome.applications.distillation import matched_heads as matched_heads
from circuitome.applications.distillation import resemblance as resemblance
from circuitome.applications.pruning import Pruned as Pruned
from circuitome.applications.pruning import prune as prune
from circuitome.applications.structure import BlockParts as BlockParts
from circuitome.applications.structure import cut as cut
from circuitome.applications.subcloning import SELECTIONS as SELECTIONS
from circuitome.applications.subcloning import Subclone as Subclone
from circuitome.applications.subcloning import subclone as subclone
from circuitome.applications.text_choice import agreement as agreement
from circuitome.applications.text_choice import chosen_windows as chosen_windows
from circuitome.applications.text_choice import induction_gain as induction_gain
from circuitome.applications.text_choice import repetition as repetition
