"""Settings of Sphinx for the site; `python site/build_site.py` collects the pages and starts it."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

project = "GPT-2 from scratch"
html_title = project
author = copyright = ""
language = "en"
smartquotes_action = "q"  # quotes, and not the dashes of --flags

extensions = ["myst_nb", "book.mathml", "book.lessons", "book.terms"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
root_doc = "index"
exclude_patterns = ["files/**"]

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # links in Markdown outputs are links between pages, too
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_dmath_allow_space = False  # "$14 per hour" is money
myst_dmath_allow_digits = False
myst_heading_anchors = 3

html_theme = "sphinx_book_theme"
html_math_renderer = "mathml"
html_static_path = [str(HERE / "static")]
html_css_files = ["book.css"]
html_js_files = [("access.js", {"defer": "defer"})]
html_favicon = str(HERE / "static" / "favicon.svg")
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system
html_use_index = html_domain_indices = False  # the search finds names
html_copy_source = True
html_sourcelink_suffix = ""
html_theme_options = {
    "home_page_in_toc": False,
    "show_toc_level": 2,
    "navbar_persistent": [],
    "use_fullscreen_button": False,
    "use_download_button": False,
    "footer_content_items": [],
    "search_bar_text": "Search the lessons",
}
python_maximum_signature_line_length = 90
add_module_names = False
python_use_unqualified_type_names = True
