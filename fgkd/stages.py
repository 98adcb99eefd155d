"""The stages of a study: each loads what its cell computed before, or computes it, and what it needs, now.

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

from fgkd import bank as banks
from fgkd import cal, datasets, metrics, models, tables, training, transfer, views
from fgkd.study import PRETEXT, RECIPES, Cell, Loss, Recipe, Study, StudyError

SHOWN_VIEWS = 4  # stored of each image where students need no bank


@dataclass(frozen=True)
class Run:
    """What a cell computed: its rows, its folder, and the tables beside them."""

    cell: Cell
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
class Runs:
    """What the students of a distill cell reached: a Run a student and loss."""

    cell: Cell
    students: dict[tuple[str, str], Run]

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
    cell = Cell("data", dataset)
    found = _loaded(study.data(dataset), study.path(cell) / "cache")
    if found.content:
        study.photos[dataset] = found.content

    def compute(_):
        counts = {"dataset": dataset, "classes": len(found.classes), "train": len(found.train), "test": len(found.test)}
        return {
            "rows": [counts],
            "notes": list(found.notes),
            "photos": " ".join(found.content.photos if found.content else ()),
        }

    _once(study, cell, compute)
    return found


def teacher(study: Study, dataset: str, teacher: str, recipe: str) -> Run:
    """Train a teacher (FZ: its last layer on a frozen backbone; FT and pretext: all of it; CAL: with attention) and measure TAC on the test split."""
    cell = study.cell("teacher", dataset, teacher, recipe)
    spec, found = study.teacher(teacher), data(study, dataset)

    def compute(folder):
        on = _device(study)
        train, test = (training.Images(s, study.views, on) for s in (found.train, found.test))
        how, frozen = study.recipe(recipe, spec), None
        if recipe == "FZ":
            frozen = training.features(_teacher_model(study, cell, len(found.classes)).to(on), train, how,
                                       views_seed=study.seed_for("teacher views", dataset), title=f"{teacher} {recipe}")
        trained = functools.partial(_trained_teacher, study, cell, train, len(found.classes), frozen)
        how, search = _search(study, cell, folder, how, train, trained)
        model, history = trained(how, _checkpoint(study, cell, folder))
        tac, logits = training.accuracy(model, test)
        single = metrics.accuracy(training.predict(model, test), found.test.labels) if recipe == "CAL" else tac
        models.save(model, folder / "model.safetensors")
        tables.write_array(folder / "test.npy", logits.numpy())
        row = {"dataset": dataset, "teacher": teacher, "recipe": recipe, "model": spec.model, "tac": tac, "tac_single": single,
               "train_accuracy": history[-1]["train_accuracy"], "parameters": models.parameters(model), "pretraining": models.pretraining(spec),
               "norm": models.norm(model), "epochs": how.epochs, "lr": how.lr} | _transfer(study, cell, train)
        on_test = metrics.summarize(logits) | metrics.summarize_labelled(
            metrics.labelled_samples(logits, found.test.labels)
        )
        return {"rows": [row], "history": history, "on_test": on_test} | (
            {"search": search} if search else {}
        )

    return _once(study, cell, compute, files=("model.safetensors", "test.npy"))


def load_teacher(study: Study, dataset: str, teacher_: str, recipe: str) -> models.Classifier:
    """A trained teacher, frozen, in eval mode, on the study's device."""
    run = teacher(study, dataset, teacher_, recipe)
    model = _teacher_model(study, run.cell, len(data(study, dataset).classes), pretext=False)
    models.restore(model, run.folder / "model.safetensors")
    return model.to(_device(study)).eval().requires_grad_(False)


def bank(study: Study, dataset: str, teacher: str, recipe: str) -> tuple[Run, banks.Bank]:
    """A teacher's metrics over all views of all training images, and the bank that its students learn from.

    Of an online study, whose students need no bank, the metrics are the same and only the first few views are
    stored, to be looked at.
    """
    cell, found = study.cell("bank", dataset, teacher, recipe), data(study, dataset)
    folder, holds = study.path(cell) / "views", study.banked(recipe)
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
            key=study.fingerprint(cell),
            **holds,
        )
        return {"rows": [{"samples": len(images), "views": study.bank_views} | summary], "epochs": epochs}

    run = _once(
        study, cell, compute, valid=lambda: banks.read(folder, shapes, torch.device("cpu")) is not None
    )
    return run, banks.read(folder, shapes, _device(study))


def kept_banks(study: Study) -> list[Cell]:
    """The bank cells whose banks lie on disk, of teachers that are there too."""
    cells = [cell for cell in study.cells() if cell.stage == "bank" and (study.path(cell) / "views").is_dir()]
    return [cell for cell in cells if tables.record(study, cell) and _has_teacher(study, cell)]


