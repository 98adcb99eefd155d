"""The stages of a study: each loads what its job computed before, or computes it, and what it needs, now.

A notebook calls one of these and looks at the result.  It therefore runs by itself, and costs nothing twice when the engine runs it.

Where a recipe has several learning rates, a teacher or student is first trained with each on 80 % of the
training split; the one with the highest accuracy on the other 20 % after the last epoch, of equal ones the
smallest, is that of its training.  The paper (arXiv 2605.15689) searches so, on an 80/20 split.  Its released
code has lists of such a split, which put the first 80 % of each class on one side, and takes one learning
rate, so that the search itself is not in it; ours draws from each class with the seed, the same for all
models of a data set.  The test split has no part in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fgkd import metrics, records
from fgkd.data import datasets, views
from fgkd.distillation import bank as banks
from fgkd.distillation import training
from fgkd.metrics import transfer
from fgkd.models import cal, classifier
from fgkd.study import PRETEXT, RECIPES, Job, Loss, Recipe, Study, StudyError

SHOWN_VIEWS = 4  # stored of each image where students need no bank


@dataclass(frozen=True)
class StageResult:
    """What a job computed: its rows, its folder, and the tables beside them."""

    job: Job
    folder: Path
    rows: pd.DataFrame
    record: dict

    def table(self, name: str) -> pd.DataFrame:
        """A further table of the record: 'history' of a training, 'search' where its learning rate was searched for, 'epochs' of a bank."""
        return pd.DataFrame(self.record[name])

    def logits(self) -> np.ndarray:
        """Test logits (N, C) of a teacher or student."""
        return np.load(self.folder / "test.npy")


@dataclass(frozen=True)
class DistillResult:
    """What the students of a distill job reached: a StageResult a student and loss."""

    job: Job
    students: dict[tuple[str, str], StageResult]

    @property
    def rows(self) -> pd.DataFrame:
        """A row a student and loss."""
        return pd.concat([run.rows for run in self.students.values()], ignore_index=True)

    def table(self, name: str) -> pd.DataFrame:
        """The tables of that name of all students, `student` and `loss` before them; empty where none has
        one."""
        named = [
            {"student": k, "loss": loss} | row
            for (k, loss), run in self.students.items()
            for row in run.record.get(name, [])
        ]
        return pd.DataFrame(named)

    def logits(self) -> dict[tuple[str, str], np.ndarray]:
        """Test logits (N, C) by student and loss, of those that have them here: a record may have come
        alone."""
        return {key: run.logits() for key, run in self.students.items() if (run.folder / "test.npy").exists()}


def data(study: Study, dataset: str) -> datasets.Dataset:
    """The data set, its images decoded and cached by the first call.

    A process looks at the photos once: what is changed after that is seen by the next one.
    """
    job = Job("data", dataset)
    found = _loaded(study.data(dataset), study.path(job) / "cache")
    if found.content:
        study.photos[dataset] = found.content

    def compute(_):
        counts = {
            "dataset": dataset,
            "classes": len(found.classes),
            "train": len(found.train),
            "test": len(found.test),
        }
        return {
            "rows": [counts],
            "notes": list(found.notes),
            "photos": " ".join(found.content.photos if found.content else ()),
        }

    _load_or_compute(study, job, compute)
    return found


def teacher(study: Study, dataset: str, teacher: str, recipe: str) -> StageResult:
    """Train a teacher (FZ: its last layer on a frozen backbone; FT and pretext: all of it; CAL: with attention) and measure TAC on the test split."""
    job = study.job("teacher", dataset, teacher, recipe)
    spec, found = study.teacher(teacher), data(study, dataset)

    def compute(folder):
        on = _device(study)
        train, test = (training.Images(s, study.views, on) for s in (found.train, found.test))
        how, frozen = study.recipe(recipe, spec), None
        if recipe == "FZ":
            frozen = training.features(
                _teacher_model(study, job, len(found.classes)).to(on),
                train,
                how,
                views_seed=study.seed_for("teacher views", dataset),
                title=f"{teacher} {recipe}",
            )
        trained = functools.partial(_trained_teacher, study, job, train, len(found.classes), frozen)
        how, search = _search(study, job, folder, how, train, trained)
        model, history = trained(how, _checkpoint(study, job, folder))
        tac, logits = training.accuracy(model, test)
        single = (
            metrics.accuracy(training.predict(model, test), found.test.labels) if recipe == "CAL" else tac
        )
        classifier.save(model, folder / "model.safetensors")
        records.write_array(folder / "test.npy", logits.numpy())
        row = {
            "dataset": dataset,
            "teacher": teacher,
            "recipe": recipe,
            "model": spec.model,
            "tac": tac,
            "tac_single": single,
            "train_accuracy": history[-1]["train_accuracy"],
            "parameters": classifier.parameters(model),
            "pretraining": classifier.pretraining(spec),
            "norm": classifier.norm(model),
            "epochs": how.epochs,
            "lr": how.lr,
        } | _transfer(study, job, train)
        on_test = metrics.summarize(logits) | metrics.summarize_labelled(
            metrics.labelled_samples(logits, found.test.labels)
        )
        return {"rows": [row], "history": history, "on_test": on_test} | (
            {"search": search} if search else {}
        )

    return _load_or_compute(study, job, compute, files=("model.safetensors", "test.npy"))


def load_teacher(study: Study, dataset: str, teacher_: str, recipe: str) -> classifier.Classifier:
    """A trained teacher, frozen, in eval mode, on the study's device."""
    run = teacher(study, dataset, teacher_, recipe)
    model = _teacher_model(study, run.job, len(data(study, dataset).classes), pretext=False)
    classifier.restore(model, run.folder / "model.safetensors")
    return model.to(_device(study)).eval().requires_grad_(False)


