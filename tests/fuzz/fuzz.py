"""Mutated study files, records, notebooks, folders and images: each is read, or refused in one sentence.

    python tests/fuzz/fuzz.py --seconds 3600                  all targets by turns, as long as one likes
    python tests/fuzz/fuzz.py --only images --case 1234       one case again, with its traceback

A case is a function of its target, the seed and its number alone.  What is read must also be right: a number
that cannot be is never reported, no test image trains, no page runs a script, and a picture has the same
pixels under every name.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import yaml
from bs4 import BeautifulSoup
from PIL import Image

from fgkd import cli
from fgkd import study as studies
from fgkd.analysis import records
from fgkd.data import folders, images
from fgkd.distillation import stages
from fgkd.report import notebook
from fgkd.study import PROJECT, DataSpec

SENTENCE = 1500  # characters that a message may have, a list of twenty names included
DEEP = 3000

TINY = {
    "device": "cpu",
    "views": {"resize": 20, "crop": 16},
    "datasets": {"birds": {"species": 4, "family_size": 2, "train": 4, "test": 2}},
    "teachers": {"one": {"model": "test_resnet"}, "two": {"model": "test_efficientnet"}},
    "students": {"small": {"model": "test_byobnet"}},
    "strategies": ["FT"],
    "recipes": {
        "FT": {"epochs": 1, "batch_size": 8, "lr": 0.01},
        "student": {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 0.001},
    },
}
SCALARS = (
    *("", "~", "null", "yes", "off", "010", "0o10", "0x1F", "1_000", "1:30", "2019-01-01", "1e400", "-1"),
    *("0", ".inf", ".nan", "9" * 40, "1e5", "NA", "'", '"', "é", "e\u0301", "\u202e", "\x07", "&a [*a]"),
    *("!!binary aGk=", "!!set {a}", "!!python/object/apply:os.system [ls]", "{a: {b: {c: 1}}}", "[1, [2]]"),
    *("x" * 5000, "../..", "~nosuchuser/x", "/dev/zero", "/proc/self/mem", "$HOME", "a b", "#", "%TAG"),
    *("-", "?", "<<: {a: 1}", "*b", "|"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 5, 1e300, float("nan"), float("inf"), 10**40, "", "x", "NA", "\x00", "é" * 300),
    *([], {}, [[]], [None], {"a": None}, [1, "x", {}], {"": {"": []}}, "<script>alert(1)</script>", "=1+1"),
)
PAYLOADS = (
    "<script>document.title='PWNED'</script>",
    "<img src=x onerror=alert(1)>",
    r"$\text{<script>alert(1)</script>}$",
    r"$\href{javascript:alert(1)}{x}$",
    r"$$\mbox{<img/src=x/onerror=alert(1)>}$$",
    "[x](javascript:alert(1))",
    "<svg onload=alert(1)><script>alert(1)</script></svg>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<math href=javascript:alert(1)><mtext><script>alert(1)</script></mtext></math>",
    "<a href='jav&#x09;ascript:alert(1)'>x</a>",
    "<base href='https://example.org/'><meta http-equiv=refresh content='0;url=https://example.org'>",
    "<form action=https://example.org><button>x</button></form>",
    "<style>@import 'https://example.org/x.css';</style>",
    "<object data=x></object><embed src=x>",
    "{{ 7 * 7 }} {% raw %}",
    "<!-- <p>",
    "]]>&lt;script&gt;",
    "\x1b]0;title\x07\x1b[31mred",
    "<details open ontoggle=alert(1)>",
    "<noscript><p title='</noscript><script>alert(1)</script>'>",
)
MIMES = ("text/html", "text/markdown", "text/latex", "text/plain", "image/svg+xml", "application/javascript")
TRAINS = ("train", "Train", "training", "training_set", "train_images", "seg_train", "TRAIN", "train-data")
TESTS = ("test", "Test", "testing", "test_set", "test_images", "seg_test", "TEST", "test-data", "Testing")
VALIDS = ("val", "valid", "validation", "Val", "dev_set")
CLASSES = ("ash", "beech", "Contest", "latest", "protest wren", "trainer", "valley", "café", "x" * 60, "7")
JUNK = ("@eaDir", ".DS_Store", "__MACOSX", "Thumbs.db", ".ipynb_checkpoints", "#recycle", "a.heic", "b.mp4")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F")
FORMATS = ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "tga", "ico")


class Fault(AssertionError):
    """A case whose property does not hold."""


def read_or_refuse(call: Callable[[], Any], *, lines: int = 1) -> Any:
    """What the call returns, None where it refuses in a message of at most so many lines."""
    try:
        return call()
    except (ValueError, OSError) as error:
        text = str(error)
        if not text or len(text) > SENTENCE * lines or len(text.splitlines()) > lines or "Traceback" in text:
            raise Fault(f"no sentence: {type(error).__name__}: {text[:3000]!r}") from error
    return None


def mutate_text(rng: random.Random, text: str) -> str:
    """A text with one to three of its lines or characters changed."""
    for _ in range(rng.randint(1, 3)):
        lines = text.split("\n")
        number = rng.randrange(len(lines))
        line = lines[number]
        match rng.randrange(8):
            case 0:
                del lines[number]
            case 1:
                lines.insert(number, rng.choice(lines))
            case 2:
                lines[number] = "  " * rng.randint(0, 4) + line.strip()
            case 3 | 4 | 5 if ":" in line:
                lines[number] = f"{line.partition(':')[0]}: {rng.choice(SCALARS)}"
            case 6:
                place = rng.randrange(len(line) + 1)
                lines[number] = (
                    line[:place] + rng.choice("[]{}:,'\"\t&*!|>%@`#\x00\ufeff\ud800é") + line[place:]
                )
            case 7 if rng.random() < 0.1:
                lines[number] = f"{line.partition(':')[0]}: {'[' * DEEP}"
        text = "\n".join(lines) or "\n"
    return text


def mutate_value(rng: random.Random, value: Any) -> Any:
    """A JSON value with one node replaced, removed or repeated."""
    value = copy.deepcopy(value)
    nodes: list[tuple[Any, Any]] = []

    def visit(node):
        entries = (
            node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        )
        for key, child in entries:
            nodes.append((node, key))
            visit(child)

    visit(value)
    if not nodes or rng.random() < 0.05:
        return rng.choice(VALUES)
    node, key = rng.choice(nodes)
    match rng.randrange(4):
        case 0:
            del node[key]
        case 1 if isinstance(node, list):
            node.insert(key, node[key])
        case _:
            node[key] = rng.choice(VALUES)
    return value


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes cut short, with some changed, or replaced."""
    match rng.randrange(5):
        case 0:
            return data[: rng.randrange(len(data) + 1)]
        case 1:
            return bytes(len(data))
        case 2:
            return rng.randbytes(rng.randrange(200))
        case _:
            changed = bytearray(data)
            for _ in range(rng.randint(1, 20)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            return bytes(changed)


def fuzz_studies(rng: random.Random, folder: Path) -> None:
    """A study file loads, and its jobs have ids and fingerprints, or it is refused."""
    texts = [yaml.safe_dump(TINY, sort_keys=False)]
    own = [file.read_text() for file in sorted((PROJECT / "runs").glob("*.yaml"))]
    texts += [text for text in own if "base:" not in text]
    file = folder / "study.yaml"
    file.write_text(mutate_text(rng, rng.choice(texts)), errors="surrogatepass")
    study = read_or_refuse(lambda: studies.load(str(file)))
    if study is None:
        return
    jobs = study.jobs()
    if len({job.id for job in jobs}) < len(jobs):
        raise Fault("two jobs share an id")
    known: dict = {}
    read_or_refuse(lambda: [study.fingerprint(job, known) for job in jobs[:50]])
    json.dumps([study.values(job) for job in jobs[:50]])


@contextlib.contextmanager
def _finished(folder: Path) -> Iterator[studies.Study]:
    """A small study with its results, computed once for all cases of a folder."""
    file = folder / "finished.yaml"
    if not file.exists():
        file.write_text(yaml.safe_dump(TINY))
        study = studies.load(str(file))
        stages.write_study_tables(study, "correlation", stages.study_tables(study))
    yield studies.load(str(file))


def fuzz_records(rng: random.Random, folder: Path) -> None:
    """With a changed record, commands and tables say what is there, and no number that cannot be."""
    with _finished(folder) as study:
        files = sorted(study.folder.rglob("*.json"))
        file = rng.choice([path for path in files if path.is_file()])
        before = file.read_bytes()
        try:
            if rng.random() < 0.7:
                file.write_text(json.dumps(mutate_value(rng, json.loads(before))))
            elif rng.random() < 0.1:
                file.write_text("[" * DEEP)
            else:
                file.write_bytes(mutate_bytes(rng, before))
            for command in ("status", "plan"):
                _command(command, study.file)
            tables = read_or_refuse(lambda: records.collect(study))
        finally:
            file.write_bytes(before)
    for name, columns in {"students": ["accuracy"], "teachers": ["tac", "train_accuracy"]}.items():
        for column in columns if tables else ():
            values = tables[name].get(column, ())
            if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values):
                raise Fault(f"{name}.{column} is {list(values)}")


