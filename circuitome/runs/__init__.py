"""A run as data, its folder, and the job that makes it."""

from circuitome.runs.find import METHODS as METHODS
from circuitome.runs.find import FindSpec as FindSpec
from circuitome.runs.find import Plan as Plan
from circuitome.runs.find import find as find
from circuitome.runs.find import plan as plan
from circuitome.runs.find import prepare as prepare
from circuitome.runs.store import Run as Run
from circuitome.runs.store import check_free as check_free
from circuitome.runs.store import load_run as load_run
from circuitome.runs.store import save_run as save_run
from circuitome.runs.store import to_json as to_json