def bank(study: Study, dataset: str, teacher: str, recipe: str) -> tuple[StageResult, banks.Bank]:
    """A teacher's metrics over all views of all training images, and the bank that its students learn from.

    Of an online study, whose students need no bank, the metrics are the same and only the first few views are
    stored, to be looked at.
    """
    job, found = study.job("bank", dataset, teacher, recipe), data(study, dataset)
    folder, holds = study.path(job) / "views", study.bank_contents(recipe)
    stored = min(SHOWN_VIEWS, study.bank_views) if study.online else study.bank_views
    shapes = {name: (stored, len(found.train)) for name in banks.names(**holds)}
    shapes["logits"] += (len(found.classes),)

    def compute(_):
        images = training.Images(found.train, study.views, _device(study))
        model, seed = load_teacher(study, dataset, teacher, recipe), study.seed_for("student views", dataset)
        summary, epochs = banks.write(
            folder,
            model,
            images,
            views=study.bank_views,
            keep=stored,
            views_seed=seed,
            key=study.fingerprint(job),
            **holds,
        )
        row = {"samples": len(images), "views": study.bank_views} | summary
        claims = metrics.plugin_claims()
        return {"rows": [row], "epochs": epochs} | ({"claims": claims} if claims else {})

    run = _load_or_compute(
        study, job, compute, valid=lambda: banks.read(folder, shapes, torch.device("cpu")) is not None
    )
    return run, banks.read(folder, shapes, _device(study))


def kept_banks(study: Study) -> list[Job]:
    """The bank jobs whose banks lie on disk, of teachers that are there too."""
    jobs = [job for job in study.jobs() if job.stage == "bank" and (study.path(job) / "views").is_dir()]
    return [job for job in jobs if records.record(study, job) and _has_teacher(study, job)]


def check_bank(study: Study, job: Job) -> dict[str, float]:
    """`bank.check` of a bank that lies on disk against its teacher; nothing is computed anew.

    Raises StudyError for a bank that is damaged.
    """
    folder, on = study.path(job) / "views", _device(study)
    held = {file.stem: () for file in folder.glob("*.npy")}
    stored = banks.read(folder, {"logits": ()} | held, on)
    if stored is None:
        raise StudyError(
            f"the bank '{folder}' lacks an array or is cut short: delete the folder, and it is written anew"
        )
    images = training.Images(data(study, job.dataset).train, study.views, on)
    model = load_teacher(study, job.dataset, job.teacher, job.strategy)
    return banks.check(stored, model, images, views_seed=study.seed_for("student views", job.dataset))