def _command(*words: str) -> None:
    """A command ends with a known exit status and no traceback."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        status = cli.main(list(words))
    if status not in (0, 1, 2) or "Traceback" in out.getvalue():
        raise Fault(f"{words}: exit status {status}: {out.getvalue()[-2000:]}")


def fuzz_notebooks(rng: random.Random, folder: Path) -> None:
    """A notebook's page holds no script, handler, form, frame or address of code."""
    one, two, three, four, five, six = rng.choices(PAYLOADS, k=6)
    outputs: list[Any] = [
        nbformat.v4.new_output("display_data", dict.fromkeys(rng.sample(MIMES, 2), one)),
        nbformat.v4.new_output("stream", text=two),
        nbformat.v4.new_output("error", ename="X", evalue=three, traceback=[four]),
    ]
    cells = [
        nbformat.v4.new_markdown_cell(f"# {five}\n\n{six} | {one}"),
        nbformat.v4.new_code_cell(two, outputs=outputs),
    ]
    value: Any = json.loads(nbformat.writes(nbformat.v4.new_notebook(cells=cells)))
    if rng.random() < 0.5:
        value = mutate_value(rng, value)
    file = folder / "n.ipynb"
    file.write_text(json.dumps(value))
    page = folder / "n.html"
    page.unlink(missing_ok=True)
    with contextlib.suppress(notebook.Unreadable):
        notebook.write_page(file, page, title=rng.choice(PAYLOADS))
    if not page.exists():
        return
    soup = BeautifulSoup(page.read_text(), "html.parser")
    if bad := soup(["script", "iframe", "object", "embed", "form", "base", "link", "svg"]):
        raise Fault(f"the page holds {bad[0]}")
    for tag in soup(True):
        for name, text in tag.attrs.items():
            address = "".join(str(text).split()).lower()
            is_code = name in ("href", "src", "action") and address.startswith(("java", "vb"))
            if name.startswith("on") or is_code:
                raise Fault(f"the page holds {tag}")
        if tag.name == "meta" and tag.get("http-equiv", "").lower() == "refresh":
            raise Fault(f"the page holds {tag}")


