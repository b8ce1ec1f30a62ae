"""The site, built as `make site` builds it: pages, links, formulas, definitions, and how it behaves in a browser."""

import functools
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT, accessibility_faults, served

sys.path.insert(0, str(ROOT / "notebooks"))
sys.path.insert(0, str(ROOT / "site"))

from book import api, links, sources
from contents import find, read

from gpt2.system.errors import UserError

MISSING = "Sphinx, MyST-NB and the theme of the site are not installed: pip install -e '.[site]'"
for package in ("myst_nb", "sphinx_book_theme"):
    pytest.importorskip(package, reason=MISSING)
build_site = pytest.importorskip("build_site")
lessons = pytest.importorskip("book.lessons")
mathml = pytest.importorskip("book.mathml")
terms = pytest.importorskip("book.terms")

pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore")]  # of MyST, about Sphinx

REPOSITORY = "someone/gpt2"
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$\n]+?\$", re.DOTALL)


@dataclass
class Page(HTMLParser):
    """What the tests want to know about an HTML page."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    mentions: dict[str, str] = field(default_factory=dict)
    formulas: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[str] = []  # classes of the spans that are open
        self.text = ""
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Take down what a tag holds."""
        given = {name: value or "" for name, value in attributes}
        self.ids |= {given["id"]} if "id" in given else set()
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADED and LOADED[tag] in given:
            self.loaded.append(given[LOADED[tag]])
        if tag == "img":
            self.images.append(given.get("alt", ""))
        if tag == "span":
            self.open.append(given.get("class", ""))
            if given.get("class") == "definition":
                self.mentions[self.text.rpartition("\n")[2]] = given["id"]
            elif given.get("class") == "term":
                self.text += "\n"
        if tag == "math" and "definition" not in self.open:
            self.formulas += 1

    def handle_endtag(self, tag: str) -> None:
        """Close a span."""
        if tag == "span" and self.open:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        """Collect the text."""
        if "definition" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as it is published. A warning would be an error."""
    out = tmp_path_factory.mktemp("site") / "site"
    assert build_site.build(out, REPOSITORY) == 0
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Every page by its path below the site."""
    return {
        path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html") if "_static" not in path.parts
    }


def outside(address: str) -> bool:
    """Whether an address names another host."""
    return bool(urlsplit(address).netloc)


def test_every_notebook_every_package_and_every_document_has_a_page(pages):
    wanted = {f"{path.stem}.html" for path in find()}
    wanted |= {f"api/{path.parent.name}.html" for path in (ROOT / "gpt2").glob("*/__init__.py")}
    wanted |= {"index.html", "search.html", "glossary.html", "summary.html", "recipes.html", "api/gpt2.html"}
    assert wanted <= set(pages)


def test_every_internal_link_and_anchor_resolves(site, pages):
    broken = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = os.path.normpath(os.path.join(os.path.dirname(name), unquote(parts.path))) if parts.path else name
            there = target in pages or (site / target).is_file()
            anchor = unquote(parts.fragment)
            is_state = target == "playground.html" and "=" in anchor  # which its script reads
            if not there or (anchor and not is_state and target in pages and anchor not in pages[target].ids):
                broken.append(f"{name}: {link}")
    assert not broken


def test_no_page_asks_another_host_for_anything(site, pages):
    assert not [f"{name}: {one}" for name, page in pages.items() for one in page.loaded if outside(one)]
    styles = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.css")}
    assert not [path for path, text in styles.items() if re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text)]


