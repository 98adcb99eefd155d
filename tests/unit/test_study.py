"""A study file: what it means, what a change makes stale, and that every mistake is named with its remedy."""

import copy
import dataclasses
import datetime
import functools
import inspect
import itertools
import json
import math
import os
import re
from pathlib import Path

import pytest
import yaml

from fgkd import study as studies
from fgkd.analysis import records
from fgkd.engine import states
from fgkd.study import Job, StudyError, files, jobs
from fgkd.study.jobs import Stage


def changed(before, after):
    """Ids of the jobs that a change makes stale."""
    assert before.jobs() == after.jobs()
    return {c.id for c in before.jobs() if before.fingerprint(c) != after.fingerprint(c)}


def ids(study, *stages, having=""):
    return {c.id for c in study.jobs() if c.stage in stages and having in c.id}


def ends(study):
    return ids(study, "correlation", "report")


def smoke():
    return studies.load(str(studies.PROJECT / "runs" / "smoke.yaml"))


def test_smoke_loads_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert studies.load("smoke") == smoke()
    assert smoke().name == "smoke" and Path(smoke().file).is_absolute()


def test_a_study_in_the_working_folders_runs_comes_first(write_study, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    write_study({"question": "Mine?"}).rename(tmp_path / "runs" / "smoke.yaml")
    monkeypatch.chdir(tmp_path)
    assert studies.load("smoke").question == "Mine?"


def test_the_jobs_of_smoke():
    jobs = smoke().jobs()
    counts = {stage: sum(c.stage == stage for c in jobs) for stage in studies.STAGES}
    assert counts == {
        "intro": 1,
        "data": 2,
        "teacher": 12,
        "bank": 9,
        "distill": 13,
        "correlation": 1,
        "report": 1,
    }
    assert {c.teacher for c in jobs if c.strategy == "CE"} == {"none"}


@pytest.mark.parametrize("which", ["smoke", "tiny"])
def test_jobs_are_unique_and_after_what_they_read(which, tiny):
    study = {"smoke": smoke(), "tiny": tiny}[which]
    jobs = study.jobs()
    assert len({c.id for c in jobs}) == len(jobs) == len({study.path(c) for c in jobs})
    for position, job in enumerate(jobs):
        assert set(study.before(job)) <= set(jobs[:position])
        assert {c for c in study.inputs(job) if c.stage != "student"} <= set(jobs[:position])


def test_only_teachers_with_pretext_weights_read_a_pretext_training(tiny):
    assert Job("teacher", "pretext", "byobnet", "pretext") in tiny.inputs(
        Job("teacher", "birds", "byobnet", "FT")
    )
    assert tiny.inputs(Job("teacher", "birds", "resnet", "FT")) == (Job("data", "birds"),)
    assert sum(c.dataset == "pretext" and c.stage == "teacher" for c in tiny.jobs()) == 1


@pytest.mark.parametrize(
    "job, own",
    [
        (Job("teacher", "birds", "resnet", "FZ"), {"recipe": "FZ"}),
        (Job("bank", "birds", "resnet", "FZ"), {"recipe": "FZ", "compare": False}),
        (Job("distill", "birds", "resnet", "TGDA"), {"strategy": "TGDA"}),
    ],
    ids=lambda value: getattr(value, "id", ""),
)
def test_what_papermill_is_handed(tiny, job, own):
    assert job.parameters(tiny) == {"study": tiny.file, "dataset": "birds", "teacher": "resnet", **own}
    assert Job("report").parameters(tiny) == {"study": tiny.file}


def test_a_comment_or_another_order_of_keys_changes_nothing(tiny):
    file = Path(tiny.file)
    raw = yaml.safe_load(file.read_text())
    file.write_text("# a comment\n" + yaml.safe_dump(dict(sorted(raw.items())), sort_keys=False))
    assert changed(tiny, studies.load(tiny.file)) == set()


def test_another_folder_for_the_file_and_its_results_changes_nothing(tiny, tmp_path, monkeypatch):
    (other := tmp_path / "elsewhere").mkdir()
    (other / "tiny.yaml").write_text(Path(tiny.file).read_text())
    monkeypatch.setenv("FGKD_RUNS", str(other))
    assert changed(tiny, studies.load(str(other / "tiny.yaml"))) == set()


@pytest.mark.parametrize("change", [{"recipes.student.lr": 0.5}, {"students.small.recipe": {"lr": 0.5}}])
def test_a_students_learning_rate_makes_only_students_stale(tiny, make_study, change):
    assert changed(tiny, make_study(change)) == ids(tiny, "distill") | ends(tiny)


@pytest.mark.parametrize("teacher", ["byobnet", "resnet"])
def test_a_teachers_learning_rate_makes_that_teachers_jobs_stale(tiny, make_study, teacher):
    after = make_study({f"teachers.{teacher}.recipe": {"lr": 0.5}})
    intro = ids(tiny, "intro") if teacher == tiny.first.teacher else set()
    assert changed(tiny, after) == ids(tiny, "teacher", "bank", "distill", having=teacher) | intro | ends(
        tiny
    )


def test_a_pretext_value_reaches_only_the_teachers_that_start_from_it(tiny, make_study):
    found = changed(tiny, make_study({"recipes.pretext.lr": 0.5}))
    assert found == ids(tiny, "teacher", "bank", "distill", having="byobnet") | ids(tiny, "intro") | ends(
        tiny
    )


@pytest.mark.parametrize(
    "change, stale",
    [
        ({"recipes.FT.lr": 0.5}, lambda s: ids(s, "teacher", "bank", "distill", having="/FT/") | ends(s)),
        ({"online": True}, lambda s: ids(s, "distill") - ids(s, "distill", having="CE") | ends(s)),
        ({"distillation.beta": 3}, lambda s: ids(s, "distill") - ids(s, "distill", having="CE") | ends(s)),
        ({"recipes.student.epochs": 3}, lambda s: ids(s, "bank", "distill") | ends(s)),
        ({"seed": 1}, lambda s: ids(s, "intro", "teacher", "bank", "distill") | ends(s)),
        ({"views.crop": 30}, lambda s: ids(s, "intro", "teacher", "bank", "distill") | ends(s)),
        (
            {"datasets.birds.train": 7},
            lambda s: {c.id for c in s.jobs() if "birds" in c.id} | ids(s, "intro") | ends(s),
        ),
        ({"question": "Why?"}, lambda s: set()),
        ({"device": "cuda"}, lambda s: set()),
        ({"device": "auto", "threads": 4}, lambda s: set()),
        ({"compile": True}, lambda s: set()),
        (
            {"recipes.FT.momentum": 0.5},
            lambda s: ids(s, "teacher", "bank", "distill", having="/FT/") | ends(s),
        ),
        ({"recipes.student.momentum": 0.5}, lambda s: set()),
        ({"recipes.FT.maps": 5}, lambda s: set()),
        ({"recipes.student.views": 2}, lambda s: set()),
        ({"recipes.student.views": 1}, lambda s: ids(s, "bank", "distill") | ends(s)),
        ({"students.small.weights": "timm"}, lambda s: ids(s, "distill") | ends(s)),
        (
            {"teachers.resnet.family": "resnet", "teachers.resnet.architecture": "convolution"},
            lambda s: set(),
        ),
        ({"datasets.birds.note": "drawn"}, lambda s: set()),
    ],
)
def test_a_change_makes_stale_what_depends_on_it(tiny, make_study, change, stale):
    assert changed(tiny, make_study(change)) == stale(tiny)


@pytest.mark.parametrize("key", ["teachers.resnet.weights", "students.small.weights"])
def test_an_exchanged_weights_file_makes_stale_what_starts_from_it(make_study, tmp_path, key):
    (tmp_path / "a.safetensors").write_bytes(b"one")
    before = make_study({key: "a.safetensors"})
    prints = {c.id: before.fingerprint(c) for c in before.jobs()}
    (tmp_path / "a.safetensors").write_bytes(b"other")
    stale = {c.id for c in before.jobs() if before.fingerprint(c) != prints[c.id]}
    expected = (
        ids(before, "teacher", "bank", "distill", having="resnet")
        if "teachers" in key
        else ids(before, "distill")
    )
    assert stale == expected | ends(before)


@pytest.mark.parametrize("key", ["teachers.resnet.weights", "students.small.weights"])
def test_what_config_json_says_of_a_network_makes_stale_what_starts_from_its_weights(
    make_study, tmp_path, key
):
    (weights := tmp_path / "a.safetensors").write_bytes(b"one")
    (config := tmp_path / "config.json").write_text('{"architectures": ["another library\'s"]}')
    study = make_study({key: "a.safetensors"})
    own = "teachers" in key
    job = next(c for c in study.jobs() if c.stage == "teacher" and c.teacher == "resnet")
    job = job if own else study.student_jobs(Job("distill", "birds", "none", "CE"))[0]
    before = study.fingerprint(job)
    config.unlink()
    assert study.fingerprint(job) == before and study.contents(job)["config"] == ""
    said = {"architecture": "test_resnet", "num_classes": 7, "pretrained_cfg": {"crop_pct": 0.9, "tag": "x"}}
    config.write_text(json.dumps(said))
    assert study.fingerprint(job) == before
    said["pretrained_cfg"]["mean"] = [0.5, 0.5, 0.5]
    config.write_text(json.dumps(said))
    now = study.fingerprint(job)
    assert now != before
    record = {"fingerprint": now, "contents": study.contents(job)}
    records.write_json(study.path(job) / "record.json", record)
    weights.unlink()
    config.unlink()
    assert study.fingerprint(job) == now


@pytest.mark.parametrize("key", ["teachers.resnet.resolution", "students.small.resolution"])
def test_a_networks_own_resolution_makes_its_jobs_stale_and_none_changes_nothing(make_study, key):
    before = make_study()
    assert not changed(before, make_study({key: 0}))
    expected = (
        ids(before, "teacher", "bank", "distill", having="resnet")
        if "teachers" in key
        else ids(before, "distill")
    )
    assert changed(before, make_study({key: 96})) == expected | ends(before)


def test_another_folder_for_the_weights_changes_nothing(make_study, tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"one")
    changes = {
        "teachers.resnet.weights": "$MINE/a.safetensors",
        "students.small.weights": "$MINE/a.safetensors",
    }
    monkeypatch.setenv("MINE", str(tmp_path))
    before = make_study(changes)
    prints = [before.fingerprint(c) for c in before.jobs()]
    monkeypatch.setenv("MINE", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.safetensors").rename(tmp_path / "elsewhere" / "a.safetensors")
    after = make_study(changes)
    assert [after.fingerprint(job) for job in before.jobs()] == prints


@pytest.mark.parametrize(
    "weights, message",
    [
        (
            "absent.safetensors",
            "weights '/.*/absent.safetensors' of 'resnet' do not exist: "
            "check the path, which is relative to the study's folder",
        ),
        (
            "$UNSET_FOLDER/a.pth",
            r"weights '/.*/\$UNSET_FOLDER/a.pth' of 'resnet' do not exist: "
            "a variable in it is not set: export it",
        ),
    ],
)
def test_a_study_loads_without_a_weights_file_and_its_check_names_it(make_study, weights, message):
    study = make_study({"teachers.resnet.weights": weights})
    assert len(study.jobs()) == len({study.fingerprint(c) for c in study.jobs()})
    studies.check_weights(study.teacher("byobnet"))
    with pytest.raises(StudyError, match=message):
        studies.check_weights(study.teacher("resnet"))


def test_a_study_has_what_its_base_says_where_it_says_nothing(write_study, make_study, tmp_path):
    write_study(
        {"name": "first", "losses": {"dkd": None}, "students.other": {"model": "test_resnet"}}, "base"
    )
    (tmp_path / "mine.yaml").write_text(
        "base: base.yaml\nstrategies: [FT]\npretext:\nteachers: {byobnet: {weights: none}, resnet: }\n"
        "losses: {pkt: }\nrecipes: {FT: {lr: 0.5}}\n"
    )
    found = studies.load(str(tmp_path / "mine.yaml"))
    plain = make_study(
        {
            "students.other": {"model": "test_resnet"},
            "strategies": ["FT"],
            "pretext": ...,
            "losses": {"dkd": None, "pkt": None},
            "teachers.resnet": ...,
            "teachers.byobnet.weights": "none",
            "recipes.FT.lr": 0.5,
        },
        "mine",
    )
    assert found == plain and found.name == "mine"


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "base: absent.yaml",
            "mine.yaml: base '.*absent.yaml' does not exist: expected the name of a study file in ",
        ),
        ("base: ../mine.yaml", "base '.*' does not exist: expected the name"),
        ("base: [a, b]", "base is .*: expected text"),
        ("base: mine.yaml", "mine.yaml: base 'mine.yaml' leads back to itself"),
        ("base: one.yaml", "two.yaml: base 'one.yaml' leads back to itself"),
        ("base: broken.yaml", "broken.yaml is not YAML"),
        ("base: tiny.yaml\nteacher: {}", "mine.yaml: key 'teacher' is unknown"),
    ],
)
def test_a_base_that_cannot_be_followed_is_refused(write_study, tmp_path, text, message):
    write_study()
    for name, base in (
        ("mine", text),
        ("one", "base: two.yaml"),
        ("two", "base: one.yaml"),
        ("broken", "a: ["),
    ):
        (tmp_path / f"{name}.yaml").write_text(base)
    with pytest.raises(StudyError, match=message):
        studies.load(str(tmp_path / "mine.yaml"))


