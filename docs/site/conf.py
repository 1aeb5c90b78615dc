"""Sphinx's configuration of the site. `python -m docs.site` builds it."""

from __future__ import annotations

project = "Model Zoo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "Model Zoo"
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
myst_heading_anchors = 4  # as GitHub makes them, where the same pages are read too
myst_enable_extensions = ["colon_fence"]
default_role = "code"  # docstrings have code in single backticks
smartquotes = False  # what stands in quotes is to be copied
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_ivar = True
napoleon_numpy_docstring = False
suppress_warnings = ["misc.highlighting_failure"]
