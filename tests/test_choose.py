"""`fgkd choose` from a folder of photos to a model, through papermill, with tiny networks."""

import json
import os
import resource
import signal
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
import safetensors.torch
import timm
from PIL import Image

from fgkd import cli
from fgkd.choose import LOG, NOTEBOOK, candidates, ranking, result, students
from fgkd.choose import audit as audits
from fgkd.choose import task as tasks
from fgkd.data import birds

TEACHERS = ("test_byobnet", "test_efficientnet", "test_resnet")


def command(root, *more):
    words = [str(root / "garden"), "--student", "test_byobnet", "--weights", str(root / "weights")]
    words += ["--minutes", "0.5", "--verify", "1", "--device", "cpu", "--out", str(root / "out"), *more]
    return [sys.executable, "-m", "fgkd.cli", "choose", *words]


def environment(root):
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FGKD_RUNS": str(root)}


def run(root, *more):
    done = subprocess.run(command(root, *more), env=environment(root), capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Twelve photos of each of three drawn species, a bad one, and three networks of random weights."""
    root = tmp_path_factory.mktemp("choose")
    flock = birds.draw(3, 12, pixels=40, family_size=3)
    for i, (pixels, label) in enumerate(zip(flock.images, flock.labels.tolist())):
        folder = root / "garden" / f"species {label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (root / "garden/species 0/bad.jpg").write_bytes(b"no image")
    for name in TEACHERS:
        state = timm.create_model(name, num_classes=1000).state_dict()
        (root / "weights").mkdir(exist_ok=True)
        safetensors.torch.save_file(
            {key: value.contiguous() for key, value in state.items()}, root / f"weights/{name}.safetensors"
        )
    return root


@pytest.fixture(scope="module")
def chosen(root):
    """The first run of the command: what it printed."""
    status, out, error = run(root)
    assert status == 0, error + (root / "out/engine.log").read_text()[-3000:]
    return out


def test_it_shows_its_progress_then_the_answer(root, chosen):
    lines = chosen.splitlines()
    assert lines[0] == "30 training photos of 3 classes, 6 test photos, 3 candidates"
    assert [line.partition(":")[0] for line in lines[1:4]] == [f"teacher {i} of 3" for i in (1, 2, 3)]
    assert any(line.startswith("pilot, ") for line in lines)
    answer = next(line for line in lines if line.startswith("Take "))
    values = json.loads((root / "out/choose.json").read_text())
    assert answer == values["answer"][0] and values["choice"] in TEACHERS
    assert any(line.startswith("Beware: Few candidates") for line in lines)
    assert lines[:-1] and lines[-1].endswith("index.html")
    assert (root / "out" / LOG).read_text().splitlines() == lines[: lines.index(answer)]


def test_it_names_the_photo_that_cannot_be_read_and_leaves_it_out(root, chosen):
    values = json.loads((root / "out/choose.json").read_text())
    assert any("'species 0/bad.jpg' (not an image" in sentence for sentence in values["audit"])
    assert values["photos"] == {"classes": 3, "train": 24, "held out": 6, "test": 6}


def test_every_candidate_has_its_rank_its_stability_and_its_cost(root, chosen):
    table = pd.read_csv(root / "out/ranking.csv")
    assert sorted(table.teacher) == sorted(TEACHERS) and sorted(table["rank"]) == [1, 2, 3]
    known = ["tac", "ratio12", "nll", "logme", "first", "low", "high", "images_per_second", "minutes"]
    assert table[known].notna().all(axis=None) and (table.licence == "unknown").all()
    assert table.student_accuracy.notna().iloc[0]


def test_the_executed_notebook_is_log_and_page(root, chosen):
    notebook = nbformat.read(root / "out" / f"{NOTEBOOK}.ipynb", 4)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    for name in ("index.html", "notebook.html"):
        page = (root / "out" / name).read_text()
        assert "<script" not in page and "http://" not in page
    index = (root / "out/index.html").read_text()
    assert "Which teacher for these photos?" in index


def test_the_student_is_loaded_by_plain_timm_and_as_accurate_as_reported(root, chosen):
    code = """
import sys, pathlib, timm, torch, numpy
from PIL import Image
folder, photos = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
classes = (folder / "classes.txt").read_text().splitlines()
data = timm.data.resolve_data_config(pretrained_cfg=net.pretrained_cfg)
transform = timm.data.create_transform(**data)
hits = [classes[net(transform(Image.open(f).convert("RGB"))[None]).argmax()] == f.parent.name
        for f in sorted(photos.rglob("*.png"))]
print(sum(hits), "fgkd" in sys.modules)
"""
    words = [sys.executable, "-c", code, str(root / "out/student"), str(root / "out/photos/test")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=root)
    reported = json.loads((root / "out/choose.json").read_text())["verified"][0]["accuracy"]
    assert done.stdout.split() == [str(round(6 * reported)), "False"]


def test_its_study_is_one_that_fgkd_plans(root, chosen, monkeypatch, capsys):
    monkeypatch.setenv("FGKD_RUNS", str(root / "out"))
    assert cli.main(["plan", str(root / "out/study.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lacking"] == []


def test_bad_input_is_one_sentence_and_exit_status_2(root):
    status, out, error = run(root, "--teachers", "absent", "--out", str(root / "bad"))
    assert status == 2 and "Traceback" not in out + error
    assert error.startswith("fgkd: teacher 'absent' is not in") and len(error.splitlines()) == 1


# The steps of the notebook in this process


@pytest.fixture
def steps(root, monkeypatch):
    """(folder, teachers) -> what the ranking found and the rest concluded, without pilots or students."""
    monkeypatch.setenv("FGKD_RUNS", str(root))

    def choose(name, teachers=()):
        task = tasks.set_up(
            photos=str(root / "garden"),
            student="test_byobnet",
            teachers=",".join(teachers),
            weights=str(root / "weights"),
            minutes=0.0,
            verify=0,
            device="cpu",
            out=str(root / name),
        )
        audit = audits.look(task.photos, task.folder / "audit.json")
        audits.link(audit, task.folder)
        found = candidates.find(list(task.teachers), task.weights, task.plugins, task.device)
        selection = tasks.selection(task, audit, found)
        ranked = ranking.rank(task, selection, ranking.rule(task.recipe))
        costs = ranking.costs(task, selection, ranked)
        pilots = students.pilot(task, selection, ranked, costs)
        verified = students.verify(task, audit, found, ranked, pilots)
        handed_over = result.hand_over(task, verified)
        return result.conclude(
            result.Choice(task, audit, found, ranked, costs, pilots, verified, handed_over)
        )

    return choose


@pytest.mark.fault("an interrupted choice")
def test_an_interrupted_choice_leaves_no_process_and_goes_on(root, steps, wait_for):
    out = root / "interrupted"
    words = command(root, "--out", str(out), "--minutes", "0", "--verify", "0")
    process = subprocess.Popen(words, env=environment(root), stderr=subprocess.PIPE, text=True)
    assert wait_for(lambda: (out / LOG).exists() and "teacher 1" in (out / LOG).read_text(), 120)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "the same command continues" in error
    assert wait_for(lambda: not subprocess.run(["pgrep", "-f", str(out)], capture_output=True).stdout)
    first = out / "selection/teacher/garden/FZ/test_byobnet/record.json"
    stamp = first.stat().st_mtime_ns
    assert steps("interrupted")["answer"][0].startswith("Take ")
    assert first.stat().st_mtime_ns == stamp


@pytest.mark.fault("a full disk in a choice")
def test_a_full_disk_is_one_sentence_and_the_choice_goes_on(root, steps):
    """No file may be longer than 200 kB, which the first teacher's is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OSError, match=r"model.safetensors.*the disk or quota is full: free some space"):
            steps("full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    steps("full")
    assert len(pd.read_csv(root / "full/ranking.csv")) == len(TEACHERS)


def test_a_choice_reads_what_is_there_whatever_the_order_of_the_list(root, chosen, steps):
    """Without time pilots are read, and without verification no new model is promised."""
    names = (root / "out/ranking.csv", root / "out/choose.json")
    table, first = pd.read_csv(names[0]), json.loads(names[1].read_text())
    weights = root / "out/selection/teacher/garden/FZ/test_resnet/model.safetensors"
    trained = weights.stat().st_mtime_ns
    again = steps("out", TEACHERS[::-1])
    verified = [name for name in table if name.startswith("student_")]
    pd.testing.assert_frame_equal(pd.read_csv(names[0]).drop(columns=verified), table.drop(columns=verified))
    assert weights.stat().st_mtime_ns == trained
    assert again["answer"][0] == first["answer"][0] and "No pilot was run" not in str(again)
    assert again["handed over"].startswith("`student/` is that of an earlier run")
    assert again["verified"] == []
