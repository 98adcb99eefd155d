"""Safe HTML, formulas as MathML, tables that can be read aloud, and the templates of all pages.

A notebook's HTML is not trusted, because a class name read from a folder may well be `<script>`: it passes an
allow list, by bleach.  nbconvert brings two such lists, and neither serves here.  Its `SanitizeHTML` cleans
Markdown before it is rendered, so that `a < b` in a formula shows as `a &lt; b` while `[x](javascript:f())`
passes, and it leaves the text of a removed script or style sheet.  Its filter `clean_html`, applied after
rendering, knows neither MathML nor header cells.  Ours takes that filter's place.
"""

import functools
import html
import itertools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2
from bleach.sanitizer import Cleaner
from bs4 import BeautifulSoup, NavigableString
from latex2mathml.converter import convert
from markupsafe import Markup, escape

from fgkd.study import PROJECT

TEMPLATES = Path(__file__).parent / "templates"
# Pandoc's rule for `$...$`: no space inside the dollars, no digit after them, so that '$5 to $10' stays money
FORMULA = r"(?<![\\$])\$(?![\s$])(?P<math_inline_tex>(?:\\.|[^\\$`])+?)(?<!\s)\$(?![\d$])"
TAGS = """a abbr b blockquote br caption code dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6
hr i img input kbd li mark ol p pre q s samp small span strong sub summary sup table tbody td tfoot th thead
tr tt u ul var"""
ATTRIBUTES = "alt class checked colspan disabled height id open rowspan scope start title width"
MATH_TAGS = """math menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mroot mrow ms mspace msqrt
mstyle msub msubsup msup mtable mtd mtext mtr munder munderover"""
MATH_ATTRIBUTES = """accent accentunder columnalign columnspacing depth display displaystyle fence form height
largeop linethickness lspace mathvariant maxsize minsize movablelimits notation rowspacing rspace scriptlevel
stretchy symmetric voffset width"""
# Elements of an output that go with their content, which is no text for a reader
DROPPED = ["script", "style", "noscript", "template", "iframe", "object", "svg", "title"]
AMOUNT = r"[<≤≥>~]?\s?[-+\u2212±]?[\d.,]+(e[-+]?\d+)?\s?(%|s|ms|MB|GB|†)?( ± [\d.]+%)?"
NUMBER = re.compile(rf"{AMOUNT}|nan|NaN|-?inf|\u2013|")


def is_allowed(tag: str, name: str, value: str) -> bool:
    """Whether an element may keep an attribute.

    Links may lead out of the site or within the page, not to files that are not in it; images are embedded.
    """
    if tag in MATH_TAGS.split():
        return name in MATH_ATTRIBUTES.split()
    if (tag, name) == ("a", "href"):
        return value.startswith(("#", "https://", "http://", "mailto:"))
    if (tag, name) == ("img", "src"):
        return value.startswith("data:image/")
    if (tag, name) == ("input", "type"):
        return value == "checkbox"
    return name in ATTRIBUTES.split()


@functools.cache
def _cleaner(*, strip: bool) -> Cleaner:
    return Cleaner(
        {*TAGS.split(), *MATH_TAGS.split()}, is_allowed, {"data", "http", "https", "mailto"}, strip
    )


def clean_text(markup: str) -> str:
    """Clean the HTML of a text; elements that are not allowed show as the source that they are."""
    return _cleaner(strip=False).clean(markup)


def clean_output(markup: str) -> str:
    """Clean the HTML of an output: what is not allowed is removed, scripts with their content."""
    soup = BeautifulSoup(markup, "html.parser")
    for tag in soup(DROPPED):
        tag.decompose()
    return _cleaner(strip=True).clean(str(soup))


