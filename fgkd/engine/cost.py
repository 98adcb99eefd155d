"""Cost estimates: jobs and groups, images through each network, bytes of banks, and hours.

An image passes through a network forward and backward ('train') or forward alone ('forward').  Training
images pass once an epoch, three times for CAL and TGDA (view, crop, drop); an FZ teacher's pass forward once
for each view that it keeps; a bank takes one forward pass of each view, or three where TGDA reads it; LogME
one of each training image through a pretrained teacher; a test one of each test image, nine of a CAL teacher
(eight views, and the image alone).  A search for a learning rate trains on 80 % of the images and tests on
the others, once a candidate.

Hours are passes over throughputs: decoding, the last layer's training of FZ, metrics, figures and the start
of notebooks come on top.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import yaml

from fgkd.analysis import records
from fgkd.study import OFFICIAL, PRETEXT, RECIPES, Job, Recipe, Study, StudyError

KINDS = ("train", "forward")
CAL_VIEWS = 8  # of a test image whose logits a CAL teacher averages
Work = Counter[tuple[str, str]]  # (timm name, kind of pass) -> images
Rates = dict[tuple[str, str], float]  # (timm name, kind of pass) -> images a second


def counts(study: Study) -> dict[str, int]:
    """Runs and groups of the study, and the bytes of its banks."""
    jobs = study.jobs()
    stages = Counter(job.stage for job in jobs)
    pretext = sum(job.dataset == PRETEXT and job.stage == "teacher" for job in jobs)
    trainings: Counter[str] = Counter()
    for job in jobs:
        if job.stage == "distill":
            trainings["CE" if job.strategy == "CE" else "KD"] += len(study.student_jobs(job))
    sizes = [bank_bytes(study, job) for job in jobs if job.stage == "bank"]
    teachers = stages["teacher"] - pretext
    return {
        "pretext_trainings": pretext,
        "teacher_trainings": teachers,
        "banks": stages["bank"],
        "distillations": trainings["KD"],
        "runs": teachers + trainings["KD"],
        "ce_baselines": trainings["CE"],
        "groups": trainings["KD"] // (len(study.teachers) * len(study.seeds)),
        "notebooks": len(jobs),
        "largest_bank_bytes": max(sizes, default=0),
        "bank_bytes": sum(sizes),
    }


def size(study: Study, dataset: str) -> tuple[int, int, int]:
    """Training images, test images and classes; zeros for a folder that is not there."""
    spec = study.data(dataset)
    if spec.kind == "birds":
        return spec.species * spec.train, spec.species * spec.test, spec.species
    if record := records.record(study, Job("data", dataset)):
        row = record["rows"][0]
        return row["train"], row["test"], row["classes"]
    if content := study.photos.get(dataset):
        return content.counts["train"], content.counts["test"], len(content.classes)
    if spec.kind in OFFICIAL:
        from fgkd.data import official

        facts = official.SETS[spec.kind]
        return facts.train, facts.test, facts.classes
    return 0, 0, 0


def bank_bytes(study: Study, job: Job) -> int:
    """Bytes of a bank's fp16 logits of all views; features are not counted.

    A TGDA bank holds logits of three views, boxes, and drop maps of at most a 16th of the view's side.
    """
    images, _, classes = size(study, job.dataset)
    values = classes
    if study.bank_contents(job.strategy)["augmented"]:
        values = 3 * classes + 4 + (study.views.crop // 16) ** 2
    return study.bank_views * images * values * 2


def passes(study: Study, job: Job) -> Work:
    """The images that a job passes through each network."""
    match job.stage:
        case "teacher":
            return _teacher_passes(study, job)
        case "bank":
            images = size(study, job.dataset)[0] * study.bank_views
            model = study.teacher(job.teacher).model
            return Work({(model, "forward"): images * _outputs_per_view(study, job.strategy)})
        case "student":
            return _student_passes(study, job)
        case "distill":
            return _total(passes(study, part) for part in study.student_jobs(job))
    return Work()


def measured(study: Study) -> tuple[Rates, set[str]]:
    """Throughputs of what has run, from the seconds in its records, and its devices.

    A training's seconds are shared out over all images that pass through a network in it.  Of a run that was
    interrupted only the seconds of its last part are known, which makes it seem fast.
    """
    images = Work()
    seconds: Counter[tuple[str, str]] = Counter()
    devices = set()
    known: dict[Job, str] = {}
    for part in (part for job in study.jobs() for part in records.record_jobs(study, job)):
        record = records.find(study, part, known)
        work = passes(study, part) if record else Work()
        if record and work.total():
            devices.add(record["provenance"]["device"])
            images.update(work)
            per_image = record["provenance"]["seconds"] / work.total()
            seconds.update({key: number * per_image for key, number in work.items()})
    return {key: number / seconds[key] for key, number in images.items() if seconds[key]}, devices


def estimate(study: Study, left: Iterable[Job], given: str | None = None) -> dict:
    """Images through each network and hours of one device, of all jobs and of those left.

    given: images a second of any network, or a file: see `given_rates`; for networks of which it says
    nothing, the throughput that this study measured.
    `hours` are of the networks with a throughput; `without_throughput` names the others, `not_counted` the
    data sets whose images were never read.
    """
    rates, devices = measured(study)
    device = " and ".join(sorted(devices)) or None
    if given:
        own, name = given_rates(given, study)
        device = f"{name}, else measured on {device}" if rates.keys() - own.keys() else name
        rates |= own
    by_job = {job: passes(study, job) for job in study.jobs()}
    work = _total(by_job.values())
    work_left = _total(by_job[job] for job in left)
    rows = []
    for model in dict.fromkeys(model for model, _ in work):
        row = {
            "model": model,
            "train": work[model, "train"],
            "forward": work[model, "forward"],
            "train_per_second": rates.get((model, "train")),
            "forward_per_second": rates.get((model, "forward")),
            "hours": _hours(work, model, rates),
            "hours_left": _hours(work_left, model, rates),
        }
        rows.append(row)
    known = [row for row in rows if row["hours"] is not None]
    return {
        "device": device,
        "hours": sum(row["hours"] for row in known),
        "hours_left": sum(row["hours_left"] for row in known),
        "without_throughput": [row["model"] for row in rows if row["hours"] is None],
        "not_counted": [key for key in study.datasets if not size(study, key)[0]],
        "networks": rows,
    }


def given_rates(text: str, study: Study) -> tuple[Rates, str]:
    """Throughputs and the name of their device, from a number or from a YAML or JSON file.

    text: images a second of all networks and passes, or a file with `device: <name>` and by timm name
    `<model>: 700` or `<model>: {train: 700, forward: 2000}`.
    Raises StudyError for what is neither.
    """
    try:
        rate = float(text)
    except ValueError:
        return _rates_from_file(Path(text))
    rate = _checked_rate(rate, "--images-per-second")
    models = [model.model for model in (*study.teachers.values(), *study.students.values())]
    rates = dict.fromkeys(itertools.product(models, KINDS), rate)
    return rates, f"a device of {text} images a second"


def _total(works: Iterable[Work]) -> Work:
    total = Work()
    for work in works:
        total.update(work)
    return total


def _teacher_passes(study: Study, job: Job) -> Work:
    """Training, with the search for its learning rate; tests; LogME's pass of a pretrained teacher."""
    train, test, _ = size(study, job.dataset)
    model = study.teacher(job.teacher)
    recipe = study.recipe(job.strategy, model)
    trained, validated = _trained(recipe, train)
    cal = job.strategy == "CAL"
    work = Work()
    if job.strategy == "FZ":
        work[model.model, "forward"] = train * recipe.n_views
    else:
        work[model.model, "train"] = trained * (3 if cal else 1)
    work[model.model, "forward"] += test * (CAL_VIEWS + 1 if cal else 1)
    work[model.model, "forward"] += validated * (CAL_VIEWS if cal else 1)
    if model.weights != "none" and job.strategy != PRETEXT:
        work[model.model, "forward"] += train
    return work


