r"""Executed notebooks -> one offline HTML site that anyone can read, on a phone, on paper or with a screen reader.

Nothing that a page loads comes from another host, and no page holds a script: formulas are MathML, pictures are data
addresses, the style sheet is inlined. What notebooks hold is not trusted: their HTML passes an allow list, because a
class name read from a folder may well be `<script>`.

`build` makes the site of a study; `site` renders an index and the pages of all runs; `page` renders one notebook.
"""

import base64
import functools
import html
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import bleach.sanitizer
import jinja2
import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from latex2mathml.converter import convert as to_mathml
from markupsafe import Markup
from nbconvert.filters.ansi import ansi2html, strip_ansi
from nbconvert.filters.highlight import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath, MathInlineParser

from fgkd import records
from fgkd.analysis import correlation, findings, groups, paper, selection
from fgkd.metrics import METRICS
from fgkd.report import plots
from fgkd.study import PROJECT, Job, Study

TEMPLATES = Path(__file__).parent / "templates"
RULES = ("R12", "R12, median", "SSP", "TAC", "NLL", "LogME", "pilot", "random", "no teacher")
STATES = ("done", "failed", "waiting", "running")
SECTIONS = {
    "intro": "The idea",
    "data": "Data",
    "teacher": "Teachers",
    "bank": "Banks and R12",
    "distill": "Students",
    "correlation": "Analysis",
    "report": "Analysis",
}
FIGURES = {
    "ranks": "The order of teachers by each metric, and by their students: level lines are a metric that ranks them right.",
    "accuracies": "Accuracy of every student, a column a strategy and further loss, a mark a teacher; dashed: the student without a teacher.",
    "picks": "What choosing by each metric gains: mean accuracy of the student whose teacher it picks; "
    "in another colour what sees students first.",
    "regret": "What each rule's pick loses against the best teacher of a group: a dot a group, the line their mean.",
    "heat": "Spearman's rho in the claimed direction: blue agrees with the claim, red contradicts it. "
    "A pilot sees a tenth of each student's epochs (rounded up), agreement the whole student.",
    "strengths": "Share of groups by strength of |rho|, which forgives a wrong sign; dashed: the share that would be strong by chance.",
    "progress": "R12 against how far the teacher's training has come: "
    "rising, a small R12 is that of a teacher not yet trained.",
    "capacity": "The teacher's size against its R12 and against its students' accuracy.",
}


@dataclass(frozen=True)
class Entry:
    """One run of the study as the index shows it: a job of the grid that links to its executed notebook.

    `href` is relative to the site; `state` is one of 'done', 'failed', 'waiting', 'running'; `row` names the entry's row in the grid of its section.
    """

    section: str
    title: str
    notebook: Path
    href: str
    state: str
    detail: str = ""
    row: str = ""

    def __post_init__(self):
        if self.state not in STATES:
            raise ValueError(
                f"state of {self.title!r} is {self.state!r}; expected one of {', '.join(STATES)}"
            )
        parts = self.href.split("/")
        if (
            not self.href.endswith(".html")
            or self.href == "index.html"
            or any(p in ("", ".", "..") for p in parts)
        ):
            raise ValueError(
                f"href of {self.title!r} is {self.href!r}; expected a relative path such as 'runs/a.html'"
            )


