"""How Sphinx builds the site: `make docs`."""

import os
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import pages  # noqa: E402

import ntk_privacy  # noqa: E402

project = "ntk_privacy"
author = "The ntk_privacy authors"
project_copyright = author
release = version = ntk_privacy.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
# The README, whose addresses `make docs-links` asks for too; it is no page of the site.
if not tags.has("links"):  # noqa: F821 - Sphinx gives it
    exclude_patterns.append("_readme.md")
# Names in single backquotes, as docstrings write them.
default_role = "literal"

# Pages.
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

# Notebooks run at every build: their outputs are what the code of today gives.
nb_execution_mode = "force"
# A cell, in seconds. A whole notebook is to take less than a minute of two quiet cores:
# the build prints what each took.
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True

# What a kernel of notebooks says of its surroundings is no part of a page.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"

# Formulas are MathML: nothing is loaded from elsewhere.
html_math_renderer = "mathml"

# Docstrings.
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 70
python_use_unqualified_type_names = True
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"

# Look.
html_theme = "furo"
html_title = "ntk_privacy"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
html_show_sphinx = False
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = "\\"

linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_workers = 4


def tell_seconds(app, error):
    """Prints what each notebook took to run."""
    del error
    for name, told in sorted(getattr(app.env, "nb_metadata", {}).items()):
        seconds = told.get("exec_data", {}).get("runtime")
        if seconds is not None:
            print(f"{name}: {seconds:.0f} s")


def setup(app):
    """Writes the pages that are made, and turns docstrings into what Sphinx reads."""
    pages.write_reference(HERE / "api")
    pages.copy_notebooks(ROOT / "notebooks", HERE / "_notebooks")
    app.connect("build-finished", tell_seconds)
    app.connect("source-read", pages.tell_sources)
    # Before napoleon, which has 500.
    app.connect("autodoc-process-docstring", pages.as_restructured_text, priority=400)
    app.connect("autodoc-skip-member", pages.is_plain_field)
    app.connect("autodoc-process-signature", pages.with_short_names)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(pages.inline_formula, None),
        block_renderers=(pages.displayed_formula, None),
    )
