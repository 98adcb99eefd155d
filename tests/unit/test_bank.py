"""The bank: the metrics of an online pass, complete or absent, and students that learn the same as online."""

import math
import os
import resource
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fgkd import cli
from fgkd.data import views
from fgkd.data.datasets import Split
from fgkd.distillation import bank, stages, training
from fgkd.models import cal, classifier
from fgkd.study import Job, Model, Sizes

EPOCHS, N, CLASSES = 3, 17, 5
CPU = torch.device("cpu")


@pytest.fixture
def images():
    pixels = np.random.default_rng(2).integers(0, 256, (N, 36, 36, 3), dtype=np.uint8)
    return training.Images(
        Split(pixels, np.arange(N) % CLASSES, ("",) * N), Sizes(resize=36, crop=32), torch.device("cpu")
    )


@pytest.fixture
def teacher():
    model = (
        classifier.build(Model(key="t", model="test_resnet"), CLASSES, crop=32, seed=4)
        .eval()
        .requires_grad_(False)
    )
    with torch.no_grad():
        model.head.bias += torch.tensor(
            [3.0, 2.5, 2.0, 1.5, 1.0]
        )  # R12 of a network around 0 is dominated by a few samples
    return model


@pytest.fixture
def cal_teacher():
    model = Model(key="t", model="test_resnet", options={"output_stride": 8})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        teacher = cal.CAL(classifier.build(model, CLASSES, crop=32, seed=4).net, CLASSES, 4)
    return teacher.eval().requires_grad_(False)


def write(folder, teacher, images, **changes):
    return bank.write(folder, teacher, images, **({"views": EPOCHS, "views_seed": 8, "key": "k"} | changes))


def read(folder, views=EPOCHS, **options):
    return bank.read(folder, CPU, **({"views": views, "images": N, "key": "k"} | options))


def stored_logits(found):
    """The logits (V, N, C) of a bank, as they are stored."""
    return np.stack([found.view(number)["logits"] for number in range(len(found.files))])


def change(file, name, by):
    """Write a view with one of its arrays changed, which nothing but its teacher can tell."""
    with safe_open(file, "pt") as content:
        given = content.metadata()
    values = load_file(file)
    bank.write_view(file, values | {name: by(values[name])}, given)


