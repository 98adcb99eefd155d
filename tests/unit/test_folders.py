"""Image folders, birds, and the cache: what is read, what is refused, and when it is built anew."""

import errno
import multiprocessing
import os
import re
import struct
import time
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

from fgkd.data import birds, datasets, folders
from fgkd.data.datasets import check, load
from fgkd.data.images import DataError, decode
from fgkd.study import DataSpec, StudyError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def spec(root=None, **changes):
    small = {"species": 4, "family_size": 2, "train": 3, "test": 2, "resize": 8}
    return DataSpec(**{"key": "set", "kind": "folder", "root": root and str(root), **small, **changes})


def picture(path, seed=0, size=(12, 10)):
    """A small picture of noise, different for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def folder(root, counts):
    """root/<name>/<i>.png for each name and count; every picture differs."""
    seed = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            seed += 1
            picture(root / name / f"{i}.png", seed)
    return root


def split_folder(root):
    return folder(root, {"train/a": 3, "train/b": 2, "test/a": 1, "test/b": 2})


def fails(expected, *args, **options):
    with pytest.raises(DataError) as caught:
        load(*args, progress=False, **options)
    for text in [expected] if isinstance(expected, str) else expected:
        assert text in str(caught.value)
    return str(caught.value)


# decode

MODES = {
    "RGB": (RED, "png", RED),
    "L": (100, "png", (100,) * 3),
    "1": (1, "png", WHITE),
    "CMYK": ((0, 255, 255, 0), "tif", RED),
    "RGBA": ((255, 0, 0, 0), "png", WHITE),
    "LA": ((0, 0), "png", WHITE),
    "I;16": (257 * 40, "png", (40,) * 3),
    "I;16B": (257 * 40, "tif", (40,) * 3),
    "I": (257 * 40, "tif", (40,) * 3),
    "YCbCr": ((128, 128, 128), "tif", (128,) * 3),
    "LAB": ((255, 128, 128), "tif", WHITE),
}  # mode: (value, format that keeps the mode, expected RGB)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode, tmp_path):
    value, ending, expected = MODES[mode]
    path = tmp_path / f"x.{ending}"
    Image.new(mode, (6, 4), value).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    pixels = decode(path, 8)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_half_transparent_red_over_white_is_pink(tmp_path):
    Image.new("RGBA", (6, 4), (255, 0, 0, 128)).save(tmp_path / "x.png")
    assert np.abs(decode(tmp_path / "x.png", 4).astype(int) - (255, 127, 127)).max() <= 1


@pytest.mark.parametrize("mode, value", [("P", 1), ("L", 7), ("RGB", RED)])
def test_a_transparent_colour_becomes_white(mode, value, tmp_path):
    image = Image.new(mode, (6, 4), value)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "x.png", transparency=value)
    assert (decode(tmp_path / "x.png", 4) == 255).all()


def test_a_palette_is_looked_up_before_resizing(tmp_path):
    image = Image.frombytes("P", (4, 4), bytes([0] * 8 + [2] * 8))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png", 16)[..., 1].max() == 0  # interpolated indices would pass through green


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_is_turned_as_its_exif_says(orientation, tmp_path):
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4, :4], upright[:4, 4:], upright[4:, :4] = RED, GREEN, BLUE
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    assert (decode(tmp_path / "x.png", 8) == upright).all()


def test_sixteen_bits_use_the_whole_range_and_do_not_clip(tmp_path):
    values = np.array([[0, 257 * 10, 30000, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    row = decode(tmp_path / "x.png", 4)[0, :, 0]
    assert row.tolist() == [0, 10, round(30000 / 257), 255]


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0, 0.25, 0.5, 1], [0, 64, 128, 255]),
        ([0, 10, 100, 255], [0, 10, 100, 255]),
        ([0, 257, 2570, 65535], [0, 1, 10, 255]),
        ([-2, -1, 0, 2], [0, 64, 128, 255]),
        ([9e9] * 4, [0] * 4),
    ],
)
def test_float_grey_is_scaled_by_the_smallest_usual_range_or_its_own(values, expected, tmp_path):
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "x.tif")
    assert decode(tmp_path / "x.tif", 4)[0, :, 0].tolist() == expected


def test_integer_grey_up_to_255_is_taken_as_it_is(tmp_path):
    Image.fromarray(np.array([[0, 1, 100, 200]], np.int32)).save(tmp_path / "x.tif")
    assert decode(tmp_path / "x.tif", 4)[0, :, 0].tolist() == [0, 1, 100, 200]


@pytest.mark.fault("NaN pixels")
def test_nan_pixels_are_refused(tmp_path):
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match="NaN"):
        decode(tmp_path / "x.tif", 4)


def test_the_whole_picture_is_squashed_with_bicubic(tmp_path):
    path = picture(tmp_path / "x.png", size=(30, 20))
    expected = Image.open(path).resize((8, 8), Image.Resampling.BICUBIC)
    assert (decode(path, 8) == np.asarray(expected)).all()


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "tif", "webp", "gif"])
@pytest.mark.fault("a photo cut short")
def test_a_truncated_file_is_an_error_that_names_it(ending, tmp_path):
    path = picture(tmp_path / f"x.{ending}", size=(64, 64))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=f"x.{ending}"):
        decode(path, 8)


# folders


def test_a_split_folder_is_read_as_it_is(tmp_path):
    root = split_folder(tmp_path / "root")
    data = load(spec(root), tmp_path / "cache", progress=False)
    assert data.classes == ("a", "b") and data.families is None and data.notes == ()
    assert data.train.names == (
        "train/a/0.png",
        "train/a/1.png",
        "train/a/2.png",
        "train/b/0.png",
        "train/b/1.png",
    )
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1] and data.train.labels.dtype == np.int64
    assert len(data.test) == 3 and data.test.boxes is None
    for split in (data.train, data.test):
        for image, name in zip(split.images, split.names):
            assert (image == decode(root / name, 8)).all()


def test_images_are_mapped_read_only(tmp_path):
    data = load(spec(split_folder(tmp_path / "root")), tmp_path / "cache", progress=False)
    assert isinstance(data.train.images, np.memmap) and not data.train.images.flags.writeable


def test_class_folders_are_split_within_each_class(tmp_path):
    root = folder(tmp_path / "root", {"a": 10, "b": 2, "c": 3})
    data = load(spec(root, test_fraction=0.3), tmp_path / "cache", progress=False)
    assert np.bincount(data.train.labels).tolist() == [7, 1, 2] and np.bincount(
        data.test.labels
    ).tolist() == [3, 1, 1]
    assert not set(data.train.names) & set(data.test.names)
    assert len(set(data.train.names) | set(data.test.names)) == 15


def test_the_split_depends_on_the_seed_only(tmp_path):
    root = folder(tmp_path / "root", {"a": 20, "b": 20, "c": 20})
    names = [
        load(spec(root, **o), tmp_path / str(i), progress=False).test.names
        for i, o in enumerate([{}, {}, {"seed": 1}, {"classes": ("c", "a")}])
    ]
    assert names[0] == names[1] != names[2]
    assert names[3] == tuple(name for name in names[0] if not name.startswith("b"))


def test_a_new_image_moves_at_most_one_other_across_the_split(tmp_path):
    root = folder(tmp_path / "root", {"a": 20, "b": 2})
    before = set(load(spec(root), tmp_path / "cache", progress=False).test.names)
    picture(root / "a" / "new.png", 99)
    after = set(load(spec(root), tmp_path / "cache", progress=False).test.names)
    assert len((before ^ after) - {"a/new.png"}) <= 1


def test_only_the_chosen_classes_are_used_and_checked(tmp_path):
    root = folder(tmp_path / "root", {"a": 2, "b": 2, "single": 1, "empty": 0})
    assert load(spec(root, classes=("b", "a")), tmp_path / "cache", progress=False).classes == ("a", "b")


def test_nested_upper_case_and_hidden_files(tmp_path):
    root = folder(tmp_path / "root", {"a": 2, "b": 2, ".git": 2})
    picture(root / "a/deep/er/X.PNG", 90)
    picture(root / "a/.hidden.png", 91)
    picture(root / "a/.thumbs/x.png", 92)
    (root / "a" / "notes.txt").write_text("no image")
    (root / "a" / "loop").symlink_to(root / "a")
    data = load(spec(root), tmp_path / "cache", progress=False)
    expected = {"a/0.png", "a/1.png", "a/deep/er/X.PNG", "b/0.png", "b/1.png"}
    assert set(data.train.names + data.test.names) == expected
    assert data.notes == (
        "left out, since Pillow opens no such images: 1 '*.txt'",
        "the photos in folders inside 'a' count as that class",
        "left out, since they are links to folders: 'a/loop'",
    )


def test_a_third_folder_beside_train_and_test_is_noted(tmp_path):
    root = folder(split_folder(tmp_path / "root"), {"val/a": 1})
    data = load(spec(root), tmp_path / "cache", progress=False)
    assert data.notes == ("left out, since only train/ and test/ are used: 'val'",) and len(data.train) == 5


def test_odd_names_survive(tmp_path):
    odd = [
        'it\'s "so"',
        "a\nb",
        "<script>",
        "-rf",
        " space ",
        "Grünspecht \U0001f426",
    ]
    root = folder(tmp_path / "root", dict.fromkeys(odd, 2))
    for _ in range(2):
        data = load(spec(root), tmp_path / "cache", progress=False)
        assert data.classes == tuple(sorted(odd))
        assert all((root / name).exists() for name in data.train.names + data.test.names)


def test_a_picture_in_both_splits_is_noted_and_counted(tmp_path):
    root = split_folder(tmp_path / "root")
    (root / "test/b/copy.png").write_bytes((root / "train/a/1.png").read_bytes())
    for _ in range(2):
        data = load(spec(root), tmp_path / "cache", progress=False)
        assert len(data.notes) == 1 and data.notes[0].startswith("1 of 4 test images are also in train")
        assert "'train/a/1.png' = 'test/b/copy.png'" in data.notes[0]
        assert check(data).in_both_splits.tolist() == [1, 1]


def test_near_copies_across_the_splits_are_noted_and_change_nothing_else(tmp_path):
    root = split_folder(tmp_path / "root")
    noise = Image.open(picture(tmp_path / "noise.png", 7, (8, 8)))
    soft = Image.blend(noise.resize((90, 80)), noise.resize((90, 80), Image.Resampling.NEAREST), 0.5)
    soft.save(root / "train/a/9.png")
    before = load(spec(root, resize=32), tmp_path / "cache", progress=False)
    soft.resize((70, 60)).save(root / "test/b/near.jpg", quality=80)
    for _ in range(2):
        data = load(spec(root, resize=32), tmp_path / "cache", progress=False)
        assert data.notes == (
            "1 of 4 test images are near copies of images in train, which flatters accuracy: "
            "'train/a/9.png' ~ 'test/b/near.jpg'",
        )
        assert (data.train.images == before.train.images).all() and before.notes == ()


def test_check_counts_by_hand(tmp_path):
    table = check(load(spec(split_folder(tmp_path / "root")), tmp_path / "cache", progress=False))
    assert table.to_dict("list") == {
        "split": ["train", "test"],
        "images": [5, 3],
        "classes": [2, 2],
        "smallest_class": [2, 1],
        "largest_class": [3, 2],
        "unreadable": [0, 0],
        "in_both_splits": [0, 0],
    }


# photos as they should not be


def chunk(name, content, checksum=None):
    """A chunk of a PNG."""
    checksum = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


METADATA = {
    "cut EXIF": chunk(b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03"),
    "text too large": chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(2_000_000))),
    "texts too many": chunk(b"tEXt", b"note\0" + bytes(999_000)) * 70,
    "wrong checksum": chunk(b"tEXt", b"note\0hello", checksum=1),
    "odd profile": chunk(b"iCCP", b"name\0\x05hello"),
    "cut profile": chunk(b"iCCP", b"name\0"),
    "short resolution": chunk(b"pHYs", b"1"),
    "short gamma": chunk(b"gAMA", b"1"),
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.fault("a photo with broken metadata")
def test_metadata_decide_nothing_about_the_pixels_and_are_noted(name, tmp_path):
    root = split_folder(tmp_path / "root")
    file = root / "train/a/1.png"
    expected, content = decode(file, 8), file.read_bytes()
    file.write_bytes(content[:33] + METADATA[name] + content[33:])
    for _ in range(2):
        data = load(spec(root), tmp_path / "cache", progress=False)
        assert (data.train.images[1] == expected).all()
        (note,) = data.notes
        assert note.startswith("metadata that cannot be read are left aside: 'train/a/1.png' (")


def test_a_turn_is_found_beside_metadata_that_cannot_be_read(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = picture(tmp_path / "x.webp", size=(20, 10))
    Image.open(photo).save(photo, exif=exif, xmp=b"<x", icc_profile=b"no profile", lossless=True)
    expected = Image.open(photo).convert("RGB").transpose(Image.Transpose.ROTATE_270).resize((8, 8), 3)
    assert (decode(photo, 8) == np.asarray(expected)).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_a_photo_of_too_many_pixels_is_refused_by_its_header(mode, tmp_path, monkeypatch):
    Image.new(mode, (200, 100)).save(tmp_path / "x.png")
    for limit, words in (
        ("19999", "more pixels than 19,999; FGKD_MAX_PIXELS"),
        ("many", "'many', expected a who"),
    ):
        monkeypatch.setenv("FGKD_MAX_PIXELS", limit)
        with pytest.raises(DataError, match=words):
            decode(tmp_path / "x.png", 4)
    monkeypatch.setenv("FGKD_MAX_PIXELS", "20000")
    assert decode(tmp_path / "x.png", 4).shape == (4, 4, 3)
    monkeypatch.setenv("FGKD_MAX_PIXELS", "1000")  # less than half as many, which Pillow itself refuses
    with pytest.raises(DataError, match="more pixels than 1,000; FGKD_MAX_PIXELS"):
        decode(tmp_path / "x.png", 4)


@pytest.mark.parametrize("size", [(3000, 2500), (5, 2_100_000)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "F"])
def test_a_large_photo_is_converted_by_strips_as_if_at_once(mode, size, tmp_path):
    small = np.random.default_rng(0).random((10, 5))
    values = np.resize(small, size[::-1])
    if mode in ("I;16", "F"):
        image = Image.fromarray(
            (values * 65535).astype(np.uint16) if mode == "I;16" else values.astype(np.float32)
        )
        whole = np.rint(np.asarray(image, np.float64) * 255 / (65535 if mode == "I;16" else 1)).astype(
            np.uint8
        )
        whole = Image.fromarray(whole).convert("RGB")
    else:
        grey = Image.fromarray((values * 255).astype(np.uint8))
        image = Image.merge(mode, [grey] * len(mode))
        white = Image.new("RGBA", image.size, "white")
        whole = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    image.save(tmp_path / "x.tif")
    assert (decode(tmp_path / "x.tif", 6) == np.asarray(whole.resize((6, 6), Image.Resampling.BICUBIC))).all()


def test_postscript_under_another_name_is_no_photo(tmp_path):
    (tmp_path / "x.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    )
    with pytest.raises(DataError, match="not an image that Pillow can read"):
        decode(tmp_path / "x.jpg", 8)


# layouts: folders -> the splits as they are listed, words of the notes, or of the refusal

TWO = ("moss", "ruby")


def both(*tops):
    """Folders of both classes below each of these."""
    return [f"{top}/{name}".lstrip("/") for top in tops for name in TWO]


LAYOUTS = {
    "kaggle": (both("training_set/training_set", "test_set/test_set"), "training_set", "test_set"),
    "intel": ([*both("seg_train/seg_train", "seg_test/seg_test"), "seg_pred"], "seg_train", "seg_test"),
    "capitals": (both("Train", "Test"), "Train", "Test"),
    "images first": (both("train_images", "test_images"), "train_images", "test_images"),
    "images last": (both("images-train", "images-test"), "images-train", "images-test"),
    "glued": (both("trainImages", "testset"), "trainImages", "testset"),
    "wrapped": (both("data/Training", "data/Testing"), "data/Training", "data/Testing"),
    "numbers": (both("train1", "test1"), "train1", "test1"),
    "with a name": (both("pets_train", "pets_test"), "pets_train", "pets_test"),
    "another language": (both("entraînement", "teste"), "entraînement", "teste"),
    "yolo": ([*both("images/train", "images/val"), "labels"], "images/train", "images/val"),
    "val alone": (both("train", "val"), "train", "val"),
    "valid": (both("train", "valid"), "train", "valid"),
    "dev": (both("Training", "dev"), "Training", "dev"),
    "val beside test": (both("train", "val", "test"), "train", "test"),
    "unlabeled test": ([*both("train", "val"), "test1"], "train", "val"),
    "exact names first": (both("train", "test", "test2"), "train", "test"),
    "archive": (both("archive/train", "archive/test"), "archive/train", "archive/test"),
    "system folders": ([*both("train", "test"), "__MACOSX/x", "@eaDir/y"], "train", "test"),
    "by class": (
        [f"{name}/{split}" for name in TWO for split in ("train", "val", "test")],
        "/train/",
        "/test/",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_are_read_as_their_names_mean_and_no_test_photo_is_trained_on(layout, tmp_path):
    paths, train, test = LAYOUTS[layout]
    root = folder(tmp_path / "root", dict.fromkeys(paths, 2))
    for empty in ("seg_pred", "labels", "test1"):
        for number in range(2 if empty in paths else 0):
            (root / empty / f"{number}.png").rename(
                root / empty / f"{number}.{'png' if empty == 'test1' else 'txt'}"
            )
    listing = folders.list_images(spec(root))
    assert listing.classes == TWO and listing.is_split
    for split, top in (("train", train), ("test", test)):
        assert len(listing.files[split]) == 4
        for path, label in listing.files[split]:
            assert top in f"/{path}" if "/" in top[:1] else path.startswith(f"{top}/"), listing.files
            assert f"/{TWO[label]}/" in f"/{path}"
    assert listing.notes


@pytest.mark.parametrize(
    "paths, words",
    [
        (both("train", "val"), "read for training: 'train', for test: 'val'"),
        (both("train", "val", "test"), "left out, since only train/ and test/ are used: 'val'"),
        (both("Train", "Val", "test_x"), "only Train/ and Val/ are used: 'test_x'"),
        ([*both("train"), "test1"], "for test: 'a part of it'"),
        (both("pets/pets"), "read from 'pets/pets'"),
        (both("images"), "read from 'images'"),
        ([*both(""), "moss/@eaDir/x.jpg"], "folders of a system or program: 'moss/@eaDir'"),
        ([*both(""), "."], "left out, since they are in no class folder: 2 photos in"),
        ([*both("train", "test"), "train"], "2 photos in '.*train'"),
        ([*both(""), "moss/wet/deep"], "the photos in folders inside 'moss' count as that class"),
        (
            ["train/Moss", "test/moss", "train/ruby", "test/ruby"],
            "in two Unicode forms or cases: 'Moss', 'moss'",
        ),
        (
            ["cafe\u0301", "caf\u00e9", "ruby"],
            "one class, of names in two Unicode forms or cases: 'cafe.', 'caf.'",
        ),
        (
            ["train/cafe\u0301", "test/caf\u00e9", *both("train", "test")],
            "one class, of names in two Unicode forms",
        ),
    ],
)
def test_what_is_read_otherwise_than_it_is_named_is_noted(paths, words, tmp_path):
    listing = folders.list_images(spec(folder(tmp_path / "root", dict.fromkeys(paths, 2))))
    assert any(re.search(words, note) for note in listing.notes), listing.notes
    assert len(listing.classes) == len({unicodedata.normalize("NFC", name) for name in listing.classes})


@pytest.mark.parametrize(
    "paths, words",
    [
        (["train/a"], "expected both 'train' and 'test'"),
        (both("val", "test"), "expected both 'train' and 'test'"),
        (both("train_images", "extra"), "expected both 'train' and 'test'"),
        (["train", "test"], "no class folders in .*, but 4 photos"),
        (both("train1", "train2", "test"), "'train1', 'train2' of .* are all for train"),
        (
            ["moss/train", "moss/test", "ruby/train"],
            "'ruby' of .* do not hold folders for training and for test",
        ),
        (["train/Moss", "train/MOSS", "test/moss"], "without counterpart"),
        (both("train_new", "test"), "expected both 'train' and 'test'"),
        (
            both("fold1/train", "fold1/test", "fold2/train", "fold2/test"),
            "'fold1', 'fold2' of .* name one of them",
        ),
        (both("train") + ["test/unknown"], "without counterpart"),
        ([os.fsdecode(b"bad\xff"), "ruby"], "'bad.udcff' in .* are not UTF-8: rename these"),
    ],
)
def test_folders_that_may_mean_several_things_are_refused(paths, words, tmp_path):
    with pytest.raises(DataError, match=words):
        folders.list_images(spec(folder(tmp_path / "root", dict.fromkeys(paths, 2))))


@pytest.mark.parametrize("ending", ["HEIC", "nef", "mp4", "eps", "fits", ""])
def test_folders_of_other_files_are_refused_with_their_endings(ending, tmp_path):
    for name in TWO:
        for number in range(3):
            file = tmp_path / name / f"IMG_{number}{'.' if ending else ''}{ending}"
            file.parent.mkdir(exist_ok=True)
            file.touch()
    found = f"'*.{ending.lower()}'" if ending else "'*'"
    with pytest.raises(DataError) as error:
        folders.list_images(spec(tmp_path))
    assert f"no image in 'moss', 'ruby' of {str(tmp_path)!r}; what is there, 6 {found}, Pillow does" in str(
        error.value
    )


@pytest.mark.parametrize(
    "names",
    [
        ("train", "bus"),
        ("valid", "invalid"),
        ("freight train", "test tube"),
        ("dev1", "dev2", "dev3"),
        ("001", "002"),
    ],
)
def test_classes_with_names_like_splits_stay_classes(names, tmp_path):
    listing = folders.list_images(spec(folder(tmp_path / "root", dict.fromkeys(names, 2))))
    assert listing.classes == tuple(sorted(names)) and listing.notes == () and not listing.is_split


@pytest.mark.parametrize("below", ["", "tiny", "tiny/data", "elsewhere"])
def test_photos_in_which_the_results_would_lie_are_refused_at_once(below, tiny, make_study):
    root = tiny.folder.parent / below
    changes = {"datasets": {"photos": {"kind": "folder", "root": str(root)}}}
    if below in ("", "tiny"):
        with pytest.raises(StudyError, match="in which the results of the study would lie .*FGKD_RUNS"):
            make_study(changes)
    else:
        assert make_study(changes).data("photos").root == str(root)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    root = folder(tmp_path / "photos", {"a": 2, "b": 2})
    scandir = os.scandir

    def refuse(path):
        if path == root / "b":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    with pytest.raises(
        DataError, match="set: '.*/photos/b' cannot be read .Permission denied.; change its perm"
    ):
        folders.list_images(spec(root))


# a file that says which photo is where


def split_file(tmp_path, *lines, header="class,path,split"):
    """A folder of photos, and the study's entry with a split file of these lines."""
    root = folder(tmp_path / "root", {"x": 4, "y": 4})
    (tmp_path / "split.csv").write_text("\ufeff" + "\n".join([header, *lines]) + "\n", encoding="utf-8")
    return spec(root, split=str(tmp_path / "split.csv"))