def test_a_chain_of_too_many_bases_is_refused(tmp_path):
    for number in range(1100):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml")
    (tmp_path / "1100.yaml").write_text("seed: 0")
    with pytest.raises(StudyError, match=r"0.yaml is nested too deeply, or has too many bases"):
        studies.load(str(tmp_path / "0.yaml"))


def test_an_edited_plugin_makes_the_trainings_stale(make_study, tmp_path):
    (tmp_path / "mine.py").write_text("@register_model\ndef net(): return 1\n")
    study = make_study({"plugins": ["mine.py"], "teachers.resnet.model": "net"})
    before = {c: study.fingerprint(c) for c in study.jobs()}
    (tmp_path / "mine.py").write_text("@register_model\ndef net(): return 2\n")
    stale = {c.id for c in study.jobs() if study.fingerprint(c) != before[c]}
    assert stale == ids(study, "teacher", "bank", "distill", having="resnet") | ends(study)


def test_seeds_of_two_uses_differ_and_follow_the_studys(tiny, make_study):
    names = [("order", "a"), ("order", "b"), ("student views", "a"), ("order", "a", "b"), ("ordera",), ()]
    seeds = [tiny.seed_for(*n) for n in names]
    assert len(set(seeds)) == len(names) and all(0 <= s < 2**63 for s in seeds)
    assert seeds == [tiny.seed_for(*n) for n in names]
    assert not set(seeds) & {make_study({"seed": 1}).seed_for(*n) for n in names}


