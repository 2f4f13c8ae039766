"""A run as data, its folder, and the job that makes it."""

from circuitome.runs.compare import COMPARED as COMPARED
from circuitome.runs.compare import CompareSpec as CompareSpec
from circuitome.runs.compare import run_compare as run_compare
from circuitome.runs.effects import PatchSpec as PatchSpec
from circuitome.runs.effects import PathSpec as PathSpec
from circuitome.runs.effects import run_patch as run_patch
from circuitome.runs.effects import run_path as run_path
from circuitome.runs.explain import ExplainSpec as ExplainSpec
from circuitome.runs.explain import run_explain as run_explain
from circuitome.runs.find import FindSpec as FindSpec
from circuitome.runs.find import Plan as Plan
from circuitome.runs.find import find as find
from circuitome.runs.find import plan as plan
from circuitome.runs.known import KnownSpec as KnownSpec
from circuitome.runs.known import run_known as run_known
from circuitome.runs.methods import METHODS as METHODS
from circuitome.runs.store import Run as Run
from circuitome.runs.store import check_free as check_free
from circuitome.runs.store import load_run as load_run
from circuitome.runs.store import open_partial as open_partial
from circuitome.runs.store import partial_of as partial_of
from circuitome.runs.store import save_run as save_run
from circuitome.runs.store import to_json as to_json
from circuitome.runs.validate import ValidateSpec as ValidateSpec
from circuitome.runs.validate import run_validate as run_validate
