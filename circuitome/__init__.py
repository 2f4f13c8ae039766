"""circuitome finds, validates, explains and uses the circuits inside transformer language models.

    import circuitome as cm
    model   = cm.load("smollm2-135m")
    task    = cm.tasks.ioi(model, n=64, seed=0)
    scores  = cm.eap_ig(model, task, steps=5)
    circuit = scores.top(500)
    report  = cm.faithfulness(model, circuit, task)

Names are imported when they are first used, so that `import circuitome` alone does not wait for torch.
"""

from typing import Any

import lazy_loader

__version__ = "0.1.0"

_attach, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _attach(name)
    except AttributeError:
        raise AttributeError(f"module 'circuitome' has no attribute {name!r}; it has {', '.join(__all__)}") from None
