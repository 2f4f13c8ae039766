"""What circuits are good for: models edited, pruned and merged by what their parts do."""

from circuitome.applications.structure import cut as cut