def student_views(
    study: Study, dataset: str, *, image: int, epochs: int, bank: banks.Bank
) -> dict[str, np.ndarray]:
    """What students see of one training image in the first epochs, (epochs, S, S, 3) uint8: its views, and for TGDA their crops and drops."""
    images = training.Images(data(study, dataset).train, study.views, torch.device("cpu"))
    seed, index = study.seed_for("student views", dataset), torch.tensor([image])
    seen = torch.cat([images.batch(index, images.epoch(seed, e)) for e in range(epochs)])
    rows = {"view": seen}
    if "boxes" in bank.arrays:
        boxes, maps = (
            torch.from_numpy(np.array(bank.arrays[name][:epochs, image])) for name in ("boxes", "maps")
        )
        rows |= {"crop": views.crop(seen, boxes), "drop": views.drop(seen, maps)}
    return {name: pictures.round().byte().permute(0, 2, 3, 1).numpy() for name, pictures in rows.items()}


def attend_test_images(study: Study, dataset: str, teacher: str) -> tuple[torch.Tensor, cal.Attended]:
    """The test images through their centre crops, uint8 (N, 3, S, S), and what a CAL teacher's attention makes of them, on the CPU."""
    images = training.Images(data(study, dataset).test, study.views, _device(study))
    model = load_teacher(study, dataset, teacher, "CAL")
    with torch.inference_mode():
        seen = [
            (x.cpu(), cal.Attended(*(v.cpu() for v in model.attend(x))))
            for _, x in training.batches(images, images.centre())
        ]
    return torch.cat([x for x, _ in seen]), cal.Attended(
        *(torch.cat(values) for values in zip(*(a for _, a in seen)))
    )


def birds_boxes(study: Study, dataset: str) -> torch.Tensor | None:
    """Where the bird is in each test image's centre crop: top, left, bottom, right (N, 4) in pixels; None where the data do not say."""
    boxes, corner = data(study, dataset).test.boxes, (study.views.resize - study.views.crop) // 2
    return (
        None
        if boxes is None
        else torch.from_numpy(boxes[:, [1, 0, 3, 2]] - corner).clamp(0, study.views.crop).float()
    )


def distill(study: Study, dataset: str, teacher: str, strategy: str) -> DistillResult:
    """Every student of the study with each of its losses from one teacher ('none' for the CE baseline),
    measured on the test split.

    Those that have a record are read, the others are trained.
    """
    job = study.job("distill", dataset, teacher, strategy)
    found = data(study, dataset)

    @functools.cache
    def sources():
        """What the students that are left to train have in common: images, and what their teacher says."""
        classifier.load_plugins(study.plugins)
        train, test = (training.Images(s, study.views, _device(study)) for s in (found.train, found.test))
        return train, test, *_said(study, job, train)

    def compute(part, folder):
        train, test, said, reference = sources()
        spec, loss = study.student(part.student), study.losses_of(part.student, strategy)[part.loss]
        trained = functools.partial(_trained_student, study, part, train, len(found.classes), said, loss)
        how, search = _search(study, part, folder, study.recipe("student", spec), train, trained)
        model, history = trained(how, _checkpoint(study, part, folder))
        accuracy, logits = training.accuracy(model, test)
        records.write_array(folder / "test.npy", logits.numpy())
        classifier.save(model, folder / "model.safetensors")
        agreement = (
            None if reference is None else float((logits.numpy().argmax(1) == reference.argmax(1)).mean())
        )
        row = {
            "dataset": dataset,
            "student": part.student,
            "strategy": strategy,
            "loss": part.loss,
            "teacher": teacher,
            "model": spec.model,
            "accuracy": accuracy,
            "train_accuracy": history[-1]["train_accuracy"],
            "agreement": agreement,
            "parameters": classifier.parameters(model),
            "lr": how.lr,
        }
        return {"rows": [row], "history": history} | ({"search": search} if search else {})

    students = {
        (p.student, p.loss): _load_or_compute(study, p, functools.partial(compute, p))
        for p in study.student_jobs(job)
    }
    return DistillResult(job, students)