LINES = ("ruby,x/0.png,train", "ruby,x/1.png,test", "moss,y/0.png,Training", "moss,y/1.png,test")


def test_a_split_file_says_class_and_split_of_each_photo(tmp_path):
    data = load(split_file(tmp_path, *LINES, "moss,y/2.png,val"), tmp_path / "cache", progress=False)
    assert data.classes == ("moss", "ruby")
    assert data.train.names == ("y/0.png", "x/0.png") and data.train.labels.tolist() == [0, 1]
    assert data.test.names == ("y/1.png", "x/1.png")
    (tmp_path / "split.csv").write_text(
        (tmp_path / "split.csv").read_text().replace("y/2.png,val", "y/2.png,test")
    )
    changed = load(
        spec(tmp_path / "root", split=str(tmp_path / "split.csv")), tmp_path / "cache", progress=False
    )
    assert changed.fingerprint != data.fingerprint and len(changed.test) == 3
    assert data.notes == ("split by 'split.csv'", "left out, as there is a test split: 1 for validation")


@pytest.mark.parametrize(
    "line, message",
    [
        ("moss,y/9.png,train", "line 6 of '.*split.csv' has 'y/9.png', which is not there"),
        ("moss,../z.png,train", "line 6 .*'../z.png', which is not there below"),
        ("moss,x/0.png,test", "line 6 .*'x/0.png', which line 2 has, too"),
        ("moss,y/2.png,later", "line 6 .*the split 'later': expected train or test"),
        (",y/2.png,train", "line 6 .* has no class"),
        ("moss,y/2.png", "line 6 .* has no split"),
        ("bark,y/2.png,train", "'train/bark' without counterpart"),
    ],
)
def test_a_wrong_line_of_a_split_file_is_named(line, message, tmp_path):
    with pytest.raises(DataError, match=message):
        folders.list_images(split_file(tmp_path, *LINES, line))


