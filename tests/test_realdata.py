"""Real photos and real pretrained networks through the same notebooks; skipped where they are absent."""

import os
import subprocess
import sys

import pandas as pd
import pytest

from fgkd import study as studies

REALDATA = studies.PROJECT.parent / "shared" / "realdata"
STUDY = """
question: Do the notebooks hold for photos of birds?
threads: 1
plugins: [{root}/models.py]
views: {{resize: 108, crop: 96}}
datasets:
  cub: {{kind: folder, root: {root}/cub100, classes: {classes}}}
teachers:
  mobilenetv2: {{model: mobilenetv2_100, weights: {root}/weights/mobilenetv2_100_tv.safetensors}}
  mobilenetv1: {{model: mobilenetv1_025, weights: {root}/weights/mobilenetv1_025.safetensors}}
students:
  lcnet: {{model: lcnet_035}}
strategies: [FZ, FT]
recipes:
  FZ: {{epochs: 40, batch_size: 16, lr: 0.1, views: 4}}
  FT: {{epochs: 10, batch_size: 16, lr: 0.02}}
  student: {{epochs: 8, batch_size: 16, lr: 0.1}}
"""


@pytest.mark.skipif(not (REALDATA / "cub100").exists(), reason="the photos are not on this machine")
def test_ten_species_two_pretrained_networks_fz_ft_and_a_student(tmp_path):
    classes = sorted(p.name for p in (REALDATA / "cub100" / "train").iterdir())[:10]
    file = tmp_path / "photos.yaml"
    file.write_text(STUDY.format(root=REALDATA, classes=classes))
    done = subprocess.run(
        [sys.executable, "-m", "fgkd.cli", "run", str(file)],
        env=os.environ | {"FGKD_RUNS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tables = {f.stem: pd.read_csv(f) for f in (tmp_path / "photos" / "tables").glob("*.csv")}
    teachers = tables["teachers"].set_index(["teacher", "recipe"]).tac
    assert (
        len(teachers) == 4 and teachers["mobilenetv2"].min() > 0.6 and teachers["mobilenetv1"].min() > 0.3
    )  # chance is 0.1
    assert len(tables["students"]) == 5 and tables["students"].drop(columns="agreement").notna().all(
        axis=None
    )
    assert len(tables["metrics"]) == 4 and tables["metrics"].notna().all(axis=None)
    assert set(tables["correlations"].groupby("strategy").n.first()) == {2}
