"""The stages of a study: each loads what its cell computed before, or computes it, and what it needs, now.

A notebook calls one of these and looks at the result.  It therefore runs by itself, and costs nothing twice when the engine runs it.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fgkd import bank as banks
from fgkd import datasets, models, tables, training
from fgkd.study import PRETEXT, Cell, Study


@dataclass(frozen=True)
class Run:
    """What a cell computed: its rows, its folder, and the tables beside them."""

    cell: Cell
    folder: Path
    rows: pd.DataFrame
    record: dict

    def table(self, name: str) -> pd.DataFrame:
        """A further table of the record: 'history' of a training, 'epochs' of a bank."""
        return pd.DataFrame(self.record[name])

    def logits(self, name: str) -> np.ndarray:
        """Test logits (N, C) of the teacher ('test') or of a student ('test-<student>-<loss>')."""
        return np.load(self.folder / f"{name}.npy")


def data(study: Study, dataset: str) -> datasets.Dataset:
    """The data set, its images decoded and cached by the first call."""
    cell = Cell("data", dataset)
    found = datasets.load(study.data(dataset), study.path(cell) / "cache")

    def compute(_):
        counts = {"dataset": dataset, "classes": len(found.classes), "train": len(found.train), "test": len(found.test)}
        return {"rows": [counts], "notes": list(found.notes)}

    _once(study, cell, compute)
    return found


def teacher(study: Study, dataset: str, teacher: str, recipe: str) -> Run:
    """Train a teacher (FZ: its last layer on a frozen backbone; FT and pretext: all of it) and measure TAC on the test split."""
    cell = Cell("teacher", dataset, teacher, recipe)
    spec = study.teacher(teacher)

    def compute(folder):
        found, on = data(study, dataset), _device(study)
        how = study.recipe(recipe, spec)
        train, test = (training.Images(s, study.views, on) for s in (found.train, found.test))
        model = _teacher_model(study, cell, len(found.classes)).to(on)
        options = {"views_seed": study.seed_for("teacher views", dataset), "seed": study.seed_for("order", cell.id),
                   "checkpoint": _checkpoint(study, cell, folder), "title": f"{teacher} {recipe}"}
        if recipe == "FZ":
            history = training.fit_head(model, train, how, **options)
        else:
            history = training.fit_images(model, train, training.cross_entropy(train.labels), how, **options)
        tac, logits = training.accuracy(model, test)
        models.save(model, folder / "model.safetensors")
        tables.write_array(folder / "test.npy", logits.numpy())
        row = {"dataset": dataset, "teacher": teacher, "recipe": recipe, "model": spec.model, "tac": tac,
               "train_accuracy": history[-1]["train_accuracy"], "parameters": models.parameters(model), "epochs": how.epochs}
        return {"rows": [row], "history": history}

    return _once(study, cell, compute, files=("model.safetensors", "test.npy"))


def load_teacher(study: Study, dataset: str, teacher_: str, recipe: str) -> models.Classifier:
    """A trained teacher, frozen, in eval mode, on the study's device."""
    run = teacher(study, dataset, teacher_, recipe)
    model = _teacher_model(study, run.cell, len(data(study, dataset).classes), pretext=False)
    models.restore(model, run.folder / "model.safetensors")
    return model.to(_device(study)).eval().requires_grad_(False)


def bank(study: Study, dataset: str, teacher: str, strategy: str) -> tuple[Run, banks.Bank]:
    """A teacher's metrics over all views of all training images, and the bank that its students learn from."""
    cell = Cell("bank", dataset, teacher, strategy)
    file = study.path(cell) / "logits.npy"

    def compute(_):
        found, on = data(study, dataset), _device(study)
        images = training.Images(found.train, study.views, on)
        summary, epochs = banks.write(file, load_teacher(study, dataset, teacher, strategy), images, epochs=study.bank_epochs,
                                      views_seed=study.seed_for("student views", dataset), classes=len(found.classes))
        row = {"dataset": dataset, "teacher": teacher, "strategy": strategy, "samples": len(images), "views": study.bank_epochs}
        return {"rows": [row | summary], "epochs": epochs}

    def read():
        found = data(study, dataset)
        return banks.read(file, epochs=study.bank_epochs, samples=len(found.train), classes=len(found.classes), device=_device(study))

    run = _once(study, cell, compute, valid=lambda: read() is not None)
    return run, read()


def student_views(study: Study, dataset: str, *, image: int, epochs: int) -> np.ndarray:
    """What students see of one training image in the first epochs: (epochs, S, S, 3) uint8."""
    images = training.Images(data(study, dataset).train, study.views, torch.device("cpu"))
    seed, index = study.seed_for("student views", dataset), torch.tensor([image])
    return torch.cat([images.batch(index, images.epoch(seed, e)) for e in range(epochs)]).permute(0, 2, 3, 1).numpy()