def test_every_seed_repeats_the_matrix_from_pretext_on_and_shares_the_images(tiny, make_study):
    study = make_study({"seed": [0, 3]})
    shared, repeated = ids(tiny, "data", "intro") | ends(tiny), ids(tiny, "teacher", "bank", "distill")
    assert {c.id for c in study.jobs()} == shared | repeated | {f"{name}/seed-3" for name in repeated}
    for job in study.jobs():
        read = {study.seed_of(c) for c in study.before(job) if c.stage in ("teacher", "bank")}
        assert read <= (set(study.seeds) if job.stage == "correlation" else {study.seed_of(job)})


def test_a_further_seed_leaves_what_the_first_computed_and_another_first_one_does_not(tiny, make_study):
    study, swapped = make_study({"seed": [0, 3]}), make_study({"seed": [3, 0]})
    for other, stale in (
        (study, ends(tiny)),
        (swapped, ids(tiny, "intro", "teacher", "bank", "distill") | ends(tiny)),
    ):
        assert {c.id for c in tiny.jobs() if tiny.fingerprint(c) != other.fingerprint(c)} == stale


def test_a_jobs_fingerprint_and_seed_are_its_own_whichever_seed_is_in_force(make_study):
    study = make_study({"seed": [0, 3]})
    for job in study.jobs():
        assert study.fingerprint(job) == study.at(3).fingerprint(job) and study.seed_of(job) == study.at(
            3
        ).seed_of(job)
    assert (study.seed, study.at(3).seed, study.at(-1).seed, study.at(3).at(-1).seed) == (0, 3, 0, 0)
    assert (
        study.at(3).seed_for("order") == make_study({"seed": 3}).seed_for("order") != study.seed_for("order")
    )
    job = study.at(3).job("bank", "birds", "resnet", "FT")
    assert (
        job.id == "bank/birds/FT/resnet/seed-3"
        and job in study.jobs()
        and study.job("bank", "birds", "resnet", "FT").id == job.base_id
    )
    assert job.parameters(study) == {
        "study": study.file,
        "dataset": "birds",
        "teacher": "resnet",
        "recipe": "FT",
        "compare": False,
        "seed": 3,
    }
    assert "seed" not in study.job("bank", "birds", "resnet", "FT").parameters(study)


def test_a_models_own_values_replace_the_recipes(make_study):
    study = make_study({"teachers.resnet.recipe": {"lr": 0.5}})
    assert study.recipe("FT", study.teacher("resnet")).lr == 0.5
    assert (
        study.recipe("FT", study.teacher("resnet")).epochs
        == study.recipe("FT", study.teacher("byobnet")).epochs
        == 2
    )


def test_a_bank_has_a_view_for_each_epoch_of_the_longest_student(make_study):
    study = make_study({"students.long": {"model": "test_resnet", "recipe": {"epochs": 9}}})
    assert (
        study.bank_views == 9 and make_study({"recipes.student": {"epochs": 9, "views": 4}}).bank_views == 4
    )


@pytest.mark.parametrize(
    "text, value", [("1e-5", 1e-5), ("1", 1.0), ("0.5", 0.5), (".5", 0.5), ("1.e-3", 1e-3)]
)
def test_a_number_however_written_is_a_float(write_study, text, value):
    file = write_study({"recipes.FT.lr": "RATE"})
    file.write_text(file.read_text().replace("RATE", text))
    found = studies.load(str(file)).recipes["FT"].lr
    assert found == value and type(found) is float


def test_a_teachers_own_values_may_be_for_one_recipe_alone(make_study):
    study = make_study({"teachers.resnet.recipe": {"lr": 0.5, "FT": {"lr": "1e-1", "epochs": 7}}})
    found = {name: study.recipe(name, study.teacher("resnet")) for name in ("FZ", "FT")}
    assert (found["FZ"].lr, found["FT"].lr, found["FT"].epochs) == (0.5, 0.1, 7)
    same = make_study({"teachers.resnet.recipe": {"lr": 0.5}})
    assert found["FZ"] == same.recipe("FZ", same.teacher("resnet"))
    stale = ids(same, "teacher", "bank", "distill", having="/FT/resnet") | ends(same)
    assert changed(same, study) == stale


def test_a_list_of_rates_is_one_to_choose_from_in_a_recipe_or_a_models_own(make_study):
    study = make_study(
        {
            "recipes.FT.lr": ["1e-3", 1],
            "teachers.resnet.recipe": {"lr": [0.5, 0.1]},
            "teachers.byobnet.recipe": {"lr": "1e-2"},
        }
    )
    rates = {
        name: study.recipe("FT", study.teacher(name)).lr for name in ("efficientnet", "resnet", "byobnet")
    }
    assert (
        rates == {"efficientnet": (0.001, 1.0), "resnet": (0.5, 0.1), "byobnet": 0.01}
        and type(rates["byobnet"]) is float
    )


def test_a_name_written_as_a_number_is_a_name(make_study):
    study = make_study(
        {"datasets": {2011: {"species": 3}}, "teachers": {1: {"model": "test_resnet"}}, "name": 7}
    )
    assert study.name == "7" and Job("teacher", "2011", "1", "FT") in study.jobs()


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("seed", "010", 10),
        ("seed", "+4", 4),
        ("seed", "0o10", 8),
        ("seed", "0x1F", 31),
        ("name", "0123", "0123"),
        ("name", "1e5", "1e5"),
        ("name", "1.50", "1.50"),
        ("name", "0x1F", "0x1F"),
        ("name", "true", "true"),
        ("name", "2019-01-01", "2019-01-01"),
        ("name", "null", "tiny"),
        ("question", "1:30", "1:30"),
        ("question", "12_34", "12_34"),
        ("question", "2019-01-01", "2019-01-01"),
        ("question", "Trueish", "Trueish"),
        ("question", "1e5abc", "1e5abc"),
    ],
)
def test_a_plain_scalar_is_what_yaml_1_2_takes_it_for_and_a_name_what_is_written(
    write_study, key, text, value
):
    file = write_study({key: "VALUE"})
    file.write_text(file.read_text().replace("VALUE", text))
    assert getattr(studies.load(str(file)), key) == value


