"""Names that users give for code of their own: file.py:NAME or package.module:NAME."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from circuitome.errors import InputError, unknown_name


def named_object(spec: str, kind: str) -> Any:
    """What `file.py:NAME` or `package.module:NAME` stands for; importing it runs the file.

    `kind` says in messages what it is for, e.g. "metric". Raises `InputError` where the file or module cannot be
    imported, `UnknownNameError` where it does not define the name.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise InputError(f"A {kind} of your own is given as file.py:NAME or package.module:NAME, got {spec!r}.")
    module = _module(where)
    if not hasattr(module, name):
        names = [n for n, value in vars(module).items() if not n.startswith("_") and not isinstance(value, ModuleType)]
        raise unknown_name(f"{kind} in {where}", name, names)
    return getattr(module, name)


def _module(where: str) -> Any:
    """A module by its name or by its file."""
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        if not Path(where).is_file():
            raise InputError(f"There is no file {where}.")
        name = f"circuitome_user_{Path(where).stem}"
        spec = importlib.util.spec_from_file_location(name, where)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
