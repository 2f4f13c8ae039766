"""Small changes of one module that last as long as a `with` block.

Every hook of the package goes through here, so that it sees values at home wherever the module's weights lie
(`circuitome.models.placement`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from circuitome.models.placement import at_home


@contextmanager
def hooked(register: Callable[..., Any], hook: Callable[..., Any], **options: Any) -> Iterator[None]:
    """Inside, `hook` is installed by `register`, such as a module's `register_forward_hook`."""
    bound: Any = register
    handle = register(at_home(bound.__self__, hook, output=bound.__name__ == "register_forward_hook"), **options)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, `module(x)` gives `forward(x)`; whatever forward the instance had before comes back."""
    before = module.__dict__.get("forward")
    module.forward = at_home(module, forward)
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
