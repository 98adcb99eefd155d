"""What `fgkd choose` says of a folder of photos, and where each photo goes."""

import shutil

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from fgkd.choose import audit as audits
from fgkd.data.images import DataError
from fgkd.study import StudyError


def photo(file, seed, side=64):
    """A picture of soft blobs with sharp edges, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(40, 200, (5, 5, 3), dtype=np.uint8)).resize((side, side))
    sharp = Image.fromarray(rng.integers(40, 200, (7, 7, 3), dtype=np.uint8)).resize((side, side), 0)
    image = Image.blend(soft, sharp, 0.5)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return image


def photos(root, counts, side=64):
    """Folders with so many pictures each, all different."""
    seed = 0
    for folder, number in counts.items():
        for i in range(number):
            seed += 1
            photo(root / folder / f"{i}.png", seed, side)
    return root


@pytest.fixture
def look(tmp_path):
    """(root) -> its audit."""
    return lambda root: audits.look(root, tmp_path / "audit.json")


@pytest.fixture
def split(tmp_path):
    return photos(tmp_path / "garden", {"train/a": 10, "train/b": 5, "test/a": 3, "test/b": 2})


def uses(audit):
    return dict(zip(audit.photos.path, audit.photos.use, strict=True))


def test_a_folder_with_a_split_keeps_its_test_photos_and_holds_out_a_fifth_of_each_class(look, split):
    audit = look(split)
    assert audit.is_split and audit.classes == 2 and audit.findings() == []
    table = audit.table().set_index("part")
    assert table.photos.to_dict() == {"train": 12, "train, held out": 3, "test": 5}
    assert table["smallest class"].to_dict() == {"train": 4, "train, held out": 1, "test": 2}
    assert {path for path, use in uses(audit).items() if use == "test"} == {
        *(f"test/a/{i}.png" for i in range(3)),
        *(f"test/b/{i}.png" for i in range(2)),
    }


def test_a_folder_without_a_split_gets_one_of_a_fifth_of_each_class(look, tmp_path):
    audit = look(photos(tmp_path / "garden", {"a": 10, "b": 5}))
    assert not audit.is_split
    counts = audit.photos.groupby(["label", "use"]).size().to_dict()
    assert counts == {
        ("a", "held out"): 2,
        ("a", "test"): 2,
        ("a", "train"): 6,
        ("b", "held out"): 1,
        ("b", "test"): 1,
        ("b", "train"): 3,
    }


def test_classes_named_train_and_test_as_one_of_several_are_no_split(look, tmp_path):
    audit = look(photos(tmp_path / "garden", {"train/x/y": 5, "bus/z": 5}))
    assert not audit.is_split and set(audit.photos.label) == {"train", "bus"}
    assert "the photos in folders inside 'bus', 'train' count as that class" in audit.findings()


def test_photos_that_cannot_be_read_are_named_and_left_out(look, split):
    (split / "train/a/0.png").write_bytes(b"no image")
    (split / "train/a/1.png").write_bytes((split / "train/a/2.png").read_bytes()[:300])
    (split / "train/a/3.png").unlink()
    (split / "train/a/3.png").symlink_to("nowhere.png")
    (split / "train/a/notes.txt").write_text("x")
    audit = look(split)
    bad = {path for path, use in uses(audit).items() if use == ""}
    assert bad == {"train/a/0.png", "train/a/1.png", "train/a/3.png"}
    (notes, sentence) = audit.findings()
    assert notes == "left out, since Pillow opens no such images: 1 '*.txt'"
    assert sentence.startswith("3 files cannot be read and are left out: 'train/a/0.png' (not an image")
    assert "'train/a/3.png' (No such file or directory)" in sentence


def test_copies_are_found_though_scaled_compressed_or_brightened_and_other_photos_are_not(look, split):
    original = Image.open(split / "train/a/0.png")
    changed = {
        "scaled": original.resize((40, 40)),
        "brighter": ImageEnhance.Brightness(original).enhance(1.1),
        "softer": original.filter(ImageFilter.GaussianBlur(0.5)),
    }
    for name, image in changed.items():
        image.save(split / f"train/a/{name}.png")
    original.save(split / "train/a/compressed.jpg", quality=60)
    original.crop((16, 16, 48, 48)).save(split / "train/a/cropped.png")
    audit = look(split)
    groups = audit.photos.groupby("group").path.agg(sorted)
    (copies,) = [paths for paths in groups if len(paths) > 1]
    names = ("0.png", "brighter.png", "compressed.jpg", "scaled.png", "softer.png")
    assert copies == [f"train/a/{name}" for name in names]
    (sentence,) = audit.findings()
    assert sentence.startswith("5 photos (train/a/0.png = train/a/brighter.png") and "near copies" in sentence


def test_a_copy_of_a_test_photo_is_left_out_of_training(look, split):
    shutil.copy(split / "test/a/0.png", split / "train/a/copy.png")
    Image.open(split / "test/b/1.png").resize((50, 50)).save(split / "train/b/near.png")
    audit = look(split)
    assert [path for path, use in uses(audit).items() if use == ""] == [
        "train/a/copy.png",
        "train/b/near.png",
    ]
    assert any(
        sentence.startswith("2 of the folder's training photos are copies of test photos")
        for sentence in audit.findings()
    )


def test_copies_stay_on_one_side_of_the_splits_that_a_folder_gets(look, tmp_path):
    root = photos(tmp_path / "garden", {"a": 12, "b": 12})
    for i in range(12):
        shutil.copy(root / f"a/{i}.png", root / f"a/{i}-again.png")
    audit = look(root)
    assert audit.photos.groupby("group").use.nunique().max() == 1
    assert audit.count("train", "held out", "test") == 36


def test_a_photo_with_two_labels_is_reported(look, split):
    shutil.copy(split / "train/a/0.png", split / "train/b/other.png")
    found = " ".join(look(split).findings())
    assert (
        "2 photos (train/a/0.png = train/b/other.png) are the same file with two labels: correct them"
        in found
    )


def test_no_photo_is_read_twice_and_a_changed_one_is(look, split, monkeypatch):
    first = look(split)
    read = []
    monkeypatch.setattr(audits, "_read", lambda file: read.append(file.name) or [64, file.name, "0" * 64, ""])
    assert look(split).photos.equals(first.photos) and read == []
    photo(split / "train/a/0.png", 99, side=65)
    look(split)
    assert read == ["0.png"]


def test_links_lay_out_both_studies_and_follow_a_change(look, split, tmp_path):
    audit = look(split)
    audits.link(audit, tmp_path / "out")
    laid_out = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png"))
    assert sum(name.startswith("photos/train/") for name in laid_out) == 15
    assert sum(name.startswith("photos/test/") for name in laid_out) == 5
    assert sum(name.startswith("selection_photos/train/") for name in laid_out) == 12
    assert sum(name.startswith("selection_photos/test/") for name in laid_out) == 3
    linked = tmp_path / "out/photos/train/a/0.png"
    assert linked.read_bytes() == (split / "train/a/0.png").read_bytes()
    (split / "train/a/0.png").unlink()
    audits.link(look(split), tmp_path / "out")
    assert not linked.is_symlink()


def test_the_sizes_are_those_of_the_median_photo_up_to_256(look, tmp_path):
    assert look(photos(tmp_path / "small", {"a": 3, "b": 3}, side=70)).sizes == (64, 56)
    assert look(photos(tmp_path / "large", {"a": 3, "b": 3}, side=400)).sizes == (256, 224)


# Bad input


def test_too_few_photos_of_a_class_are_refused_with_its_name(look, tmp_path):
    root = photos(tmp_path / "garden", {"rose": 2, "tulip": 6})
    with pytest.raises(StudyError, match="'rose': too few photos.*3 different photos or more"):
        look(root)
    root = photos(tmp_path / "split", {"train/rose": 1, "test/rose": 2, "train/tulip": 3, "test/tulip": 1})
    with pytest.raises(
        StudyError, match="'rose': too few photos.*2 different training photos and 1 test photo"
    ):
        look(root)


def test_a_class_whose_photos_are_all_copies_or_unreadable_is_refused_with_its_name(look, tmp_path):
    root = photos(tmp_path / "garden", {"rose": 1, "tulip": 6})
    for name in ("b", "c", "d"):
        shutil.copy(root / "rose/0.png", root / f"rose/{name}.png")
    with pytest.raises(StudyError, match="'rose': too few"):
        look(root)
    for file in (root / "tulip").iterdir():
        file.write_bytes(b"")
    with pytest.raises(StudyError, match="'rose', 'tulip': too few"):
        look(root)


def test_one_class_no_class_and_no_image_are_refused(look, tmp_path):
    with pytest.raises(DataError, match="'a' is the only class"):
        look(photos(tmp_path / "one", {"a": 5}))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        look(tmp_path / "none")
    root = photos(tmp_path / "empty", {"a": 5, "b": 5})
    (root / "c").mkdir()
    (root / "c" / "x.txt").write_text("x")
    with pytest.raises(DataError, match="no image in 'c'"):
        look(root)


def test_a_thousand_classes_are_taken(look, tmp_path):
    root = tmp_path / "many"
    rng = np.random.default_rng(0)
    for label in range(1000):
        (root / f"{label:04}").mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                root / f"{label:04}/{i}.bmp"
            )
    audit = look(root)
    assert audit.classes == 1000
    assert (audit.count("train"), audit.count("held out"), audit.count("test")) == (1000, 1000, 1000)
