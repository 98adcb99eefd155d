r"""An executed notebook as one offline HTML page.

nbconvert reads the notebook, drops papermill's own error markers and empty cells, joins streams, picks each
output's richest form, highlights code, colours terminal text and renders Markdown with embedded images. Ours
are `templates/cells.html.j2`, which lays a cell out, and its filters: the stricter allow list of
`fgkd.report.markup`, MathML for formulas, and no progress bars.  nbconvert's pages (`HTMLExporter` with its
templates `lab` and `classic`) are not used: they load MathJax and require.js from elsewhere, give images no
text of their own, and raise where a widget's data are not those of a widget.
"""

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import nbformat
from bs4 import BeautifulSoup
from jinja2 import pass_context
from markupsafe import Markup
from nbconvert.exporters.templateexporter import TemplateExporter
from nbconvert.filters import markdown_mistune as mistune
from traitlets.config import Config

from fgkd.analysis import records
from fgkd.report import markup

HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
# The richest first. Inside <img> an SVG runs no script; scripts and widgets are shown by their text, if any.
IMAGES = ["image/svg+xml", "image/png", "image/jpeg"]
TEXTS = ["text/html", "text/markdown", "text/latex", "text/plain"]
HIDDEN = ["application/javascript", "application/vnd.jupyter.widget-view+json"]
# tqdm's lines: '45%|####   | 9/20 [00:01<00:01, 8.9it/s]', '9it [00:01, 8.9it/s]', and a bar that was wiped
BAR = re.compile(r"\d+%\|.*\||\[\d+:\d\d(:\d\d)?(<[^\],]*)?,[^\]]*/[^\]]*\]|^\s+\r$")
CURSOR = re.compile(r"\x1b\[\d*[A-HJK]")


class Unreadable(ValueError):
    """A notebook cut by a kill, of an unknown format, or without an image that it attaches."""


def write_page(
    notebook: Path,
    file: Path,
    *,
    title: str | None = None,
    home: str = "index.html",
    folders: Sequence[Path] = (),
) -> None:
    """Render an executed notebook to one self-contained file, unless it is there already.

    title: names the run in the page's header and in the browser's tab (default: the first heading).
    home: address of the index, relative to `file`.
    folders: taken off the paths in the page, as by `markup.shorten_paths`.
    Raises Unreadable.
    """
    content = notebook.read_bytes()
    places = [str(place).encode() for place in (title, home, *folders)]
    digest = hashlib.sha256(b"\0".join([_renderer(), *places, content])).hexdigest()
    if file.exists() and digest.encode() in file.read_bytes()[:1000]:
        return
    try:
        cells = nbformat.reads(content.decode(), 4)
        body, _ = _exporter().from_notebook_node(cells, {"metadata": {"path": str(notebook.parent)}})
        soup = BeautifulSoup(body, "html.parser")
        _make_accessible(soup)
    except Exception as error:  # a dozen unrelated types, by what is wrong in which of its parts
        raise Unreadable(f"'{notebook}' cannot be shown: {type(error).__name__}: {error}") from error
    heading = soup.find(HEADINGS)
    page = markup.render(
        "page.html.j2",
        content=Markup(soup),
        run=title,
        title=title or (heading.get_text().strip() if heading else Path(notebook).stem),
        has_h1=soup.h1 is not None,
        failed=soup.select_one("[data-count]"),
        home=quote(home),
        digest=digest,
    )
    records.write_bytes(file, markup.shorten_paths(page, folders).encode())


@functools.cache
def _renderer() -> bytes:
    """The digest of the code that renders a page: of another version it is rendered again."""
    sources = [Path(__file__), Path(markup.__file__), *sorted(markup.TEMPLATES.iterdir())]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).digest()


@functools.cache
def _exporter() -> TemplateExporter:
    config = {
        "NbConvertBase": {"display_data_priority": IMAGES + TEXTS + HIDDEN},
        "TagRemovePreprocessor": {"remove_cell_tags": {"papermill-error-cell-tag"}},
        "RegexRemovePreprocessor": {"patterns": [r"\s*\Z"]},
        "CoalesceStreamsPreprocessor": {"enabled": True},
    }
    filters = {
        "markdown2html": render_markdown,
        "clean_html": markup.clean_text,
        "clean_output": markup.clean_output,
        "mathml": markup.mathml,
        "clear_progress": clear_progress,
    }
    template = str(markup.TEMPLATES / "cells.html.j2")
    return TemplateExporter(Config(config), template_name="base", template_file=template, filters=filters)


def clear_progress(text: str) -> str:
    """Drop the lines that are progress bars, and the cursor's movements between them."""
    lines = CURSOR.sub("", text).split("\n")
    return "\n".join(line.rstrip("\r") for line in lines if not BAR.search(line)).rstrip()


@pass_context
def render_markdown(context, source: str) -> str:
    """Render Markdown as nbconvert's filter `markdown2html` does, but by the two classes below."""
    renderer = Renderer(
        escape=False,
        embed_images=True,
        exclude_anchor_links=True,
        path=context["resources"]["metadata"]["path"],
        attachments=context["cell"].get("attachments"),
    )
    return mistune.MarkdownWithMath(renderer, inline=InlineParser(hard_wrap=False)).render(source)


class InlineParser(mistune.MathInlineParser):
    """nbconvert's parser with Pandoc's rule for `$...$`."""

    SPECIFICATION = mistune.MathInlineParser.SPECIFICATION | {"inline_math_tex": markup.FORMULA}


class Renderer(mistune.IPythonRenderer):
    """nbconvert's renderer with formulas as MathML."""

    def block_math(self, body):
        return markup.mathml(body)

    def inline_math(self, body):
        return markup.mathml(body, display=False)

    def latex_environment(self, name, body):
        return markup.mathml(rf"\begin{{{name}}}{body}\end{{{name}}}")

    # The inherited two parse each tag by itself to embed its image, and so close it at once.
    def block_html(self, html):
        return html

    def inline_html(self, html):
        return html


def _make_accessible(soup: BeautifulSoup) -> None:
    """Give headings an address, images a text, code the keyboard and tables their scopes."""
    heading = None
    for tag in soup([*HEADINGS, "img"]):
        if tag.name == "img":
            tag["alt"] = tag.get("alt") or (f"Figure in the part “{heading}”" if heading else "Figure")
        else:
            heading = tag.get_text().strip()
            tag["id"] = tag.get("id") or heading.replace(" ", "-")
    ids = {"content"}  # the page's own
    for tag in soup(id=True):
        if tag["id"] in ids:
            del tag["id"]
        else:
            ids.add(str(tag["id"]))
    for block in soup("pre"):
        block["tabindex"] = "0"
    markup.make_tables_readable(soup)