def build(study: Study, states: Mapping[Job, Mapping]) -> Path:
    """The site of a study in `runs/<study>/report/`, from the records there are; what is missing is said.

    `states`: what `fgkd status` says of each job (state, seconds, error). Returns the path of index.html.
    """
    found, folder = records.collect(study), study.folder / "figures"
    answer, headline = "There is nothing to correlate yet.", None
    if "headline" in found:
        points = records.points(found)
        found["picks"] = selection.selection_summary(points, found["students"])
        answer = groups.explain_missing_rho(found["correlations"])
        if len(points):
            found["standings"] = selection.standings(points, found["students"], found["data"])
            choices = selection.selection_outcomes(points, found["students"])
            found |= concluded(study, found, points, choices)
            said = selection.describe_standings(found["standings"], found["picks"])
            tuned = (
                findings.describe_temperatures(found["temperatures"], study)
                if len(found["temperatures"])
                else ""
            )
            answer = " ".join(filter(None, (said, findings.describe_gains(found["pay"]), tuned, answer)))
            _draw(study, found, points, choices, folder)
            caption = "Student accuracy against each metric, a point a teacher. The claim: falling for R12, rising for SSP and TAC."
            headline = (folder / "against.svg", caption, *_headline(found["headline"]))
        for name, frame in found.items():
            records.write_table(frame, study.folder / "tables" / f"{name}.csv")
        found.pop("headline")
    entries = [_entry(study, job, state) for job, state in states.items()]
    missing = [
        f"{job.id} ({state['state']}{': ' + state['error'] if state['error'] else ''})"
        for job, state in states.items()
        if state["state"] != "done"
    ]
    return site(
        study.folder / "report",
        title="Which teacher should your small model learn from?",
        question=f"{study.name}: {study.question}" if study.question else study.name,
        answer=answer,
        headline=headline,
        figures=[
            (folder / f"{name}.svg", caption)
            for name, caption in FIGURES.items()
            if (folder / f"{name}.svg").exists()
        ],
        standings=found.pop("standings", None),
        tables=found,
        entries=entries,
        facts=_facts(study, found),
        missing=missing,
        notes=notes(study),
    )


