"""What a study takes: images that pass through each network, bytes of banks, and hours where throughputs are known.

An image passes through a network forward and backward ('train') or forward alone ('forward').  Training images pass once an epoch, three times
for CAL and TGDA (view, crop, drop); an FZ teacher's pass forward once for each view that it keeps; a bank takes one forward pass of each view, or
three where TGDA reads it; LogME one of each training image through a pretrained teacher; a test one of each test image, nine of a CAL
teacher (eight views, and the image alone).  A search for a learning rate trains on 80 % of the images and tests on the others, once a candidate.

Hours are passes over throughputs: decoding, the last layer's training of FZ, metrics, figures and the start of notebooks come on top.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import yaml

from fgkd import records
from fgkd.study import OFFICIAL, PRETEXT, RECIPES, Job, Recipe, Study, StudyError

KINDS = ("train", "forward")
Work = Counter[tuple[str, str]]  # (timm name, kind of pass) -> images
Rates = dict[tuple[str, str], float]  # (timm name, kind of pass) -> images a second


def size(study: Study, dataset: str) -> tuple[int, int, int]:
    """Training images, test images and classes; zeros for a folder that is not there."""
    spec = study.data(dataset)
    if spec.kind == "birds":
        return spec.species * spec.train, spec.species * spec.test, spec.species
    if found := records.record(study, Job("data", dataset)):
        return tuple(found["rows"][0][name] for name in ("train", "test", "classes"))
    if seen := study.photos.get(dataset):
        return seen.counts["train"], seen.counts["test"], len(seen.classes)
    if spec.kind in OFFICIAL:
        from fgkd.data import official

        return official.SETS[spec.kind].train, official.SETS[spec.kind].test, official.SETS[spec.kind].classes
    return 0, 0, 0


def bank_bytes(study: Study, job: Job) -> int:
    """fp16 logits of all views; a TGDA bank has three of them, boxes, and drop maps of at most a 16th of the view's side; features are not counted."""
    images, _, classes = size(study, job.dataset)
    view = (
        3 * classes + 4 + (study.views.crop // 16) ** 2
        if study.bank_contents(job.strategy)["augmented"]
        else classes
    )
    return study.bank_views * images * view * 2


def passes(study: Study, job: Job) -> Work:
    """The images that a job passes through each network."""
    work = Work()
    train, test, _ = size(study, job.dataset) if job.dataset else (0, 0, 0)
    teacher = None if job.teacher in ("", "none") else study.teacher(job.teacher)
    match job.stage:
        case "teacher":
            how, seen = study.recipe(job.strategy, teacher), 3 if job.strategy == "CAL" else 1
            trained, held = _trained(how, train)
            if job.strategy == "FZ":
                work[teacher.model, "forward"] = train * min(how.views or how.epochs, how.epochs)
            else:
                work[teacher.model, "train"] = trained * seen
            work[teacher.model, "forward"] += test * seen**2 + held * (8 if job.strategy == "CAL" else 1)
            if teacher.weights != "none" and job.strategy != PRETEXT:
                work[teacher.model, "forward"] += train
        case "bank":
            work[teacher.model, "forward"] = train * study.bank_views * _answers(study, job.strategy)
        case "student":
            student = study.student(job.student)
            how = study.recipe("student", student)
            trained, held = _trained(how, train)
            work[student.model, "train"] += trained * (3 if job.strategy == "TGDA" else 1)
            work[student.model, "forward"] += test + held
            if study.online and teacher:
                work[teacher.model, "forward"] += trained * _answers(study, RECIPES[job.strategy])
        case "distill":
            work = sum((passes(study, part) for part in study.student_jobs(job)), work)
    return work


def measured(study: Study) -> tuple[Rates, set[str]]:
    """Throughputs of what has run, from the seconds in its records, and the devices that it ran on.

    A training's seconds are shared out over all images that pass through a network in it.  Of a run that was
    interrupted only the seconds of its last part are known, which makes it seem fast.
    """
    images, seconds, devices = Work(), Counter(), set()
    for part in (part for job in study.jobs() for part in records.record_jobs(study, job)):
        work = passes(study, part)
        if work.total() and (record := records.record(study, part)):
            devices.add(record["provenance"]["device"])
            images.update(work)
            seconds.update(
                {key: record["provenance"]["seconds"] * n / work.total() for key, n in work.items()}
            )
    return {key: n / seconds[key] for key, n in images.items() if seconds[key]}, devices


def estimate(study: Study, left: list[Job], given: str | None = None) -> dict:
    """The images through each network and the hours of one device, for all jobs and for those left, as far as throughputs are known.

    given: images a second of any network, or a file: see `given_rates`; where it says nothing, what this study measured is taken.
    `hours` are of the networks with a throughput, `without_throughput` names the others, `not_counted` data sets whose images were never read.
    """
    rates, devices = measured(study)
    device = " and ".join(sorted(devices)) or None
    if given:
        own, name = given_rates(given, study)
        rates, device = (
            rates | own,
            f"{name}, else measured on {device}" if rates.keys() - own.keys() else name,
        )
    works, rows = [sum((passes(study, c) for c in jobs), Work()) for jobs in (study.jobs(), left)], []
    for model in dict.fromkeys(model for model, _ in works[0]):
        row = (
            {"model": model}
            | {kind: works[0][model, kind] for kind in KINDS}
            | {f"{kind}_per_second": rates.get((model, kind)) for kind in KINDS}
        )
        rows.append(
            row | {name: _hours(work, model, rates) for name, work in zip(("hours", "hours_left"), works)}
        )
    known = [row for row in rows if row["hours"] is not None]
    return {
        "device": device,
        **{name: sum(row[name] for row in known) for name in ("hours", "hours_left")},
        "without_throughput": [row["model"] for row in rows if row["hours"] is None],
        "not_counted": [key for key in study.datasets if not size(study, key)[0]],
        "networks": rows,
    }


def given_rates(text: str, study: Study) -> tuple[Rates, str]:
    """Throughputs and the name of their device, from a number for all networks and passes or from a YAML or JSON file: `device: <name>` and by
    timm name `<model>: 700`, or `<model>: {train: 700, forward: 2000}`, images a second.  Raises StudyError for what is neither."""
    try:
        rate = float(text)
    except ValueError:
        return _from_file(Path(text))
    models = [m.model for m in (*study.teachers.values(), *study.students.values())]
    return {
        (model, kind): _rate(rate, "--images-per-second") for model in models for kind in KINDS
    }, f"a device of {text} images a second"


def _trained(how: Recipe, train: int) -> tuple[int, int]:
    """Images that pass through one model in all epochs of its trainings, the search for its learning rate
    included, and images that this search tests on."""
    candidates, held = len(how.rates) if len(how.rates) > 1 else 0, round(train / 5)
    search = candidates * (train - held) * (how.search_epochs or how.epochs)
    return train * how.epochs + search, candidates * held


def _answers(study: Study, recipe: str) -> int:
    """Forward passes of a teacher for each view that its students learn from."""
    return 3 if study.bank_contents(recipe)["augmented"] else 1


def _hours(work: Work, model: str, rates: Rates) -> float | None:
    found = {kind: work[model, kind] for kind in KINDS if work[model, kind]}
    return (
        None
        if any((model, kind) not in rates for kind in found)
        else sum(n / rates[model, kind] for kind, n in found.items()) / 3600
    )


def _from_file(file: Path) -> tuple[Rates, str]:
    try:
        found = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(
            f"--images-per-second is '{file}': expected a number, or a YAML or JSON file ({' '.join(str(error).split())})"
        ) from None
    if not isinstance(found, dict):
        raise StudyError(
            f"'{file}' holds {type(found).__name__}: expected '<model>: <images a second>', or '<model>: {{train: ..., forward: ...}}'"
        )
    device, rates = str(found.pop("device", f"the device of {file.name}")), {}
    for model, value in found.items():
        for kind, rate in (value if isinstance(value, dict) else dict.fromkeys(KINDS, value)).items():
            if kind not in KINDS:
                raise StudyError(f"'{file}': '{kind}' of {model} is unknown: expected train or forward")
            rates[str(model), kind] = _rate(rate, f"'{file}': {kind} of {model}")
    return rates, device


def _rate(value, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise StudyError(f"{where} is {value!r}: expected more than 0 images a second")
    return float(value)
