"""The stages of a study: each loads what its cell computed before, or computes it, and what it needs, now.

A notebook calls one of these and looks at the result.  It therefore runs by itself, and costs nothing twice when the engine runs it.

Where a recipe has several learning rates, a teacher or student is first trained with each on 80 % of the training split; the one with
the highest accuracy on the other 20 % after the last epoch, of equal ones the smallest, is that of its training.  The released code of
arXiv 2605.15689 searches so, over a grid and an 80/20 split; ours is stratified by class and drawn with the seed, the same for all
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
from fgkd.study import PRETEXT, RECIPES, Cell, Loss, Recipe, Study


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
    """Train a teacher (FZ: its last layer on a frozen backbone; FT and pretext: all of it; CAL: with attention) and measure TAC on the test split."""
    cell = study.cell("teacher", dataset, teacher, recipe)
    spec = study.teacher(teacher)

    def compute(folder):
        found, on = data(study, dataset), _device(study)
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
        return {"rows": [row], "history": history} | ({"search": search} if search else {})

    return _once(study, cell, compute, files=("model.safetensors", "test.npy"))


def load_teacher(study: Study, dataset: str, teacher_: str, recipe: str) -> models.Classifier:
    """A trained teacher, frozen, in eval mode, on the study's device."""
    run = teacher(study, dataset, teacher_, recipe)
    model = _teacher_model(study, run.cell, len(data(study, dataset).classes), pretext=False)
    models.restore(model, run.folder / "model.safetensors")
    return model.to(_device(study)).eval().requires_grad_(False)


def bank(study: Study, dataset: str, teacher: str, recipe: str) -> tuple[Run, banks.Bank]:
    """A teacher's metrics over all views of all training images, a row for each strategy that reads them, and the bank that its students learn from."""
    cell = study.cell("bank", dataset, teacher, recipe)
    folder, holds = study.path(cell) / "views", study.banked(recipe)

    def compute(_):
        found, on = data(study, dataset), _device(study)
        images = training.Images(found.train, study.views, on)
        summary, epochs = banks.write(folder, load_teacher(study, dataset, teacher, recipe), images, epochs=study.bank_epochs,
                                      views_seed=study.seed_for("student views", dataset), **holds)
        common = {"samples": len(images), "views": study.bank_epochs}
        return {"rows": [{"dataset": dataset, "teacher": teacher, "strategy": s} | common | summary for s in study.readers(recipe)], "epochs": epochs}

    def read():
        found = data(study, dataset)
        shape = (study.bank_epochs, len(found.train))
        shapes = {name: shape for name in banks.names(**holds)} | {"logits": (*shape, len(found.classes))}
        return banks.read(folder, shapes, _device(study))

    run = _once(study, cell, compute, valid=lambda: read() is not None)
    return run, read()


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


def distill(study: Study, dataset: str, teacher: str, strategy: str) -> Run:
    """Train every student of the study with each of its losses from one teacher ('none' for the CE baseline) and measure it on the test split."""
    cell = study.cell("distill", dataset, teacher, strategy)
    trainings = [(key, name, loss) for key in study.students for name, loss in study.losses_of(key, strategy).items()]

    def compute(folder):
        models.load_plugins(study.plugins)
        found, on = data(study, dataset), _device(study)
        train, test = (training.Images(s, study.views, on) for s in (found.train, found.test))
        said, reference = _said(study, cell, train)
        rows, history, searches = [], [], []
        for key, name, loss in trainings:
            spec = study.student(key)
            trained = functools.partial(_trained_student, study, cell, train, len(found.classes), said, key, name, loss)
            how, search = _search(study, cell, folder, study.recipe("student", spec), train, trained, f"{key}-{name}")
            model, epochs = trained(how, _checkpoint(study, cell, folder, f"{key}-{name}"))
            accuracy, logits = training.accuracy(model, test)
            tables.write_array(folder / f"test-{key}-{name}.npy", logits.numpy())
            models.save(model, folder / f"{key}-{name}.safetensors")
            agreement = None if reference is None else float((logits.numpy().argmax(1) == reference.argmax(1)).mean())
            rows.append({"dataset": dataset, "student": key, "strategy": strategy, "loss": name, "teacher": teacher, "model": spec.model,
                         "accuracy": accuracy, "train_accuracy": epochs[-1]["train_accuracy"], "agreement": agreement,
                         "parameters": models.parameters(model), "lr": how.lr})
            history += [{"student": key, "loss": name} | e for e in epochs]
            searches += [{"student": key, "loss": name} | s for s in search]
        return {"rows": rows, "history": history} | ({"search": searches} if searches else {})

    return _once(study, cell, compute, files=tuple(f"test-{key}-{name}.npy" for key, name, _ in trainings))


