"""The paper's eight datasets: a tiny archive of each, read, refused, fetched, prepared, and learnt from."""

import dataclasses
import errno
import hashlib
import http.server
import io
import os
import random
import re
import signal
import tarfile
import threading

import numpy as np
import pandas as pd
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import FGVCAircraft, Flowers102, OxfordIIITPet

from fgkd import cli
from fgkd.data import datasets, fetching, official
from fgkd.data.images import DataError, decode
from fgkd.distillation import stages
from fgkd.engine import cost
from fgkd.study import OFFICIAL, DataSpec, StudyError

# Each archive has 18 images of 3 classes, image i of class i % 3; the first 12 are for training. A writer
# fills the set's folder and returns its class names in the order of the official ids, and each image's path.


def picture(path, seed, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def pictures(base, paths):
    for seed, path in enumerate(paths):
        picture(base / path, seed)
    return paths


def lines(file, *rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{row}\n" for row in rows))


def mat(file, **values):
    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(file, values)


def jobs(values):
    """A MATLAB job array of strings, a column."""
    found = np.empty((len(values), 1), dtype=object)
    found[:, 0] = values
    return found


def structs(**columns):
    """A MATLAB array of structs."""
    found = np.empty((1, len(next(iter(columns.values())))), dtype=[(name, object) for name in columns])
    for name, values in columns.items():
        found[name][0] = values
    return found


def aircraft(base):
    names = ["An-12", "707-320", "F-16A/B two"]
    lines(base / "data/variants.txt", *names)
    for split, numbers in {"trainval": range(12), "test": range(12, 18)}.items():
        lines(base / f"data/images_variant_{split}.txt", *(f"{i:07} {names[i % 3]}" for i in numbers))
    return names, pictures(base, [f"data/images/{i:07}.jpg" for i in range(18)])


def cars(base):
    names = ["Ferrari FF Coupe 2012", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"]
    files = [f"{i:05}.jpg" for i in range(18)]
    labels = [np.uint8(i % 3 + 1) for i in range(18)]
    mat(base / "devkit/cars_meta.mat", class_names=jobs(names).T)
    mat(
        base / "devkit/cars_train_annos.mat",
        annotations=structs(**{"bbox_x1": labels[:12], "class": labels[:12], "fname": files[:12]}),
    )
    mat(
        base / "cars_test_annos_withlabels.mat",
        annotations=structs(**{"bbox_x1": labels[12:], "class": labels[12:], "fname": files[12:]}),
    )
    return names, pictures(
        base, [f"cars_{'train' if i < 12 else 'test'}/{file}" for i, file in enumerate(files)]
    )


def cars_annos(base):
    names, paths = (
        ["Ferrari FF Coupe 2012", "Acura RL Sedan 2012", "Audi S4"],
        [f"car_ims/{i:06}.jpg" for i in range(18)],
    )
    mat(
        base / "cars_annos.mat",
        class_names=jobs(names).T,
        annotations=structs(
            **{
                "relative_im_path": paths,
                "class": [np.uint8(i % 3 + 1) for i in range(18)],
                "test": [np.uint8(i >= 12) for i in range(18)],
            }
        ),
    )
    return names, pictures(base, paths)


def cars_folders(base):
    names = ["Acura RL Sedan 2012", "Ferrari FF Coupe 2012", "Ram C-V Cargo Van Minivan 2012"]
    return names, pictures(
        base, [f"{'train' if i < 12 else 'test'}/{names[i % 3]}/{i:05}.jpg" for i in range(18)]
    )


def bird_lists(base, ids, names, folders, images):
    paths = [f"{folders[i % 3]}/{image.replace('-', '')}.jpg" for i, image in enumerate(images)]
    lines(base / "classes.txt", *(f"{number} {name}" for number, name in zip(ids, names)))
    lines(base / "images.txt", *(f"{image} {path}" for image, path in zip(images, paths)))
    lines(base / "image_class_labels.txt", *(f"{image} {ids[i % 3]}" for i, image in enumerate(images)))
    lines(base / "train_test_split.txt", *(f"{image} {int(i < 12)}" for i, image in enumerate(images)))
    return names[:3], pictures(base, [f"images/{path}" for path in paths])


def cub(base):
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_winged_Blackbird"]
    return bird_lists(base, (1, 2, 10), names, names, [str(i + 1) for i in range(18)])


def nabirds(base):
    """Ids with gaps, 9 < 100 < 817 though '100' < '817' < '9', and inner classes, which have no images."""
    names = [
        "Common Eider (Adult male)",
        "Oak Titmouse",
        "Bald Eagle (Immature, juvenile)",
        "Birds",
        "Ducks, Geese, and Swans",
    ]
    return bird_lists(
        base,
        (9, 100, 817, 0, 22),
        names,
        ("0009", "0100", "0817"),
        [f"{i:08x}-21dc-4d0c-bfe1-4cae3c85c829" for i in range(18)],
    )


def dogs(base):
    names = ["n02085620-Chihuahua", "n02107683-Bernese_mountain_dog", "n02116738-African_hunting_dog"]
    files = [f"{names[i % 3]}/{names[i % 3][:9]}_{i}.jpg" for i in range(18)]
    for split, part in {"train": slice(0, 12), "test": slice(12, 18)}.items():
        mat(
            base / f"{split}_list.mat",
            file_list=jobs(files[part]),
            annotation_list=jobs([file[:-4] for file in files[part]]),
            labels=np.array([[i % 3 + 1] for i in range(18)][part], np.uint8),
        )
    return names, pictures(base, [f"Images/{file}" for file in files])


def flowers(base):
    """Image numbers start at 1; train and validation are two lists, which are joined."""
    mat(base / "imagelabels.mat", labels=np.array([[(1, 77, 102)[i % 3] for i in range(18)]], np.uint8))
    mat(
        base / "setid.mat",
        **{
            name: np.arange(start, start + 6, dtype=np.uint16)[None]
            for name, start in {"trnid": 1, "valid": 7, "tstid": 13}.items()
        },
    )
    return ["pink primrose", "passion flower", "blackberry lily"], pictures(
        base, [f"jpg/image_{i + 1:05}.jpg" for i in range(18)]
    )


def moe(base):
    """Of six images of a character, four are for training; those that are not RGB do not count."""
    names = ["000_hatsune_miku", "002_suzumiya_haruhi", "999_last"]
    lines(base / names[0] / "color.csv", "1,2,3")
    picture(base / names[0] / "face_00_0_0.png", 90, "RGBA")
    picture(base / names[2] / "face_00_0_0.png", 91, "L")
    picture(base / "500_no_rgb" / "face_00_0_0.png", 92, "P")
    return names, pictures(base, [f"{names[i % 3]}/face_{i + 10}_0_0.png" for i in range(18)])


def pets(base):
    names = ["Abyssinian", "american_bulldog", "yorkshire_terrier"]
    images = [f"{names[i % 3]}_{i}" for i in range(18)]
    for split, part in {"trainval": range(12), "test": range(12, 18)}.items():
        lines(base / f"annotations/{split}.txt", *(f"{images[i]} {i % 3 + 1} 1 1" for i in part))
    return names, pictures(base, [f"images/{image}.jpg" for image in images])


WRITERS = {
    "aircraft": [aircraft],
    "cars": [cars, cars_annos, cars_folders],
    "cub": [cub],
    "dogs": [dogs],
    "flowers": [flowers],
    "moe": [moe],
    "nabirds": [nabirds],
    "pets": [pets],
}
ARCHIVES = {
    writer.__name__: (kind, writer, layout)
    for kind, writers in WRITERS.items()
    for writer, layout in zip(writers, official.SETS[kind].layouts, strict=True)
}


def usual(name):
    """The folder below its root in which a set usually lies."""
    return (ARCHIVES[name][2].folders or ("",))[0]


@pytest.fixture
def tiny_counts(monkeypatch):
    """The tiny archives' counts as the official ones; torchvision takes Flowers' lists without checksums."""
    for kind, facts in official.SETS.items():
        monkeypatch.setitem(official.SETS, kind, dataclasses.replace(facts, classes=3, train=12, test=6))
    monkeypatch.setattr(
        Flowers102, "_file_dict", {key: (name, None) for key, (name, _) in Flowers102._file_dict.items()}
    )


@pytest.fixture
def archive(tiny_counts, tmp_path):
    """(name, below) -> kind, root, class names, paths below the root; the set's folder is root/below."""

    def write(name, below=None):
        kind, writer, _ = ARCHIVES[name]
        below, root = usual(name) if below is None else below, tmp_path / "archives" / name
        names, paths = writer(root / below)
        return kind, root, names, [f"{below}/{path}".lstrip("/") for path in paths]

    return write


def spec(kind, root=None, **options):
    return DataSpec(key=kind, kind=kind, root=root and str(root), resize=8, **options)


def listed(kind, root):
    """The listing of a set, wherever it lies."""
    return dataclasses.replace(official.listing(kind, root), root=None)


def load(kind, root, cache, **options):
    return datasets.load(spec(kind, root, **options), cache, progress=False)


# reading


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("below", [None, ""], ids=["in its usual folder", "in the root"])
def test_classes_labels_and_splits_are_the_official_ones(name, below, archive):
    kind, root, names, paths = archive(name, below)
    found = official.listing(kind, root)
    assert found.classes == tuple(names)
    for split, part in {"train": range(12), "test": range(12, 18)}.items():
        assert sorted(found.files[split]) == sorted((paths[i], i % 3) for i in part)
        assert name in ("moe", "cars_folders") or [path for path, _ in found.files[split]] == [
            paths[i] for i in part
        ]


@pytest.mark.parametrize("name", ARCHIVES)
def test_each_image_has_its_label_in_the_cache(name, archive, tmp_path):
    kind, root, names, paths = archive(name)
    data = load(kind, root, tmp_path / "cache")
    assert (
        data.classes == tuple(names)
        and data.families is None
        and (len(data.train), len(data.test)) == (12, 6)
    )
    labels = {path: i % 3 for i, path in enumerate(paths)}
    for split in (data.train, data.test):
        assert [labels[path] for path in split.names] == split.labels.tolist()
        assert all(
            (pixels == decode(root / path, 8)).all() for path, pixels in zip(split.names, split.images)
        )


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_teacher_and_a_student_learn_from_it(name, archive, make_study):
    kind, root, *_ = archive(name)
    recipes = {kind: {"epochs": 1, "batch_size": 6, "lr": 0.01} for kind in ("FT", "student")}
    study = make_study(
        {
            "datasets": {"photos": {"kind": kind, "root": str(root)}},
            "pretext": ...,
            "recipes": recipes,
            "strategies": ["FT"],
            "teachers": {"resnet": {"model": "test_resnet"}},
        }
    )
    run = stages.distill(study, "photos", "resnet", "FT")
    logits = run.logits()["small", "kd"]
    assert logits.shape == (6, 3) and np.isfinite(logits).all()
    assert stages.data(study, "photos").train.images.shape == (12, 36, 36, 3)


def test_a_subset_keeps_the_order_of_the_ids_without_gaps(archive):
    kind, root, names, _ = archive("nabirds")
    lists = root / "nabirds"
    for file in ("images.txt", "image_class_labels.txt", "train_test_split.txt"):
        rows = (lists / file).read_text().splitlines()
        lines(lists / file, *(row for i, row in enumerate(rows) if i % 3 != 1))
    found = official.listing(kind, root)
    assert found.classes == (names[0], names[2]) and {label for _, label in found.files["train"]} == {0, 1}


@pytest.mark.parametrize("named", [True, False], ids=["named", "beside the images"])
def test_moe_takes_a_split_of_its_own(named, archive, tmp_path):
    kind, root, names, paths = archive("moe")
    inside = [path.partition("/")[2] for path in paths]
    rows = [f"{names[i % 3]},{path},{'train' if i % 9 < 6 else 'test'}" for i, path in enumerate(inside)]
    file = tmp_path / "list.csv" if named else root / usual("moe") / official.SPLIT_FILE
    lines(file, "class,path,split", *rows)
    data = load(kind, root, tmp_path / "cache", split=str(file) if named else None)
    assert data.classes == tuple(names) and data.notes == (f"split by {file.name!r}",)
    assert set(data.test.names) == {path for i, path in enumerate(inside) if i % 9 >= 6}
    file.unlink()
    (note,) = load(kind, root, tmp_path / "cache").notes
    assert "cannot be compared with the paper's" in note


def test_a_class_id_without_a_name_is_refused(archive):
    kind, root, *_ = archive("nabirds")
    lines(root / "nabirds/classes.txt", "9 Common Eider", "100 Oak Titmouse")
    with pytest.raises(DataError, match="nabirds: class 817 has images in .* but no name"):
        official.listing(kind, root)


@pytest.mark.parametrize(
    "file, row, message",
    [
        (
            "images.txt",
            "18 a.jpg",
            "line 19 of .*images.txt' is '18 a.jpg': expected an id that no other line has",
        ),
        ("image_class_labels.txt", "19", "line 19 .*image_class_labels.txt' is '19'"),
        (
            "train_test_split.txt",
            "19 1",
            "1 images are in only one of images.txt and train_test_split.txt .* the first is '19'",
        ),
        ("classes.txt", "x Bird", "cannot be parsed .ValueError: .*'x'.*; fetch them anew"),
    ],
)
def test_lists_that_contradict_each_other_are_refused_with_the_place(file, row, message, archive):
    kind, root, *_ = archive("cub")
    with open(root / "CUB_200_2011" / file, "a") as lists:
        lists.write(row + "\n")
    with pytest.raises(DataError, match=message):
        official.listing(kind, root)


NEEDED = [
    (name, need) for name, (_, _, layout) in ARCHIVES.items() for need in layout.needs if "*" not in need
]


@pytest.mark.parametrize("name, need", NEEDED, ids=lambda value: value)
def test_a_missing_file_or_folder_is_named_with_its_place(name, need, archive):
    kind, root, *_ = archive(name)
    (root / usual(name) / need).rename(root / "elsewhere")
    with pytest.raises(
        DataError,
        match=f"{kind}: '{need}' missing in '.*{usual(name)}': expected .*; put it back, or remove the",
    ):
        official.listing(kind, root)


@pytest.mark.parametrize(
    "name, file, content",
    [
        ("pets", "annotations/test.txt", b"Abyssinian_1 1\n"),
        ("dogs", "train_list.mat", b"no mat"),
        ("aircraft", "data/images_variant_test.txt", b"0000001 Concorde\n"),
        ("pets", "annotations/test.txt", b""),
    ],
)
def test_a_spoilt_split_file_is_a_clear_error(name, file, content, archive):
    kind, root, *_ = archive(name)
    (root / usual(name) / file).write_bytes(content)
    with pytest.raises(
        DataError, match=f"{kind}: (the files in .* cannot be parsed|no test image is listed in) .*anew"
    ):
        official.listing(kind, root)


def test_flowers_lists_other_than_the_official_ones_are_refused(archive, monkeypatch):
    kind, root, *_ = archive("flowers")
    monkeypatch.undo()
    with pytest.raises(DataError, match="flowers: the files in .*flowers-102' cannot be parsed .*corrupted"):
        official.listing(kind, root)


# counts


def drop_the_last(root):
    file = root / "CUB_200_2011" / "images.txt"
    for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt"):
        lines(file.with_name(name), *file.with_name(name).read_text().splitlines()[:-1])


def test_a_study_refuses_half_a_set_unless_it_says_so(archive, tmp_path):
    kind, root, *_ = archive("cub")
    drop_the_last(root)
    with pytest.raises(
        DataError,
        match=r"5 test images \(expected 6\); complete it \('fgkd data cub'\), or set check_counts: false",
    ):
        load(kind, root, tmp_path / "cache")
    data = load(kind, root, tmp_path / "cache", check_counts=False)
    assert len(data.test) == 5 and data.notes == (
        "not the whole set, as the study allows: 5 test images (expected 6)",
    )


def test_an_image_listed_in_both_splits_is_counted_as_wrong(archive):
    kind, root, _, paths = archive("pets")
    with open(root / "oxford-iiit-pet/annotations/test.txt", "a") as file:
        file.write("Abyssinian_0 1 1 1\n")
    table = official.checks(kind, official.listing(kind, root)).set_index("check")
    assert table.loc["images listed in both splits", ["found", "verdict", "detail"]].tolist() == [
        1,
        "wrong",
        paths[0],
    ]
    assert (
        table.loc["test images", ["expected", "found", "verdict"]].tolist() == [6, 7, "wrong"]
        and table.loc["classes", "verdict"] == "ok"
    )


def test_what_a_reader_should_know_of_a_set_is_noted(archive, tmp_path):
    kind, root, *_ = archive("dogs")
    assert load(kind, root, tmp_path / "cache").notes == (
        "the test images are training images of ImageNet, so teachers pretrained on it have seen them",
    )


# roots and the shared cache


def test_the_root_is_the_studys_or_else_the_kind_in_fgkd_data(archive, monkeypatch, tmp_path, make_study):
    _, root, *_ = archive("cub")
    monkeypatch.setenv("FGKD_DATA", str(root.parent))
    study = make_study(
        {
            "datasets": {
                "mine": {"kind": "cub"},
                "other": {"kind": "cub", "root": "archives/cub"},
                "gone": {"kind": "cub", "root": "nowhere"},
            }
        }
    )
    assert len(stages.data(study, "mine").train) == len(stages.data(study, "other").train) == 12
    with pytest.raises(
        DataError,
        match="cub: CUB-200-2011 is not in '.*nowhere': expected CUB_200_2011/ with images, .*"
        "'fgkd data cub' fetches it",
    ):
        stages.data(study, "gone")
    monkeypatch.delenv("FGKD_DATA")
    stages._load_dataset.cache_clear()
    with pytest.raises(
        DataError, match="cub: neither a root is given nor FGKD_DATA set: .*the folder that holds cub/"
    ):
        stages.data(study, "mine")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "cubs"}, r"kind is 'cubs' .did you mean 'cub'"),
        ({"kind": "cub", "classes": ["a"]}, "key 'classes' is unknown"),
        ({"kind": "cub", "check_counts": "no"}, "check_counts is 'no': expected true or false"),
    ],
)
def test_keys_that_mean_nothing_for_a_set_are_refused(change, message, make_study):
    with pytest.raises(StudyError, match=message):
        make_study({"datasets": {"a": change}})


