"""What jobs leave in their folders: notebooks as papermill writes them, and results."""

import json

from fgkd import records

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


def result(study, job):
    """What a notebook that ended left: its result, and a record where a test's study computed none."""
    for part in records.record_jobs(study, job):
        if records.record(study, part) is None:
            record = {
                "cell": part.id,
                "fingerprint": study.fingerprint(part),
                "rows": [{}],
                "contents": study.contents(part),
            }
            records.write_json(
                study.path(part) / "record.json", record | {"provenance": {"parameters": study.values(part)}}
            )
    records.write_json(
        study.path(job) / "result.json", {"cell": job.id, "fingerprint": study.fingerprint(job), "rows": 1}
    )