def everything(study: Study) -> dict[str, pd.DataFrame]:
    """All tables of the study; cells that have not run yet are run here, one after the other."""
    for cell in study.cells():
        if cell.stage == "distill":
            distill(study.at(study.seed_of(cell)), cell.dataset, cell.teacher, cell.strategy)
    return tables.collect(study)


def on_test(study: Study) -> pd.DataFrame:
    """The metrics of every trained teacher on the test images' centre crops, a row a dataset, teacher, recipe and seed; of a CAL teacher its mean over views."""
    rows = []
    for cell in study.cells():
        if cell.stage == "teacher" and cell.dataset != PRETEXT:
            run = teacher(study.at(study.seed_of(cell)), cell.dataset, cell.teacher, cell.strategy)
            logits, labels = run.logits("test"), data(study, cell.dataset).test.labels
            names = {"dataset": cell.dataset, "teacher": cell.teacher, "recipe": cell.strategy, "seed": study.seed_of(cell)}
            rows.append(names | metrics.summarize(logits) | metrics.summarize_labelled(metrics.labelled_samples(logits, labels)))
    return pd.DataFrame(rows)


def conclude(study: Study, stage: str, frames: dict[str, pd.DataFrame]) -> Run:
    """Write the study's tables and the record of its 'correlation' or 'report' cell."""
    for name, frame in frames.items():
        tables.write_table(frame, study.folder / "tables" / f"{name}.csv")
    cell = Cell(stage)
    (study.path(cell) / "record.json").unlink(missing_ok=True)
    return _once(study, cell, lambda _: {"rows": [{"table": n, "rows": len(f)} for n, f in frames.items()]})


def _said(study: Study, cell: Cell, train: training.Images):
    """What the teacher says, (images, epoch, index) -> `bank.answer`, and its test logits for agreement; None and None for the CE baseline."""
    if cell.strategy == "CE":
        return None, None
    source = (cell.dataset, cell.teacher, RECIPES[cell.strategy])
    reference = teacher(study, *source).logits("test")
    if not study.online:
        stored = bank(study, *source)[1]
        return lambda x, epoch, index: stored.answer(epoch, index), reference
    model, seed = load_teacher(study, *source), study.seed_for("student views", cell.dataset)
    draws = functools.lru_cache(1)(lambda epoch: views.draw_attention(len(train), seed=seed, epoch=epoch))
    return lambda x, epoch, index: banks.answer(model, x, draws(epoch)[index].to(x.device), **study.banked(source[2])), reference


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
    return model, training.fit_images(model, train, objective, how, views_seed=study.seed_for("teacher views", cell.dataset), **options)


def _trained_student(study: Study, cell: Cell, train: training.Images, classes: int, said: Callable | None, key: str, name: str, loss: Loss | None,
                     how: Recipe, checkpoint: Path, only: torch.Tensor | None = None) -> tuple[models.Classifier, list[dict]]:
    """A student trained on all images or `only` some, and its history."""
    model = models.build(study.student(key), classes, crop=study.views.crop, seed=study.seed_for("student", cell.dataset, key)).to(train.device)
    extra = None if loss is None else _further(study, cell, loss, model, said, train)
    if said is None:
        objective = training.cross_entropy(train.labels)
    else:
        objective = training.distillation(train.labels, said, study.distillation, augmented=cell.strategy == "TGDA", further=extra,
                                          features=loss is not None and loss.on == "features")
    # Neither the order of images nor the initial weights depend on teacher and loss: students differ in what they are taught.
    options = {"views_seed": study.seed_for("student views", cell.dataset), "seed": study.seed_for("order", cell.dataset, key)}
    return model, training.fit_images(model, train, objective, how, extra=extra, **options, checkpoint=checkpoint, only=only,
                                      title=f"{key} from {cell.teacher} {cell.strategy} {name}")


def _search(study: Study, cell: Cell, folder: Path, how: Recipe, train: training.Images, trained: Callable, name: str = "model") -> tuple[Recipe, list[dict]]:
    """The recipe with one learning rate, and a row a candidate where there were several: lr, and the accuracy that it reached on the fifth
    of the images that it was not trained on, None where it diverged.

    trained: (recipe, checkpoint, indices) -> a new model and its history.  A candidate that ended is not trained again after a kill.
    Raises FloatingPointError where all diverge.
    """
    if len(how.rates) == 1:
        return dataclasses.replace(how, lr=how.rates[0]), []
    rows, (used, held) = [], training.hold_out(train.labels, study.seed_for("search", cell.dataset))
    for rate in how.rates:
        checkpoint = _checkpoint(study, cell, folder, f"{name}-{rate}")
        ended = checkpoint.with_suffix(".json")
        if (row := tables.read_json(ended)) is None:
            try:
                model, history = trained(dataclasses.replace(how, lr=rate), checkpoint, used)
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