def mathml(latex: str, *, display: bool = True) -> str:
    r"""Convert LaTeX to MathML, or show its source where that fails.

    latex2mathml escapes nothing inside of `\text`: its result passes the allow list, as all HTML here.

    display: as a formula on a line of its own, which scrolls where it is too wide.
    """
    try:
        math = clean_text(convert(latex.strip(), display="block" if display else "inline"))
    except Exception:  # latex2mathml raises a dozen unrelated types; the reader still gets the source
        math = f"<code>{html.escape(latex)}</code>"
    return f'<span class="formula">{math}</span>' if display else math


def text(plain: object) -> Markup:
    """Escape a plain text, with its `$...$` as formulas and what stands in backticks as code."""
    pieces = re.split(FORMULA, str(plain))  # texts and formulas by turns
    pieces[::2] = [re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(piece)) for piece in pieces[::2]]
    pieces[1::2] = [mathml(formula, display=False) for formula in pieces[1::2]]
    return Markup("".join(pieces))


def shorten_paths(page: str, folders: Sequence[Path]) -> str:
    """Take folders of this machine off the paths in a page, not out of embedded images.

    A page is read by others, whom it need not tell where its files lie, and whose home that is.  A file in
    one of the folders, or in the project, is left with its path in there; the home folder becomes `~`.
    """
    return _paths(*folders)(page)


@functools.cache
def _paths(*folders: Path) -> Callable[[str], str]:
    """The function that shortens a page for `shorten_paths`."""
    homes = {os.path.abspath(Path.home()), os.path.realpath(Path.home())}
    places = {path(folder) for folder in (PROJECT, *folders) for path in (os.path.abspath, os.path.realpath)}
    names = sorted({*homes, *places} - {"/"}, key=len, reverse=True)
    forms = (str, html.escape, escape, functools.partial(html.escape, quote=False))  # as a page may write it
    written = "|".join(dict.fromkeys(re.escape(str(form(name))) for name in names for form in forms))
    # base64 may hold a path by chance
    pattern = re.compile(rf"data:image/[\w+;,/=]*|(?<![\w.~-])({written})(?:(/)|(?![\w.-]))")

    def shorten(match: re.Match) -> str:
        folder, slash = match.groups(default="")
        if not folder:
            return match[0]
        if html.unescape(folder) in homes:
            return f"~{slash}"
        return "" if slash else Path(folder).name

    return functools.partial(pattern.sub, shorten)


def make_tables_readable(soup: BeautifulSoup, name: str = "Table") -> None:
    """Give every table a box to scroll in, its headers a scope, its numbers their alignment.

    name: what a screen reader calls the box.
    """
    for table in soup("table"):
        for header in table("th"):
            header["scope"] = "col" if header.find_parent("thead") else "row"
            if not header.get_text(strip=True):
                header.name = "td"
            elif isinstance(text := header.string, NavigableString) and "_" in text:
                # long names break after an underscore
                name_parts = html.escape(text).replace("_", "_<wbr>")
                text.replace_with(BeautifulSoup(name_parts, "html.parser"))
        rows = table("tr")
        heads = [row(["th", "td"])[::-1] for row in rows if row.find_parent("thead")]
        body = [row("td")[::-1] for row in rows if not row.find_parent("thead")]
        # columns are counted from the right, where row headers are not in the way
        for number, column in enumerate(itertools.zip_longest(*body)):
            cells = [cell for cell in column if cell]
            texts = [cell.get_text(strip=True) for cell in cells]
            if any(texts) and all(map(NUMBER.fullmatch, texts)):
                for cell in cells + [head[number] for head in heads if number < len(head)]:
                    cell["class"] = "number"
        box = {"class": "scroll", "tabindex": "0", "role": "group", "aria-label": name}
        table.wrap(soup.new_tag("div", attrs=box))


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    undefined = jinja2.StrictUndefined
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=undefined
    )
    environment.filters["text"] = text
    return environment


def render(template: str, **values) -> str:
    """Render one of our templates, with the style sheet inlined."""
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return _environment().get_template(template).render(style=style, **values)