def test_classes_and_students_of_a_loss_are_names_as_they_are_written(write_study):
    file = write_study(
        {
            "students.007": {"model": "test_byobnet"},
            "losses": {"dkd": {"students": ["STUDENTS"]}},
            "datasets.mine": {"kind": "folder", "root": "photos", "classes": ["CLASSES"]},
        }
    )
    names = ("008", "1:30", "1e5", "2019-01-01", "no", "true", "null", "0x1F", ".5")
    text = file.read_text().replace("STUDENTS", "007")
    file.write_text(re.sub("( *- )CLASSES", lambda item: "\n".join(item[1] + name for name in names), text))
    study = studies.load(str(file))
    assert study.losses["dkd"].students == ("007",) and study.data("mine").classes == names


def test_a_study_that_is_a_link_is_named_by_it_and_finds_what_lies_beside_it(write_study, tmp_path):
    file = write_study({"teachers.resnet.weights": "w.pth"}, "blob")
    link = tmp_path / "snapshot" / "mine.yaml"
    link.parent.mkdir()
    link.symlink_to(file)
    (tmp_path / "cd45").touch()
    (link.parent / "w.pth").symlink_to(tmp_path / "cd45")
    study = studies.load(str(link))
    assert study.name == "mine" and study.teacher("resnet").weights == str(link.parent / "w.pth")