def test_all_studies_share_one_cache_beside_the_images(archive, tmp_path, monkeypatch):
    kind, root, *_ = archive("cub")
    load(kind, root, tmp_path / "a")
    monkeypatch.delattr(datasets, "decode")
    assert len(load(kind, root, tmp_path / "b").train) == 12
    assert (
        not (tmp_path / "a").exists()
        and not (tmp_path / "b").exists()
        and (root / "cache-8" / "index.json").exists()
    )


def test_a_read_only_root_is_cached_in_the_study(archive, tmp_path, monkeypatch):
    kind, root, *_ = archive("cub")
    monkeypatch.setattr(datasets.os, "access", lambda path, mode: False)
    assert len(load(kind, root, tmp_path / "cache").train) == 12
    assert (tmp_path / "cache" / "index.json").exists() and not (root / "cache-8").exists()


@pytest.mark.parametrize("change", ["image", "split"])
def test_changed_inputs_rebuild_the_shared_cache(change, archive, tmp_path):
    kind, root, _, paths = archive("cub")
    first = load(kind, root, tmp_path)
    if change == "image":
        picture(root / paths[0], 77)
    else:
        file = root / "CUB_200_2011/train_test_split.txt"
        rows = file.read_text().splitlines()
        lines(file, "1 0", *rows[1:-1], "18 1")
    second = load(kind, root, tmp_path)
    assert second.fingerprint != first.fingerprint
    assert all(
        (pixels == decode(root / name, 8)).all()
        for name, pixels in zip(second.train.names, second.train.images)
    )