def test_a_split_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="the first line of .*class_id.*: expected class,path,split"):
        folders.list_images(split_file(tmp_path, header="class_id,dir,split"))
    with pytest.raises(DataError, match="there is no class in .*; at least two are needed"):
        folders.list_images(split_file(tmp_path))
    with pytest.raises(DataError, match="nowhere.csv' cannot be read .No such file"):
        folders.list_images(spec(tmp_path / "root", split=str(tmp_path / "nowhere.csv")))
    (tmp_path / "split.csv").write_bytes(b"class,path,split\n\xff,x/0.png,train\n")
    with pytest.raises(DataError, match="split.csv' cannot be read .'utf-8' codec"):
        folders.list_images(spec(tmp_path / "root", split=str(tmp_path / "split.csv")))


# refusals


@pytest.mark.fault("an absent data set")
def test_an_absent_root_is_named(tmp_path):
    fails(["nowhere", "is not a folder"], spec(tmp_path / "nowhere"), tmp_path / "cache")
    fails("root None", spec(), tmp_path / "cache")


def test_a_root_without_class_folders_is_refused(tmp_path):
    picture(tmp_path / "root" / "loose.png")
    fails("no class folders", spec(tmp_path / "root"), tmp_path / "cache")


def test_a_single_class_is_refused(tmp_path):
    fails("'a' is the only class", spec(folder(tmp_path / "root", {"a": 3})), tmp_path / "cache")


