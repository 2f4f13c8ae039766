"""Find circuits: each method is a function (model, task, *, ...) that gives scores."""

from circuitome.discovery.acdc import Acdc as Acdc
from circuitome.discovery.acdc import acdc as acdc
from circuitome.discovery.acdc import loss_gap as loss_gap
from circuitome.discovery.acdc import roc_sweep as roc_sweep
from circuitome.discovery.atp import atp as atp
from circuitome.discovery.baselines import magnitude as magnitude
from circuitome.discovery.baselines import random_scores as random_scores
from circuitome.discovery.eap import VARIANTS as VARIANTS
from circuitome.discovery.eap import eap as eap
from circuitome.discovery.eap import eap_ig as eap_ig
from circuitome.discovery.exact import exact as exact
from circuitome.discovery.masks import edge_pruning as edge_pruning
from circuitome.discovery.masks import subnetwork_probing as subnetwork_probing
from circuitome.discovery.patching import patch as patch
from circuitome.discovery.paths import path_patch as path_patch
from circuitome.discovery.paths import trace_back as trace_back
from circuitome.discovery.route_graph import RouteEdge as RouteEdge
from circuitome.discovery.route_graph import RouteGraph as RouteGraph
from circuitome.discovery.route_importance import RouteImportance as RouteImportance
from circuitome.discovery.route_importance import route_importance as route_importance
from circuitome.discovery.routes import routes as routes
