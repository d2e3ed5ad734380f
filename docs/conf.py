"""Settings of the documentation's generator: ``make docs`` builds it into ``build/docs``, without a network."""

import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

project = "lightning-compress"
release = metadata.version("lightning-compress")
copyright = "the authors of lightning-compress, Apache-2.0"
html_title = f"{project} {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "generated",
    "mathml",
    "offline",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["README.md", "pypi.md"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "dollarmath"]
# Links to headings are checked like links to pages.
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_static_path = ["style"]
html_css_files = ["tables.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
# A minus or a quote in a command must stay what it is.
smartquotes = False