def test_results_lie_in_fgkd_runs_or_beside_the_file(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FGKD_RUNS", "/somewhere")
    assert tiny.path(Job("bank", "birds", "resnet", "FT")) == Path("/somewhere/tiny/bank/birds/FT/resnet")
    for unset in ("", None):
        monkeypatch.setenv("FGKD_RUNS", "") if unset == "" else monkeypatch.delenv("FGKD_RUNS")
        assert tiny.folder == tmp_path / "tiny"


def test_a_variable_may_have_a_default(make_study, tmp_path, monkeypatch):
    changes = {"datasets": {"mine": {"kind": "folder", "root": "${PHOTOS:-../photos}/birds"}}}
    monkeypatch.delenv("PHOTOS", raising=False)
    assert make_study(changes).data("mine").root == str(tmp_path.parent / "photos" / "birds")
    monkeypatch.setenv("PHOTOS", "/photos")
    assert make_study(changes).data("mine").root == "/photos/birds"


def test_files_are_named_relative_to_the_study(make_study, tmp_path, monkeypatch):
    (tmp_path / "w.pth").touch()
    (tmp_path / "mine.py").touch()
    monkeypatch.setenv("PHOTOS", "/photos")
    study = make_study(
        {
            "teachers.resnet.weights": "w.pth",
            "plugins": ["./mine.py"],
            "datasets.mine": {"kind": "folder", "root": "$PHOTOS/birds"},
        }
    )
    assert study.teacher("resnet").weights == str(tmp_path / "w.pth") and study.plugins == (
        str(tmp_path / "mine.py"),
    )
    assert study.data("mine").root == "/photos/birds" and study.data("mine").resize == study.views.resize


WRONG = [
    ({"treachers": {}}, "key 'treachers' is unknown.*did you mean 'teachers'"),
    ({"views.corp": 3}, "views: key 'corp' is unknown.*did you mean 'crop'"),
    ({"datasets.birds.specie": 3}, "datasets.birds: key 'specie' is unknown.*'species'"),
    ({"datasets.birds.key": "x"}, "datasets.birds: key 'key' is unknown"),
    ({"pretext.tests": 3}, "pretext: key 'tests' is unknown.*'test'"),
    ({"teachers.resnet.modle": "x"}, "teachers.resnet: key 'modle' is unknown.*'model'"),
    ({"teachers.resnet.recipe": {"lrr": 1}}, "teachers.resnet.recipe: key 'lrr' is unknown.*'lr'"),
    ({"teachers.resnet.recipe": {"FT": {"lrr": 1}}}, "teachers.resnet.recipe.FT: key 'lrr' is unknown.*'lr'"),
    ({"teachers.resnet.recipe": {"FT": 0.1}}, "teachers.resnet.recipe.FT is 0.1: expected a mapping"),
    ({"students.small.recipe": {"FT": {"lr": 1}}}, "students.small.recipe: key 'FT' is unknown"),
    ({"students.small.recipe": {"epoch": 1}}, "students.small.recipe: key 'epoch' is unknown.*'epochs'"),
    ({"recipes.FT.epoch": 3}, "recipes.FT: key 'epoch' is unknown.*'epochs'"),
    ({"recipes.students": {}}, "recipe 'students' is unknown.*'student'"),
    ({"distillation.temprature": 2}, "distillation: key 'temprature' is unknown.*'temperature'"),
    ({"seed": "one"}, "seed is 'one': expected a whole number"),
    ({"seed": 1.5}, "seed is 1.5: expected a whole number"),
    ({"seed": True}, "seed is True: expected a whole number"),
    ({"seed": -1}, "seed is -1: expected 0 or more"),
    ({"seed": []}, r"seed is \[\]: expected one, or a list of different ones"),
    ({"seed": [0, 1, 0]}, r"seed is \[0, 1, 0\]: expected one, or a list of different ones"),
    ({"seed": [0, "1"]}, "seed is '1': expected a whole number"),
    ({"seeds": [0, 1]}, r"key 'seeds' is unknown.*did you mean 'seed'"),
    ({"threads": 0}, "threads is 0: expected 1 or more"),
    ({"online": 1}, "online is 1: expected true or false"),
    ({"baseline": "yes"}, "baseline is 'yes': expected true or false"),
    ({"question": 3}, "question is 3: expected text"),
    ({"recipes.FT.epochs": True}, "recipes.FT.epochs is True: expected a whole number"),
    ({"recipes.FT.epochs": 2.5}, "recipes.FT.epochs is 2.5: expected a whole number"),
    ({"recipes.FT.lr": "1_000"}, "recipes.FT.lr is '1_000': expected a number"),
    ({"losses": {"dkd": {"options": {"alpha": ["x"] * 900}}}}, r"alpha is \['x', .* \.\.\. .*a number"),
    ({"recipes.FT.lr": "fast"}, "recipes.FT.lr is 'fast': expected a number"),
    ({"recipes.FT.lr": True}, "recipes.FT.lr is True: expected a number"),
    ({"recipes.FT.lr": [0.1, "fast"]}, "recipes.FT.lr is 'fast': expected a number"),
    (
        {"recipes.FT.lr": [0.1, 0]},
        r"recipes.FT.lr is \(0.1, 0.0\): expected more than 0, or a list of different rates",
    ),
    ({"recipes.FT.lr": [0.1, 0.1]}, "recipes.FT.lr is .*a list of different rates"),
    ({"teachers.resnet.recipe": {"lr": []}}, r"teachers.resnet.recipe.lr is \(\): expected more than 0"),
    ({"recipes.FT.epochs": [1, 2]}, r"recipes.FT.epochs is \[1, 2\]: expected a whole number"),
    ({"recipes.FT": 3}, "recipes.FT is 3: expected a mapping"),
    ({"recipes": "x"}, "recipes is 'x': expected a mapping"),
    ({"teachers.resnet": "test_resnet"}, "teachers.resnet is 'test_resnet': expected a mapping"),
    ({"teachers": ["a"]}, "'teachers' is missing or empty"),
    ({"students": ...}, "'students' is missing or empty"),
    ({"datasets": {}}, "'datasets' is missing or empty"),
    ({"views": 64}, "views is 64: expected a mapping"),
    ({"distillation": 2}, "distillation is 2: expected a mapping"),
    ({"pretext": 5}, "pretext is 5: expected a mapping"),
    ({"strategies": "FZ"}, "strategies is 'FZ': expected a list"),
    ({"plugins": "p.py"}, "plugins is 'p.py': expected a list"),
    ({"teachers.resnet.options": [1]}, "teachers.resnet.options is .*expected a mapping"),
    ({"datasets.birds.classes": "a"}, "datasets.birds.classes is 'a': expected a list"),
    ({"datasets.birds.species": "4"}, "datasets.birds.species is '4': expected a whole number"),
    ({"teachers.resnet.model": ...}, "teachers.resnet lacks 'model': add it"),
    (
        {"strategies": ["FZ", "CAL2"]},
        "strategies is 'CAL2' .did you mean 'CAL'.*: expected one of FZ, FT, CAL, TGDA",
    ),
    ({"strategies": ["TGDA"]}, "recipes lacks CAL"),
    ({"losses": {"dkd": {"on": "features"}}}, "losses.dkd.on is 'features': DKD is defined on logits"),
    ({"losses": {"rkd": {"on": "maps"}}}, "losses.rkd.on is 'maps': expected one of logits, features"),
    ({"losses": {"mse": {}}}, "losses.mse.loss is 'mse': expected one of kd, dkd, rkd, pkt, hint, crd"),
    ({"losses": {"kd": {"loss": "dkd"}}}, "'kd' is taken"),
    (
        {"losses": {"dkd": {"options": {"alhpa": 1}}}},
        "losses.dkd.options: option 'alhpa' is unknown .did you mean 'alpha'",
    ),
    (
        {"losses": {"dkd": {"options": {"alpha": "much"}}}},
        "losses.dkd.options.alpha is 'much': expected a number",
    ),
    ({"losses": {"pkt": {"weight": -1}}}, "losses.pkt.weight is -1.0: expected 0 or more"),
    ({"losses": {"pkt": {"students": ["large"]}}}, "losses.pkt.students is 'large': expected one of small"),
    ({"losses": {"pkt": {"strategies": ["CAL"]}}}, "losses.pkt.strategies is 'CAL': expected one of FZ, FT"),
    ({"device": "gpu"}, "device is 'gpu'.*expected one of auto, cpu, cuda"),
    ({"datasets.birds.kind": "bird"}, "datasets.birds.kind is 'bird'.*'birds'"),
    ({"recipes.FT.optimizer": "adam"}, "recipes.FT.optimizer is 'adam'.*'adamw'"),
    ({"recipes.student": ...}, "recipes lacks student: add"),
    ({"recipes": ...}, "recipes lacks FT, FZ, pretext, student"),
    ({"pretext": ...}, "teacher 'byobnet' has weights 'pretext', but.*add one"),
    (
        {"students.small.weights": "pretext"},
        "student 'small' has weights 'pretext'.*expected none, timm or a file",
    ),
    ({"teachers.a/b": {"model": "test_resnet"}}, "teacher is named 'a/b': expected letters"),
    ({"teachers": {"..": {"model": "test_resnet"}}}, "teacher is named '..'"),
    ({"students.-rf": {"model": "test_resnet"}}, "student is named '-rf'"),
    ({"datasets": {"../x": {}}}, "dataset is named '../x'"),
    ({"name": "a/b"}, "name is named 'a/b'"),
    ({"name": ".."}, "name is named '..'"),
    ({"teachers.none": {"model": "test_resnet"}}, "'none' as a teacher"),
    ({"datasets.pretext": {}}, "'pretext' as a dataset"),
    (
        {"teachers.resnet.weights": "pretex"},
        "teachers.resnet.weights is 'pretex': expected none, pretext, timm",
    ),
    ({"datasets.mine": {"kind": "folder"}}, "datasets.mine.root is missing"),
    ({"views.crop": 37}, r"views.crop is 37: expected 1 to views.resize \(36\)"),
    ({"views.crop": 0}, "views.crop is 0"),
    ({"datasets.birds.resize": 40}, r"datasets.birds.resize is 40: expected views.resize \(36\)"),
    ({"datasets.birds.species": 1}, "datasets.birds.species is 1: expected 2 or more"),
    ({"datasets.birds.test": 0}, "datasets.birds.test is 0: expected 1 or more"),
    ({"recipes.FT.epochs": 0}, "recipes.FT.epochs is 0: expected 1 or more"),
    ({"recipes.FT.lr": -1}, "recipes.FT.lr is -1.0: expected more than 0"),
    ({"recipes.FT.lr": float("nan")}, "recipes.FT.lr is nan: expected more than 0"),
    ({"teachers.resnet.recipe": {"batch_size": 0}}, "teachers.resnet.recipe.batch_size is 0"),
    ({"recipes.FT.lr": float("inf")}, "recipes.FT.lr is inf: expected more than 0"),
    ({"recipes.FT.momentum": -1}, "recipes.FT.momentum is -1.0"),
    ({"recipes.FT.weight_decay": -0.1}, "recipes.FT.weight_decay is -0.1: expected 0 or more"),
    ({"distillation.temperature": 0}, "distillation.temperature is 0.0: expected more than 0"),
    ({"distillation.beta": -1}, "distillation.beta is -1.0: expected 0 or more"),
    ({"seed": 2**63}, "seed is 9223372036854775808: expected 9,223,372,036,854,775,807 or less"),
    ({"threads": 2**63}, "threads is 9223372036854775808: expected 1,024 or less"),
    ({"views.resize": 10**6}, "views.resize is 1000000: expected 10,000 or less"),
    ({"recipes.FT.epochs": 10**12}, "recipes.FT.epochs is 1000000000000: expected 1,000,000 or less"),
    ({"datasets.birds.species": 10**9}, "datasets.birds.species is 1000000000: expected 10,000 or less"),
    ({"datasets.birds.seed": -1}, "datasets.birds.seed is -1: expected 0 or more"),
    ({"datasets.birds.test_fraction": math.nan}, "test_fraction is nan: expected"),
    ({"datasets.birds.test_fraction": math.inf}, "test_fraction is inf: expected less than 1"),
    ({"datasets.birds.test_fraction": 5}, "test_fraction is 5.0: expected less than 1"),
    ({"datasets.birds.test_fraction": -1}, "test_fraction is -1.0: expected more than 0"),
    ({"teachers.Resnet": {"model": "test_resnet"}}, "'resnet' and 'Resnet' differ only in case"),
    ({"students.SMALL": {"model": "test_resnet"}}, "'small' and 'SMALL' differ only in case"),
    ({"datasets.Pretext": {}}, "'Pretext' and 'pretext' differ only in case"),
    ({"losses": {"KD": {"loss": "dkd"}}}, "'KD' and 'kd' differ only in case"),
    ({f"teachers.{'x' * 101}": {"model": "test_resnet"}}, "teacher is named 'x+': .*at most 100"),
    ({"name": "x" * 101}, "name is named 'x+': .*at most 100"),
    ({"teachers.resnet.options": {"x": math.nan}}, "options cannot be written as JSON"),
    ({"teachers.resnet.options": {"x": [-math.inf]}}, "options cannot be written as JSON"),
    ({"teachers.resnet.weights": "~nosuchuser/x.pth"}, "resnet.weights: '~nosuchuser/x.pth' begins with '~'"),
    ({"resources": {"report": {}}}, "resources: stage 'report' is unknown"),
    ({"resources": {"bank": {"gpus": 2}}}, "resources.bank.gpus is 2: expected one of 0, 1"),
    ({"resources": {"bank": {"minutes": 0}}}, "resources.bank.minutes is 0"),
    ({"runs_per_gpu": 0}, "runs_per_gpu is 0"),
    ({"question": ["x"] * 500}, r"question is \['x', .* \.\.\. .*expected text"),
]


@pytest.mark.parametrize("change, message", WRONG, ids=lambda v: v[:40] if isinstance(v, str) else "")
def test_a_wrong_study_is_refused_with_the_value_and_the_remedy(make_study, change, message):
    with pytest.raises(StudyError, match=message) as error:
        make_study(change)
    assert "\n" not in str(error.value)


BOMB = [b"x%d: &x%d [%s]\n" % (k, k, b",".join(7 * [b"*x%d" % (k - 1)])) for k in range(1, 8)]
ODD = [None, -1, 1.5, True, "", "x", [], ["x", "x"], {"a": None}, datetime.date(2020, 1, 1), math.inf, 10**30]


def test_any_value_anywhere_is_taken_or_refused_in_one_line(write_study):
    def places(mapping, *above):
        for key, value in mapping.items():
            yield (*above, key)
            if isinstance(value, dict):
                yield from places(value, *above, key)

    raw = files.read(write_study({"losses": {"dkd": {"options": {"alpha": 1}}}, "threads": 1}))
    refused = 0
    for (*above, key), value in itertools.product(list(places(raw)), ODD):
        changed = copy.deepcopy(raw)
        functools.reduce(dict.get, above, changed)[key] = value
        try:
            files.check(changed, Path("tiny.yaml"))
        except StudyError as error:
            refused += 1
            assert "\n" not in str(error) and "expected another value" not in str(error)
    assert refused > 300


@pytest.mark.parametrize(
    "text, message",
    [
        (b"teachers: {a: [}", "is not YAML.*line 1"),
        (b"a: b: c", "is not YAML"),
        (b"- a\n- b", "holds a list: expected keys"),
        (b"", "is empty: expected keys"),
        (b"a:\n\t- b", "spaces, not tabs"),
        (b"question: \xff\xfe", "is not YAML"),
        (b"seed: 1\nseed: 2", "key 'seed' is there twice.*line 2"),
        (b"a: " + 1200 * b"[" + 1200 * b"]", "nested too deeply"),
        (b"a: &a [*a]", "an alias that holds itself"),
        (b"a: &a {b: *a}", "an alias that holds itself"),
        (b"x0: &x0 [1,1,1,1,1,1,1]\n" + b"".join(BOMB), "more than 100,000 values"),
        (b"a: !!timestamp 2020-01-01", "is not YAML: could not determine a constructor"),
        (b"a: !!binary aGk=", "is not YAML: could not determine a constructor"),
        (b"a: !!set {b}", "is not YAML: could not determine a constructor"),
        (b"a: !!python/name:os.system", "is not YAML: could not determine a constructor"),
        (b"a: !!int x", "is not YAML: invalid literal"),
        (b"a: !!bool maybe", "is not YAML"),
        (b"a: !!float ''", "is not YAML"),
        (b"a: " + 5000 * b"9", "is not YAML: Exceeds the limit"),
        (b"? [a]\n: 1", "is not YAML.*unhashable key"),
        (b'a: "\\0"', r"line 1 holds '\\x00': expected characters"),
        (b'a: 1\nb: "\\ud800"', r"line 2 holds '\\ud800': expected characters"),
    ],
)
def test_a_file_that_is_no_study_is_refused(tmp_path, text, message):
    (tmp_path / "broken.yaml").write_bytes(text)
    with pytest.raises(StudyError, match=message):
        studies.load(str(tmp_path / "broken.yaml"))


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "smok",
            r"study 'smok' is unknown \(did you mean 'smoke'\?\): expected one of .*smoke.* or the path",
        ),
        ("absent/x.yaml", "study file 'absent/x.yaml' does not exist: give the path"),
        ("", "study '' is unknown"),
    ],
)
def test_an_unknown_study_is_refused_with_those_there_are(name, message):
    with pytest.raises(StudyError, match=message):
        studies.load(name)


