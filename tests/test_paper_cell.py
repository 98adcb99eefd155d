"""A teacher of the paper's matrix and its students on a CPU: half a minute, 3 GB.

At 224 px, with random weights and six images.
"""

import shutil

import numpy as np
import yaml
from safetensors.torch import load_file

from fgkd import study as studies
from fgkd.analysis import records
from fgkd.distillation import stages
from fgkd.engine import cost
from fgkd.study import Job

TEACHER = "vit_base_patch16_224"
SHORT = {"epochs": 1, "batch_size": 4}
CHANGES = {
    "base": "paper.yaml",
    "device": "cpu",
    "threads": 1,
    "datasets": {"birds": {"species": 2, "family_size": 1, "train": 2, "test": 1}},
    "teachers": {TEACHER: {"weights": "none"}},
    "recipes": {"CAL": SHORT | {"lr": 0.01}, "student": SHORT},
}


def test_a_vit_with_attention_teaches_all_students_of_the_paper_by_all_losses(tmp_path, monkeypatch):
    """The study is runs/paper.yaml as it stands, with a data set beside its eight."""
    monkeypatch.setenv("FGKD_RUNS", str(tmp_path))
    shutil.copy(studies.PROJECT / "runs" / "paper.yaml", tmp_path)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(CHANGES))
    study = studies.load(str(tmp_path / "job.yaml"))
    teacher, bank, distill = [
        Job("teacher", "birds", TEACHER, "CAL"),
        Job("bank", "birds", TEACHER, "CAL"),
        Job("distill", "birds", TEACHER, "TGDA"),
    ]
    stages.teacher(study, "birds", TEACHER, "CAL")
    stages.bank(study, "birds", TEACHER, "CAL")
    stages.distill(study, "birds", TEACHER, "TGDA")

    (trained,) = records.record(study, teacher)["rows"]
    assert trained["model"] == "vit_base_patch16_224.orig_in21k" and trained["parameters"] > 85e6
    metrics = records.rows(study, bank)
    assert [row["strategy"] for row in metrics] == ["CAL", "TGDA"] and all(
        np.isfinite(row[name]) for row in metrics for name in ("ratio12", "ratio12_crop", "ratio12_drop")
    )
    (view,) = (study.path(bank) / "views").iterdir()
    arrays = load_file(view)
    assert arrays["logits"].shape == (4, 2) and arrays["maps"].shape == (4, 14, 14)
    assert sum(array.nbytes for array in arrays.values()) == cost.bank_bytes(study, bank)
    taught = [(row["student"], row["loss"]) for row in records.rows(study, distill)]
    assert taught == [("lcnet_035", loss) for loss in ("kd", "dkd", "rkd", "pkt", "hint")] + [
        ("resnet18", "kd"),
        ("levit_128s", "kd"),
    ]
