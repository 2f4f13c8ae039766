"""Find circuits: each method is a function (model, task, *, ...) that gives scores."""

from circuitome.discovery.eap import VARIANTS as VARIANTS
from circuitome.discovery.eap import eap as eap
from circuitome.discovery.eap import eap_ig as eap_ig
