"""What jobs leave in their folders: notebooks as papermill writes them, and results."""

import json

from fgkd.analysis import records

ERROR = {
    "cell_type": "code",
    "outputs": [
        {"output_type": "stream", "text": "..."},
        {"output_type": "error", "ename": "ValueError", "evalue": "no bank"},
    ],
}


def notebook(study, job, *cells, **meta):
    """The notebook that papermill left behind."""
    file = study.path(job) / f"{job.notebook}.ipynb"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"cells": list(cells), "metadata": {"papermill": meta}}))
    return str(file)


def row_of(part):
    """A record's row in which every number is a quarter, or one."""
    names = vars(part) | {"recipe": part.strategy} | dict.fromkeys(records.TRAITS, "none")
    numbers = dict.fromkeys(records.COUNTS, 1)
    return {name: names.get(name, numbers.get(name, 0.25)) for name in records.COLUMNS.get(part.stage, ())}


def result(study, job):
    """What a notebook that ended left: its result, and a record where a test's study computed none."""
    for part in records.record_jobs(study, job):
        if records.find(study, part) is None:
            record = {
                "cell": part.id,
                "fingerprint": study.fingerprint(part),
                "rows": [row_of(part)],
                "on_test": {},
                "contents": study.contents(part),
                "provenance": records.provenance(study.at(study.seed_of(part)), part, "cpu", 1.0),
            }
            records.write_json(study.path(part) / "record.json", record)
    records.write_json(
        study.path(job) / "result.json", {"cell": job.id, "fingerprint": study.fingerprint(job), "rows": 1}
    )