def baseline(study: Study, dataset: str) -> pd.Series:
    """Accuracy of each student without a teacher, trained now where it was not yet; empty where the study has
    no baseline, or where its training diverged: what a teacher's students reached is no less true for
    that."""
    none = pd.Series(dtype=float)
    if not study.baseline:
        return none
    try:
        return distill(study, dataset, "none", "CE").rows.set_index("student").accuracy
    except FloatingPointError as error:
        print(f"there is no student without a teacher to compare with: {error}")
        return none


def study_tables(study: Study) -> dict[str, pd.DataFrame]:
    """All tables of the study; jobs that have not run yet are run here, one after the other."""
    datasets.look(study)
    for job in study.jobs():
        now = study.at(study.seed_of(job))
        if job.stage == "bank" and not records.is_complete(study, job):
            bank(now, job.dataset, job.teacher, job.strategy)
        if job.stage == "distill" and not records.is_complete(study, job):
            distill(now, job.dataset, job.teacher, job.strategy)
    return records.collect(study)


def on_test(study: Study) -> pd.DataFrame:
    """The metrics of every trained teacher on the test images' centre crops, a row a dataset, teacher, recipe and seed; of a CAL teacher its mean over views."""
    rows = []
    for job in study.jobs():
        if job.stage == "teacher" and job.dataset != PRETEXT:
            now = study.at(study.seed_of(job))
            record = records.record(study, job) or teacher(now, job.dataset, job.teacher, job.strategy).record
            names = {
                "dataset": job.dataset,
                "teacher": job.teacher,
                "recipe": job.strategy,
                "seed": study.seed_of(job),
            }
            rows.append(names | record["on_test"])
    return pd.DataFrame(rows)


def write_study_tables(study: Study, stage: str, frames: dict[str, pd.DataFrame]) -> StageResult:
    """Write the study's tables and the record of its 'correlation' or 'report' job."""
    for name, frame in frames.items():
        records.write_table(frame, study.folder / "tables" / f"{name}.csv")
    job = Job(stage)
    (study.path(job) / "record.json").unlink(missing_ok=True)
    return _load_or_compute(
        study, job, lambda _: {"rows": [{"table": n, "rows": len(f)} for n, f in frames.items()]}
    )


def _said(study: Study, job: Job, train: training.Images):
    """What the teacher says, (images, view, index) -> `bank.teacher_outputs`, and its test logits for agreement; None
    and None for the CE baseline."""
    if job.strategy == "CE":
        return None, None
    source = (job.dataset, job.teacher, RECIPES[job.strategy])
    reference = teacher(study, *source).logits()
    if not study.online:
        stored = bank(study, *source)[1]
        return lambda x, view, index: stored.outputs(view, index), reference
    model, seed = load_teacher(study, *source), study.seed_for("student views", job.dataset)

    @functools.lru_cache(1)
    def draws(view):
        return views.draw_attention(len(train), seed=seed, epoch=view).to(train.device)

    how = study.bank_contents(source[2])
    return lambda x, view, index: banks.teacher_outputs(model, x, draws(view)[index], **how), reference


def _transfer(study: Study, job: Job, train: training.Images) -> dict[str, float | None]:
    """LogME, LEEP and NCE of the teacher's pretrained network, on centre crops of the training images; None where there is none, or no head."""
    found, spec = dict.fromkeys(records.TRANSFER), study.teacher(job.teacher)
    if spec.weights == "none" or job.dataset == PRETEXT:
        return found
    if spec.weights == "pretext":
        model = load_teacher(study, PRETEXT, job.teacher, PRETEXT)
    else:
        model = classifier.build(spec, None, crop=study.views.crop, seed=0).to(train.device).eval()
    with torch.inference_mode():
        features, logits = (
            torch.cat(parts)
            for parts in zip(
                *(model.features_and_logits(x) for _, x in training.batches(train, train.centre()))
            )
        )
    found["logme"] = transfer.logme(features, train.labels)
    if model.net.num_classes:
        found |= {
            "leep": transfer.leep(logits.double().softmax(1), train.labels),
            "nce": transfer.nce(logits.argmax(1), train.labels),
        }
    return found