def fuzz_folders(rng: random.Random, folder: Path) -> None:
    """What a folder means is certain, or it is refused; no test image is among the training images."""
    root = folder / "photos"
    shutil.rmtree(root, ignore_errors=True)
    splits = [rng.choice(TRAINS), rng.choice(TESTS)][: rng.choice((0, 1, 2, 2, 2))]
    splits += [rng.choice(VALIDS)] if rng.random() < 0.3 else []
    _photograph(rng, root / rng.choice(("", "", "", "photos", "data", *splits)), splits)
    _litter(rng, root, splits)
    spec = DataSpec(key="set", kind="folder", root=str(root), resize=8)
    listing = read_or_refuse(lambda: folders.list_images(spec))
    if listing is None:
        return
    paths = {split: {path for path, _ in listing.files[split]} for split in images.SPLITS}
    if paths["train"] & paths["test"] or not all(paths.values()):
        raise Fault(f"splits share images, or are empty: {paths}")
    used = {part for path in paths["train"] for part in Path(path).parts}
    if wrong := used & {*TESTS, *JUNK}:
        raise Fault(f"test images or thumbnails are among the training images: {wrong}")
    if known := {*listing.classes} & {*TRAINS, *TESTS, *VALIDS}:
        raise Fault(f"a split is taken for a class: {known}")