@pytest.mark.parametrize(
    "ask, message",
    [
        (
            lambda s: s.teacher("resnt"),
            "teacher 'resnt' is not in the study.*'resnet'.*expected one of byobnet, resnet, efficientnet",
        ),
        (lambda s: s.student("x"), "student 'x' is not in the study: expected one of small"),
        (lambda s: s.data("bird"), "dataset 'bird' is not in the study.*'birds'"),
        (lambda s: s.at(2), "seed 2 is not in the study: expected one of 0, or -1 for the first"),
        (lambda s: s.recipe("CAL", s.teacher("resnet")), "recipe 'CAL' is not in the study"),
        (lambda s: s.inputs(Job("banks")), "stage 'banks' is unknown: expected one of intro"),
    ],
)
def test_asking_for_what_is_not_in_a_study_names_what_is(tiny, ask, message):
    with pytest.raises(StudyError, match=message):
        ask(tiny)


def test_parameters_of_the_right_names_and_types_pass():
    given = {"study": "smoke", "image": 3, "share": 0.5, "quick": True}
    jupyters = {"_hidden": 1, "In": [], "Out": {}, "exit": "x", "np": os}
    studies.check_parameters(given | jupyters, study=str, image=int, share=float, quick=bool)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"datset": "birds"}, "parameter 'datset' is unknown.*did you mean 'dataset'"),
        ({"dataset": 3}, r"parameter 'dataset' is 3 \(int\): expected str"),
        ({"dataset": None}, "parameter 'dataset' is None"),
        ({"study": ["smoke"]}, r"parameter 'study' is \['smoke'\] \(list\): expected str"),
        ({"image": True}, "parameter 'image' is True .bool.: expected int"),
        ({"image": "3"}, "parameter 'image' is '3' .str.: expected int"),
    ],
)
def test_parameters_of_other_names_or_types_are_refused(change, message):
    namespace = {"study": "smoke", "dataset": "birds", "image": 1} | change
    with pytest.raises(StudyError, match=message):
        studies.check_parameters(namespace, study=str, dataset=str, image=int)