def concluded(
    study: Study, found: Mapping[str, pd.DataFrame], points: pd.DataFrame, choices: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """The tables that the report adds to those of `records.collect`; points: as of `records.points`."""
    correlations, students = found["correlations"], found["students"]
    return {
        "breakdown": groups.breakdown(correlations),
        "claims": paper.claims(correlations, choices, students, points),
        "power": paper.power(correlations),
        "pay": findings.distillation_gains(points, students, found["data"]),
        "temperatures": findings.temperatures(correlations, study),
        "progress": findings.progress(records.with_tac(found["metrics"], found["teachers"])),
        "mixes": findings.mixes(points, [*records.TRAITS, *records.WORDS]),
    }


def notes(study: Study) -> list[str]:
    """What a reader of the study's numbers should know: what the study says of its data sets, copies in both
    splits, and metrics that say nothing."""
    found = [f"{key}: {spec.note}" for key, spec in study.datasets.items() if spec.note]
    for job in study.jobs():
        for record in records.records(study, job) if job.stage in ("data", "bank") else ():
            found += [f"{job.dataset}: {note}" for note in record.get("notes", []) if "also in train" in note]
            share = record["rows"][0].get("ratio12_nonpositive", 0)
            if share > plots.UNDEFINED:
                found.append(
                    f"{job.dataset}, {job.strategy} teacher {job.teacher}: the second logit is 0 or "
                    f"negative in {share:.1%} of "
                    f"views, where R12 loses its meaning; its mean is {record['rows'][0]['ratio12']:.3f}"
                )
    return found


def _draw(
    study: Study, found: Mapping[str, pd.DataFrame], points: pd.DataFrame, choices: pd.DataFrame, folder: Path
) -> None:
    """Every figure of the study, as PNG and SVG."""
    plots.set_style()
    metrics, teachers, first = ["ratio12", "ssp", "tac"], study.teachers, groups.example(points)
    measured = records.with_tac(found["metrics"], found["teachers"])
    null = correlation.null_share(len(teachers)) if len(teachers) >= 3 else None
    drawn = {
        "against": plots.metric_scatter(first, metrics, teachers),
        "ranks": plots.ranks(first, metrics, teachers),
        "accuracies": plots.accuracies(found["students"], teachers),
        "heat": plots.rho_heatmap(found["correlations"]),
        "strengths": plots.strengths(
            found["correlations"], ["ratio12", "ratio12_median", "ssp", "tac"], null
        ),
        "capacity": plots.capacity(points, "ratio12", teachers),
        "progress": plots.progress(findings.teacher_means(measured), teachers),
        "picks": plots.selection_chart(found["picks"]),
        "regret": plots.regret(choices, [rule for rule in RULES if rule in set(choices.rule)]),
    }
    for name, figure in drawn.items():
        plots.save(figure, folder, name)


def page(notebook: Path, html: Path, *, title: str | None = None, home: str = "index.html") -> None:
    """Render one executed notebook (.ipynb) to one self-contained file.

    `title` names the run in the page's header and in the browser's tab (default: the notebook's first heading);
    `home` is the address of the index, relative to `html`. The file appears whole or not at all.
    Raises `nbformat.reader.NotJSONError` where the notebook is no valid JSON, as after a kill in mid-write.
    """
    nb = nbformat.read(notebook, as_version=4)
    cells = _cells(nb, folder=Path(notebook).parent)
    headings = [heading for cell in cells for heading in cell.get("headings", [])]
    text = _render(
        "page.html.j2",
        cells=cells,
        run=title,
        title=title or next((name for _, name in headings), Path(notebook).stem),
        has_h1=any(level == 1 for level, _ in headings),
        failure=next((cell for cell in cells if cell.get("failed")), None),
        home=quote(home),
    )
    _write(Path(html), text)


def site(
    out: Path,
    *,
    title: str,
    question: str,
    answer: str,
    headline: tuple[Path, str, pd.DataFrame, str] | None,
    figures: Sequence[tuple[Path, str]],
    tables: Mapping[str, pd.DataFrame],
    entries: Sequence[Entry],
    facts: Mapping[str, str],
    missing: Sequence[str] = (),
    notes: Sequence[str] = (),
    standings: pd.DataFrame | None = None,
) -> Path:
    """Write the index of a study, its figures and tables, and the page of each run that left a notebook.

    `headline` is (figure, its caption, table, its caption): what a reader in a hurry should see, None while
    there is nothing to see; its table is also written as `tables/headline.csv`. `figures` are (PNG or SVG
    file, caption). Every table becomes `tables/<name>.csv`. Texts are plain; `$...$` in them is a formula. A
    page is rendered again only where it is older than its notebook or than this module. Notebooks that cannot
    be read get no page and are named beside what is `missing`. `notes` are what a reader should know of the
    numbers, `standings` the teachers as of `selection.standings`, shown below the answer. Returns the path of
    index.html.
    """
    out = Path(out)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    if "headline" in tables:
        raise ValueError("'headline' names the headline table; give the other table another name")
    doubles = [href for href, count in Counter(entry.href for entry in entries).items() if count > 1]
    if doubles:
        raise ValueError(f"two runs share a page: {', '.join(sorted(doubles))}; give each entry its own href")
    pages = {entry.href: _entry_page(entry, out) for entry in entries}
    text = _render(
        "index.html.j2",
        title=title,
        question=question,
        answer=answer,
        headline_figure=headline and _figure(*headline[:2], out),
        headline_table=headline and _table("headline", *headline[2:], out, rows=24),
        figures=[_figure(path, words, out) for path, words in figures],
        tables=[_table(name, frame, None, out, rows=10) for name, frame in tables.items()],
        sections=_sections(entries, pages),
        counts=_counts(entries),
        facts=facts,
        missing=list(missing),
        notes=list(notes),
        standings=None if standings is None else _table("standings", *_standings(standings), out, rows=24),
        unreadable=[entry.title for entry in entries if pages[entry.href] == "unreadable"],
    )
    _write(out / "index.html", text)
    return out / "index.html"


# The index


def _entry(study: Study, job: Job, state: Mapping) -> Entry:
    """A job of the grid: what came out of it, and how long it took."""
    words = {
        "tac": "TAC {tac:.1%}",
        "ratio12": "R12 {ratio12:.3f}",
        "accuracy": "{student} {loss} {accuracy:.1%}",
        "train": "{train:,} training images",
    }
    detail = list(
        dict.fromkeys(
            text.format(**row)
            for row in records.rows(study, job)
            for name, text in words.items()
            if name in row
        )
    )
    detail += [f"{state['seconds']:.0f} s"] if state["seconds"] else []
    detail += [state["state"]] if state["state"] not in STATES else []
    seed = "" if job.seed is None else f"seed {job.seed}"
    row = " · ".join(dict.fromkeys(part for part in (job.dataset, job.strategy) if job.teacher))
    name = " · ".join(part for part in (job.teacher or job.dataset, seed) if part) or job.notebook
    shown = state["state"] if state["state"] in STATES else "waiting"
    return Entry(
        SECTIONS[job.stage],
        name,
        study.path(job) / f"{job.notebook}.ipynb",
        f"{job.id}.html",
        shown,
        ", ".join(detail),
        row,
    )


def _headline(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The headline table in a reader's words, and a caption that says once what is the same in all its rows."""
    same = {
        c: table[c].iloc[0]
        for c in ("groups", "datasets", "teachers", "chance_abs_rho", "chance_strong")
        if table[c].nunique() == 1
    }
    words = {
        "metric": "metric",
        "agrees": "rho in the claimed direction",
        "low": "from",
        "high": "to (95 %)",
        "mean_abs_rho": "|rho|",
        "chance_abs_rho": "|rho| by chance",
        "strong": "strong groups",
        "chance_strong": "strong by chance",
        "groups": "groups",
        "datasets": "data sets",
        "teachers": "teachers",
    }
    shown = (
        table[[c for c in words if c not in same]].dropna(axis=1, how="all").round(3).rename(columns=words)
    )
    shown["metric"] = [METRICS[m].label for m in table["metric"]]
    facts = [f"{words[c]} {value:.3g}" for c, value in same.items()]
    return (
        shown,
        f"Every metric, means over groups, best first. The same for all: {', '.join(facts)}."
        if facts
        else "Every metric, means over groups, best first.",
    )


def _standings(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The teachers in a reader's words, and a caption."""
    words = {
        "teacher": "teacher",
        "accuracy": "student accuracy",
        "error": "+- (95 %)",
        "tied": "as good as the best",
        "ratio12": "R12",
        "tac": "TAC",
        "ssp": "SSP",
    }
    shown = table[list(words)].round(4).rename(columns=words)
    shown["as good as the best"] = [{True: "yes", False: "no"}.get(tied, "") for tied in table.tied]
    return (
        shown,
        "Teachers by the accuracy of their students, means over groups; the error counts test images, and "
        "seeds where there are several.",
    )


def _facts(study: Study, found: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """What the study was made with: its own settings, and every commit, device and version of a package that
    a record names, with the number of records where there are several."""
    facts = {
        "study": Path(study.file).name,
        "seed": ", ".join(map(str, study.seeds)),
        "teachers": ", ".join(m.model for m in study.teachers.values()),
        "students": ", ".join(m.model for m in study.students.values()),
        "strategies": ", ".join(study.strategies),
    }
    facts |= {
        f"recipe {name}": ", ".join(f"{k} {v}" for k, v in vars(recipe).items())
        for name, recipe in study.recipes.items()
    }
    known: dict[Job, str] = {}
    made = [one["provenance"] for job in study.jobs() for one in records.records(study, job, known)]
    for name in ("commit", "device", "python", "threads"):
        facts |= {name: _each(Counter(str(one[name]) for one in made))} if made else {}
    packages = {
        name: _each(Counter(one["packages"].get(name, "absent") for one in made)) for name in records.PACKAGES
    }
    return facts | (
        {"packages": ", ".join(f"{name} {versions}" for name, versions in packages.items())} if made else {}
    )


def _each(counts: Counter) -> str:
    """One value as it is; of several each with the number of its records."""
    return (
        next(iter(counts))
        if len(counts) == 1
        else ", ".join(f"{value} ({count} records)" for value, count in counts.most_common())
    )


def _entry_page(entry: Entry, out: Path) -> str:
    """Render the page of a finished run unless it is fresh: 'page', 'none' or 'unreadable'."""
    notebook, target = Path(entry.notebook), out / entry.href
    if entry.state not in ("done", "failed") or not notebook.exists():
        return "none"
    newest = max(path.stat().st_mtime for path in (notebook, Path(__file__), *TEMPLATES.iterdir()))
    if target.exists() and target.stat().st_mtime >= newest:
        return "page"
    home = Path(os.path.relpath(out / "index.html", target.parent)).as_posix()
    try:
        page(
            notebook,
            target,
            title=f"{entry.section}: {' · '.join(filter(None, (entry.row, entry.title)))}",
            home=home,
        )
    except nbformat.reader.NotJSONError:
        target.unlink(missing_ok=True)
        return "unreadable"
    return "page"


def _sections(entries: Sequence[Entry], pages: Mapping[str, str]) -> list[dict]:
    """Entries by section and row, both in order of first appearance."""
    sections = {}
    for entry in entries:
        href = quote(entry.href) if pages[entry.href] == "page" else None
        sections.setdefault(entry.section, {}).setdefault(entry.row, []).append(
            {"entry": entry, "href": href}
        )
    return [
        {"name": name, "rows": rows, "counts": _counts([e for e in entries if e.section == name])}
        for name, rows in sections.items()
    ]


def _counts(entries: Sequence[Entry]) -> str:
    """'7 done, 1 failed'; states that no run is in are left out."""
    counts = [(sum(entry.state == state for entry in entries), state) for state in STATES]
    return ", ".join(f"{count} {state}" for count, state in counts if count)


def _figure(path: Path, caption: str, out: Path) -> dict:
    """Copy a figure to the site; the first clause of its caption is its alternative text."""
    path = Path(path)
    if path.suffix.lower() not in (".png", ".svg"):
        raise ValueError(f"figure {path.name!r} is neither PNG nor SVG; save it as one of them")
    target = out / "figures" / path.name
    if target.resolve() != path.resolve():
        shutil.copyfile(path, target)
    return {
        "src": f"figures/{quote(path.name)}",
        "caption": caption,
        "alt": re.split(r"(?<=[.:;])\s", caption)[0],
    }


def _table(name: str, frame: pd.DataFrame, caption: str | None, out: Path, *, rows: int) -> dict:
    """Write a table as CSV; its first rows as HTML, to four digits."""
    if not re.fullmatch(r"\w[\w .-]*", name):
        raise ValueError(
            f"table name {name!r} is no file name; use letters, digits, '_', '-', '.' and spaces"
        )
    if any(label is not None for label in frame.index.names):
        frame = frame.reset_index()
    index = not isinstance(frame.index, pd.RangeIndex)
    _write(out / "tables" / f"{name}.csv", frame.to_csv(index=index))
    with pd.option_context("display.max_colwidth", None, "display.precision", 4):
        markup = frame.head(rows).to_html(index=index, border=0, na_rep="–", escape=True)
    return {
        "name": name,
        "caption": caption,
        "csv": f"tables/{quote(name)}.csv",
        "html": Markup(_tables(markup, name=caption or name)),
        "rows": len(frame),
        "shown": min(rows, len(frame)),
    }


# A notebook's cells


def _cells(nb: nbformat.NotebookNode, *, folder: Path) -> list[dict]:
    """What the page template shows of each cell; papermill's own error markers give way to ours."""
    language = nb.metadata.get("language_info", {}).get("pygments_lexer", "ipython3")
    highlight, cells, heading, ids = Highlight2HTML(pygments_lexer=language), [], None, set()
    for cell in nb.cells:
        tags = cell.metadata.get("tags", [])
        if "papermill-error-cell-tag" in tags or not cell.source.strip():
            continue
        if cell.cell_type == "markdown":
            markup = _markdown(cell.source, folder=folder, attachments=cell.get("attachments"))
            markup = re.sub(
                r'(<h[1-6]) id="([^"]*)"', lambda m: m[1] if m[2] in ids or ids.add(m[2]) else m[0], markup
            )  # the first keeps its address
            headings = [
                (int(n), _plain(name)) for n, name in re.findall(r"(?s)<h([1-6])[^>]*>(.*?)</h\1>", markup)
            ]
            heading = headings[-1][1] if headings else heading
            cells.append({"kind": "markdown", "html": Markup(markup), "headings": headings})
        elif cell.cell_type == "code":
            alt = cell.metadata.get("alt") or (f"Figure in the part “{heading}”" if heading else "Figure")
            outputs = cell.get("outputs", [])
            cells.append(
                {
                    "kind": "code",
                    "count": cell.get("execution_count"),
                    "source": Markup(
                        highlight(cell.source.replace(f"{PROJECT}/", "")).replace(
                            "<pre>", '<pre tabindex="0">'
                        )
                    ),
                    "label": _label(tags),
                    "outputs": _outputs(outputs, alt=alt, folder=folder),
                    "failed": "raises-exception" not in tags
                    and any(o.output_type == "error" for o in outputs),
                }
            )
    return cells


def _label(tags: Sequence[str]) -> str | None:
    if "injected-parameters" in tags:
        return "Parameters of this run"
    return "Default parameters" if "parameters" in tags else None


def _outputs(outputs: Sequence[nbformat.NotebookNode], *, alt: str, folder: Path) -> list[dict]:
    """What a code cell left: streams (neighbours joined, progress bars dropped), pictures, HTML, text and errors."""
    shown, streams = [], {}
    for output in outputs:
        if output.output_type == "stream":
            if output.name not in streams:
                streams[output.name] = {"kind": "text" if output.name == "stdout" else "messages", "text": ""}
                shown.append(streams[output.name])
            streams[output.name]["text"] += output.text
        elif output.output_type == "error":
            error = strip_ansi(f"{output.ename}: {output.evalue}")
            shown.append({"kind": "error", "error": error, "text": "\n".join(output.traceback)})
        else:
            shown.append(_data(output, alt=alt, folder=folder))
        if output.output_type != "stream":
            streams = {}
    for item in shown:
        if item["kind"] in ("text", "messages"):
            item["text"] = _last_state(item["text"])
        if "text" in item:
            item["html"] = Markup(ansi2html(item["text"]))
    return [item for item in shown if item["html"].strip()]


def _data(output: nbformat.NotebookNode, *, alt: str, folder: Path) -> dict:
    """The richest safe form of one displayed object; widgets and scripts are shown by their text, if any."""
    data, meta = output.data, output.metadata
    for mime in ("image/svg+xml", "image/png", "image/jpeg"):
        if mime in data:
            alt = meta.get("alt") or meta.get(mime, {}).get("alt") or alt
            return {
                "kind": "image",
                "html": _image(mime, data[mime], alt, width=meta.get(mime, {}).get("width")),
            }
    if "text/html" in data:
        return {"kind": "html", "html": Markup(_clean_output(data["text/html"]))}
    if "text/markdown" in data:
        return {"kind": "html", "html": Markup(_markdown(data["text/markdown"], folder=folder))}
    if "text/latex" in data:
        return {"kind": "html", "html": Markup(_formula(data["text/latex"].strip().strip("$"), display=True))}
    return {"kind": "text", "text": data.get("text/plain", "")}


def _image(mime: str, data: str, alt: str, *, width: int | None) -> Markup:
    """A picture as a data address; inside <img>, an SVG runs no script and loads nothing."""
    content = base64.b64encode(data.encode()).decode() if mime == "image/svg+xml" else "".join(data.split())
    size = Markup(' width="{}"').format(int(width)) if width else ""
    return Markup('<img src="data:{};base64,{}" alt="{}"{}>').format(mime, content, alt, size)


# tqdm's lines: '45%|####   | 9/20 [00:01<00:01, 8.9it/s]' and, without a total, '9it [00:01, 8.9it/s]'
_BAR = re.compile(r"\d+%\|.*\||\[\d+:\d\d(:\d\d)?(<[^\],]*)?,[^\]]*/[^\]]*\]")


def _last_state(text: str) -> str:
    """What a terminal would show in the end: the text after the last carriage return, without progress bars."""
    lines = []
    for line in re.sub(r"\x1b\[\d*[A-HJK]", "", text).split("\n"):
        line = line.rstrip("\r")
        last = line.rsplit("\r", 1)[-1]
        if not _BAR.search(last) and (last.strip() or "\r" not in line):
            lines.append(last)
    return "\n".join(lines).rstrip()


# Markdown and formulas


class _Inlines(MathInlineParser):
    """Pandoc's rule: no space inside the dollars and no digit after them, so that '$5 to $10' stays money."""

    FORMULA = r"(?<![\\$])\$(?![\s$])(?P<math_inline_tex>(?:\\.|[^\\$`])+?)(?<!\s)\$(?![\d$])"
    SPECIFICATION = {**MathInlineParser.SPECIFICATION, "inline_math_tex": FORMULA}


class _Renderer(IPythonRenderer):
    """nbconvert's renderer, with formulas as MathML and headings that carry their own address."""

    def block_math(self, body):
        return _formula(body, display=True)

    def inline_math(self, body):
        return _formula(body, display=False)

    def latex_environment(self, name, body):
        return _formula(rf"\begin{{{name}}}{body}\end{{{name}}}", display=True)

    def block_html(self, html):
        return (
            html  # the inherited methods parse each tag by itself to embed pictures, and so close it at once
        )

    def inline_html(self, html):
        return html

    def heading(self, text, level, **attrs):
        anchor = html.escape(_plain(text).replace(" ", "-"))
        return f'<h{level} id="{anchor}">{text}</h{level}>\n'


def _markdown(source: str, *, folder: Path, attachments: Mapping | None = None) -> str:
    """Markdown to safe HTML; local pictures are embedded, and unknown tags show as the text that they are."""
    renderer = _Renderer(escape=False, embed_images=True, path=str(folder), attachments=attachments)
    markup = MarkdownWithMath(renderer, inline=_Inlines(hard_wrap=False)).render(source)
    return _tables(_cleaner(strip=False).clean(markup)).replace("<pre>", '<pre tabindex="0">')


def _formula(latex: str, *, display: bool) -> str:
    """LaTeX to MathML; what cannot be converted is shown as its source."""
    try:
        math = to_mathml(latex.strip(), display="block" if display else "inline")
    except Exception:  # latex2mathml raises a dozen unrelated types; the reader still gets the source
        math = f"<code>{html.escape(latex)}</code>"
    math = math.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    return f'<span class="formula">{math}</span>' if display else math


def _text(text: object) -> Markup:
    """Plain text, escaped, with its `$...$` as formulas: for captions and names."""
    parts = re.split(_Inlines.FORMULA.replace("?P<math_inline_tex>", ""), str(text))
    return Markup(
        "".join(_formula(p, display=False) if i % 2 else html.escape(p) for i, p in enumerate(parts))
    )


def _plain(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", markup)).strip()


# HTML that is safe, and tables that can be read aloud

_TAGS = frozenset(
    "a abbr b blockquote br caption code dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i img input"
    " kbd li mark ol p pre q s samp small span strong sub summary sup table tbody td tfoot th thead tr tt u ul"
    " var".split()
)
_MATH_TAGS = frozenset(
    "math menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mroot mrow ms mspace msqrt mstyle msub msubsup"
    " msup mtable mtd mtext mtr munder munderover".split()
)
_ATTRIBUTES = frozenset(
    "alt class checked colspan disabled height id open rowspan scope start title width".split()
)
_MATH_ATTRIBUTES = frozenset(
    "accent accentunder columnalign columnspacing depth display displaystyle fence form height largeop linethickness"
    " lspace mathvariant maxsize minsize movablelimits notation rowspacing rspace scriptlevel stretchy symmetric"
    " voffset width".split()
)


def _allowed(tag: str, name: str, value: str) -> bool:
    """Links may lead out of the site or within the page, not to files that are not in it; pictures are embedded."""
    if tag in _MATH_TAGS:
        return name in _MATH_ATTRIBUTES
    if (tag, name) == ("a", "href"):
        return value.startswith(("#", "https://", "http://", "mailto:"))
    if (tag, name) == ("img", "src"):
        return value.startswith("data:image/")
    if (tag, name) == ("input", "type"):
        return value == "checkbox"
    return name in _ATTRIBUTES


@functools.cache
def _cleaner(*, strip: bool) -> bleach.sanitizer.Cleaner:
    protocols = {"data", "http", "https", "mailto"}
    return bleach.sanitizer.Cleaner(_TAGS | _MATH_TAGS, _allowed, protocols, strip=strip)


def _clean_output(markup: str) -> str:
    """A displayed object's HTML without its scripts and styles."""
    soup = BeautifulSoup(markup, "html.parser")
    for tag in soup(["script", "style", "noscript", "template", "iframe", "object", "svg", "title"]):
        tag.decompose()
    return _tables(_cleaner(strip=True).clean(str(soup)))


_NUMBER = re.compile(r"(?:[<≤≥>~]?\s?[-+−±]?[\d.,]+(?:e[-+]?\d+)?\s?(?:%|s|ms|MB|GB)?|nan|NaN|inf|-inf|–|)")


def _tables(markup: str, *, name: str = "Table") -> str:
    """Give every table a box of its own to scroll in, header cells their scope, and numbers their alignment."""
    if "<table" not in markup:
        return markup
    soup = BeautifulSoup(markup, "html.parser")
    for table in soup("table"):
        for row in table("tr"):
            for cell in row("th"):
                if cell.get_text(strip=True):
                    cell["scope"] = "col" if row.find_parent("thead") else "row"
                else:
                    cell.name = "td"
        heads = [row(["th", "td"]) for row in table("tr") if row.find_parent("thead")]
        body = [row("td") for row in table("tr") if not row.find_parent("thead")]
        width = max((len(cells) for cells in body), default=0)
        for column in range(1, width + 1):  # counted from the right, where row headers are not in the way
            cells = [cells[-column] for cells in body if len(cells) >= column]
            texts = [cell.get_text(strip=True) for cell in cells]
            if any(texts) and all(map(_NUMBER.fullmatch, texts)):
                for cell in cells + [head[-column] for head in heads if len(head) >= column]:
                    cell["class"] = "number"
            for cell, text in zip(cells, texts, strict=True):
                if len(text) > 60:
                    cell["class"] = "long"
        box = {"class": "scroll", "tabindex": "0", "role": "group", "aria-label": name}
        table.wrap(soup.new_tag("div", attrs=box))
    return re.sub(
        r"(<th[^>]*>)([^<]*)", lambda m: m[1] + m[2].replace("_", "_<wbr>"), str(soup)
    )  # long names break after an underscore


# Files


@functools.cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    env = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    env.filters["text"] = _text
    return env


def _render(template: str, **values) -> str:
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return _templates().get_template(template).render(style=style, **values)


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