def _student_passes(study: Study, job: Job) -> Work:
    """Training, with the search for its learning rate; tests; online, the teacher's passes."""
    train, test, _ = size(study, job.dataset)
    student = study.student(job.student)
    trained, validated = _trained(study.recipe("student", student), train)
    work = Work()
    work[student.model, "train"] = trained * (3 if job.strategy == "TGDA" else 1)
    work[student.model, "forward"] = test + validated
    if study.online and job.strategy != "CE":
        teacher = study.teacher(job.teacher)
        work[teacher.model, "forward"] += trained * _outputs_per_view(study, RECIPES[job.strategy])
    return work


def _trained(recipe: Recipe, train: int) -> tuple[int, int]:
    """Images that pass through one model in its trainings, search included, and those of its validation."""
    candidates = len(recipe.rates) if len(recipe.rates) > 1 else 0
    validation = round(train / 5)
    search = candidates * (train - validation) * (recipe.search_epochs or recipe.epochs)
    return train * recipe.epochs + search, candidates * validation


def _outputs_per_view(study: Study, recipe: str) -> int:
    """Forward passes of a teacher for each view that its students learn from."""
    return 3 if study.bank_contents(recipe)["augmented"] else 1


def _hours(work: Work, model: str, rates: Rates) -> float | None:
    images = {(model, kind): work[model, kind] for kind in KINDS if work[model, kind]}
    if images.keys() - rates.keys():
        return None
    return sum(number / rates[key] for key, number in images.items()) / 3600


def _rates_from_file(file: Path) -> tuple[Rates, str]:
    try:
        value = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise StudyError(
            f"--images-per-second is '{file}': expected a number, or a YAML or JSON file ({reason})"
        ) from None
    if not isinstance(value, dict):
        raise StudyError(
            f"'{file}' holds {type(value).__name__}: expected '<model>: <images a second>', "
            "or '<model>: {train: ..., forward: ...}'"
        )
    device = str(value.pop("device", f"the device of {file.name}"))
    rates: Rates = {}
    for model, given in value.items():
        by_kind = given if isinstance(given, dict) else dict.fromkeys(KINDS, given)
        for kind, rate in by_kind.items():
            if kind not in KINDS:
                raise StudyError(f"'{file}': '{kind}' of {model} is unknown: expected train or forward")
            rates[str(model), kind] = _checked_rate(rate, f"'{file}': {kind} of {model}")
    return rates, device


def _checked_rate(value, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise StudyError(f"{where} is {value!r}: expected more than 0 images a second")
    return float(value)