def test_a_cell_that_runs_again_takes_what_other_cells_have_made_and_still_looks_at_types():
    namespace = {"study": "smoke", "image": 1}
    studies.check_parameters(namespace, study=str, image=int)
    namespace |= {"T": 4.0, "rows": [], "image": 2}
    studies.check_parameters(namespace, study=str, image=int)
    with pytest.raises(StudyError, match="parameter 'image' is '3'"):
        studies.check_parameters(namespace | {"image": "3"}, study=str, image=int)


def test_tgda_students_read_the_bank_of_the_cal_teacher_and_only_that_bank_holds_crops(make_study):
    study = make_study({"strategies": ["FT", "CAL", "TGDA"], "recipes.CAL": {"epochs": 1}})
    for strategy in ("CAL", "TGDA"):
        assert study.before(Job("distill", "birds", "resnet", strategy)) == (
            Job("bank", "birds", "resnet", "CAL"),
        )
    assert study.inputs(Job("bank", "birds", "resnet", "CAL")) == (Job("teacher", "birds", "resnet", "CAL"),)
    assert {c.strategy for c in study.jobs() if c.stage in ("teacher", "bank")} == {"pretext", "FT", "CAL"}
    assert (
        study.strategies_using("CAL") == ("CAL", "TGDA")
        and study.bank_contents("CAL")["augmented"]
        and not study.bank_contents("FT")["augmented"]
    )
    assert not make_study({"strategies": ["CAL"], "recipes.CAL": {"epochs": 1}}).bank_contents("CAL")[
        "augmented"
    ]


def test_a_further_loss_is_trained_where_it_is_asked_for_and_stores_features_only_there(make_study):
    study = make_study(
        {"losses": {"dkd": None, "near": {"loss": "hint", "on": "features", "strategies": ["FT"]}}}
    )
    assert list(study.losses_of("small", "FZ")) == ["kd", "dkd"] and list(study.losses_of("small", "FT")) == [
        "kd",
        "dkd",
        "near",
    ]
    assert list(study.losses_of("small", "CE")) == ["ce"]
    assert study.bank_contents("FT")["features"] and not study.bank_contents("FZ")["features"]
    assert (
        study.losses["dkd"].options == {"alpha": 1.0, "beta": 0.5, "temperature": 1.0}
        and study.losses["near"].loss == "hint"
    )


def test_the_options_of_a_built_in_loss_are_its_parameters_with_a_default():
    from fgkd.distillation import losses

    assert list(studies.LOSSES) == ["kd", "dkd", "rkd", "pkt", "hint", "crd"]
    for name in studies.LOSSES.keys() - {"kd"}:
        parameters = inspect.signature(losses.AUXILIARY[name]).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        assert studies.LOSSES[name] == defaults, name


PLUGIN = '''"""Two losses."""
from fgkd.distillation import losses
from fgkd.distillation.losses import loss

OFFSET = 1.0
OTHER = 2.0


def distance(student, teacher):
    """Not squared."""
    return (student - teacher).abs() + OFFSET


@loss
def cubic(student, teacher, labels, *, power=3.0, steps=2, mean=True, name="x"):
    return distance(student, teacher).pow(power).mean()


@losses.loss
class Memory(losses.nn.Module):
    def __init__(self, student_width, teacher_width, labels, *, size=16):
        self.size = size * OTHER
'''


@pytest.fixture
def plugin_study(make_study, tmp_path):
    """(entry, text of the plugin) -> the study whose only further loss is that entry."""

    def make(loss, text=PLUGIN):
        (tmp_path / "mine.py").write_text(text)
        return make_study({"plugins": ["mine.py"], "losses": loss})

    return make


def test_a_plugins_loss_has_the_options_of_its_signature(plugin_study):
    study = plugin_study({"cubic": {"options": {"power": 2}}, "near": {"loss": "memory", "on": "features"}})
    assert study.losses["cubic"].options == {"power": 2.0, "steps": 2, "mean": True, "name": "x"}
    assert study.losses["near"].options == {"size": 16}
    assert list(study.losses_of("small", "FT")) == ["kd", "cubic", "near"]


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"options": {"powr": 2}}, "losses.cubic.options: option 'powr' is unknown .did you mean 'power'"),
        ({"options": {"power": "big"}}, "losses.cubic.options.power is 'big': expected a number"),
        ({"options": {"steps": 1.5}}, "losses.cubic.options.steps is 1.5: expected a whole number"),
        ({"options": {"mean": 1}}, "losses.cubic.options.mean is 1: expected true or false"),
        ({"options": {"name": None}}, "losses.cubic.options.name is empty: expected text"),
        ({"loss": "cubik"}, "cubic.loss is 'cubik' .did you mean 'cubic'.*: expected one of kd, .*memory"),
        ("@loss\ndef dkd(student): ...", "^plugin '.*mine.py' defines a loss 'dkd', which is taken"),
        (
            "@loss\ndef cubic(a, b=f()): ...",
            r"^option 'b' of a loss has f\(\) as its default: expected a lit",
        ),
        ("@loss\ndef cubic(a, *, b): ...", "option 'b' of a loss has nothing as its default"),
        ("def cubic(a, *, b=1): ...", "losses.cubic.loss is 'cubic': expected one of kd, dkd"),
        ("def (", "losses.cubic.loss is 'cubic': expected one of kd, dkd"),
    ],
)
def test_a_wrong_option_or_text_of_a_plugins_loss_is_named(plugin_study, entry, message):
    loss, text = (None, entry) if isinstance(entry, str) else (entry, PLUGIN)
    with pytest.raises(StudyError, match=message):
        plugin_study({"cubic": loss}, text)


def test_a_plugin_that_takes_a_name_is_refused_without_a_further_loss_too(make_study, tmp_path):
    (tmp_path / "mine.py").write_text("@loss\ndef dkd(student): ...")
    with pytest.raises(StudyError, match="^plugin '.*mine.py' defines a loss 'dkd', which is taken"):
        make_study({"plugins": ["mine.py"]})


def test_a_loss_of_a_plugin_that_is_not_there_is_named_with_it(make_study):
    with pytest.raises(StudyError, match=r"expected one of kd, .*\(plugin '.*absent.py' cannot be read\)"):
        make_study({"plugins": ["absent.py"], "losses": {"cubic": None}})