@pytest.mark.parametrize("path", find(), ids=[path.stem for path in find()])
def test_every_formula_of_a_lesson_is_mathml(path, pages):
    """One that the converter doesn't know is a warning, which fails the build; one that isn't found, fails here."""
    cells = read(path).cells
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    prose += [output.data["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {})]
    formulas = [one for text in prose for one in FORMULA.findall(re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S))]
    assert pages[f"{path.stem}.html"].formulas == len(formulas)


def test_a_formula_that_is_not_understood_is_an_error():
    with pytest.raises(mathml.MathError):
        mathml.convert(r"\nonsense{x}")


def test_every_figure_of_a_lesson_has_its_alternative_text(pages):
    figures = {path.stem: pages[f"{path.stem}.html"].images for path in find()}
    assert all(len(texts) >= 3 for texts in figures.values())
    assert not [name for name, texts in figures.items() for text in texts if len(text) < 20 or text.endswith(".png")]


def test_outputs_that_a_reader_shall_predict_first_are_folded(site):
    for path in find():
        shown = [cell for cell in read(path).cells if cell.get("outputs")]
        hidden = [cell for cell in shown if cell.metadata.get("jupyter", {}).get("outputs_hidden")]
        text = (site / f"{path.stem}.html").read_text(encoding="utf-8")
        assert text.count('<details class="admonition hide below-input">') == len(hidden), path.name


def test_the_first_mention_of_a_term_shows_the_definition_of_the_glossary(site, pages):
    entries = dict(
        re.findall(
            r"^- \*\*(.+?)\*\* \(.*?\.ipynb\)\): (.*)$", (sources.ROOT / "notebooks/glossary.md").read_text(), re.M
        )
    )
    assert len(entries) > 100
    for term in entries:
        assert terms.anchor(term) in pages["glossary.html"].ids, term
    lesson = pages["02_attention.html"]
    assert "causal mask" in lesson.mentions and len(lesson.mentions) > 15
    assert f"glossary.html#{terms.anchor('causal mask')}" in lesson.links
    html = (site / "02_attention.html").read_text(encoding="utf-8")
    tip = lesson.mentions["causal mask"]
    assert html.count(f'aria-describedby="{tip}"') == 1
    assert f'role="tooltip" id="{tip}">{entries["causal mask"]}</span>' in html


def test_a_word_is_a_mention_where_it_is_a_term_and_whole():
    known = {"key-value cache": [], "token": [], "DDP": [], "warm-up": []}
    assert terms.first_mention("A key-value cache", known)[0] == "key-value cache"
    assert terms.first_mention("Two tokens", known)[0] == "tokens"
    assert terms.first_mention("Tokens", known)[0] == "Tokens"
    for text in ("tokenizer", "token-wise", "ddp", "two warm-ups", "c_token"):
        assert terms.first_mention(text, known) is None, text


def test_every_public_name_of_the_package_is_documented(pages):
    page = pages["api/data.html"]
    assert {"gpt2.data.loader.TokenLoader", "gpt2.data.loader.shuffled", "gpt2-data-loader"} <= page.ids
    for name in (*api.pages(ROOT), "index.md"):
        assert f"api/{name.removesuffix('.md')}.html" in pages
    assert "gpt2-model" in pages["api/gpt2.html"].ids
    assert "api/gpt2.html#gpt2-model" in pages["03_gpt2.html"].links


def test_links_between_files_become_links_between_pages():
    known = links.Links(ROOT, sources.pages(ROOT), REPOSITORY)
    change = functools.partial(known.rewrite, home="notebooks/02_attention.ipynb")
    assert change("[m](../gpt2/model.py)") == "[m](#gpt2.model)"
    assert change("[n](03_gpt2.ipynb#x)") == "[n](03_gpt2.ipynb#x)"
    assert change("[s](../scripts/README.md)") == "[s](recipes.md)"
    assert change("[f](../gpt2/formats/novels)") == "[f](novels.md)"
    assert change("![p](prerequisites.svg)") == "![p](files/notebooks/prerequisites.svg)"
    assert change("[p](../gpt2/optim)") == "[p](#gpt2.optim)"
    assert change("[b](../tests)") == f"[b](https://github.com/{REPOSITORY}/blob/main/tests)"
    for kept in (
        "[w](https://example.org/x.py)",
        "[a](#here)",
        "`[m](../gpt2/model.py)`",
        "```\n[m](../gpt2/model.py)\n```",
    ):
        assert change(kept) == kept
    assert links.Links(ROOT, {}).rewrite("[b](tests)", home="README.md") == "b"


def test_a_lesson_says_where_it_runs(pages):
    found = pages["02_attention.html"].links
    assert f"https://colab.research.google.com/github/{REPOSITORY}/blob/colab/02_attention.ipynb" in found
    assert f"https://mybinder.org/v2/gh/{REPOSITORY}/main?urlpath=lab/tree/notebooks/02_attention.ipynb" in found
    assert "_sources/02_attention.ipynb" in found
    assert "playground.html#text=The%20old%20man%20looked%20at&layer=0&head=3" in found
    unknown = SimpleNamespace(config=SimpleNamespace(book_repository=""))
    assert [text for text, _ in lessons.ways(unknown, "02_attention")] == ["Download the notebook", "Playground"]


def test_what_is_downloaded_is_the_notebook_itself(site):
    for path in find():
        assert (site / "_sources" / path.name).read_bytes() == path.read_bytes()


def test_a_repository_that_can_not_be_one_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["build_site.py"])
    monkeypatch.setenv("REPOSITORY", "https://example.org/a/b")
    with pytest.raises(UserError, match="give owner/name"):
        build_site.main()


