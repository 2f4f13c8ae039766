"""How Sphinx builds these pages: `make docs`. Nothing in the output is read from the network."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from docstrings import as_rst, for_pages
from pages import check_offline, relink

import circuitome

project = "circuitome"
release = version = circuitome.__version__
author = copyright = "the circuitome authors"  # Sphinx's own name

extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["_static"]
root_doc = "index"
html_theme = "furo"
html_title = "circuitome"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 3
myst_enable_extensions = ["fieldlist"]

nb_execution_mode = "auto"  # pages that are notebooks are run; the Python of all others is run by tests/docs
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "remove"  # notes of imported packages; an error stops the build

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"


def setup(app: object) -> None:
    """Docstrings are plain text with code in backticks; pages from the root are linked as they lie there."""
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-process-signature", for_pages)
    app.connect("include-read", relink)
    app.connect("build-finished", check_offline)
