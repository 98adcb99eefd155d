"""What distillation, views, metrics and banks cost next to their alternatives, in one process.

    step      a student's step that learns from a bank, against a step without a teacher
    student   a teacher in every step, this package's and timm's, against the bank: one student, and seven
    views     torchvision's folder and loader against the cache and its views; how long a step waits for data
    metrics   all metrics of a teacher's logits against torch's softmax and two largest
    bank      a bank written and read, against the teacher alone and the disk alone
    growth    a small study against one of a quarter of its images, classes, epochs, teachers or students
    notebook  a notebook whose work is done, through papermill and a warm kernel, and what that consists of

Alternatives take turns, so that a load on the machine that comes and goes strikes all alike; a ratio is the
median of the ratios of each turn. Images are drawn and networks have random weights: neither changes how long
they take.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
import yaml
from PIL import Image
from timm.task import LogitDistillationTask
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from tqdm import tqdm

from fgkd import metrics, study
from fgkd.data import birds, datasets
from fgkd.distillation import bank as banks
from fgkd.distillation import losses, stages, training
from fgkd.engine import execute
from fgkd.models import cal, classifier
from fgkd.study import LOSSES, PROJECT, DataSpec, Distillation, Loss, Model, Recipe, Sizes, StudyError

STUDENT = "lcnet_035"
SEVEN = (
    (STUDENT, "kd"),
    ("resnet18", "kd"),
    ("levit_128s", "kd"),
    (STUDENT, "dkd"),
    (STUDENT, "rkd"),
    (STUDENT, "pkt"),
    (STUDENT, "hint"),
)
KD = Distillation()
VIEWS = Sizes(resize=108, crop=96)
PHOTO_VIEWS = Sizes(resize=300, crop=224)
Work = Callable[[], object]  # what a turn measures
Seconds = dict[str, np.ndarray]  # of each work, one value per turn


@dataclass(frozen=True)
class Size:
    """How much to measure; the defaults take some minutes on two cores."""

    images: int = 128  # of a training
    classes: int = 32
    views: Sizes = VIEWS
    batch: int = 32
    epochs: int = 2  # of one turn's training, and views of its bank
    small: str = "mobilenetv2_100"  # teachers
    large: str = "resnet50"
    unmeasured: int = 1  # turns that come first and are not counted
    turns: int = 7  # of the quick parts
    long_turns: int = 3  # of seven students, of whole studies and of notebooks
    photos: int = 128  # JPEG files of 500 x 375 pixels
    photo_views: Sizes = PHOTO_VIEWS
    logits: tuple[int, int] = (100_000, 555)
    view: tuple[int, int] = (24_000, 555)  # logits that one view adds to a bank: those of NABirds
    growth: int = 24  # images a class, of 8 classes, of the smallest study


@dataclass(frozen=True)
class Row:
    """One comparison.

    taken, beside: medians of `what` and `against`, in `unit`.
    ratio: median of the turns' ratios; low, high: their quartiles.
    """

    part: str
    what: str
    against: str
    taken: float
    beside: float
    ratio: float
    low: float
    high: float
    goal: str = ""
    unit: str = "s"


def measure(device: torch.device, *, only: str | None = None, size: Size = Size()) -> dict:
    """Measure all parts, or one: {'machine': what it ran on, 'rows': a dict for each `Row`}.

    Everything is made in a temporary folder that is deleted; a bar on stderr shows how far it is.

    Raises StudyError for an unknown part.
    """
    if only not in (None, *PARTS):
        raise StudyError(f"part '{only}' is unknown: expected one of {', '.join(PARTS)}")
    load = os.getloadavg()[0]
    rows = []
    bar = tqdm(desc="bench", unit="turn", disable=None)
    with tempfile.TemporaryDirectory(prefix="fgkd-bench-") as folder, bar:
        for name in PARTS if only is None else [only]:
            bar.set_description(f"bench: {name}")
            place = Path(folder) / name
            place.mkdir()
            rows += [asdict(row) for row in PARTS[name](Bench(device, size, place, bar))]
    return {"machine": _machine(device, load), "rows": rows}


def table(result: dict) -> str:
    """Format the result of `measure` as Markdown."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("Python", "torch", "torchvision", "timm"))
    lines = [
        f"{machine['device']}, {machine['cores']} cores, {machine['threads']} threads; {versions}; "
        f"load {machine['load_before']} before and {machine['load_after']} after.",
        "",
        "| part | what | against | takes | against | ratio | quartiles | goal |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for row in result["rows"]:
        columns = [
            row["part"],
            row["what"],
            row["against"],
            f"{_three_digits(row['taken'])} {row['unit']}",
            f"{_three_digits(row['beside'])} {row['unit']}",
            _three_digits(row["ratio"]),
            f"{_three_digits(row['low'])} to {_three_digits(row['high'])}",
            row["goal"],
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


class Bench:
    """Where a part measures: device, size, a folder of its own, and the bar that counts its turns."""

    def __init__(self, device: torch.device, size: Size, folder: Path, bar: tqdm):
        self.device = device
        self.size = size
        self.folder = folder
        self.bar = bar

    def turns(self, works: dict[str, Work], number: int) -> Seconds:
        """Measure each work `number` times, one after the other in every turn."""
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(self.size.unmeasured + number):
            for name, work in works.items():
                self._wait()
                start = time.perf_counter()
                with contextlib.redirect_stderr(io.StringIO()):  # bars of trainings
                    work()
                self._wait()
                seconds[name].append(time.perf_counter() - start)
            self.bar.update()
        return {name: np.array(values[self.size.unmeasured :]) for name, values in seconds.items()}

    def row(self, seconds: Seconds, what: str, against: str, goal: str = "") -> Row:
        """Compare two works."""
        low, median, high = np.quantile(seconds[what] / seconds[against], (0.25, 0.5, 0.75)).tolist()
        return Row(
            part=self.folder.name,
            what=what,
            against=against,
            taken=float(np.median(seconds[what])),
            beside=float(np.median(seconds[against])),
            ratio=median,
            low=low,
            high=high,
            goal=goal,
        )

    def pictures(self, number: int) -> training.Images:
        """Draw birds, `number` of them, to train on."""
        classes = self.size.classes
        flock = birds.draw(classes, number // classes, pixels=self.size.views.resize)
        names = tuple(map(str, range(len(flock.labels))))
        split = datasets.Split(flock.images, flock.labels, names)
        return training.Images(split, self.size.views, self.device)

    def network(self, name: str, *, attention: bool = False) -> classifier.Classifier:
        """Build a network of random weights."""
        options = {"distilled": False} if name == "levit_128s" else {}
        spec = Model(key=name, model=name, options=options)
        model = classifier.build(spec, self.size.classes, crop=self.size.views.crop, seed=0)
        if attention:
            model = cal.CAL(model.net, self.size.classes, 32)
        return model.to(self.device)

    def teacher(self, name: str, *, attention: bool = False) -> classifier.Classifier:
        """Build a network that is not trained any more."""
        return self.network(name, attention=attention).eval().requires_grad_(False)

    def bank(
        self, name: str, teacher: classifier.Classifier, images: training.Images, *, augmented: bool = False
    ) -> banks.Bank:
        """Write the bank of a training of this size, and open it."""
        folder = self.folder / name
        views = self.size.epochs
        with contextlib.redirect_stderr(io.StringIO()):
            banks.write(folder, teacher, images, views=views, views_seed=1, key="bench", augmented=augmented)
        bank = banks.read(
            folder, self.device, views=views, images=len(images), key="bench", augmented=augmented
        )
        assert bank is not None
        return bank

    def training(
        self,
        model: classifier.Classifier,
        images: training.Images,
        objective: training.Objective,
        *,
        auxiliary_loss: nn.Module | None = None,
        epochs: int | None = None,
        compiled: bool = False,
    ) -> Work:
        """Return a training of the student on views of the images, as a work."""
        epochs = epochs or self.size.epochs
        recipe = Recipe(epochs=epochs, batch_size=self.size.batch, optimizer="adamw", lr=1e-3)
        checkpoint = self.folder / "checkpoint.pt"

        def work():
            checkpoint.unlink(missing_ok=True)  # a slow turn writes one, and the next must not go on from it
            training.fit_images(
                model,
                images,
                objective,
                recipe,
                views_seed=1,
                seed=0,
                checkpoint=checkpoint,
                auxiliary_loss=auxiliary_loss,
                compiled=compiled,
            )

        return work

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def step(bench: Bench) -> Iterator[Row]:
    """Compare a step from the bank, KD and TGDA, with one without a teacher."""
    images = bench.pictures(bench.size.images)
    plain = "cross-entropy"
    three = "cross-entropy on three views"
    works = {
        plain: bench.training(bench.network(STUDENT), images, training.cross_entropy(images.labels)),
        three: bench.training(bench.network(STUDENT), images, _on_three(images)),
    }
    pairs = []
    for name in (bench.size.small, bench.size.large):
        for strategy, augmented, against in (("KD", False, plain), ("TGDA", True, three)):
            what = f"{strategy} from the bank of {name}"
            teacher = bench.teacher(name, attention=augmented)
            stored = bench.bank(f"{strategy}-{name}", teacher, images, augmented=augmented)
            objective = training.distillation(images.labels, _read(stored), KD, augmented=augmented)
            works[what] = bench.training(bench.network(STUDENT), images, objective)
            pairs.append((what, against, "at most 1.10"))
            if bench.device.type == "cuda":  # on a CPU compiling takes longer than the turns
                compiled = f"{what}, compiled"
                works[compiled] = bench.training(bench.network(STUDENT), images, objective, compiled=True)
                pairs.append((compiled, what, "below 1"))
    seconds = bench.turns(works, bench.size.turns)
    for what, against, goal in pairs:
        yield bench.row(seconds, what, against, goal)


def student(bench: Bench) -> Iterator[Row]:
    """Compare a teacher in every step, ours and timm's, with the bank: one student, and seven."""
    images = bench.pictures(bench.size.images)
    banked = "KD from the bank"
    for name in (bench.size.small, bench.size.large):
        teacher = bench.teacher(name)
        timms = f"timm's LogitDistillationTask, {name}"
        online = f"{name} in every step"
        works = {timms: _peer(bench, STUDENT, teacher, images)}
        stored = bench.bank(f"one-{name}", teacher, images)
        for what, outputs in ((online, _asked(teacher)), (banked, _read(stored))):
            objective = training.distillation(images.labels, outputs, KD)
            works[what] = bench.training(bench.network(STUDENT), images, objective)
        seconds = bench.turns(works, bench.size.turns)
        yield bench.row(seconds, timms, banked)
        yield bench.row(seconds, online, banked)
    yield from _compare_seven(bench)


def _compare_seven(bench: Bench) -> Iterator[Row]:
    """Compare the seven students that share a bank in the paper's matrix, its writing included."""
    images = bench.pictures(max(bench.size.batch, bench.size.images // 2))
    name = bench.size.small
    teacher = bench.teacher(name)
    stored: list[banks.Bank] = []
    readers = _seven(bench, images, lambda x, epoch, index: stored[-1].outputs(epoch, index))
    online = _seven(bench, images, _asked(teacher))
    peers = [_peer(bench, student, teacher, images) for student, _ in SEVEN]

    def from_bank():
        stored.append(bench.bank("seven", teacher, images))
        _do_all(readers)

    banked = "a bank and seven students of it"
    each = f"seven students, {name} in every step"
    peer = f"seven of timm's, {name}"
    works = {banked: from_bank, each: lambda: _do_all(online), peer: lambda: _do_all(peers)}
    seconds = bench.turns(works, bench.size.long_turns)
    yield bench.row(seconds, each, banked)
    yield bench.row(seconds, peer, banked)


def views(bench: Bench) -> Iterator[Row]:
    """Compare torchvision's ImageFolder and DataLoader with the cache and its views."""
    size = bench.size
    side = size.photo_views.resize
    crop = size.photo_views.crop
    root = bench.folder / "photos"
    _write_photos(root, size)
    spec = DataSpec(key="photos", kind="folder", root=str(root), resize=side)
    split = datasets.load(spec, bench.folder / "cache", progress=False).train
    images = training.Images(split, size.photo_views, bench.device)
    transform = transforms.Compose(
        [
            transforms.Resize((side, side), transforms.InterpolationMode.BICUBIC),
            transforms.RandomCrop(crop),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    folder = torchvision.datasets.ImageFolder(str(root / "train"), transform)
    workers = _cores()
    loader = DataLoader(folder, size.batch, shuffle=True, num_workers=workers, persistent_workers=True)
    numbers = itertools.count()

    def read_cache():
        chosen = images.epoch(1, 0)
        for index in torch.randperm(len(images)).split(size.batch):
            images.batch(index, chosen)

    def read_folder():
        for x, _ in loader:
            x.to(bench.device)

    def decode():
        datasets.load(spec, bench.folder / f"cache-{next(numbers)}", progress=False)

    epoch = "an epoch of the cache's views"
    theirs = f"an epoch of ImageFolder and DataLoader, {workers} workers"
    decoding = "decoding into the cache, once"
    steps = f"an epoch of {STUDENT} on these views"
    model = classifier.build(Model(key=STUDENT, model=STUDENT), size.classes, crop=crop, seed=0).to(
        bench.device
    )
    train = bench.training(model, images, training.cross_entropy(images.labels), epochs=1)
    works = {epoch: read_cache, theirs: read_folder, decoding: decode, steps: train}
    seconds = bench.turns(works, size.turns)
    yield bench.row(seconds, theirs, epoch, "at least 10")
    yield bench.row(seconds, decoding, theirs)
    yield bench.row(seconds, epoch, steps)


def all_metrics(bench: Bench) -> Iterator[Row]:
    """Compare all metrics of logits with torch's softmax and two largest, on one thread."""
    logits = torch.randn(bench.size.logits, generator=torch.Generator().manual_seed(0)) * 3
    labels = logits.argmax(1)
    threads = torch.get_num_threads()
    everything = "all metrics"
    torchs = "torch's softmax and two largest"
    one_sum = "one sum of the array"
    works: dict[str, Work] = {
        everything: lambda: metrics.summarize_all(metrics.all_samples(logits, labels)),
        "R12 alone": lambda: metrics.ratio12(logits),
        torchs: lambda: (logits.softmax(1), logits.topk(2, dim=1)),
        one_sum: logits.sum,
    }
    torch.set_num_threads(1)
    try:
        seconds = bench.turns(works, bench.size.turns)
    finally:
        torch.set_num_threads(threads)
    yield bench.row(seconds, everything, torchs, "at most 4")
    yield bench.row(seconds, "R12 alone", torchs)
    yield bench.row(seconds, torchs, one_sum)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak, array = pool.apply(_memory, (bench.size.logits,))
    if peak is not None:
        ratio = peak / array
        goal = "at most 100 MB"
        what = "memory of all metrics"
        yield Row("metrics", what, "the array", peak, array, ratio, ratio, ratio, goal, "MB")


def bank(bench: Bench) -> Iterator[Row]:
    """Compare a bank with its teacher's forward passes, and a view with its bytes on the disk."""
    size = bench.size
    images = bench.pictures(size.images)
    teacher = bench.teacher(size.small)

    def forward():
        with torch.inference_mode():
            for view in range(size.epochs):
                training.predict(teacher, images, images.epoch(1, view))

    whole = f"a bank of {size.small}"
    alone = f"{size.small} on the same views"
    works: dict[str, Work] = {whole: lambda: bench.bank("written", teacher, images), alone: forward}
    yield bench.row(bench.turns(works, size.turns), whole, alone)
    yield from _compare_disk(bench)


def _compare_disk(bench: Bench) -> Iterator[Row]:
    """Compare a bank's view written to the disk, and read from it, with the same bytes alone."""
    logits = torch.randn(bench.size.view).half()
    data = logits.numpy().tobytes()
    buffer = bytearray(len(data))
    file = bench.folder / "view.safetensors"
    plain = bench.folder / "plain"

    def write():
        with open(plain, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())

    def read():
        _forget(plain)
        with open(plain, "rb", buffering=0) as source:
            source.readinto(buffer)

    def read_view():
        _forget(file)
        stored = banks.Bank((file,), bench.device)
        return stored.outputs(0, torch.zeros(1, dtype=torch.long))

    works = {
        "a view written": lambda: banks.write_view(file, {"logits": logits}, {}),
        "its bytes written": write,
        "a view read": read_view,
        "its bytes read": read,
    }
    seconds = bench.turns(works, bench.size.turns)
    yield bench.row(seconds, "a view written", "its bytes written")
    yield bench.row(seconds, "a view read", "its bytes read")


def growth(bench: Bench) -> Iterator[Row]:
    """Compare a small study with one of a quarter of its images, classes, epochs, ...

    The exponent is the logarithm of the ratio over that of 4.
    """
    numbers = itertools.count()

    def work(**times):
        def run():
            with _results_in(bench.folder / str(next(numbers))) as folder:
                stages.study_tables(study.load(str(_small_study(folder, bench, **times))))

        return run

    base = "the smallest study"
    works = {base: work()}
    for kind in ("images", "classes", "epochs", "teachers", "students"):
        works[f"4 times the {kind}"] = work(**{kind: 4})
    seconds = bench.turns(works, bench.size.long_turns)
    for name in list(works)[1:]:
        row = bench.row(seconds, name, base)
        yield replace(row, goal=f"at most 4; exponent {math.log(row.ratio, 4):.2f}")


def notebook(bench: Bench) -> Iterator[Row]:
    """Compare a notebook whose work is done, by papermill on a warm kernel, with its parts."""
    done = "a notebook whose work is done"
    cold = "the same with a kernel of its own"
    imports = "a process that imports papermill"
    nothing = "a process that does nothing"
    with _results_in(bench.folder) as folder:
        file = _small_study(folder, bench)
        stages.study_tables(study.load(str(file)))
        command = [sys.executable, "-m", "fgkd.engine.execute"]
        command += [str(PROJECT / "notebooks" / "05_distillation.ipynb"), str(folder / "out.ipynb")]
        parameters = {"study": str(file), "dataset": "birds", "teacher": "t0", "strategy": "FT"}
        works: dict[str, Work] = {
            done: lambda: execute.execute(command[-2], command[-1], parameters),
            cold: lambda: _run([*command, json.dumps(parameters)], dict(os.environ)),
            imports: lambda: _run([sys.executable, "-c", "import fgkd.engine.execute"], dict(os.environ)),
            nothing: lambda: _run([sys.executable, "-c", "pass"], dict(os.environ)),
        }
        seconds = bench.turns(works, bench.size.long_turns)
    for what in (cold, imports, nothing):
        yield bench.row(seconds, what, done)


PARTS = {
    "step": step,
    "student": student,
    "views": views,
    "metrics": all_metrics,
    "bank": bank,
    "growth": growth,
    "notebook": notebook,
}


def _on_three(images: training.Images) -> training.Objective:
    """Return cross-entropy on three random views: a TGDA step without teacher, crop and drop."""
    labels = images.labels
    views_of = functools.lru_cache(2)(images.epoch)

    def objective(model, x, epoch, index):
        y = labels[index.to(labels.device)]
        others = torch.cat([images.batch(index, views_of(seed, epoch)) for seed in (2, 3)])
        logits = model(x)
        loss = F.cross_entropy(model(others), y.repeat(2))
        return logits, {"ce": F.cross_entropy(logits, y), "views": loss}

    return objective


def _read(stored: banks.Bank) -> Callable[[Tensor, int, Tensor], dict[str, Tensor]]:
    return lambda x, epoch, index: stored.outputs(epoch, index)


def _asked(teacher: classifier.Classifier) -> Callable[[Tensor, int, Tensor], dict[str, Tensor]]:
    return lambda x, epoch, index: banks.teacher_outputs(teacher, x, torch.empty(0))


def _peer(bench: Bench, name: str, teacher: classifier.Classifier, images: training.Images) -> Work:
    """Return the same student's training with timm's task, which has its teacher in every step."""
    model = bench.network(name)
    labels = images.labels
    task = LogitDistillationTask(
        model.net,
        teacher.net,
        task_loss_weight=1.0,
        distill_loss_weight=KD.beta,
        temperature=KD.temperature,
        device=bench.device,
        verbose=False,
    )

    def objective(model, x, epoch, index):
        with model.autocast(x):
            outputs = task(model.normalize(x), labels[index.to(labels.device)])
        return outputs["output"], {"loss": outputs["loss"]}

    return bench.training(model, images, objective)


def _seven(bench: Bench, images: training.Images, outputs: Callable) -> list[Work]:
    """Return the trainings of the seven students and losses that share a bank in the paper's matrix."""
    width = bench.size.classes
    works = []
    for name, loss in SEVEN:
        auxiliary = None
        if loss != "kd":
            spec = Loss(key=loss, loss=loss, options=LOSSES[loss])
            auxiliary = losses.AuxiliaryLoss(spec, width, width, images.labels.cpu()).to(bench.device)
        objective = training.distillation(images.labels, outputs, KD, auxiliary_loss=auxiliary)
        works.append(bench.training(bench.network(name), images, objective, auxiliary_loss=auxiliary))
    return works


def _do_all(works: list[Work]) -> None:
    for work in works:
        work()


def _write_photos(root: Path, size: Size) -> None:
    """Write drawn birds as JPEG files of 500 x 375 pixels to train/<class>, one each to test/<class>."""
    for split, per_class in (("train", size.photos // size.classes), ("test", 1)):
        flock = birds.draw(size.classes, per_class, pixels=500, split=split)
        for number, (pixels, label) in enumerate(zip(flock.images, flock.labels, strict=True)):
            folder = root / split / f"{label:03}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((500, 375)).save(folder / f"{number}.jpg", quality=90)


def _memory(shape: tuple[int, int]) -> tuple[float | None, float]:
    """Return the MB that all metrics of logits (N, C) take, None where nothing tells, and the logits'."""
    torch.set_num_threads(1)
    logits = torch.empty(shape)
    logits.normal_()
    labels = torch.zeros(len(logits), dtype=torch.long)
    before = _peak_mb()
    metrics.summarize_all(metrics.all_samples(logits, labels))
    after = _peak_mb()
    peak = None if before is None or after is None else after - before
    return peak, logits.nbytes / 1e6


def _peak_mb() -> float | None:
    """Return the most memory that this process has held, which Linux tells in kB."""
    file = Path("/proc/self/status")
    if not file.exists():
        return None
    kilobytes = next(line.split()[1] for line in file.read_text().splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024 / 1e6


def _forget(file: Path) -> None:
    """Have the system drop a file from its memory, where it can, so that it is read from the disk."""
    if hasattr(os, "posix_fadvise"):
        with open(file, "rb") as cached:
            os.posix_fadvise(cached.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def _results_in(folder: Path) -> Iterator[Path]:
    """Have studies write to this folder, wherever FGKD_RUNS points."""
    folder.mkdir(parents=True, exist_ok=True)
    before = os.environ.get("FGKD_RUNS")
    os.environ["FGKD_RUNS"] = str(folder)
    try:
        yield folder
    finally:
        os.environ.pop("FGKD_RUNS")
        if before is not None:
            os.environ["FGKD_RUNS"] = before


def _small_study(folder: Path, bench: Bench, **factors: int) -> Path:
    """Write the file of a study that takes seconds.

    factors: of its images, classes, epochs, teachers, students; classes share the same number of images.
    """
    sizes = {"images": 1, "classes": 1, "epochs": 1, "teachers": 1, "students": 1} | factors
    recipe = {"epochs": 2 * sizes["epochs"], "batch_size": 32, "lr": 0.01}
    flock = {
        "species": 8 * sizes["classes"],
        "test": 4 // sizes["classes"],
        "train": bench.size.growth * sizes["images"] // sizes["classes"],
    }
    value = {
        "question": "How does it grow?",
        "device": bench.device.type,
        "threads": torch.get_num_threads(),
        "views": {"resize": 36, "crop": 32},
        "strategies": ["FT"],
        "baseline": False,
        "datasets": {"birds": flock},
        "teachers": {f"t{n}": {"model": "test_resnet"} for n in range(sizes["teachers"])},
        "students": {f"s{n}": {"model": "test_byobnet"} for n in range(sizes["students"])},
        "recipes": {"FT": recipe, "student": recipe},
    }
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(value))
    return file


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        words = " ".join(command[:4])
        raise RuntimeError(f"{words} ended with exit status {done.returncode}: {done.stderr[-500:]}")


def _machine(device: torch.device, load: float) -> dict:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "load_before": round(load, 1),
        "load_after": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    """Return the processor's name, which Linux tells in a file."""
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