def check_bank(study: Study, cell: Cell) -> dict[str, float]:
    """`bank.check` of a bank that lies on disk against its teacher; nothing is computed anew.

    Raises StudyError for a bank that is damaged.
    """
    folder, on = study.path(cell) / "views", _device(study)
    held = {file.stem: () for file in folder.glob("*.npy")}
    stored = banks.read(folder, {"logits": ()} | held, on)
    if stored is None:
        raise StudyError(f"the bank '{folder}' lacks an array or is cut short: delete the folder, and it is "
                         "written anew")
    images = training.Images(data(study, cell.dataset).train, study.views, on)
    model = load_teacher(study, cell.dataset, cell.teacher, cell.strategy)
    return banks.check(stored, model, images, views_seed=study.seed_for("student views", cell.dataset))


def student_views(study: Study, dataset: str, *, image: int, epochs: int, bank: banks.Bank) -> dict[str, np.ndarray]:
    """What students see of one training image in the first epochs, (epochs, S, S, 3) uint8: its views, and for TGDA their crops and drops."""
    images = training.Images(data(study, dataset).train, study.views, torch.device("cpu"))
    seed, index = study.seed_for("student views", dataset), torch.tensor([image])
    seen = torch.cat([images.batch(index, images.epoch(seed, e)) for e in range(epochs)])
    rows = {"view": seen}
    if "boxes" in bank.arrays:
        boxes, maps = (torch.from_numpy(np.array(bank.arrays[name][:epochs, image])) for name in ("boxes", "maps"))
        rows |= {"crop": views.crop(seen, boxes), "drop": views.drop(seen, maps)}
    return {name: pictures.round().byte().permute(0, 2, 3, 1).numpy() for name, pictures in rows.items()}


def look(study: Study, dataset: str, teacher: str) -> tuple[torch.Tensor, cal.Attended]:
    """The test images through their centre crops, uint8 (N, 3, S, S), and what a CAL teacher's attention makes of them, on the CPU."""
    images = training.Images(data(study, dataset).test, study.views, _device(study))
    model = load_teacher(study, dataset, teacher, "CAL")
    with torch.inference_mode():
        seen = [(x.cpu(), cal.Attended(*(v.cpu() for v in model.attend(x)))) for _, x in training.batches(images, images.centre())]
    return torch.cat([x for x, _ in seen]), cal.Attended(*(torch.cat(values) for values in zip(*(a for _, a in seen))))


def birds_boxes(study: Study, dataset: str) -> torch.Tensor | None:
    """Where the bird is in each test image's centre crop: top, left, bottom, right (N, 4) in pixels; None where the data do not say."""
    boxes, corner = data(study, dataset).test.boxes, (study.views.resize - study.views.crop) // 2
    return None if boxes is None else torch.from_numpy(boxes[:, [1, 0, 3, 2]] - corner).clamp(0, study.views.crop).float()


def distill(study: Study, dataset: str, teacher: str, strategy: str) -> Runs:
    """Every student of the study with each of its losses from one teacher ('none' for the CE baseline),
    measured on the test split.

    Those that have a record are read, the others are trained.
    """
    cell = study.cell("distill", dataset, teacher, strategy)
    found = data(study, dataset)

    @functools.cache
    def sources():
        """What the students that are left to train have in common: images, and what their teacher says."""
        models.load_plugins(study.plugins)
        train, test = (training.Images(s, study.views, _device(study)) for s in (found.train, found.test))
        return train, test, *_said(study, cell, train)

    def compute(part, folder):
        train, test, said, reference = sources()
        spec, loss = study.student(part.student), study.losses_of(part.student, strategy)[part.loss]
        trained = functools.partial(_trained_student, study, part, train, len(found.classes), said, loss)
        how, search = _search(study, part, folder, study.recipe("student", spec), train, trained)
        model, history = trained(how, _checkpoint(study, part, folder))
        accuracy, logits = training.accuracy(model, test)
        tables.write_array(folder / "test.npy", logits.numpy())
        models.save(model, folder / "model.safetensors")
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
            "parameters": models.parameters(model),
            "lr": how.lr,
        }
        return {"rows": [row], "history": history} | ({"search": search} if search else {})

    students = {
        (p.student, p.loss): _once(study, p, functools.partial(compute, p)) for p in study.students_of(cell)
    }
    return Runs(cell, students)


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


def everything(study: Study) -> dict[str, pd.DataFrame]:
    """All tables of the study; cells that have not run yet are run here, one after the other."""
    datasets.look(study)
    for cell in study.cells():
        now = study.at(study.seed_of(cell))
        if cell.stage == "bank" and not tables.complete(study, cell):
            bank(now, cell.dataset, cell.teacher, cell.strategy)
        if cell.stage == "distill" and not tables.complete(study, cell):
            distill(now, cell.dataset, cell.teacher, cell.strategy)
    return tables.collect(study)


