"""What every command shares: the app."""

from typing import Annotated

from cyclopts import App, Parameter

import circuitome

app = App(
    name="circuitome",
    help="Find, validate, explain and use the circuits inside transformer language models.",
    version=circuitome.__version__,
    help_format="plaintext",  # rich.markdown takes as long to import as all the rest of a help page
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)

Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="Print JSON in place of tables.")]
app.register_install_completion_command(
    "completion", help="Install completion of commands and options for bash, zsh or fish."
)
