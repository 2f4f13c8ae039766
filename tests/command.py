"""The command line as a function."""

from circuitome.cli.main import main


def run(capsys, *arguments):
    """Exit code, what was printed, and what went to the error stream."""
    code: int | str | None = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err