def _trained_teacher(
    study: Study,
    job: Job,
    train: training.Images,
    classes: int,
    frozen: list[torch.Tensor] | None,
    how: Recipe,
    checkpoint: Path,
    only: torch.Tensor | None = None,
) -> tuple[classifier.Classifier, list[dict]]:
    """A teacher trained on all images or `only` some, and its history; frozen: the backbone's features for recipe FZ."""
    model, labels = _teacher_model(study, job, classes).to(train.device), train.labels
    options = {
        "seed": study.seed_for("order", job.place),
        "checkpoint": checkpoint,
        "title": f"{job.teacher} {job.strategy}",
        "only": only,
    }
    if frozen is not None:
        return model, training.fit_head(model, train, frozen, how, **options)
    objective = (
        training.attention(labels, options["seed"])
        if job.strategy == "CAL"
        else training.cross_entropy(labels)
    )
    options |= {"views_seed": study.seed_for("teacher views", job.dataset), "compiled": study.compile}
    return model, training.fit_images(model, train, objective, how, **options)


def _trained_student(
    study: Study,
    part: Job,
    train: training.Images,
    classes: int,
    said: Callable | None,
    loss: Loss | None,
    how: Recipe,
    checkpoint: Path,
    only: torch.Tensor | None = None,
) -> tuple[classifier.Classifier, list[dict]]:
    """A student trained on all images or `only` some, and its history."""
    model = classifier.build(
        study.student(part.student),
        classes,
        crop=study.views.crop,
        seed=study.seed_for("student", part.dataset, part.student),
    ).to(train.device)
    further = None if loss is None or loss.loss == "kd" else _further(study, part, loss, model, said, train)
    if said is None:
        objective = training.cross_entropy(train.labels)
    else:
        objective = training.distillation(
            train.labels,
            lambda x, epoch, index: said(x, epoch % how.seen, index),
            study.kd(loss),
            augmented=part.strategy == "TGDA",
            further=further,
            features=further is not None and loss.on == "features",
        )
    # Neither the order of images nor the initial weights depend on teacher and loss: students differ in what they are taught.
    options = {
        "views_seed": study.seed_for("student views", part.dataset),
        "seed": study.seed_for("order", part.dataset, part.student),
    }
    return model, training.fit_images(
        model,
        train,
        objective,
        how,
        extra=further,
        views=how.seen,
        compiled=study.compile,
        **options,
        checkpoint=checkpoint,
        only=only,
        title=f"{part.student} from {part.teacher} {part.strategy} {part.loss}",
    )


def _search(
    study: Study, job: Job, folder: Path, how: Recipe, train: training.Images, trained: Callable
) -> tuple[Recipe, list[dict]]:
    """The recipe with one learning rate, and a row a candidate where there were several: lr, and the accuracy that it reached on the fifth
    of the images that it was not trained on, None where it diverged.

    trained: (recipe, checkpoint, indices) -> a new model and its history.  A candidate that ended is not trained again after a kill.
    Raises FloatingPointError where all diverge.
    """
    if len(how.rates) == 1:
        return dataclasses.replace(how, lr=how.rates[0]), []
    rows, (used, held) = [], training.hold_out(train.labels, study.seed_for("search", job.dataset))
    for rate in how.rates:
        checkpoint = _checkpoint(study, job, folder, f"search-{rate}")
        ended = checkpoint.with_suffix(".json")
        if (row := records.read_json(ended)) is None:
            try:
                short = dataclasses.replace(how, lr=rate, epochs=how.search_epochs or how.epochs)
                model, history = trained(short, checkpoint, used)
                row = {
                    "lr": rate,
                    "validation_accuracy": training.accuracy(model, train, held)[0],
                    "train_accuracy": history[-1]["train_accuracy"],
                }
            except FloatingPointError:
                row = {"lr": rate, "validation_accuracy": None, "train_accuracy": None}
            records.write_json(ended, row)
            checkpoint.unlink(missing_ok=True)
        rows.append(row)
    whole = [r for r in rows if r["validation_accuracy"] is not None]
    if not whole:
        raise FloatingPointError(
            f"{job.id}: every learning rate of {list(how.rates)} diverged: add lower ones"
        )
    return dataclasses.replace(
        how, lr=max(whole, key=lambda r: (r["validation_accuracy"], -r["lr"]))["lr"]
    ), rows