def test_a_site_that_can_not_be_written_is_refused(tmp_path):
    (tmp_path / "site").write_text("")
    with pytest.raises(UserError, match=r"can't write to --out .*site \(File exists\); name another folder"):
        build_site.build(tmp_path / "site")


# ---------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site on this machine alone, as a hosting site serves it."""
    with served(site) as address:
        yield address


def resize(browser, width: int) -> None:
    """Give the window a width in pixels, below the least that a window of a desktop has, too."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.mark.parametrize("name", ["index.html", "02_attention.html"])
def test_a_page_opens_without_an_error_and_without_asking_another_host(name, address, browser):
    resize(browser, 1200)
    browser.get(address + name)
    time.sleep(0.5)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert asked and not [one for one in asked if not one.startswith((address, "data:"))]


@pytest.mark.parametrize(
    "name", ["index.html", "02_attention.html", "18_silent_bugs.html", "summary.html", "api/gpt2.html"]
)
def test_a_page_is_not_wider_than_a_phone(name, address, browser):
    resize(browser, 390)
    browser.get(address + name)
    browser.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize(
    "name", ["index.html", "02_attention.html", "07_make_it_fast.html", "glossary.html", "api/config.html"]
)
def test_a_page_is_readable_in_light_and_dark(name, address, browser):
    """But for the signs beside headings, which appear when one points at them."""
    resize(browser, 1200)
    browser.get(address + name)
    assert [text for text in accessibility_faults(browser) if "headerlink" not in text] == []


def test_the_dark_theme_is_dark(address, browser):
    resize(browser, 1200)
    browser.get(f"{address}02_attention.html")
    shades = {}
    for theme in ("light", "dark"):
        browser.execute_script(f"document.querySelector('.theme-change-button[data-mode={theme}]').click()")
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        shades[theme] = max(map(int, re.findall(r"\d+", colour)[:3]))
    assert shades["dark"] < 50 and shades["light"] > 200


def test_a_definition_appears_with_the_focus_and_escape_closes_it(address, browser):
    resize(browser, 1200)
    browser.get(f"{address}02_attention.html")
    shown = """
        const term = [...document.querySelectorAll('.term')].find(one => one.innerText.startsWith('causal mask'));
        if (arguments[0]) term.querySelector('a').focus();
        return term.querySelector('.definition').checkVisibility();
    """
    assert not browser.execute_script(shown, False)
    assert browser.execute_script(shown, True)
    browser.switch_to.active_element.send_keys("\ue00c")
    assert not browser.execute_script(shown, False)


def test_the_search_finds_the_causal_mask(address, browser):
    browser.get(f"{address}search.html?q=causal+mask")
    deadline = time.monotonic() + 20
    results = "return [...document.querySelectorAll('#search-results li a')].map(one => one.getAttribute('href'))"
    while not any("02_attention" in one for one in browser.execute_script(results)):
        assert time.monotonic() < deadline, browser.execute_script(results)
        time.sleep(0.2)


def test_a_first_tap_shows_a_definition_and_a_second_one_follows_the_link(address, browser):
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    resize(browser, 390)
    browser.get(f"{address}02_attention.html")
    term = browser.find_element("css selector", ".bd-article .term")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", term)
    for shows in (True, False):
        actions = ActionBuilder(browser, mouse=PointerInput("touch", "finger"))
        actions.pointer_action.move_to(term.find_element("css selector", "a")).pointer_down().pointer_up()
        actions.perform()
        time.sleep(0.3)
        assert (browser.current_url == f"{address}02_attention.html") == shows
        if shows:
            assert term.find_element("css selector", ".definition").is_displayed()
    assert "glossary.html#" in browser.current_url


def test_a_formula_in_a_line_is_whole_and_a_fold_is_named_by_its_text(address, browser):
    browser.get(f"{address}02_attention.html")
    script = "return [...document.querySelectorAll('.bd-article span.math')].map(one => getComputedStyle(one).overflow)"
    found = browser.execute_script(script)
    assert found and set(found) == {"visible"}
    script = "return [...document.querySelectorAll('summary')].map(one => [one.innerText.trim(), one.ariaLabel])"
    assert all(bool(text) != bool(label) for text, label in browser.execute_script(script))
