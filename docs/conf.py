"""Configuration of Sphinx: `make docs`."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "vicifast"
author = "The vicifast authors"
copyright = author
smartquotes = False  # would change options and JSON in help texts
version = release = installed("strongswan-vicifast")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "prose", "tables"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ |# "
copybutton_prompt_is_regexp = True

default_role = "plain"
nitpicky = True

# The new autodoc ignores a handler's signature for a class without one (Sphinx 9.0).
autodoc_use_legacy_class_based = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"vicifast {version}"
html_static_path = ["static"]
html_css_files = ["vicifast.css"]
html_show_sourcelink = False
html_copy_source = False