def distill(study: Study, dataset: str, teacher: str, strategy: str) -> Run:
    """Train every student of the study from one teacher ('none' for the CE baseline) and measure it on the test split."""
    cell = Cell("distill", dataset, teacher, strategy)
    loss = "ce" if strategy == "CE" else "kd"

    def compute(folder):
        models.load_plugins(study.plugins)
        found, on = data(study, dataset), _device(study)
        train, test = (training.Images(s, study.views, on) for s in (found.train, found.test))
        objective, reference = _objective(study, cell, train)
        rows, history = [], []
        for key, spec in study.students.items():
            model = models.build(spec, len(found.classes), crop=study.views.crop, seed=study.seed_for("student", dataset, key)).to(on)
            # Neither the order of images nor the initial weights depend on the teacher: students differ in what they are taught.
            epochs = training.fit_images(
                model, train, objective, study.recipe("student", spec), views_seed=study.seed_for("student views", dataset),
                seed=study.seed_for("order", dataset, key), checkpoint=_checkpoint(study, cell, folder, key), title=f"{key} from {teacher} {strategy}")
            accuracy, logits = training.accuracy(model, test)
            tables.write_array(folder / f"test-{key}-{loss}.npy", logits.numpy())
            models.save(model, folder / f"{key}-{loss}.safetensors")
            agreement = None if reference is None else float((logits.numpy().argmax(1) == reference.argmax(1)).mean())
            rows.append({"dataset": dataset, "student": key, "strategy": strategy, "loss": loss, "teacher": teacher, "model": spec.model,
                         "accuracy": accuracy, "train_accuracy": epochs[-1]["train_accuracy"], "agreement": agreement,
                         "parameters": models.parameters(model)})
            history += [{"student": key, "loss": loss} | e for e in epochs]
        return {"rows": rows, "history": history}

    return _once(study, cell, compute, files=tuple(f"test-{key}-{loss}.npy" for key in study.students))


def everything(study: Study) -> dict[str, pd.DataFrame]:
    """All tables of the study; cells that have not run yet are run here, one after the other."""
    for cell in study.cells():
        if cell.stage == "distill":
            distill(study, cell.dataset, cell.teacher, cell.strategy)
    return tables.collect(study)


def conclude(study: Study, stage: str, frames: dict[str, pd.DataFrame]) -> Run:
    """Write the study's tables and the record of its 'correlation' or 'report' cell."""
    for name, frame in frames.items():
        tables.write_table(frame, study.folder / "tables" / f"{name}.csv")
    cell = Cell(stage)
    (study.path(cell) / "record.json").unlink(missing_ok=True)
    return _once(study, cell, lambda _: {"rows": [{"table": n, "rows": len(f)} for n, f in frames.items()]})


def _objective(study: Study, cell: Cell, train: training.Images):
    """The students' loss, and the teacher's test logits for agreement (None for the CE baseline)."""
    if cell.strategy == "CE":
        return training.cross_entropy(train.labels), None
    source = (cell.dataset, cell.teacher, cell.strategy)
    reference = teacher(study, *source).logits("test")
    if study.online:
        model = load_teacher(study, *source)

        @torch.no_grad()
        def logits(images, epoch, index):
            with torch.autocast(train.device.type, torch.bfloat16, enabled=train.device.type == "cuda"):
                return model(images).float()
    else:
        stored = bank(study, *source)[1]

        def logits(images, epoch, index):
            return stored.logits(epoch, index)
    return training.distillation(train.labels, logits, study.distillation), reference


def _teacher_model(study: Study, cell: Cell, classes: int, *, pretext: bool = True) -> models.Classifier:
    """A teacher before its training: the pretext set's backbone where the study says so, or other weights, and a new head."""
    models.load_plugins(study.plugins)
    spec = study.teacher(cell.teacher)
    model = models.build(spec, classes, crop=study.views.crop, seed=study.seed_for("teacher", cell.teacher))
    if pretext and spec.weights == "pretext" and cell.dataset != PRETEXT:
        before = teacher(study, PRETEXT, cell.teacher, PRETEXT)
        models.restore(model, before.folder / "model.safetensors", skip=models.head_prefix(model))
    return model


def _once(study: Study, cell: Cell, compute: Callable[[Path], dict], *, files: tuple[str, ...] = (), valid: Callable[[], bool] = lambda: True) -> Run:
    """The cell's record, computed unless it is there, of the same fingerprint, with its files whole.

    A lock on the cell's folder keeps two processes, one of them perhaps an orphan, from computing it at once: the second waits.
    """
    folder = study.path(cell)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        found = tables.record(study, cell)
        if found is None or not all((folder / f).exists() for f in files) or not valid():
            start = time.monotonic()
            found = {"cell": cell.id, "fingerprint": study.fingerprint(cell), **compute(folder)}
            found["provenance"] = tables.provenance(study, cell, str(_device(study)), time.monotonic() - start)
            tables.write_json(folder / "record.json", found)
            for checkpoint in folder.glob("checkpoint-*"):
                checkpoint.unlink()
    return Run(cell, folder, pd.DataFrame(found["rows"]), found)


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
