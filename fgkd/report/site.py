"""A site of files that need no server: an index, its figures and tables, and the page of every run."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from bs4 import BeautifulSoup
from markupsafe import Markup

from fgkd.analysis import records
from fgkd.report import markup, notebook

STATES = ("done", "failed", "waiting", "running")


@dataclass(frozen=True)
class Entry:
    """One run of a study as the index shows it, with a link to its executed notebook.

    href: where its page lies, relative to the site.
    state: one of STATES.
    detail: what came out of it.
    row: names its row within its section.
    """

    section: str
    title: str
    notebook: Path
    href: str
    state: str
    detail: str = ""
    row: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the index: its first rows on the page, all of them in `tables/<name>.csv`.

    shown: the same rows in a reader's words (default: the frame itself).
    limit: how many rows the page shows.
    """

    name: str
    frame: pd.DataFrame
    caption: str = ""
    shown: pd.DataFrame | None = None
    limit: int = 10

    @property
    def href(self) -> str:
        """Address of the file."""
        return f"tables/{quote(self.name)}.csv"

    @property
    def html(self) -> Markup:
        """The first rows, to four digits."""
        shown = self.frame if self.shown is None else self.shown
        with pd.option_context("display.max_colwidth", None, "display.precision", 4):
            source = shown.head(self.limit).to_html(index=False, border=0, na_rep="\u2013")
        soup = BeautifulSoup(source, "html.parser")
        markup.make_tables_readable(soup, self.caption or self.name)
        return Markup(soup)


@dataclass(frozen=True)
class Site:
    """What the index shows, from top to bottom.

    Texts are plain; `$...$` in them is a formula, and what stands in backticks code.

    answer: paragraphs, the first one in large type with the table of `standings` next to it.
    missing: runs that are not there.
    notes: what a reader should know of the numbers.
    figures: SVG or PNG files with captions, the first with the table of the `headline`.
    claims: shown on a page of its own.
    facts: what the study was made with.
    folders: of this machine, taken off the paths on all pages.
    """

    title: str
    question: str
    answer: Sequence[str]
    entries: Sequence[Entry]
    standings: Table | None = None
    missing: Sequence[str] = ()
    notes: Sequence[str] = ()
    figures: Sequence[tuple[Path, str]] = ()
    headline: Table | None = None
    claims: Table | None = None
    tables: Sequence[Table] = ()
    facts: Mapping[str, str] | None = None
    folders: tuple[Path, ...] = ()


def write(site: Site, folder: Path) -> Path:
    """Write a site and return the path of its index.

    A page carries the digest of the notebook and code that it came from, and is rendered again where they
    are others now.  A notebook that cannot be read gets no page and is named in the index.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for file, _ in site.figures:
        shutil.copyfile(file, folder / "figures" / file.name)
    for table in (site.standings, site.headline, site.claims, *site.tables):
        if table:
            records.write_table(table.frame, folder / "tables" / f"{table.name}.csv")
    pages = {entry.href: _write_page(entry, folder, site.folders) for entry in site.entries}
    unreadable = [entry.title for entry in site.entries if pages[entry.href] == "unreadable"]
    for name in ("index", "claims") if site.claims else ("index",):
        page = markup.render(f"{name}.html.j2", site=site, pages=pages, unreadable=unreadable)
        records.write_bytes(folder / f"{name}.html", markup.shorten_paths(page, site.folders).encode())
    return folder / "index.html"


def _write_page(entry: Entry, folder: Path, folders: tuple[Path, ...]) -> str:
    """Render the page of an ended run unless it is there: 'page', 'none' or 'unreadable'."""
    page = folder / entry.href
    if entry.state not in ("done", "failed") or not entry.notebook.exists():
        return "none"
    title = f"{entry.section}: {' · '.join(filter(None, (entry.row, entry.title)))}"
    home = Path(os.path.relpath(folder / "index.html", page.parent)).as_posix()
    try:
        notebook.write_page(entry.notebook, page, title=title, home=home, folders=folders)
    except notebook.Unreadable:
        page.unlink(missing_ok=True)
        return "unreadable"
    return "page"