def _photograph(rng: random.Random, root: Path, splits: list[str]) -> None:
    """A few photos of some classes in each split, above or below the classes."""
    names = rng.sample(CLASSES, rng.randint(1, 4))
    is_below = rng.random() < 0.15
    is_twice = rng.random() < 0.15  # unpacked into a folder of the same name
    for split, name in product(splits or [""], names):
        other = {0: name.upper(), 1: unicodedata.normalize("NFD", name)}.get(rng.randrange(20), name)
        parts = (other, split) if is_below else (split, split if is_twice else "", other)
        for number in range(rng.randint(0, 4)):
            _picture(Path(root, *filter(None, parts)) / f"{number}.png", rng)


def _litter(rng: random.Random, root: Path, splits: list[str]) -> None:
    """What systems and people leave between photos."""
    for name in rng.sample(JUNK, rng.randint(0, 3)):
        place = root / rng.choice(["", *splits]) / name
        if place.suffix:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"x")
        else:
            _picture(place / "x.png", rng)


def _picture(file: Path, rng: random.Random) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("RGB", (4, 4), rng.randbytes(48)).save(file)


def fuzz_images(rng: random.Random, folder: Path) -> None:
    """A picture is decoded to a square of RGB, or refused; its name's ending changes nothing."""
    mode = rng.choice(MODES)
    size = (rng.randint(1, 40), rng.randint(1, 40))
    channels = len(Image.new(mode, (1, 1)).getbands())
    data = rng.randbytes(size[0] * size[1] * channels)
    pixels = np.frombuffer(data, np.uint8).reshape(size[1], size[0], channels)
    file = folder / f"x.{rng.choice(FORMATS)}"
    try:
        Image.fromarray(pixels[..., :3] if channels > 2 else pixels[..., 0]).convert(mode).save(file)
    except (OSError, ValueError, KeyError):
        return  # the format has no such mode
    if rng.random() < 0.6:
        file.write_bytes(mutate_bytes(rng, file.read_bytes()))
    square = read_or_refuse(lambda: images.decode(file, 8), lines=3)
    other = file.with_suffix(".png")
    if other != file:
        shutil.copyfile(file, other)
    again = read_or_refuse(lambda: images.decode(other, 8), lines=3)
    if square is None or again is None:
        if square is not again:
            raise Fault("a picture is read under one name and refused under another")
    elif square.shape != (8, 8, 3) or square.dtype != np.uint8 or not (square == again).all():
        raise Fault(f"decoded as {square.dtype} {square.shape}, or otherwise under another name")


TARGETS = {
    "studies": fuzz_studies,
    "records": fuzz_records,
    "notebooks": fuzz_notebooks,
    "folders": fuzz_folders,
    "images": fuzz_images,
}


def run_case(target: str, seed: int, case: int, folder: Path) -> str | None:
    """Run one case; returns the traceback of what is wrong, None where nothing is."""
    try:
        TARGETS[target](random.Random(f"{target} {seed} {case}"), folder)
    except KeyboardInterrupt:
        raise
    except BaseException:  # a plugin or parser may leave by SystemExit: a fault like others
        return traceback.format_exc()
    return None


def main() -> int:
    """Run cases until the time is over; returns 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=30, help="how long (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of all cases (default: 0)")
    parser.add_argument("--only", choices=TARGETS, help="one target (default: all)")
    parser.add_argument("--case", type=int, help="one case, by its number")
    options = parser.parse_args()
    names = [options.only] if options.only else list(TARGETS)
    failed: dict[str, int] = {}
    end = time.monotonic() + options.seconds
    case = options.case or 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FGKD_RUNS"] = folder
        while time.monotonic() < end:
            for name in names:
                if text := run_case(name, options.seed, case, Path(folder)):
                    kind = text.strip().splitlines()[-1][:200]
                    failed[kind] = failed.get(kind, 0) + 1
                    if failed[kind] == 1:
                        print(f"--only {name} --seed {options.seed} --case {case}\n{text}", flush=True)
            if options.case is not None:
                break
            case += 1
    print(f"{case or 1} cases of each of {', '.join(names)}: {sum(failed.values())} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