def on_test(study: Study) -> pd.DataFrame:
    """The metrics of every trained teacher on the test images' centre crops, a row a dataset, teacher, recipe and seed; of a CAL teacher its mean over views."""
    rows = []
    for cell in study.cells():
        if cell.stage == "teacher" and cell.dataset != PRETEXT:
            now = study.at(study.seed_of(cell))
            record = (
                tables.record(study, cell) or teacher(now, cell.dataset, cell.teacher, cell.strategy).record
            )
            names = {"dataset": cell.dataset, "teacher": cell.teacher, "recipe": cell.strategy, "seed": study.seed_of(cell)}
            rows.append(names | record["on_test"])
    return pd.DataFrame(rows)


def conclude(study: Study, stage: str, frames: dict[str, pd.DataFrame]) -> Run:
    """Write the study's tables and the record of its 'correlation' or 'report' cell."""
    for name, frame in frames.items():
        tables.write_table(frame, study.folder / "tables" / f"{name}.csv")
    cell = Cell(stage)
    (study.path(cell) / "record.json").unlink(missing_ok=True)
    return _once(study, cell, lambda _: {"rows": [{"table": n, "rows": len(f)} for n, f in frames.items()]})


def _said(study: Study, cell: Cell, train: training.Images):
    """What the teacher says, (images, view, index) -> `bank.answer`, and its test logits for agreement; None
    and None for the CE baseline."""
    if cell.strategy == "CE":
        return None, None
    source = (cell.dataset, cell.teacher, RECIPES[cell.strategy])
    reference = teacher(study, *source).logits()
    if not study.online:
        stored = bank(study, *source)[1]
        return lambda x, view, index: stored.answer(view, index), reference
    model, seed = load_teacher(study, *source), study.seed_for("student views", cell.dataset)

    @functools.lru_cache(1)
    def draws(view):
        return views.draw_attention(len(train), seed=seed, epoch=view).to(train.device)

    how = study.banked(source[2])
    return lambda x, view, index: banks.answer(model, x, draws(view)[index], **how), reference


def _transfer(study: Study, cell: Cell, train: training.Images) -> dict[str, float | None]:
    """LogME, LEEP and NCE of the teacher's pretrained network, on centre crops of the training images; None where there is none, or no head."""
    found, spec = dict.fromkeys(tables.TRANSFER), study.teacher(cell.teacher)
    if spec.weights == "none" or cell.dataset == PRETEXT:
        return found
    if spec.weights == "pretext":
        model = load_teacher(study, PRETEXT, cell.teacher, PRETEXT)
    else:
        model = models.build(spec, None, crop=study.views.crop, seed=0).to(train.device).eval()
    with torch.inference_mode():
        features, logits = (torch.cat(parts) for parts in zip(*(model.parts(x) for _, x in training.batches(train, train.centre()))))
    found["logme"] = transfer.logme(features, train.labels)
    if model.net.num_classes:
        found |= {"leep": transfer.leep(logits.double().softmax(1), train.labels), "nce": transfer.nce(logits.argmax(1), train.labels)}
    return found


def _trained_teacher(study: Study, cell: Cell, train: training.Images, classes: int, frozen: list[torch.Tensor] | None,
                     how: Recipe, checkpoint: Path, only: torch.Tensor | None = None) -> tuple[models.Classifier, list[dict]]:
    """A teacher trained on all images or `only` some, and its history; frozen: the backbone's features for recipe FZ."""
    model, labels = _teacher_model(study, cell, classes).to(train.device), train.labels
    options = {"seed": study.seed_for("order", cell.place), "checkpoint": checkpoint, "title": f"{cell.teacher} {cell.strategy}", "only": only}
    if frozen is not None:
        return model, training.fit_head(model, train, frozen, how, **options)
    objective = training.attention(labels, options["seed"]) if cell.strategy == "CAL" else training.cross_entropy(labels)
    options |= {"views_seed": study.seed_for("teacher views", cell.dataset), "compiled": study.compile}
    return model, training.fit_images(model, train, objective, how, **options)


