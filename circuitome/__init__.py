"""circuitome finds, validates, explains and uses the circuits inside transformer language models.

    import circuitome as cm
    model   = cm.load("smollm2-135m")
    task    = cm.tasks.ioi(model, n=64, seed=0)
    scores  = cm.eap_ig(model, task, steps=5)
    circuit = scores.top(500)
    report  = cm.faithfulness(model, circuit, task)

Names are imported when they are first used, so that `import circuitome` alone does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuitome import errors as errors
    from circuitome import tasks as tasks
    from circuitome.discovery import eap as eap
    from circuitome.discovery import eap_ig as eap_ig
    from circuitome.graph import Circuit as Circuit
    from circuitome.graph import EdgeScores as EdgeScores
    from circuitome.graph import Graph as Graph
    from circuitome.interventions import run_circuit as run_circuit
    from circuitome.models import Model as Model
    from circuitome.models import load as load
    from circuitome.results import Estimate as Estimate
    from circuitome.tasks import Task as Task
    from circuitome.validation import Curve as Curve
    from circuitome.validation import Faithfulness as Faithfulness
    from circuitome.validation import faithfulness as faithfulness
    from circuitome.validation import faithfulness_curve as faithfulness_curve

__version__ = "0.1.0"

_HOME = {
    "eap": "discovery",
    "eap_ig": "discovery",
    "Circuit": "graph",
    "EdgeScores": "graph",
    "Graph": "graph",
    "run_circuit": "interventions",
    "Model": "models",
    "load": "models",
    "Estimate": "results",
    "Task": "tasks",
    "Curve": "validation",
    "Faithfulness": "validation",
    "faithfulness": "validation",
    "faithfulness_curve": "validation",
}
_MODULES = ("errors", "tasks")

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"circuitome.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"circuitome.{name}")
    raise AttributeError(f"module 'circuitome' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