def online(teacher, images):
    """Logits (E, N, C) of the same views, cut, flipped and normalised by hand."""
    mean, std = (
        np.array(teacher.net.pretrained_cfg[k], np.float32) * np.float32(255) for k in ("mean", "std")
    )
    found = []
    for epoch in range(EPOCHS):
        seen = images.epoch(8, epoch)
        crops = [
            p[t : t + 32, left : left + 32][:, :: -1 if flip else 1]
            for p, t, left, flip in zip(images.split.images, seen.top, seen.left, seen.flip, strict=True)
        ]
        x = torch.from_numpy(np.stack([(c - mean) / std for c in crops])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            found.append(teacher.net(x))
    return torch.stack(found).numpy()


def by_hand(logits):
    """The metrics of logits (S, C) in numpy, fp64: views of the images, whose labels come again in each."""
    labels = np.tile(np.arange(N) % CLASSES, len(logits) // N)
    each = np.exp(logits - logits.max(1, keepdims=True).astype(np.float64))
    each /= each.sum(1, keepdims=True)
    confidence, correct, place = each.max(1), each.argmax(1) == labels, np.ceil(each.max(1) * 15)
    ece = sum(abs((correct[place == b] * 1.0 - confidence[place == b]).sum()) for b in set(place)) / len(
        logits
    )
    centred = np.sort(logits - logits.astype(np.float64).mean(1, keepdims=True), axis=1)[:, ::-1]
    p = np.sort(logits.astype(np.float64), axis=1)[:, ::-1]
    q = np.exp(p - p[:, :1])
    q /= q.sum(1, keepdims=True)
    ratio = p[:, 0] / p[:, 1]
    return {
        "ratio12": ratio.mean(),
        "ratio12_median": np.median(ratio),
        "ratio12_nonpositive": (p[:, 1] <= 0).mean(),
        "ratio13": (p[:, 0] / p[:, 2]).mean(),
        "ratio23": (p[:, 1] / p[:, 2]).mean(),
        "ratio12_softmax": (q[:, 0] / q[:, 1]).mean(),
        "margin": (p[:, 0] - p[:, 1]).mean(),
        "entropy": -(q * np.log(q)).sum(1).mean(),
        "ssp": q[:, 1:4].std(1, ddof=1).mean(),
        "ratio12_centred": (centred[:, 0] / centred[:, 1]).mean(),
        "nll": -np.log(each[np.arange(len(logits)), labels]).mean(),
        "ece": ece,
        "train_accuracy": correct.mean(),
    }


def test_a_banks_metrics_and_logits_equal_an_online_pass_over_the_same_views(tmp_path, teacher, images):
    summary, rows = write(tmp_path / "views", teacher, images)
    logits = online(teacher, images)
    assert summary == pytest.approx(by_hand(logits.reshape(-1, CLASSES)), rel=1e-9)
    for epoch, row in enumerate(rows):
        assert row == pytest.approx({"epoch": epoch} | by_hand(logits[epoch]), rel=1e-9)
    stored = stored_logits(read(tmp_path / "views"))
    assert stored.dtype == np.float16 and np.array_equal(stored, logits.astype(np.float16))


def test_metrics_come_from_unrounded_logits(tmp_path, teacher, images):
    summary, _ = write(tmp_path / "views", teacher, images)
    rounded = by_hand(stored_logits(read(tmp_path / "views")).astype(np.float64).reshape(-1, CLASSES))
    assert summary["margin"] != pytest.approx(rounded["margin"], rel=1e-9)
    assert summary["margin"] == pytest.approx(rounded["margin"], rel=1e-2)


def test_a_batch_reads_its_own_images_logits(tmp_path, teacher, images):
    write(tmp_path / "views", teacher, images)
    found, index = read(tmp_path / "views"), torch.tensor([16, 0, 16])
    logits = found.outputs(2, index)["logits"]
    assert logits.dtype == torch.float32 and np.array_equal(
        logits, stored_logits(found)[2][[16, 0, 16]].astype(np.float32)
    )


def test_two_banks_of_one_teacher_are_the_same_bytes_and_another_seeds_are_not(tmp_path, teacher, images):
    for name, seed in (("a", 8), ("b", 8), ("c", 9)):
        write(tmp_path / name, teacher, images, views_seed=seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b != c and len(a) == EPOCHS


def contents(folder):
    """The bytes of all files of a folder."""
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def whole_views(folder):
    """How many views of a bank that is being written are whole."""
    return len([*folder.with_name(f".{folder.name}.partial").glob("samples-*.safetensors")])


def count_views(monkeypatch):
    """A list that grows by one for each view that the teacher is run over."""
    seen = []
    monkeypatch.setattr(bank, "batches", lambda *given: seen.append(1) or training.batches(*given))
    return seen


def kill_at(monkeypatch, module, function, call):
    """Kill this process with signal 9 at a call of a function."""
    inner, calls = getattr(module, function), []

    def killing(*given, **options):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*given, **options)

    monkeypatch.setattr(module, function, killing)


@pytest.mark.parametrize(
    "function, call, whole",
    [
        ("batches", 1, 0),
        ("batches", 3, 2),
        ("write_view", 1, 0),
        ("write_view", 2 * 2 + 1, 2),
        ("write_view", 2 * 2 + 2, 2),
        ("_summaries", 1, 5),
    ],
    ids=["at once", "in a pass", "first view", "before a view", "before its samples", "after the last view"],
)
@pytest.mark.fault("a bank killed half way")
def test_a_bank_that_is_killed_goes_on_after_its_last_whole_view(
    tmp_path, cal_teacher, images, monkeypatch, in_child, function, call, whole
):
    folder, how = tmp_path / "views", {"views": 5, "augmented": True, "features": True}
    undisturbed = write(tmp_path / "other", cal_teacher, images, **how)
    with monkeypatch.context() as patch:
        kill_at(patch, bank, function, call)
        assert in_child(lambda: write(folder, cal_teacher, images, **how)) == -signal.SIGKILL
    assert read(folder) is None and not folder.exists() and whole_views(folder) == whole
    partial = folder.with_name(".views.partial")
    (partial / "samples").mkdir(parents=True, exist_ok=True)  # of an earlier version
    (partial / ".view-0003.safetensors.1").write_bytes(b"the beginning of a view")
    seen = count_views(monkeypatch)
    assert write(folder, cal_teacher, images, **how) == undisturbed
    assert len(seen) == 5 - whole
    assert contents(folder) == contents(tmp_path / "other") and len(contents(folder)) == 5
    assert {f.name for f in tmp_path.iterdir()} - {"record.json"} == {"other", "views"}  # an emptied record


@pytest.mark.fault("a bank killed half way")
def test_a_bank_of_40_views_killed_twice_from_outside_repeats_at_most_a_view_each_time(
    tmp_path, teacher, images, monkeypatch, wait_for
):
    folder = tmp_path / "views"
    undisturbed = write(tmp_path / "other", teacher, images, views=40)
    passes = tmp_path / "passes"

    def counted(*given):
        with open(passes, "a") as file:
            file.write("x")
        return training.batches(*given)

    monkeypatch.setattr(bank, "batches", counted)
    for begun in (11, 26):
        pid = os.fork()
        if pid == 0:
            write(folder, teacher, images, views=40)
            os._exit(0)
        assert wait_for(lambda number=begun: whole_views(folder) >= number)
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert begun <= whole_views(folder) < 40
    assert write(folder, teacher, images, views=40) == undisturbed
    assert 40 <= len(passes.read_text()) <= 42
    assert contents(folder) == contents(tmp_path / "other")


@pytest.mark.fault("a bank killed half way")
def test_a_studys_bank_that_is_killed_goes_on_and_its_record_is_that_of_one_that_was_not(
    make_study, monkeypatch, in_child
):
    killed, other = (make_study({"name": name, "recipes.student.epochs": 5}) for name in ("killed", "other"))
    undisturbed, stored = stages.bank(other, "birds", "resnet", "FT")
    stages.teacher(killed, "birds", "resnet", "FT")
    with monkeypatch.context() as patch:
        kill_at(patch, bank, "_to_16_bits", 4)  # in the fourth of five views
        assert in_child(lambda: stages.bank(killed, "birds", "resnet", "FT")) == -signal.SIGKILL
    seen = count_views(monkeypatch)
    run, again = stages.bank(killed, "birds", "resnet", "FT")
    assert len(seen) == 2 and np.array_equal(stored_logits(again), stored_logits(stored))
    assert run.rows.equals(undisturbed.rows) and run.table("epochs").equals(undisturbed.table("epochs"))


@pytest.mark.parametrize(
    "changed, kept",
    [
        ({"key": "other"}, 0),
        ({"views": 6}, 0),
        ({"views_seed": 9}, 0),
        ({"keep": 2}, 0),
        ({"features": True}, 0),
        ("weights", 0),
        ("a file is lost", 2),
        ("a file is cut", 2),
    ],
    ids=str,
)
def test_what_was_begun_with_other_inputs_or_is_not_all_there_is_computed_anew(
    tmp_path, teacher, images, monkeypatch, in_child, changed, kept
):
    folder, options = tmp_path / "views", changed if isinstance(changed, dict) else {}
    with monkeypatch.context() as patch:
        kill_at(patch, bank, "batches", 4)
        assert in_child(lambda: write(folder, teacher, images, views=5)) == -signal.SIGKILL
    lost = folder.with_name(".views.partial") / "samples-0001.safetensors"
    if changed == "weights":
        with torch.no_grad():
            teacher.head.bias += 0.1
    elif changed == "a file is lost":
        lost.unlink()
    elif changed == "a file is cut":
        os.truncate(lost, lost.stat().st_size - 1)
    undisturbed = write(tmp_path / "other", teacher, images, **({"views": 5} | options))
    seen = count_views(monkeypatch)
    assert write(folder, teacher, images, **({"views": 5} | options)) == undisturbed
    assert len(seen) == options.get("views", 5) - kept and contents(folder) == contents(tmp_path / "other")


def test_of_a_bank_that_keeps_some_views_the_metrics_cover_all(tmp_path, teacher, images):
    every = write(tmp_path / "all", teacher, images)
    some = write(tmp_path / "some", teacher, images, keep=2)
    assert some == every and len(some[1]) == EPOCHS
    assert read(tmp_path / "some") is None
    kept = stored_logits(read(tmp_path / "some", 2))
    assert np.array_equal(kept, stored_logits(read(tmp_path / "all"))[:2])


def test_epochs_take_the_views_in_turn(tmp_path, teacher, images):
    write(tmp_path / "views", teacher, images)
    found, index = read(tmp_path / "views"), torch.tensor([3, 1])
    for epoch in (0, 2, 3, 7):
        assert np.array_equal(found.outputs(epoch, index)["logits"], stored_logits(found)[epoch % 3][[3, 1]])
    assert not torch.equal(found.outputs(0, index)["logits"], found.outputs(1, index)["logits"])


def test_a_view_is_read_from_the_disk_once_for_all_batches_of_an_epoch(tmp_path, teacher, images):
    write(tmp_path / "views", teacher, images)
    found, first, rest = read(tmp_path / "views"), torch.arange(4), torch.arange(4, N)
    before = found.outputs(1, first)["logits"], found.outputs(1, rest)["logits"]
    change(found.files[1], "logits", torch.zeros_like)
    assert torch.equal(found.outputs(1, first)["logits"], before[0])
    assert torch.equal(found.outputs(4, rest)["logits"], before[1])
    assert found.outputs(0, first)["logits"].any() and not found.outputs(1, first)["logits"].any()


def test_a_check_sees_other_views_other_numbers_and_another_teacher(tmp_path, cal_teacher, images):
    of_all = {"augmented": True, "features": True}
    write(tmp_path / "views", cal_teacher, images, **of_all)
    found = read(tmp_path / "views", **of_all)
    assert bank.check(found, cal_teacher, images, views_seed=8) == dict.fromkeys(found.view(0), 0)
    assert min(bank.check(found, cal_teacher, images, views_seed=9).values()) > 0.01
    for file in found.files:
        change(file, "drop", lambda values: values + 1)
    again = bank.check(read(tmp_path / "views", **of_all), cal_teacher, images, views_seed=8, number=1)
    assert again.pop("drop") > 0.01 and set(again.values()) == {0}
    with torch.no_grad():
        cal_teacher.attention.fc.weight.mul_(1.5)
    assert bank.check(found, cal_teacher, images, views_seed=8)["logits"] > 0.01


def test_a_studys_banks_are_what_their_teachers_say(make_study):
    study = make_study(
        {
            "strategies": ["FT", "TGDA"],
            "teachers": {"resnet": {"model": "test_resnet"}},
            "recipes.CAL": {"epochs": 1, "batch_size": 8, "lr": 0.01, "maps": 4},
        }
    )
    images = training.Images(stages.data(study, "birds").train, study.views, torch.device("cpu"))
    for recipe, arrays in (("FT", 1), ("CAL", 5)):
        _, stored = stages.bank(study, "birds", "resnet", recipe)
        model = stages.load_teacher(study, "birds", "resnet", recipe)
        found = bank.check(stored, model, images, views_seed=study.seed_for("student views", "birds"))
        assert list(found.values()) == [0] * arrays


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
@pytest.mark.fault("a bank cut short")
def test_a_file_that_is_cut_short_is_not_read(tmp_path, teacher, images, kept):
    write(tmp_path / "views", teacher, images)
    file = read(tmp_path / "views").files[1]
    file.write_bytes(file.read_bytes()[:kept])
    assert read(tmp_path / "views") is None


@pytest.mark.parametrize(
    "value, message",
    [
        (7e4, "largest output is .*beyond fp16 .65504.*diverge"),
        (math.nan, "NaN or infinite"),
        (math.inf, "NaN or infinite"),
    ],
)
def test_logits_that_fp16_cannot_hold_are_refused_and_leave_no_file(
    tmp_path, teacher, images, value, message
):
    with torch.no_grad():
        teacher.head.bias[1] = value
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "views", teacher, images)
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("a full disk under a bank")
def test_a_full_disk_names_the_file_and_the_remedy_and_what_is_whole_is_kept(
    tmp_path, teacher, images, monkeypatch, in_child
):
    """From the sixth of eight views on, files may have 100 bytes."""
    folder = tmp_path / "views"
    undisturbed = write(tmp_path / "other", teacher, images, views=8)
    views, passes = training.batches, []

    def filling(*given):
        passes.append(1)
        if len(passes) == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        return views(*given)

    def fill():
        bank.batches = filling
        with pytest.raises(OSError, match=r"could not write '.*view-0005.*'.*full: free some space"):
            write(folder, teacher, images, views=8)

    assert in_child(fill) == 0
    assert whole_views(folder) == 5 and not folder.exists()
    seen = count_views(monkeypatch)
    assert write(folder, teacher, images, views=8) == undisturbed
    assert len(seen) == 3 and contents(folder) == contents(tmp_path / "other")


def test_a_student_of_the_bank_has_the_losses_of_one_taught_online(make_study):
    """The bank rounds logits to fp16, by at most 5e-4 of them.

    Over three epochs losses were seen to differ by less than 1e-4 of themselves.
    """
    runs = {}
    for name, changes in {
        "stored": {},
        "online": {"online": True},
        "other": {"distillation.temperature": 2.1},
    }.items():
        study = make_study({"name": name, "recipes.student.epochs": 3} | changes)
        runs[name] = stages.distill(study, "birds", "resnet", "FT").table("history")[["ce", "kd"]].to_numpy()
        assert (study.folder / "bank").exists() == (name != "online")
    assert runs["stored"].shape == (3, 2)
    assert runs["stored"] == pytest.approx(runs["online"], rel=1e-3)
    assert runs["stored"] != pytest.approx(runs["other"], rel=1e-3)


def test_tgda_students_and_all_losses_have_the_same_losses_from_the_bank_and_online(make_study):
    """The largest deviation seen of any term in any epoch was 3e-3 of itself, RKD of features, by fp16."""
    losses = {
        "dkd": None,
        "rkd": {"on": "features"},
        "pkt": {"on": "features"},
        "hint": {"on": "features"},
        "hint_logits": {"loss": "hint"},
        "crd": {"on": "features", "options": {"negatives": 8, "width": 16}},
    }
    common = {
        "strategies": ["CAL", "TGDA"],
        "recipes.CAL": {"epochs": 2, "batch_size": 8, "lr": 0.01, "maps": 4},
        "losses": losses,
        "teachers": {"resnet": {"model": "test_resnet", "options": {"output_stride": 8}}},
    }
    runs = {}
    for name, online in (("stored", False), ("online", True)):
        study = make_study(common | {"name": name, "online": online})
        history = stages.distill(study, "birds", "resnet", "TGDA").table("history")
        runs[name] = history.set_index(["student", "loss", "epoch"])
        assert (study.folder / "bank").exists() == (name != "online")
    assert set(runs["stored"].columns) == {"ce", "kd", "views", "further", "train_accuracy"}
    assert set(runs["stored"].index.get_level_values("loss")) == {"kd", *losses}
    assert runs["stored"].to_numpy() == pytest.approx(runs["online"].to_numpy(), rel=5e-3, nan_ok=True)


def test_a_cal_teachers_bank_holds_where_it_crops_and_drops_and_its_logits_of_both(tmp_path, images):
    teacher = cal.CAL(
        classifier.build(
            Model(key="t", model="test_resnet", options={"output_stride": 8}), CLASSES, crop=32, seed=4
        ).net,
        CLASSES,
        4,
    ).eval()
    summary, rows = write(tmp_path / "views", teacher, images, augmented=True, features=True)
    of_all = {"augmented": True, "features": True}
    found = read(tmp_path / "views", **of_all)
    assert {name: tuple(values.shape[1:]) for name, values in found.view(0).items()} == {
        "logits": (5,),
        "features": (96,),
        "boxes": (4,),
        "maps": (4, 4),
        "crop": (5,),
        "drop": (5,),
    }
    index = torch.tensor([11, 2])
    said, x = found.outputs(1, index), images.batch(index, images.epoch(8, 1))
    with torch.no_grad():
        for view, pixels in (("crop", views.crop(x, said["boxes"])), ("drop", views.drop(x, said["maps"]))):
            torch.testing.assert_close(said[view], teacher(pixels), rtol=1e-2, atol=1e-2)
    everything = {
        view: torch.cat([found.view(number)[view] for number in range(EPOCHS)]).double().numpy()
        for view in ("crop", "drop")
    }
    for view, logits in everything.items():
        top = np.sort(logits, axis=1)[:, ::-1]
        assert (
            np.median(top[:, 0] / top[:, 1]) != 0
            and f"ratio12_{view}" in summary
            and f"ratio12_{view}" in rows[0]
        )
    write(tmp_path / "few", teacher, images)
    assert read(tmp_path / "few", **of_all) is None and read(tmp_path / "views") is not None


@pytest.mark.fault("a bank that is not its teacher's")
def test_the_check_names_a_bank_that_is_not_its_teachers_or_not_whole_and_has_it_written_again(tiny, capsys):
    assert cli.main(["check", tiny.file]) == 0 and "0 banks" in capsys.readouterr().out
    for teacher in ("byobnet", "resnet"):
        stages.bank(tiny, "birds", teacher, "FT")
    first, second = (tiny.path(Job("bank", "birds", name, "FT")) / "views" for name in ("byobnet", "resnet"))
    assert cli.main(["check", tiny.file]) == 0 and "2 banks" in capsys.readouterr().out
    place = "view-0001.safetensors"
    before = (second / place).read_bytes()
    spoilings = {
        "its bank differs from its teacher's outputs by ": lambda: [
            change(file, "logits", lambda values: values + 1) for file in second.iterdir()
        ],
        "its bank is of another training, or not whole": lambda: (second / place).write_bytes(b""),
        "its bank is of another training, or not whole ": lambda: shutil.copytree(
            first, second, dirs_exist_ok=True
        ),
    }
    for words, spoil in spoilings.items():
        spoil()
        assert cli.main(["check", tiny.file, "--repair"]) == 1
        fault, *_ = capsys.readouterr().out.splitlines()
        assert fault.startswith(f"bank/birds/FT/resnet: {words.strip()}") and not second.exists()
        stages.bank(tiny, "birds", "resnet", "FT")
        assert (second / place).read_bytes() == before


def test_a_bank_of_another_key_or_of_other_images_or_of_fewer_views_is_not_read(tmp_path, teacher, images):
    write(tmp_path / "views", teacher, images)
    assert read(tmp_path / "views") is not None
    for other in ({"key": "other"}, {"images": N + 1}, {"views": EPOCHS + 1}, {"features": True}):
        assert read(tmp_path / "views", **other) is None
