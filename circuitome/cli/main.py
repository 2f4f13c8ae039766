"""The command line: text in, a run out. Torch is imported only when a command needs it, so that --help is quick."""

import json
import sys

from cyclopts import CycloptsError

# Each module adds its commands to the app.
from circuitome.cli import (
    listing,  # noqa: F401
    serving,  # noqa: F401
    studies,  # noqa: F401
)
from circuitome.cli.app import app
from circuitome.errors import CircuitomeError


def main(tokens: list[str] | None = None) -> None:
    """Run a command line; exit with 0, 1 (bad input) or 2 (bad usage)."""
    arguments = sys.argv[1:] if tokens is None else tokens
    try:
        app(arguments, exit_on_error=False, print_error=True, help_on_error=False)
    except CycloptsError:
        raise SystemExit(2) from None
    except CircuitomeError as error:
        _tell(error, str(error), arguments)
        raise SystemExit(1) from None
    except OSError as error:  # a name that no file can have, a disk that is full
        if error.filename is None:
            raise
        _tell(error, f"{error.filename}: {error.strerror}.", arguments)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        raise SystemExit(130) from None


def _tell(error: Exception, message: str, arguments: list[str]) -> None:
    if "--json" in arguments:
        print(json.dumps({"error": type(error).__name__, "message": message}))
    else:
        print(message, file=sys.stderr)


if __name__ == "__main__":
    main()