def test_classes_of_one_split_only_are_all_named(tmp_path):
    root = folder(split_folder(tmp_path / "root"), {"test/x": 1, "test/y": 1, "train/z": 1})
    fails("'train/z', 'test/x', 'test/y' without counterpart", spec(root), tmp_path / "cache")


def test_empty_class_folders_are_all_named(tmp_path):
    root = folder(split_folder(tmp_path / "root"), {"train/c": 0, "test/c": 1, "train/d": 1, "test/d": 0})
    fails("no image in 'train/c', 'test/d'", spec(root), tmp_path / "cache")


def test_classes_with_one_image_cannot_be_split(tmp_path):
    root = folder(tmp_path / "root", {"a": 2, "x": 1, "y": 1})
    fails("only one image of 'x', 'y'", spec(root), tmp_path / "cache")


def test_an_unknown_class_is_named_with_its_nearest(tmp_path):
    root = folder(tmp_path / "root", {"sparrow": 2, "robin": 2})
    fails(
        ["classes 'sparow', 'zzz' not found", "did you mean 'sparrow' for 'sparow'?"],
        spec(root, classes=("sparow", "zzz", "robin")),
        tmp_path / "cache",
    )


def test_all_bad_images_are_named_at_once_with_their_reasons(tmp_path):
    root = split_folder(tmp_path / "root")
    (root / "train/a/empty.png").touch()
    (root / "train/b/text.jpg").write_text("not a picture")
    (root / "test/a/gone.png").symlink_to(tmp_path / "gone.png")
    data = picture(root / "test/b/half.png", 50, (64, 64)).read_bytes()
    (root / "test/b/half.png").write_bytes(data[: len(data) // 2])
    message = fails("3 of 12 images", spec(root), tmp_path / "cache")
    assert message.startswith(
        "set: 1 of 12 listed images are not there, the first is 'test/a/gone.png'; put "
    )
    for name, reason in [
        ("train/a/empty.png", "empty file"),
        ("train/b/text.jpg", "not an image"),
        ("test/b/half.png", "truncated"),
    ]:
        assert any(name in line and reason in line for line in message.splitlines())
    assert os.listdir(tmp_path / "cache") == [".lock"]


def test_a_long_list_of_bad_images_is_cut_with_a_count(tmp_path):
    root = split_folder(tmp_path / "root")
    for i in range(27):
        (root / f"train/a/bad{i}.png").touch()
    message = fails("27 of 35 images", spec(root), tmp_path / "cache")
    assert message.count(".png' cannot be decoded") == 20 and message.endswith("and 7 more")


@pytest.mark.fault("no room for an image cache")
def test_a_full_disk_is_said_with_the_bytes_needed_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    root = split_folder(tmp_path / "root")
    monkeypatch.setattr(datasets.os, "fsync", full)
    fails(
        ["no space left", str(tmp_path / "cache"), f"{8 * 8 * 8 * 3:,} bytes"], spec(root), tmp_path / "cache"
    )
    assert os.listdir(tmp_path / "cache") == [".lock"]


# the cache


def test_photos_swapped_with_size_and_time_kept_are_read_again(tmp_path):
    root, cache = split_folder(tmp_path / "root"), tmp_path / "data" / "cache"
    one, other = root / "train/a/0.png", root / "train/b/0.png"
    one.write_bytes(one.read_bytes().ljust(2000, b"0"))
    other.write_bytes(other.read_bytes().ljust(2000, b"0"))
    before = {file: file.stat() for file in (one, other)}
    first = datasets.content(spec(root), cache)
    contents = one.read_bytes(), other.read_bytes()
    for file, content in zip((other, one), contents):
        file.write_bytes(content)
        os.utime(file, ns=(before[file].st_atime_ns, before[file].st_mtime_ns))
    assert datasets.content(spec(root), cache).digest != first.digest


@pytest.mark.parametrize("memory", ["5", "[]", "{", '{"train/a/0.png": 5}', '{"train/a/0.png": [1, 2, "x"]}'])
def test_a_memory_of_photos_in_another_shape_is_not_believed(memory, tmp_path):
    root, cache = split_folder(tmp_path / "root"), tmp_path / "data" / "cache"
    first = datasets.content(spec(root), cache)
    (tmp_path / "data/photos.json").write_text(memory)
    assert datasets.content(spec(root), cache) == first


def stamps(cache):
    return {path.name: path.stat().st_mtime_ns for path in cache.iterdir() if path.name != ".lock"}


def test_a_second_load_decodes_nothing(tmp_path, monkeypatch):
    root, cache = split_folder(tmp_path / "root"), tmp_path / "cache"
    first, before = load(spec(root), cache, progress=False), stamps(cache)
    monkeypatch.delattr(datasets, "decode")
    second = load(spec(root), cache, progress=False)
    assert stamps(cache) == before and set(before) == {"train.npy", "test.npy", "index.json"}
    assert second.fingerprint == first.fingerprint and second.train.names == first.train.names
    assert (second.test.images == first.test.images).all()


@pytest.mark.parametrize("change", ["edit", "add", "remove", "rename", "resize", "classes"])
def test_changed_inputs_rebuild_the_cache(change, tmp_path):
    root, cache, options = (
        folder(split_folder(tmp_path / "root"), {"train/c": 1, "test/c": 1}),
        tmp_path / "cache",
        {},
    )
    first = load(spec(root), cache, progress=False)
    image = root / "train/a/0.png"
    match change:
        case "edit":
            picture(image, 77)
        case "add":
            picture(root / "test/a/new.png", 77)
        case "remove":
            image.unlink()
        case "rename":
            image.rename(root / "train/a/other.png")
        case "resize":
            options = {"resize": 10}
        case "classes":
            options = {"classes": ("a", "c")}
    second = load(spec(root, **options), cache, progress=False)
    assert second.fingerprint != first.fingerprint
    for name, pixels in zip(second.train.names, second.train.images):
        assert (pixels == decode(root / name, second.train.images.shape[1])).all()


@pytest.mark.parametrize("damage", ["truncated", "empty", "shape", "type", "index", "no index", "digests"])
@pytest.mark.fault("a damaged image cache")
def test_a_damaged_cache_is_built_anew(damage, tmp_path):
    root, cache = split_folder(tmp_path / "root"), tmp_path / "cache"
    expected = np.array(load(spec(root), cache, progress=False).train.images)
    index, array = cache / "index.json", cache / "train.npy"
    match damage:
        case "truncated":
            os.truncate(array, array.stat().st_size - 1)
        case "empty":
            os.truncate(array, 0)
        case "shape":
            np.save(array, np.zeros((5, 8, 9, 3), np.uint8))
        case "type":
            np.save(array, expected.astype(np.int16))
        case "index":
            index.write_text(index.read_text()[:-5])
        case "no index":
            index.unlink()
        case "digests":
            index.write_text(index.read_text().replace('"digests": ["', '"digests": ["", "'))
    assert (load(spec(root), cache, progress=False).train.images == expected).all()


@pytest.mark.fault("an image cache killed in mid-build")
def test_an_interrupted_build_leaves_no_cache_and_the_next_one_succeeds(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    root, cache = split_folder(tmp_path / "root"), tmp_path / "cache"
    datasets.content(spec(root), cache)
    with monkeypatch.context() as patch:
        patch.setattr(datasets.os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(spec(root), cache, progress=False)
    assert os.listdir(cache) == [".lock"]
    (cache / "train.npy.part").write_bytes(b"left by a killed process")
    assert len(load(spec(root), cache, progress=False).train) == 5
    assert not list(cache.glob("*.part"))


def slow_load(root, cache, builds):
    build = datasets._build

    def slow(*args):
        with builds.get_lock():
            builds.value += 1
        time.sleep(0.3)
        build(*args)

    datasets._build = slow
    assert len(load(spec(root), cache, progress=False).train) == 5


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path):
    root, context = split_folder(tmp_path / "root"), multiprocessing.get_context("fork")
    builds = context.Value("i", 0)
    workers = [context.Process(target=slow_load, args=(root, tmp_path / "cache", builds)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert [worker.exitcode for worker in workers] == [0, 0] and builds.value == 1


# birds


def test_birds_are_drawn_once_and_kept_whole(tmp_path, monkeypatch):
    birdspec = spec(kind="birds", resize=24, seed=3)
    load(birdspec, tmp_path, progress=False)
    flock = birds.draw(4, 3, pixels=24, seed=3, split="train", family_size=2)
    monkeypatch.delattr(birds, "draw")
    data = load(birdspec, tmp_path, progress=False)
    assert (data.train.images == flock.images).all() and (data.train.labels == flock.labels).all()
    assert (data.train.boxes == flock.boxes).all() and data.train.boxes.dtype == np.int64
    assert data.classes == tuple(s.name for s in flock.species) and len(set(data.classes)) == 4
    assert data.families == tuple(str(s.family) for s in flock.species) and len(set(data.families)) == 2
    assert "species 3, picture 2" in data.train.names and len(set(data.train.names)) == 12
    assert check(data).images.tolist() == [12, 8] and data.notes == ()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"species": 6}, {"family_size": 4}, {"train": 4}, {"test": 3}, {"size": 0.5}]
)
def test_other_birds_have_another_fingerprint(change, tmp_path):
    prints = [
        load(spec(**{"kind": "birds", "resize": 24, **o}), tmp_path, progress=False).fingerprint
        for o in ({}, change, {})
    ]
    assert prints[0] == prints[2] != prints[1]


def test_a_changed_renderer_rebuilds(tmp_path, monkeypatch):
    first = load(spec(kind="birds", resize=24), tmp_path, progress=False)
    monkeypatch.setattr(datasets.inspect, "getsource", lambda module: "another renderer")
    assert load(spec(kind="birds", resize=24), tmp_path, progress=False).fingerprint != first.fingerprint


def test_an_unknown_kind_is_not_guessed(tmp_path):
    with pytest.raises(ValueError, match="fish"):
        load(spec(kind="fish"), tmp_path, progress=False)