# preparing


def prepare(kind, root):
    return fetching.prepare(kind, root, resize=8, progress=False)


def test_a_whole_set_is_prepared_and_every_check_is_ok(archive):
    for name in ARCHIVES:
        kind, root, *_ = archive(name)
        table = prepare(kind, root)
        assert (
            table.verdict.tolist() == ["ok"] * 6
            and table.expected.tolist() == [3, 12, 6, 0, 0, 0] == table.found.tolist()
        )
        assert (root / "cache-8" / "index.json").exists()


def test_everything_that_is_wrong_is_in_one_table(archive):
    kind, root, _, paths = archive("cub")
    drop_the_last(root)
    content = (root / paths[3]).read_bytes()
    (root / paths[3]).write_bytes(content[: len(content) // 2])
    (root / paths[13]).unlink()
    table = prepare(kind, root)
    wrong = table[table.verdict == "wrong"].set_index("check")
    assert wrong.index.tolist() == ["test images", "unreadable images", "listed images that are not there"]
    assert wrong.detail.iloc[-1] == f"the first is {paths[13]!r}; put them back"
    (detail,) = table.detail[table.check == ""]
    assert paths[3] in detail and "truncated" in detail.lower()


TOO_DEEP = {
    "aircraft": "data/images",
    "cars": "cars_train",
    "cars_annos": "car_ims",
    "cub": "images",
    "dogs": "Images",
    "flowers": "jpg",
    "nabirds": "images",
    "pets": "images",
}


@pytest.mark.parametrize("name", TOO_DEEP)
def test_images_that_lie_a_folder_too_deep_are_found_and_never_called_bad(name, archive, tmp_path):
    kind, root, _, paths = archive(name)
    folder = root / usual(name) / TOO_DEEP[name]
    folder.rename(folder.with_name("aside"))
    folder.mkdir()
    folder.with_name("aside").rename(folder / folder.name)
    moved = [path for path in paths if f"/{TOO_DEEP[name]}/" in f"/{path}"]
    below = f"{folder.relative_to(root)}/{folder.name}"
    found = f"the first is {moved[0]!r}; found {len(moved)} below {below!r}: move them up"
    with pytest.raises(DataError) as error:
        load(kind, root, tmp_path / "cache")
    assert str(error.value) == f"{kind}: {len(moved)} of 18 listed images are not there, {found}"
    row = prepare(kind, root).set_index("check").loc["listed images that are not there"]
    assert (row.found, row.verdict, row.detail) == (len(moved), "wrong", found)


@pytest.mark.parametrize("name", [name for name in ARCHIVES if usual(name)])
def test_an_archive_in_a_folder_of_its_own_is_read(name, archive):
    folder = usual(name).rpartition("/")[2]
    kind, root, names, paths = archive(name, f"{usual(name)}/{folder}")
    assert official.listing(kind, root).classes == tuple(names)
    assert {path for path, _ in official.listing(kind, root).files["train"]} == set(paths[:12])


def test_equal_pictures_in_both_splits_are_a_note_and_not_an_error(archive):
    kind, root, _, paths = archive("cub")
    (root / paths[12]).write_bytes((root / paths[0]).read_bytes())
    row = prepare(kind, root).set_index("check").loc["pictures in both splits"]
    assert (row.found, row.verdict) == (1, "note") and f"{paths[0]!r} = {paths[12]!r}" in row.detail


def test_the_command_shows_the_table_and_its_status_says_whether_all_is_well(archive, capsys, monkeypatch):
    _, root, *_ = archive("cub")
    monkeypatch.setenv("FGKD_DATA", str(root.parent))
    assert cli.main(["data", "cub", "--resize", "8"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 7 and shown[0].split() == ["check", "expected", "found", "verdict", "detail"]
    assert shown[2].split() == ["training", "images", "12", "12", "ok"]
    drop_the_last(root)
    assert cli.main(["data", "cub", "--root", str(root), "--resize", "8"]) == 1
    (root / "CUB_200_2011/classes.txt").unlink()
    assert cli.main(["data", "cub"]) == 2
    assert "fgkd: cub: 'classes.txt' missing in" in capsys.readouterr().err


def test_the_list_shows_what_there_is(archive, capsys, monkeypatch):
    for name in ("cub", "pets", "nabirds", "moe"):
        _, root, *_ = archive(name)
    monkeypatch.setenv("FGKD_DATA", str(root.parent))
    prepare("cub", root.parent / "cub")
    lines(root.parent / "nabirds/nabirds/classes.txt", "")
    (root.parent / "pets/oxford-iiit-pet/annotations/test.txt").unlink()
    states = official.overview().set_index("key").state
    assert (states["cub"], states["moe"], states["dogs"]) == (
        "ready at 8 pixels",
        "complete, not cached",
        "absent",
    )
    assert "'annotations/test.txt' missing" in states["pets"] and states["nabirds"].startswith("line 1 of")
    for words in (["data", "--list"], ["data"]):
        assert cli.main(words) == 0
        shown = capsys.readouterr().out.splitlines()
        assert len(shown) == 9 and [line.split()[0] for line in shown[1:]] == list(OFFICIAL)
    monkeypatch.delenv("FGKD_DATA")
    assert set(official.overview().state) == {"FGKD_DATA is not set"}


def test_a_wrong_count_is_seen_in_the_list(archive, monkeypatch):
    _, root, *_ = archive("cub")
    drop_the_last(root)
    monkeypatch.setenv("FGKD_DATA", str(root.parent))
    assert official.overview().set_index("key").state["cub"] == "5 of 6 test images"


@pytest.mark.parametrize(
    "kind, words",
    [
        (
            "nabirds",
            [
                "https://dl.allaboutbirds.org/nabirds",
                "nabirds.tar.gz (md5 df21a9e4db349a14e2b08adfd45873bd)",
                "Cornell terms",
            ],
        ),
        ("cars", ["cars_train.tgz (sha256 512b", "stanford_cars/ with car_ims, cars_annos.mat", "car_data"]),
        ("moe", ["animeface-character-dataset", "moeimouto-faces/"]),
    ],
)
def test_what_has_to_be_fetched_by_hand_is_said_with_its_source_and_place(kind, words, tmp_path, capsys):
    assert cli.main(["data", kind, "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in (*words, "by hand", str(tmp_path)))


def test_the_sizes_of_a_plan_are_known_before_the_data_are(make_study):
    counts = cost.counts(make_study({"datasets": {"cub": {"kind": "cub"}}}))
    assert counts["largest_bank_bytes"] == 2 * 5994 * 200 * 2


# fetching, from a server of this process


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, or what follows a byte where it knows `ranges`; breaks off after `cut` bytes.

    interrupts: whether it stops this process, too.
    asked: the ranges that were asked for.
    """

    files = {}
    ranges = True
    cut = None
    interrupts = False
    asked = ()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content, asked = self.server.files.get(self.path.lstrip("/")), self.headers["Range"]
        self.server.asked += (asked,)
        if content is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if asked and self.server.ranges else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + (self.server.cut or len(content))])
        if self.server.interrupts:
            os.kill(os.getpid(), signal.SIGINT)
            self.wfile.write(content[start + self.server.cut :])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as found:
        found.url = f"http://127.0.0.1:{found.server_port}"
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


CONTENT = random.Random(0).randbytes(3_000_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


def fetch(server, file, checksum=MD5):
    server.files = server.files or {"a.bin": CONTENT}
    fetching.fetch(f"{server.url}/a.bin", file, checksum, progress=False)
    return file.read_bytes() == CONTENT and os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("checksum", [MD5, f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", ""])
def test_a_file_is_fetched_whole_and_only_once(server, tmp_path, checksum):
    assert fetch(server, tmp_path / "a.bin", checksum) and fetch(server, tmp_path / "a.bin", checksum)
    assert server.asked == (None,)


@pytest.mark.fault("a broken download")
def test_a_broken_connection_keeps_the_part_and_the_next_call_asks_for_the_rest(server, tmp_path):
    server.cut = 1_000_000
    for received in (1_000_000, 2_000_000):
        with pytest.raises(
            DataError,
            match=f"cannot be fetched: the connection ended after {received:,} of 3,000,000 bytes. "
            "The same command continues",
        ):
            fetch(server, tmp_path / "a.bin")
        assert os.listdir(tmp_path) == ["a.bin.part"] and (tmp_path / "a.bin.part").stat().st_size == received
    server.cut = None
    assert fetch(server, tmp_path / "a.bin") and server.asked == (None, "bytes=1000000-", "bytes=2000000-")


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("size", [1, 1_234_567, len(CONTENT)])
def test_a_part_of_any_size_becomes_the_file(ranges, size, server, tmp_path):
    server.ranges = ranges
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:size])
    assert fetch(server, tmp_path / "a.bin")


def test_a_wrong_checksum_is_refused_and_the_spoilt_part_removed(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"spoilt" * 100)
    with pytest.raises(
        DataError, match=f"what came from .* has the md5 .*, expected {MD5[4:]}, and was removed: run again"
    ):
        fetch(server, tmp_path / "a.bin")
    assert os.listdir(tmp_path) == [] and fetch(server, tmp_path / "a.bin")


def test_a_wrong_file_of_the_users_is_refused_and_left_alone(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(
        DataError, match="a.bin' has the md5 .* it is damaged or another version; remove it and run again"
    ):
        fetch(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"mine" and server.asked == ()


def test_an_address_that_is_gone_is_said_with_a_way_out(server, tmp_path):
    server.files = {"b.bin": b""}
    with pytest.raises(
        DataError,
        match="a.bin cannot be fetched: .*404.*or fetch the file by other means and put it at '.*a.bin'",
    ):
        fetch(server, tmp_path / "a.bin")


def packed(file, folder, names, below=""):
    """These files and folders of `folder`, below `below`, in an archive of the kind that `file` ends in."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w" if file.endswith(".tar") else "w:gz") as tar:
        for name in names:
            tar.add(folder / name, f"{below}/{name}".lstrip("/"))
    return content.getvalue()


LISTS = ["images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt", "images"]
ORIGINALS = {
    "aircraft": [["data"]],
    "cub": [LISTS],
    "dogs": [["Images"], ["train_list.mat", "test_list.mat"]],
    "flowers": [["jpg"], ["imagelabels.mat"], ["setid.mat"]],
    "pets": [["images"], ["annotations"]],
}  # what each file of a set holds


@pytest.fixture
def served(archive, server, monkeypatch):
    """(kind) -> the listing of a tiny set; the server has its files, packed and named as its owner's are."""

    def serve(kind):
        _, root, *_ = archive(kind)
        base, files = root / usual(kind), []
        for file, names in zip(official.SETS[kind].files, ORIGINALS[kind], strict=True):
            content = (
                (base / file.name).read_bytes()
                if names == [file.name]
                else packed(file.name, base, names, base.name if kind in ("aircraft", "cub") else "")
            )
            server.files = server.files | {file.name: content}
            files.append(
                dataclasses.replace(
                    file,
                    url=f"{server.url}/{file.name}",
                    checksum=file.checksum and f"md5:{hashlib.md5(content).hexdigest()}",
                )
            )
        monkeypatch.setitem(official.SETS, kind, dataclasses.replace(official.SETS[kind], files=tuple(files)))
        return listed(kind, root)

    return serve


@pytest.mark.parametrize("kind", ORIGINALS)
def test_a_set_is_fetched_unpacked_and_read_as_it_was_packed(kind, served, server, tmp_path):
    expected = served(kind)
    root = tmp_path / "fetched"
    assert prepare(kind, root).verdict.tolist() == ["ok"] * 6
    assert (
        listed(kind, root) == expected
        and not list(root.rglob("*.part"))
        and not (root / ".unpacking").exists()
    )
    asked = len(server.asked)
    prepare(kind, root)
    assert len(server.asked) == asked == len(ORIGINALS[kind])


def test_a_download_that_broke_off_in_the_second_archive_fetches_the_rest_only(served, server, tmp_path):
    served("pets")
    content = server.files.pop("annotations.tar.gz")
    with pytest.raises(DataError, match="annotations.tar.gz cannot be fetched"):
        prepare("pets", tmp_path / "fetched")
    assert (tmp_path / "fetched/oxford-iiit-pet/images").is_dir()
    server.files["annotations.tar.gz"], server.asked = content, ()
    assert prepare("pets", tmp_path / "fetched").verdict.tolist() == ["ok"] * 6 and len(server.asked) == 1


@pytest.mark.parametrize("entry", LISTS)
@pytest.mark.fault("an unpacking killed")
def test_an_interrupted_unpacking_is_not_taken_for_a_whole_set(entry, served, tmp_path, monkeypatch):
    kind, expected, root, replace = "cub", served("cub"), tmp_path / "fetched", os.replace

    def interrupted(source, target):
        if target.name == entry:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(fetching.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(kind, root)
    (root / ".unpacking" / "left by a killed process").mkdir(parents=True)
    with pytest.raises(DataError, match="missing|is not in"):
        official.listing(kind, root)
    assert prepare(kind, root).verdict.tolist() == ["ok"] * 6 and listed(kind, root) == expected


@pytest.mark.fault("an archive cut short")
def test_an_archive_that_is_cut_short_is_refused_and_leaves_no_set(served, server, tmp_path):
    served("aircraft")  # the one without a checksum
    server.files = {name: content[:-3000] for name, content in server.files.items()}
    with pytest.raises(
        DataError, match="fgvc-aircraft-2013b.tar.gz' cannot be unpacked: .*; remove it and run again"
    ):
        prepare("aircraft", tmp_path / "fetched")
    assert not (tmp_path / "fetched/fgvc-aircraft-2013b/data").exists()


@pytest.mark.fault("a full disk under an unpacking")
def test_a_full_disk_keeps_the_archive_and_says_so(served, tmp_path, monkeypatch):
    served("cub")

    def fill(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torchvision.datasets.utils, "extract_archive", fill)
    with pytest.raises(DataError, match="No space left on device; free space there.* the archive is kept"):
        prepare("cub", tmp_path / "fetched")
    assert (tmp_path / "fetched/CUB_200_2011.tgz").exists() and not (tmp_path / "fetched/.unpacking").exists()


def test_an_archive_fetched_by_hand_is_checked_and_unpacked(archive, monkeypatch, tmp_path):
    kind, source, *_ = archive("nabirds")
    (file,), root = official.SETS[kind].files, tmp_path / "by hand"
    content = packed(file.name, source, ["nabirds"])
    root.mkdir()
    (root / file.name).write_bytes(content)
    with pytest.raises(
        DataError, match="nabirds.tar.gz' has the md5 .*, expected df21a9e4db349a14e2b08adfd45873bd"
    ):
        prepare(kind, root)
    file = dataclasses.replace(file, checksum=f"md5:{hashlib.md5(content).hexdigest()}")
    monkeypatch.setitem(official.SETS, kind, dataclasses.replace(official.SETS[kind], files=(file,)))
    assert prepare(kind, root).verdict.tolist() == ["ok"] * 6
    assert listed(kind, root) == listed(kind, source)


def test_an_interrupted_command_continues(served, server, tmp_path, capsys):
    served("cub")
    server.cut, server.interrupts = 5000, True
    words = ["data", "cub", "--root", str(tmp_path / "fetched"), "--resize", "8"]
    assert cli.main(words) == 2
    assert (
        "fgkd: interrupted: what was fetched is kept, the same command continues\n" in capsys.readouterr().err
    )
    assert not (tmp_path / "fetched/CUB_200_2011/images").exists()
    server.cut, server.interrupts = None, False
    assert cli.main(words) == 0


# facts


def test_the_facts_are_those_of_the_reference_table(reference):
    table = pd.read_csv(reference / "datasets.csv", keep_default_na=False).set_index("key")
    assert tuple(official.SETS) == OFFICIAL == tuple(table.index)
    for kind, facts in official.SETS.items():
        row = table.loc[kind]
        assert (facts.name, facts.classes, facts.train, facts.test, facts.licence) == (
            row["name"],
            row.classes,
            row.train_val,
            row.test,
            row.licence,
        )
        if md5 := re.search(r"archive md5 (\w{32})", row.layout):
            assert facts.files[0].checksum == f"md5:{md5[1]}"


def test_addresses_and_checksums_are_torchvisions():
    def known(kind):
        return [(file.url, file.checksum.removeprefix("md5:") or None) for file in official.SETS[kind].files]

    assert known("aircraft") == [(FGVCAircraft._URL, None)]
    assert known("flowers") == [
        (Flowers102._download_url_prefix + name, md5) for name, md5 in Flowers102._file_dict.values()
    ]
    assert known("pets") == list(OxfordIIITPet._RESOURCES)
