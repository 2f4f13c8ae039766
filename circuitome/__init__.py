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
    from circuitome import heads as heads
    from circuitome import known as known
    from circuitome import tasks as tasks
    from circuitome import weights as weights
    from circuitome.discovery import RouteGraph as RouteGraph
    from circuitome.discovery import acdc as acdc
    from circuitome.discovery import atp as atp
    from circuitome.discovery import eap as eap
    from circuitome.discovery import eap_ig as eap_ig
    from circuitome.discovery import edge_pruning as edge_pruning
    from circuitome.discovery import exact as exact
    from circuitome.discovery import magnitude as magnitude
    from circuitome.discovery import patch as patch
    from circuitome.discovery import path_patch as path_patch
    from circuitome.discovery import random_scores as random_scores
    from circuitome.discovery import route_importance as route_importance
    from circuitome.discovery import route_scores as route_scores
    from circuitome.discovery import routes as routes
    from circuitome.discovery import subnetwork_probing as subnetwork_probing
    from circuitome.discovery import trace_back as trace_back
    from circuitome.graph import Circuit as Circuit
    from circuitome.graph import EdgeScores as EdgeScores
    from circuitome.graph import Graph as Graph
    from circuitome.graph import NodeScores as NodeScores
    from circuitome.heads import RetrievalScores as RetrievalScores
    from circuitome.heads import dense_losses as dense_losses
    from circuitome.heads import mask_heads as mask_heads
    from circuitome.heads import retrieval_scores as retrieval_scores
    from circuitome.heads import sink_mass as sink_mass
    from circuitome.heads import stream_losses as stream_losses
    from circuitome.interventions import run_circuit as run_circuit
    from circuitome.models import Model as Model
    from circuitome.models import load as load
    from circuitome.results import EffectMap as EffectMap
    from circuitome.results import Estimate as Estimate
    from circuitome.tasks import Task as Task
    from circuitome.validation import Curve as Curve
    from circuitome.validation import Faithfulness as Faithfulness
    from circuitome.validation import Verdict as Verdict
    from circuitome.validation import faithfulness as faithfulness
    from circuitome.validation import faithfulness_curve as faithfulness_curve
    from circuitome.validation import validate as validate
    from circuitome.weights import composition as composition
    from circuitome.weights import copying_scores as copying_scores
    from circuitome.weights import direct_logit_attribution as direct_logit_attribution
    from circuitome.weights import logit_lens as logit_lens

__version__ = "0.1.0"

_HOME = {
    "acdc": "discovery",
    "atp": "discovery",
    "eap": "discovery",
    "eap_ig": "discovery",
    "edge_pruning": "discovery",
    "exact": "discovery",
    "magnitude": "discovery",
    "patch": "discovery",
    "path_patch": "discovery",
    "random_scores": "discovery",
    "route_importance": "discovery",
    "route_scores": "discovery",
    "routes": "discovery",
    "RouteGraph": "discovery",
    "subnetwork_probing": "discovery",
    "trace_back": "discovery",
    "Circuit": "graph",
    "EdgeScores": "graph",
    "Graph": "graph",
    "NodeScores": "graph",
    "RetrievalScores": "heads",
    "dense_losses": "heads",
    "mask_heads": "heads",
    "retrieval_scores": "heads",
    "sink_mass": "heads",
    "stream_losses": "heads",
    "run_circuit": "interventions",
    "Model": "models",
    "load": "models",
    "EffectMap": "results",
    "Estimate": "results",
    "Task": "tasks",
    "Curve": "validation",
    "Faithfulness": "validation",
    "faithfulness": "validation",
    "faithfulness_curve": "validation",
    "Verdict": "validation",
    "validate": "validation",
    "composition": "weights",
    "copying_scores": "weights",
    "direct_logit_attribution": "weights",
    "logit_lens": "weights",
}
_MODULES = ("errors", "heads", "known", "tasks", "weights")

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"circuitome.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"circuitome.{name}")
    raise AttributeError(f"module 'circuitome' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