def _has_teacher(study: Study, job: Job) -> bool:
    """Whether the teacher of a bank job has its record and its weights."""
    (teacher_,) = study.inputs(job)
    weights = study.path(teacher_) / "model.safetensors"
    return records.record(study, teacher_) is not None and weights.exists()


def _further(
    study: Study, job: Job, loss: Loss, model: classifier.Classifier, said: Callable, train: training.Images
) -> torch.nn.Module:
    """The loss as a module with weights of its own, made for the widths of what it compares."""
    index = torch.arange(min(2, len(train)))
    x = train.batch(index, train.epoch(study.seed_for("student views", job.dataset), 0))
    if loss.on == "features":
        training.check_head(model, train)
    with torch.no_grad():
        ours = model.eval().features_and_logits(x)[loss.on == "logits"].shape[1]
    theirs = said(x, 0, index)[loss.on].shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed_for("loss", job.dataset, loss.key))
        return training.Further(loss, ours, theirs, train.labels.cpu()).to(train.device)


def _teacher_model(study: Study, job: Job, classes: int, *, pretext: bool = True) -> classifier.Classifier:
    """A teacher before its training: the pretext set's backbone where the study says so, or other weights, and a new head."""
    classifier.load_plugins(study.plugins)
    spec = study.teacher(job.teacher)
    seed = study.seed_for("teacher", job.teacher)
    model = classifier.build(spec, classes, crop=study.views.crop, seed=seed)
    if pretext and spec.weights == "pretext" and job.dataset != PRETEXT:
        before = teacher(study, PRETEXT, job.teacher, PRETEXT)
        classifier.restore(model, before.folder / "model.safetensors", skip=classifier.head_prefix(model))
    if job.strategy == "CAL":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cal.CAL(model.net, classes, study.recipe("CAL", spec).maps)
    return model


def _load_or_compute(
    study: Study,
    job: Job,
    compute: Callable[[Path], dict],
    *,
    files: tuple[str, ...] = (),
    valid: Callable[[], bool] = lambda: True,
) -> StageResult:
    """The job's record, computed unless it is there, of the same fingerprint, with the files whole that are
    needed beside it.

    A lock on the job's folder keeps two processes, one of them perhaps an orphan, from computing it at once: the second waits.
    """
    folder = study.path(job)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        found = records.record(study, job)
        lost = [f for f in files if not (folder / f).exists()]
        if found and lost:
            print(f"{job.id} has its record, but not {' and '.join(lost)}, needed now: it is computed anew")
        if found is None or lost or not valid():
            start = time.monotonic()
            found = {
                "cell": job.id,
                "fingerprint": study.fingerprint(job),
                "contents": study.contents(job),
                **compute(folder),
            }
            device = (
                str(training.device(study.device)) if job.stage in ("teacher", "bank", "student") else "cpu"
            )
            found["provenance"] = records.provenance(study, job, device, time.monotonic() - start)
            records.write_json(folder / "record.json", found)
            for checkpoint in folder.glob("checkpoint-*"):
                checkpoint.unlink()
    return StageResult(job, folder, pd.DataFrame(found["rows"]), found)


@functools.lru_cache(maxsize=8)
def _loaded(spec: datasets.DataSpec, cache: Path) -> datasets.Dataset:
    return datasets.load(spec, cache)


@contextlib.contextmanager
def _locked(folder: Path):
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that works in {folder.name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _checkpoint(study: Study, job: Job, folder: Path, name: str = "model") -> Path:
    return folder / f"checkpoint-{name}-{study.fingerprint(job)}.pt"


def _device(study: Study) -> torch.device:
    torch.set_num_threads(study.threads)
    return training.device(study.device)
