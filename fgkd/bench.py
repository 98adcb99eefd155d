"""What distillation, views, metrics and banks cost beside what they are compared with, in one process.

    step      a student's step that learns from a bank, beside a step without a teacher
    student   a teacher in every step, this package's and timm's, beside the bank: one student, and seven
    views     torchvision's folder and loader beside the cache and its views; how long a step waits for data
    metrics   all metrics of a teacher's logits beside torch's softmax and two largest
    bank      a bank written and read, beside the teacher alone and the disk alone
    growth    a small study beside one of a quarter of its images, classes, epochs, teachers or students
    notebook  a notebook whose work is done, through papermill and a warm kernel, and what that consists of

What is compared takes turns, so that a load on the machine that comes and goes strikes all alike; a ratio is
the median of the ratios of each turn.  Pictures are drawn and networks have random weights: neither changes
how long they take.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
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

from fgkd import metrics, stages, study
from fgkd.data import birds, datasets
from fgkd.distillation import bank as banks
from fgkd.distillation import training
from fgkd.engine import kernels
from fgkd.models import cal, classifier
from fgkd.study import LOSSES, PROJECT, DataSpec, Distillation, Loss, Model, Recipe, StudyError, Views

STUDENT = "lcnet_035"
FURTHER = ("dkd", "rkd", "pkt", "hint")
SEVEN = ((STUDENT, "kd"), ("resnet18", "kd"), ("levit_128s", "kd"), *((STUDENT, loss) for loss in FURTHER))
KD = Distillation()


@dataclass(frozen=True)
class Size:
    """How much is measured; the defaults take some minutes on two cores."""

    images: int = 128  # of a training
    classes: int = 32
    views: Views = Views(108, 96)
    batch: int = 32
    epochs: int = 2  # of one turn's training, and views of its bank
    small: str = "mobilenetv2_100"  # teachers
    large: str = "resnet50"
    unmeasured: int = 1  # turns that come first and are not counted
    turns: int = 7  # of the quick parts
    long_turns: int = 3  # of seven students, of whole studies and of notebooks
    photos: int = 128  # JPEG files of 500 x 375 pixels
    photo_views: Views = Views(300, 224)
    logits: tuple[int, int] = (100_000, 555)
    view: tuple[int, int] = (24_000, 555)  # logits that one view adds to a bank: those of NABirds
    growth: int = 24  # images a class, of 8 classes, of the smallest study


@dataclass(frozen=True)
class Row:
    """`what` takes `taken`, `against` takes `beside`, medians in `unit`; ratio: of both."""

    part: str
    what: str
    against: str
    taken: float
    beside: float
    ratio: float
    low: float  # quartiles of the turns' ratios
    high: float
    goal: str = ""
    unit: str = "s"


def measure(on: torch.device, *, only: str | None = None, size: Size = Size()) -> dict:
    """All comparisons, or those of one part: {'machine': what it ran on, 'rows': a dict for each `Row`}.

    Everything is made in a temporary folder that is deleted; a bar on stderr shows how far it is.
    Raises StudyError for an unknown part.
    """
    if only not in (None, *PARTS):
        raise StudyError(f"part '{only}' is unknown: expected one of {', '.join(PARTS)}")
    chosen = PARTS if only is None else {only: PARTS[only]}
    before, rows = os.getloadavg(), []
    bar = tqdm(desc="bench", unit="turn", disable=None)
    with tempfile.TemporaryDirectory(prefix="fgkd-bench-") as folder, bar:
        for name, part in chosen.items():
            bar.set_description(f"bench: {name}")
            (place := Path(folder) / name).mkdir()
            rows += [asdict(row) for row in part(Bench(on, size, place, bar))]
    return {"machine": _machine(on, before), "rows": rows}


def table(found: dict) -> str:
    """What `measure` found, as Markdown."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("Python", "torch", "torchvision", "timm"))
    lines = [
        f"{machine['device']}, {machine['cores']} cores, {machine['threads']} threads; {versions}; "
        f"load {machine['load_before']} before and {machine['load_after']} after.",
        "",
    ]
    lines += [
        "| part | what | against | takes | against | ratio | quartiles | goal |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for row in found["rows"]:
        numbers = " | ".join(f"{_shown(row[key])} {row['unit']}" for key in ("taken", "beside"))
        ratios = f"{_shown(row['ratio'])} | {_shown(row['low'])} to {_shown(row['high'])}"
        names = f"{row['part']} | {row['what']} | {row['against']}"
        lines.append(f"| {names} | {numbers} | {ratios} | {row['goal']} |")
    return "\n".join(lines)


class Bench:
    """Where a part measures: device, size, a folder of its own, and the bar that counts its turns."""

    def __init__(self, on: torch.device, size: Size, folder: Path, bar: tqdm):
        self.on, self.size, self.folder, self.bar = on, size, folder, bar

    def turns(self, works: dict[str, Callable[[], object]], number: int) -> dict[str, np.ndarray]:
        """Seconds of each work, (number,), one after the other in every turn."""
        seconds = {name: [] for name in works}
        for _ in range(self.size.unmeasured + number):
            for name, work in works.items():
                self._wait()
                begun = time.perf_counter()
                with contextlib.redirect_stderr(io.StringIO()):  # bars of trainings
                    work()
                self._wait()
                seconds[name].append(time.perf_counter() - begun)
            self.bar.update()
        return {name: np.array(values[self.size.unmeasured :]) for name, values in seconds.items()}

    def row(self, seconds: dict[str, np.ndarray], what: str, against: str, goal: str = "") -> Row:
        """The comparison of two works."""
        ratios = seconds[what] / seconds[against]
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
        medians = (float(np.median(seconds[name])) for name in (what, against))
        return Row(self.folder.name, what, against, *medians, middle, low, high, goal)

    def pictures(self, number: int) -> training.Images:
        """Drawn birds, `number` of them, as they are trained on."""
        size = self.size
        flock = birds.draw(size.classes, number // size.classes, pixels=size.views.resize)
        names = tuple(map(str, range(len(flock.labels))))
        return training.Images(datasets.Split(flock.images, flock.labels, names), size.views, self.on)

    def network(self, name: str, *, attention: bool = False) -> classifier.Classifier:
        """A network of random weights."""
        options = {"distilled": False} if name == "levit_128s" else {}
        spec = Model(name, name, options=options)
        model = classifier.build(spec, self.size.classes, crop=self.size.views.crop, seed=0)
        return (cal.CAL(model.net, self.size.classes, 32) if attention else model).to(self.on)

    def teacher(self, name: str, *, attention: bool = False) -> classifier.Classifier:
        """A network that is not trained any more."""
        return self.network(name, attention=attention).eval().requires_grad_(False)

    def bank(
        self, name: str, teacher: classifier.Classifier, images: training.Images, *, augmented: bool = False
    ) -> banks.Bank:
        """The bank that a training of this size reads."""
        folder, views = self.folder / name, self.size.epochs
        with contextlib.redirect_stderr(io.StringIO()):
            banks.write(folder, teacher, images, views=views, views_seed=1, key="bench", augmented=augmented)
        shapes = {array: (views, len(images)) for array in banks.names(augmented=augmented, features=False)}
        return banks.read(folder, shapes, self.on)

    def training(
        self,
        model: classifier.Classifier,
        images: training.Images,
        objective: training.Objective,
        *,
        extra: nn.Module | None = None,
        epochs: int | None = None,
        compiled: bool = False,
    ) -> Callable[[], object]:
        """A work: a training of the student on views of the images."""
        epochs = epochs or self.size.epochs
        recipe = Recipe(epochs=epochs, batch_size=self.size.batch, optimizer="adamw", lr=1e-3)

        def work():
            checkpoint = self.folder / "checkpoint.pt"
            checkpoint.unlink(missing_ok=True)  # a slow turn writes one, and the next must not go on from it
            training.fit_images(
                model,
                images,
                objective,
                recipe,
                views_seed=1,
                seed=0,
                checkpoint=checkpoint,
                extra=extra,
                compiled=compiled,
            )

        return work

    def _wait(self) -> None:
        if self.on.type == "cuda":
            torch.cuda.synchronize(self.on)


def step(bench: Bench) -> Iterator[Row]:
    """A step from the bank over one without a teacher: plain, and TGDA over cross-entropy on three views."""
    images = bench.pictures(bench.size.images)
    plain, three = "cross-entropy", "cross-entropy on three views"
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
            pairs.append((what, against))
            if bench.on.type == "cuda":  # on a CPU compiling takes longer than the turns
                fast, model = f"{what}, compiled", bench.network(STUDENT)
                works[fast] = bench.training(model, images, objective, compiled=True)
                pairs.append((fast, what))
    seconds = bench.turns(works, bench.size.turns)
    goals = {plain: "at most 1.10", three: "at most 1.10"}
    yield from (bench.row(seconds, what, against, goals.get(against, "below 1")) for what, against in pairs)


def student(bench: Bench) -> Iterator[Row]:
    """A teacher in every step, ours and timm's, over the bank: one student, and seven and its writing."""
    images = bench.pictures(bench.size.images)
    found = {}
    for name in (bench.size.small, bench.size.large):
        teacher = bench.teacher(name)
        stored = bench.bank(f"one-{name}", teacher, images)
        works = {f"timm's LogitDistillationTask, {name}": _peer(bench, STUDENT, teacher, images)}
        for what, said in ((f"{name} in every step", _asked(teacher)), ("KD from the bank", _read(stored))):
            objective = training.distillation(images.labels, said, KD)
            works[what] = bench.training(bench.network(STUDENT), images, objective)
        seconds = bench.turns(works, bench.size.turns)
        yield from (bench.row(seconds, what, "KD from the bank") for what in list(works)[:-1])
        found[name] = teacher
    few = bench.pictures(max(bench.size.batch, bench.size.images // 2))
    small = bench.size.small
    teacher = found[small]

    held = []

    def shared():
        held[:] = [bench.bank("seven", teacher, few)]
        for work in readers:
            work()

    readers = [*_seven(bench, few, lambda x, epoch, index: held[0].outputs(epoch, index))]
    online = [*_seven(bench, few, _asked(teacher))]
    peers = [_peer(bench, name, teacher, few) for name, _ in SEVEN]
    whole = "a bank and seven students of it"
    each, peer = f"seven students, {small} in every step", f"seven of timm's, {small}"
    seconds = bench.turns(
        {whole: shared, each: lambda: [work() for work in online], peer: lambda: [work() for work in peers]},
        bench.size.long_turns,
    )
    yield from (bench.row(seconds, what, whole) for what in (each, peer))


def views(bench: Bench) -> Iterator[Row]:
    """torchvision's ImageFolder and DataLoader of equal resize, crop, flip over the cache and its views."""
    size, root = bench.size, bench.folder / "photos"
    _photos(root, size)
    spec = DataSpec("photos", "folder", root=str(root), resize=size.photo_views.resize)
    split = datasets.load(spec, bench.folder / "cache", progress=False).train
    images = training.Images(split, size.photo_views, bench.on)
    side, crop = size.photo_views.resize, size.photo_views.crop
    seen = transforms.Compose(
        [
            transforms.Resize((side, side), transforms.InterpolationMode.BICUBIC),
            transforms.RandomCrop(crop),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )
    folder, workers = torchvision.datasets.ImageFolder(str(root / "train"), seen), _cores()
    loader = DataLoader(folder, size.batch, shuffle=True, num_workers=workers, persistent_workers=True)
    decoded = itertools.count()

    def ours():
        chosen = images.epoch(1, 0)
        for index in torch.randperm(len(images)).split(size.batch):
            images.batch(index, chosen)

    epoch, cache = "an epoch of the cache's views", "decoding into the cache, once"
    theirs = f"an epoch of ImageFolder and DataLoader, {workers} workers"
    steps = f"an epoch of {STUDENT} on these views"
    model = classifier.build(Model(STUDENT, STUDENT), size.classes, crop=crop, seed=0).to(bench.on)
    seconds = bench.turns(
        {
            epoch: ours,
            theirs: lambda: [x.to(bench.on) for x, _ in loader],
            cache: lambda: datasets.load(spec, bench.folder / f"cache-{next(decoded)}", progress=False),
            steps: bench.training(model, images, training.cross_entropy(images.labels), epochs=1),
        },
        size.turns,
    )
    yield bench.row(seconds, theirs, epoch, "at least 10")
    yield bench.row(seconds, cache, theirs)
    yield bench.row(seconds, epoch, steps)


def all_metrics(bench: Bench) -> Iterator[Row]:
    """All metrics of logits over torch's softmax and two largest, on one thread; the memory they take."""
    logits = torch.randn(bench.size.logits, generator=torch.Generator().manual_seed(0)) * 3
    labels, threads = logits.argmax(1), torch.get_num_threads()
    everything, torch_s, read = "all metrics", "torch's softmax and two largest", "one sum of the array"
    torch.set_num_threads(1)
    try:
        seconds = bench.turns(
            {
                everything: lambda: metrics.summarize_all(metrics.all_samples(logits, labels)),
                "R12 alone": lambda: metrics.ratio12(logits),
                torch_s: lambda: (logits.softmax(1), logits.topk(2, dim=1)),
                read: logits.sum,
            },
            bench.size.turns,
        )
    finally:
        torch.set_num_threads(threads)
    yield bench.row(seconds, everything, torch_s, "at most 4")
    yield bench.row(seconds, "R12 alone", torch_s)
    yield bench.row(seconds, torch_s, read)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        taken, held = pool.apply(_memory, (bench.size.logits,))
    if taken is not None:
        share = taken / held
        what = "memory of all metrics"
        yield Row("metrics", what, "the array", taken, held, share, share, share, "at most 100 MB", "MB")


def bank(bench: Bench) -> Iterator[Row]:
    """A bank over its teacher's forward passes alone; a view written and read over the same bytes alone."""
    images, teacher, size = bench.pictures(bench.size.images), bench.teacher(bench.size.small), bench.size
    whole, alone = f"a bank of {size.small}", f"{size.small} on the same views"

    def passes():
        with torch.inference_mode():
            for view in range(size.epochs):
                training.predict(teacher, images, images.epoch(1, view))

    seconds = bench.turns({whole: lambda: bench.bank("written", teacher, images), alone: passes}, size.turns)
    yield bench.row(seconds, whole, alone)
    logits = torch.randn(size.view).half()
    data, file, plain = logits.numpy().tobytes(), bench.folder / "view" / "logits.npy", bench.folder / "plain"
    file.parent.mkdir()
    into = memoryview(bytearray(len(data)))
    append, write, load, read = "a view written", "its bytes written", "a view read", "its bytes read"

    def written():
        with open(plain, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())

    def loaded():
        _forget(file)
        found = banks.read(file.parent, {"logits": (1, *size.view)}, bench.on)
        return found.outputs(0, torch.zeros(1, dtype=torch.long))

    def raw():
        _forget(plain)
        with open(plain, "rb", buffering=0) as source:
            source.readinto(into)

    works = {append: lambda: banks.append(file, logits, 1, 0), write: written, load: loaded, read: raw}
    seconds = bench.turns(works, size.turns)
    yield bench.row(seconds, append, write)
    yield bench.row(seconds, load, read)


def growth(bench: Bench) -> Iterator[Row]:
    """A whole small study over one with a quarter of its images, classes, epochs, teachers or students; the
    exponent is the logarithm of the ratio over that of 4."""
    runs = itertools.count()

    def work(**times):
        def run():
            with _results_in(bench.folder / str(next(runs))) as folder:
                stages.study_tables(study.load(str(_small_study(folder, bench, **times))))

        return run

    base, kinds = "the smallest study", ("images", "classes", "epochs", "teachers", "students")
    works = {base: work()} | {f"4 times the {kind}": work(**{kind: 4}) for kind in kinds}
    seconds = bench.turns(works, bench.size.long_turns)
    for name in list(works)[1:]:
        row = bench.row(seconds, name, base)
        yield Row(**asdict(row) | {"goal": f"at most 4; exponent {math.log(row.ratio, 4):.2f}"})


def notebook(bench: Bench) -> Iterator[Row]:
    """A notebook whose work is done, through papermill with a warm kernel, and what it consists of."""
    with _results_in(bench.folder) as folder:
        file = _small_study(folder, bench)
        stages.study_tables(study.load(str(file)))
        done, cold = "a notebook whose work is done", "the same with a kernel of its own"
        imports, python = "a process that imports papermill", "a process that does nothing"
        given = {"study": str(file), "dataset": "birds", "teacher": "t0", "strategy": "FT"}
        words = [word for name, value in given.items() for word in ("-r", name, value)]
        page = [str(PROJECT / "notebooks" / "05_distillation.ipynb"), str(folder / "out.ipynb")]
        with kernels.warm(dict(os.environ)) as (environment, _):

            def papermill(env):
                return lambda: _run([sys.executable, "-m", "fgkd.engine.execute", *page, *words], env)

            seconds = bench.turns(
                {
                    done: papermill(environment),
                    cold: papermill(dict(os.environ)),
                    imports: lambda: _run([sys.executable, "-c", "import fgkd.engine.execute"], environment),
                    python: lambda: _run([sys.executable, "-c", "pass"], environment),
                },
                bench.size.long_turns,
            )
    yield bench.row(seconds, cold, done)
    yield bench.row(seconds, imports, done)
    yield bench.row(seconds, python, done)


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
    """Cross-entropy on three random views of each image: a TGDA step without teacher, crop and drop."""
    labels = images.labels
    seen = functools.lru_cache(2)(images.epoch)

    def objective(model, x, epoch, index):
        y = labels[index.to(labels.device)]
        more = torch.cat([images.batch(index, seen(seed, epoch)) for seed in (2, 3)])
        logits, others = model(x), model(more)
        return logits, {"ce": F.cross_entropy(logits, y), "views": F.cross_entropy(others, y.repeat(2))}

    return objective


def _read(stored: banks.Bank) -> Callable[[Tensor, int, Tensor], dict[str, Tensor]]:
    return lambda x, epoch, index: stored.outputs(epoch, index)


def _asked(teacher: classifier.Classifier) -> Callable[[Tensor, int, Tensor], dict[str, Tensor]]:
    return lambda x, epoch, index: banks.teacher_outputs(teacher, x, torch.empty(0))


def _peer(bench: Bench, name: str, teacher: classifier.Classifier, images: training.Images) -> Callable:
    """A work: the same student's training with timm's task, which has its teacher in every step."""
    model, labels = bench.network(name), images.labels
    task = LogitDistillationTask(
        model.net,
        teacher.net,
        task_loss_weight=1.0,
        distill_loss_weight=KD.beta,
        temperature=KD.temperature,
        device=bench.on,
        verbose=False,
    )

    def objective(model, x, epoch, index):
        with model.autocast(x):
            said = task(model.normalize(x), labels[index.to(labels.device)])
        return said["output"], {"loss": said["loss"]}

    return bench.training(model, images, objective)


def _seven(bench: Bench, images: training.Images, said: Callable) -> Iterator[Callable[[], object]]:
    """Works: the trainings of the seven students and losses that share a bank in the paper's matrix."""
    width = bench.size.classes
    for name, loss in SEVEN:
        spec = Loss(loss, loss, options=LOSSES[loss])
        further = None
        if loss != "kd":
            further = training.Further(spec, width, width, images.labels.cpu()).to(bench.on)
        objective = training.distillation(images.labels, said, KD, further=further)
        yield bench.training(bench.network(name), images, objective, extra=further)


def _photos(root: Path, size: Size) -> None:
    """Drawn birds as JPEG files of 500 x 375 pixels, below train/<class> and, one of each, test/<class>."""
    for split, each in (("train", size.photos // size.classes), ("test", 1)):
        flock = birds.draw(size.classes, each, pixels=500, split=split)
        for number, (pixels, label) in enumerate(zip(flock.images, flock.labels)):
            folder = root / split / f"{label:03}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((500, 375)).save(folder / f"{number}.jpg", quality=90)


def _memory(shape: tuple[int, int]) -> tuple[float | None, float]:
    """MB that all metrics of logits (N, C) take at most, None where nothing tells; of the logits."""
    torch.set_num_threads(1)
    logits = torch.empty(shape)
    logits.normal_()
    labels = torch.zeros(len(logits), dtype=torch.long)
    before = _peak_mb()
    metrics.summarize_all(metrics.all_samples(logits, labels))
    return (None if before is None else _peak_mb() - before), logits.nbytes / 1e6


def _peak_mb() -> float | None:
    """The most memory that this process has held, which Linux tells in kB."""
    file = Path("/proc/self/status")
    if not file.exists():
        return None
    kilobytes = next(line.split()[1] for line in file.read_text().splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024 / 1e6


def _forget(file: Path) -> None:
    """Have the system drop a file from its memory, where it can, so that it is read from the disk."""
    if hasattr(os, "posix_fadvise"):
        with open(file, "rb") as held:
            os.posix_fadvise(held.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def _results_in(folder: Path) -> Iterator[Path]:
    """Studies write to this folder, wherever FGKD_RUNS says."""
    folder.mkdir(parents=True, exist_ok=True)
    before = os.environ.get("FGKD_RUNS")
    os.environ["FGKD_RUNS"] = str(folder)
    try:
        yield folder
    finally:
        os.environ.pop("FGKD_RUNS")
        if before is not None:
            os.environ["FGKD_RUNS"] = before


def _small_study(
    folder: Path,
    bench: Bench,
    *,
    images: int = 1,
    classes: int = 1,
    epochs: int = 1,
    teachers: int = 1,
    students: int = 1,
) -> Path:
    """The file of a study that takes seconds; more classes share out the same number of images."""
    recipe = {"epochs": 2 * epochs, "batch_size": 32, "lr": 0.01}
    value = {
        "question": "How does it grow?",
        "device": bench.on.type,
        "threads": torch.get_num_threads(),
        "views": {"resize": 36, "crop": 32},
        "strategies": ["FT"],
        "baseline": False,
        "datasets": {
            "birds": {
                "species": 8 * classes,
                "test": 4 // classes,
                "train": bench.size.growth * images // classes,
            }
        },
        "teachers": {f"t{n}": {"model": "test_resnet"} for n in range(teachers)},
        "students": {f"s{n}": {"model": "test_byobnet"} for n in range(students)},
        "recipes": {"FT": recipe, "student": recipe},
    }
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(value))
    return file


def _run(command: list[str], environment: dict[str, str]) -> None:
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    if found.returncode:
        words = " ".join(command[:4])
        raise RuntimeError(f"{words} ended with exit status {found.returncode}: {found.stderr[-500:]}")


def _machine(on: torch.device, load: tuple[float, float, float]) -> dict:
    processor = torch.cuda.get_device_name(on) if on.type == "cuda" else _processor()
    return {
        "device": processor,
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "load_before": round(load[0], 1),
        "load_after": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    """The processor's name, which Linux tells in a file."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> int:
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1


def _shown(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
