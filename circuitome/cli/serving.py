"""The command that serves the local app."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from circuitome.cli.app import app
from circuitome.errors import InputError

PORT = 8765


@app.command(name="app")
def serve_app(
    runs: Path = Path("runs"), *, port: int = PORT, browser: Annotated[bool, Parameter(negative="--no-browser")] = True
) -> None:
    """Open the app: look at runs, start studies, try prompts, in a browser on this machine.

    Parameters
    ----------
    runs
        The folder of the runs.
    port
        Where the server listens on 127.0.0.1; 0 for a free port.
    browser
        Open the page in a browser.

    """
    try:
        from circuitome.app.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn"):
            raise
        raise InputError('The app needs FastAPI and uvicorn. Install them: pip install "circuitome[app]"') from None

    def tell(address: str) -> None:
        print(f"The app is at {address}\nWhoever has this address can use it. Ctrl-C ends it.", flush=True)
        if browser:
            import webbrowser

            webbrowser.open(address)

    serve(runs, port, tell)


@app.command
def demo(*, browser: Annotated[bool, Parameter(negative="--no-browser")] = True) -> None:
    """Open the report of a finished run that comes with the package: no model is loaded, nothing is fetched.

    It is that of `circuitome find known-ioi --model known-ioi`: a model of three blocks whose weights were set by hand,
    so that its circuit for indirect object identification is known.

    Parameters
    ----------
    browser
        Open it in a browser.

    """
    import tempfile

    from circuitome.present.assets import demo_page

    report = Path(tempfile.mkdtemp(prefix="circuitome-")) / "demo.html"
    report.write_text(demo_page(), encoding="utf-8")
    print(report)
    if browser:
        import webbrowser

        webbrowser.open(report.as_uri())
