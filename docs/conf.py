"""Sphinx's settings for the pages of this folder; `make docs` builds them, without a network."""

import os
import sys
from pathlib import Path
from typing import Any

os.environ["COLUMNS"] = "76"  # of the help texts
sys.path.insert(0, str(Path(__file__).parent))

from manual import expand

project = "trainer"
copyright = "the trainer's authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["build"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
highlight_language = "none"

default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autoclass_content = "both"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
python_display_short_literal_types = True
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "trainer"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False


def setup(app: Any) -> None:
    """Fills the pages in before they are read."""

    def fill_in(_: Any, page: str, source: list[str]) -> None:
        source[0] = expand(f"{page}.md", source[0])

    app.connect("source-read", fill_in)