def _trained_student(
    study: Study,
    part: Cell,
    train: training.Images,
    classes: int,
    said: Callable | None,
    loss: Loss | None,
    how: Recipe,
    checkpoint: Path,
    only: torch.Tensor | None = None,
) -> tuple[models.Classifier, list[dict]]:
    """A student trained on all images or `only` some, and its history."""
    model = models.build(
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
    study: Study, cell: Cell, folder: Path, how: Recipe, train: training.Images, trained: Callable
) -> tuple[Recipe, list[dict]]:
    """The recipe with one learning rate, and a row a candidate where there were several: lr, and the accuracy that it reached on the fifth
    of the images that it was not trained on, None where it diverged.

    trained: (recipe, checkpoint, indices) -> a new model and its history.  A candidate that ended is not trained again after a kill.
    Raises FloatingPointError where all diverge.
    """
    if len(how.rates) == 1:
        return dataclasses.replace(how, lr=how.rates[0]), []
    rows, (used, held) = [], training.hold_out(train.labels, study.seed_for("search", cell.dataset))
    for rate in how.rates:
        checkpoint = _checkpoint(study, cell, folder, f"search-{rate}")
        ended = checkpoint.with_suffix(".json")
        if (row := tables.read_json(ended)) is None:
            try:
                short = dataclasses.replace(how, lr=rate, epochs=how.search_epochs or how.epochs)
                model, history = trained(short, checkpoint, used)
                row = {"lr": rate, "validation_accuracy": training.accuracy(model, train, held)[0], "train_accuracy": history[-1]["train_accuracy"]}
            except FloatingPointError:
                row = {"lr": rate, "validation_accuracy": None, "train_accuracy": None}
            tables.write_json(ended, row)
            checkpoint.unlink(missing_ok=True)
        rows.append(row)
    whole = [r for r in rows if r["validation_accuracy"] is not None]
    if not whole:
        raise FloatingPointError(f"{cell.id}: every learning rate of {list(how.rates)} diverged: add lower ones")
    return dataclasses.replace(how, lr=max(whole, key=lambda r: (r["validation_accuracy"], -r["lr"]))["lr"]), rows


def _has_teacher(study: Study, cell: Cell) -> bool:
    """Whether the teacher of a bank cell has its record and its weights."""
    teacher_, = study.inputs(cell)
    weights = study.path(teacher_) / "model.safetensors"
    return tables.record(study, teacher_) is not None and weights.exists()


def _further(study: Study, cell: Cell, loss: Loss, model: models.Classifier, said: Callable, train: training.Images) -> torch.nn.Module:
    """The loss as a module with weights of its own, made for the widths of what it compares."""
    index = torch.arange(min(2, len(train)))
    x = train.batch(index, train.epoch(study.seed_for("student views", cell.dataset), 0))
    if loss.on == "features":
        training.check_head(model, train)
    with torch.no_grad():
        ours = model.eval().parts(x)[loss.on == "logits"].shape[1]
    theirs = said(x, 0, index)[loss.on].shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed_for("loss", cell.dataset, loss.key))
        return training.Further(loss, ours, theirs, train.labels.cpu()).to(train.device)


def _teacher_model(study: Study, cell: Cell, classes: int, *, pretext: bool = True) -> models.Classifier:
    """A teacher before its training: the pretext set's backbone where the study says so, or other weights, and a new head."""
    models.load_plugins(study.plugins)
    spec = study.teacher(cell.teacher)
    seed = study.seed_for("teacher", cell.teacher)
    model = models.build(spec, classes, crop=study.views.crop, seed=seed)
    if pretext and spec.weights == "pretext" and cell.dataset != PRETEXT:
        before = teacher(study, PRETEXT, cell.teacher, PRETEXT)
        models.restore(model, before.folder / "model.safetensors", skip=models.head_prefix(model))
    if cell.strategy == "CAL":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cal.CAL(model.net, classes, study.recipe("CAL", spec).maps)
    return model


def _once(study: Study, cell: Cell, compute: Callable[[Path], dict], *, files: tuple[str, ...] = (), valid: Callable[[], bool] = lambda: True) -> Run:
    """The cell's record, computed unless it is there, of the same fingerprint, with the files whole that are
    needed beside it.

    A lock on the cell's folder keeps two processes, one of them perhaps an orphan, from computing it at once: the second waits.
    """
    folder = study.path(cell)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        found = tables.record(study, cell)
        lost = [f for f in files if not (folder / f).exists()]
        if found and lost:
            print(f"{cell.id} has its record, but not {' and '.join(lost)}, needed now: it is computed anew")
        if found is None or lost or not valid():
            start = time.monotonic()
            found = {
                "cell": cell.id,
                "fingerprint": study.fingerprint(cell),
                "contents": study.contents(cell),
                **compute(folder),
            }
            device = (
                str(training.device(study.device)) if cell.stage in ("teacher", "bank", "student") else "cpu"
            )
            found["provenance"] = tables.provenance(study, cell, device, time.monotonic() - start)
            tables.write_json(folder / "record.json", found)
            for checkpoint in folder.glob("checkpoint-*"):
                checkpoint.unlink()
    return Run(cell, folder, pd.DataFrame(found["rows"]), found)


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


def _checkpoint(study: Study, cell: Cell, folder: Path, name: str = "model") -> Path:
    return folder / f"checkpoint-{name}-{study.fingerprint(cell)}.pt"


def _device(study: Study) -> torch.device:
    torch.set_num_threads(study.threads)
    return training.device(study.device)
