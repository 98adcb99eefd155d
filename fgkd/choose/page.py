"""The page of a choice: index.html of its folder, drawn from choose.json and ranking.csv alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fgkd import records


def write(folder: Path, notebook: Path | None = None) -> Path:
    """Write index.html from choose.json and ranking.csv in a folder; returns its path.

    notebook: the executed notebook, which becomes a page of its own.
    """
    from fgkd.report.site import Entry, Site, Table, write

    values = records.read_json(folder / "choose.json") or {}
    table = records.read_table(folder / "ranking.csv")
    entries = []
    if notebook is not None:
        entries.append(Entry("The notebook", "every step", notebook, "notebook.html", "done"))
    shown = _shown(table)
    verified = pd.DataFrame(values["verified"])
    tables = [Table("verified", verified)] if len(verified) else []
    tables += [Table("pilots", pd.DataFrame(values["pilots"]))] if values["pilots"] else []
    beware = [f"Beware: {warning}" for warning in values["warnings"]]
    notes = [f"Photos: {finding}." for finding in values["audit"]]
    notes += [f"Left out: {name}: {reason}" for name, reason in values["left out"].items()]
    figures = [(file, caption) for file, caption in _figures(folder).items() if file.exists()]
    site = Site(
        title="Which teacher for these photos?",
        question=f"{values['student']}, {values['photos']['classes']} classes",
        answer=[*values["answer"], values["handed over"], *beware],
        entries=entries,
        standings=Table("ranking", table, "The candidates, the choice first.", shown, limit=15),
        notes=notes,
        figures=figures,
        tables=tables,
        facts=_facts(folder, values) | _cost(folder, notebook),
        folders=(folder, folder.parent),
    )
    return write(site, folder)


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The candidates in a reader's words."""
    shown = pd.DataFrame({"teacher": table.teacher, "rank": table["rank"]})
    shown["first in"] = [f"{share:.0%}" for share in table["first"].fillna(0)]
    shown["TAC"] = [f"{tac:.1%}" for tac in table.tac]
    shown["R12"] = table.ratio12.round(3)
    shown["pilot"] = [_percent(share) for share in table.pilot_accuracy]
    shown["student, test"] = [_percent(share) for share in table.student_accuracy]
    shown["M weights"] = (table.parameters / 1e6).round(2)
    shown["MB"] = table.megabytes.round(1)
    shown["images/s"] = table.images_per_second.round(0).astype(int)
    shown["minutes"] = table.minutes.round(1)
    shown["licence"] = table.licence
    return shown


def _percent(share: float) -> str:
    return "\u2013" if math.isnan(share) else f"{share:.1%}"


def _figures(folder: Path) -> dict[Path, str]:
    places = "How often each candidate has which place, over bootstrap samples of the held-out photos."
    pilots = "Pilots: accuracy on held-out photos by epochs of the student."
    return {folder / "plots" / "places.png": places, folder / "plots" / "pilots.png": pilots}


def _facts(folder: Path, values: Mapping[str, Any]) -> dict[str, str]:
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
