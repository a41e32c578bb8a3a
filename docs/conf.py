"""Sphinx reads the Markdown pages of this folder: `make docs` builds build/docs, and fails on any warning.

Sphinx with MyST: both are released several times a year, and both check references to pages and to headings by themselves.
"""

project = "GenLIP-Eval"
author = "GenLIP-Eval contributors"
copyright = author
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["conf.py"]
myst_heading_anchors = 4  # the anchors that GitHub gives to headings down to this level
nitpicky = True
html_theme = "alabaster"
html_theme_options = {"description": "How good is a vision encoder inside a multimodal LLM?", "page_width": "1100px"}
html_show_sphinx = False
