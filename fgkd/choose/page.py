"""The page of a choice: index.html of its folder, drawn from choose.json and ranking.csv alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from fgkd import records

FIGURES = {
    "places": "How often each candidate has which place, over bootstrap samples of the held-out photos.",
    "pilots": "Pilots: accuracy on held-out photos by epochs of the student.",
}


def write(folder: Path, notebook: Path | None = None) -> Path:
    """Write index.html from choose.json and ranking.csv in a folder; returns its path.

    notebook: the executed notebook, which becomes a page of its own.
    """
    from fgkd.report.site import Entry, Site, Table, write

    values = records.read_json(folder / "choose.json") or {}
    table = records.read_table(folder / "ranking.csv")
    entry = notebook and Entry("The notebook", "every step", notebook, "notebook.html", "done")
    parts = {name: pd.DataFrame(values[name]) for name in ("verified", "pilots")}
    beware = [f"Beware: {warning}" for warning in values["warnings"]]
    notes = [f"Photos: {finding}." for finding in values["audit"]]
    notes += [f"Left out: {name}: {reason}" for name, reason in values["left out"].items()]
    figures = [(folder / "plots" / f"{name}.png", caption) for name, caption in FIGURES.items()]
    site = Site(
        title="Which teacher for these photos?",
        question=f"{values['student']}, {values['photos']['classes']} classes",
        answer=[*values["answer"], values["handed over"], *beware],
        entries=[entry] if entry else [],
        standings=Table("ranking", table, "The candidates, the choice first.", _shown(table), limit=15),
        notes=notes,
        figures=[figure for figure in figures if figure[0].exists()],
        tables=[Table(name, part) for name, part in parts.items() if len(part)],
        facts=_facts(folder, values) | _cost(folder, notebook),
        folders=(folder, folder.parent),
    )
    return write(site, folder)


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The candidates in a reader's words."""
    shown = pd.DataFrame({"teacher": table.teacher, "rank": table["rank"]})
    shown["first in"] = table["first"].fillna(0).map("{:.0%}".format)
    shown["TAC"] = table.tac.map("{:.1%}".format)
    shown["R12"] = table.ratio12.round(3)
    shown["pilot"] = table.pilot_accuracy.map("{:.1%}".format, na_action="ignore")
    shown["student, test"] = table.student_accuracy.map("{:.1%}".format, na_action="ignore")
    shown["M weights"] = (table.parameters / 1e6).round(2)
    shown["MB"] = table.megabytes.round(1)
    shown["images/s"] = table.images_per_second.round(0).astype(int)
    shown["minutes"] = table.minutes.round(1)
    shown["licence"] = table.licence
    return shown


def _facts(folder: Path, values: dict[str, Any]) -> dict[str, str]:
    counts = {name: number for name, number in values["photos"].items() if name != "classes"}
    return {
        "photos": ", ".join(f"{name} {number}" for name, number in counts.items()),
        "rule": f"{values['rule']['metric']}: {values['rule']['reason']}",
        "temperature, beta": ", ".join(str(value) for value in values["distillation"].values()),
        "student, to deploy": "student/" if (folder / "student").is_dir() else "none: nothing was verified",
        "studies": "selection.yaml, study.yaml",
    }


def _cost(folder: Path, notebook: Path | None) -> dict[str, str]:
    """What the last run took, as papermill and the kernel's end say it."""
    executed = (notebook and records.read_json(notebook)) or {}
    seconds = executed.get("metadata", {}).get("papermill", {}).get("duration")
    ending = records.read_json(folder / "exit.json")
    if seconds is None or ending is None:
        return {}
    took = f"{seconds / 60:.1f} minutes, peak memory {ending['peak_memory_mb']:,} MB"
    return {"the last run": f"{took}; what an earlier one had computed was read"}
