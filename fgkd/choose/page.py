"""The page of a choice: index.html of its folder, drawn from choose.json and ranking.csv alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fgkd.analysis import records

FIGURES = {
    "places": "How often each candidate has which place, over bootstrap samples of the held-out photos.",
    "pilots": "Pilots: accuracy on held-out photos by epochs of the student.",
}
SHOWN = {  # of the columns of ranking.csv on the page: their names and formats
    "teacher": ("teacher", "{}"),
    "rank": ("rank", "{}"),
    "first": ("first in", "{:.0%}"),
    "tac": ("TAC", "{:.1%}"),
    "ratio12": ("R12", "{:.3f}"),
    "pilot_accuracy": ("pilot", "{:.1%}"),
    "student_accuracy": ("student, test", "{:.1%}"),
    "parameters": ("weights", "{:,}"),
    "megabytes": ("MB", "{:.1f}"),
    "images_per_second": ("images/s", "{:.0f}"),
    "minutes": ("minutes", "{:.1f}"),
    "licence": ("licence", "{}"),
}


def write(folder: Path, notebook: Path | None = None) -> Path:
    """Write index.html from choose.json and ranking.csv in a folder; returns its path.

    notebook: the executed notebook, which becomes a page of its own.
    """
    from fgkd.report import site

    values = records.read_json(folder / "choose.json") or {}
    table = records.read_table(folder / "ranking.csv")
    shown = pd.DataFrame(
        {name: table[column].map(text.format, na_action="ignore") for column, (name, text) in SHOWN.items()}
    )
    parts = {name: pd.DataFrame(values[name]) for name in ("verified", "pilots")}
    figures = [(folder / "plots" / f"{name}.png", caption) for name, caption in FIGURES.items()]
    notes = [f"Photos: {finding}." for finding in values["audit"]]
    notes += [f"Left out: {name}: {reason}" for name, reason in values["left out"].items()]
    beware = [f"Beware: {warning}" for warning in values["warnings"]]
    entry = notebook and site.Entry("The notebook", "every step", notebook, "notebook.html", "done")
    page = site.Site(
        title="Which teacher for these photos?",
        question=f"{values['student']}, {values['photos']['classes']} classes",
        answer=[*values["answer"], values["handed over"], *beware],
        entries=[entry] if entry else [],
        standings=site.Table("ranking", table, "The candidates, the choice first.", shown, limit=15),
        notes=notes,
        figures=[figure for figure in figures if figure[0].exists()],
        tables=[site.Table(name, part) for name, part in parts.items() if len(part)],
        folders=(folder, folder.parent),
    )
    return site.write(page, folder)