@pytest.mark.parametrize(
    "old, new, stale",
    [
        ("pow(power)", "pow(2 * power)", True),
        ("OFFSET = 1.0", "OFFSET = 1.5", True),
        ("power=3.0", "power=2.0", True),
        ("OTHER = 2.0", "OTHER = 3.0", False),
        ("size * OTHER", "size", False),
        ('"""Not squared."""', "# not squared", False),
    ],
)
def test_another_code_of_a_plugins_loss_makes_the_students_of_that_loss_stale(plugin_study, old, new, stale):
    assert old in PLUGIN
    entry = {"cubic": {"strategies": ["FT"]}}

    def prints(text):
        study = plugin_study(entry, text)
        jobs = [*study.jobs(), *study.student_jobs(Job("distill", "birds", "resnet", "FT"))]
        return study, {job: study.fingerprint(job) for job in jobs}

    study, before = prints(PLUGIN)
    _, after = prints(PLUGIN.replace(old, new, 1))
    different = {job.id for job in before if before[job] != after[job]}
    own = {job.id for job in before if job.loss == "cubic"}
    expected = own | ids(study, "distill", having="/FT/") | ends(study)
    assert different == (expected if stale else set())


def test_another_weight_of_a_loss_makes_its_students_stale_and_no_teacher(make_study):
    one, two = (
        make_study({"losses": {"pkt": {"strategies": ["FT"], "weight": weight}}}) for weight in (1.0, 2.0)
    )
    assert {
        c.strategy
        for c in one.jobs()
        if c.stage in ("teacher", "bank", "distill") and one.fingerprint(c) != two.fingerprint(c)
    } == {"FT"}
    assert {c.stage for c in one.jobs() if one.fingerprint(c) != two.fingerprint(c)} == {
        "distill",
        "correlation",
        "report",
    }


def test_words_for_readers_are_read_and_empty_where_they_are_not_given(make_study, tiny):
    study = make_study(
        {
            "teachers.resnet.family": "resnet",
            "teachers.resnet.architecture": "convolution",
            "datasets.birds.note": "drawn",
            "datasets.cub": {"kind": "cub", "note": "photos"},
        }
    )
    assert (study.teacher("resnet").family, study.teacher("resnet").architecture) == ("resnet", "convolution")
    assert (study.data("birds").note, study.data("cub").note) == ("drawn", "photos")
    plain = tiny.teacher("resnet")
    assert plain.family == plain.architecture == tiny.data("birds").note == ""


def test_what_a_cluster_is_asked_for_makes_nothing_stale(tiny, make_study):
    after = make_study({"resources": {"teacher": {"gpus": 0, "memory": 1, "minutes": 5}}, "runs_per_gpu": 4})
    assert changed(tiny, after) == set()
    assert (
        vars(after.resources["teacher"]) == {"gpus": 0, "memory": 1, "minutes": 5}
        and after.resources["bank"] == tiny.resources["bank"]
    )


@pytest.mark.parametrize(
    "job",
    [
        "teacher birds resnet FT",
        "teacher pretext byobnet pretext",
        "bank birds resnet FT",
        "distill birds resnet FZ",
        "distill birds none CE",
    ],
)
def test_a_job_of_what_the_study_has_is_made(tiny, job):
    assert tiny.job(*job.split()) == studies.Job(*job.split())


def test_a_teacher_may_be_trained_by_a_recipe_that_no_strategy_uses_and_has_no_bank_then(make_study):
    study = make_study({"strategies": ["FZ"]})
    assert study.job("teacher", "birds", "resnet", "FT").strategy == "FT"
    with pytest.raises(studies.StudyError, match=r"recipe 'FT' is not in the study.*: expected one of FZ"):
        study.job("bank", "birds", "resnet", "FT")


@pytest.mark.parametrize(
    "job, message",
    [
        ("distill birds resnet TGDA", "strategy 'TGDA' is not in the study: expected one of FZ, FT, CE"),
        ("distill bird resnet FT", "dataset 'bird' is not in the study .did you mean 'birds'"),
        ("distill pretext resnet FT", "dataset 'pretext' is not in the study: expected one of birds"),
        ("distill birds none FT", "teacher 'none' with strategy 'FT': expected CE with teacher none"),
        ("distill birds resnet CE", "teacher 'resnet' with strategy 'CE': expected CE with teacher none"),
        ("distill birds resnett FT", "teacher 'resnett' is not in the study .did you mean 'resnet'"),
        ("teacher birds none FT", "teacher 'none' is not in the study"),
        ("teacher birds resnet CAL", "recipe 'CAL' is not in the study.*: expected one of FT, FZ, pretext"),
        ("teacher birds resnet student", "recipe 'student' is not in the study"),
        ("teacher birds resnet pretext", "recipe 'pretext' on dataset 'birds'"),
        ("teacher pretext byobnet FT", "recipe 'FT' on dataset 'pretext'"),
        ("bank birds resnet pretext", "recipe 'pretext' is not in the study: expected one of FT, FZ"),
    ],
)
def test_a_job_of_what_the_study_lacks_is_refused_by_name(tiny, job, message):
    with pytest.raises(studies.StudyError, match=message):
        tiny.job(*job.split())


def test_without_a_baseline_the_study_has_no_strategy_ce(make_study):
    with pytest.raises(studies.StudyError, match="strategy 'CE' is not in the study: expected one of FZ, FT"):
        make_study({"baseline": False}).job("distill", "birds", "none", "CE")


def test_a_stage_is_a_row_of_the_table(finished, monkeypatch):
    before = {job.id: finished.fingerprint(job) for job in finished.jobs()}
    row = Stage(
        notebook="04_ratio12",
        section="Probes",
        inputs=lambda study, job: (Job("bank", job.dataset, job.teacher, job.strategy),),
        own=lambda study, job: ({"crop": study.views.crop, "depth": 2}, {"photos": None}),
        jobs=lambda study: (Job("probe", "birds", "resnet", "FT"),),
        table="probes",
        networks=True,
        priority=4,
        strategy="recipe",
        parameters={"compare": False},
    )
    monkeypatch.setitem(jobs.STAGES, "probe", row)
    (probe,) = row.jobs(finished)
    order = finished.jobs()
    bank = Job("bank", "birds", "resnet", "FT")
    assert probe.id == "probe/birds/FT/resnet" and finished.path(probe) == finished.folder / probe.id
    assert order.index(bank) < order.index(probe) < order.index(Job("report"))
    known = {job.id: finished.fingerprint(job) for job in order}
    assert {name for name in before if known[name] != before[name]} == {"study/report"}
    monkeypatch.setitem(jobs.STAGES, "probe", dataclasses.replace(row, own=lambda *_: ({"depth": 3}, {})))
    assert finished.fingerprint(probe) != known[probe.id]
    monkeypatch.setitem(jobs.STAGES, "probe", row)
    assert probe in states.left(finished) and records.missing(finished) == [probe.id]
    provenance = records.provenance(finished, probe, "cpu", 1.0)
    record = {
        "fingerprint": known[probe.id],
        "rows": [{"depth": 2}],
        "provenance": provenance,
        "contents": {},
    }
    records.write_json(finished.path(probe) / "record.json", record)
    assert records.missing(finished) == [] and list(records.collect(finished)["probes"].depth) == [2]
    assert probe.parameters(finished)["recipe"] == "FT" and probe.parameters(finished)["compare"] is False
