"""The search for a learning rate, on the training split alone.

Where a recipe has several rates, a model is first trained with each on 80 % of the training images; the rate
with the highest accuracy on the other 20 % after the last epoch is taken, the smallest of equal ones.  The
paper (arXiv 2605.15689) searches so, on an 80/20 split.  Its released code has lists of such a split, which
put the first 80 % of each class on one side, and takes one learning rate, so that the search itself is not in
it; ours draws from each class with the seed, the same for all models of a dataset.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fgkd import records
from fgkd.distillation import training
from fgkd.distillation.students import StudentTraining
from fgkd.distillation.teachers import TeacherTraining
from fgkd.models.classifier import Classifier
from fgkd.study import Recipe, StudyError

ModelTraining = TeacherTraining | StudentTraining


def fit(
    model_training: ModelTraining, recipe: Recipe, folder: Path
) -> tuple[Classifier, Recipe, dict[str, list[dict]]]:
    """Train with the best of a recipe's learning rates; return model, recipe and tables.

    The recipe has that rate alone.  The tables are the training's `history` and, where there were several
    rates, their `search`.

    folder: where checkpoints lie.
    """
    fingerprint = model_training.study.fingerprint(model_training.job)
    tables = {}
    lr = recipe.rates[0]
    if len(recipe.rates) > 1:
        lr, tables["search"] = choose_learning_rate(model_training, recipe, folder)
    recipe = recipe.model_copy(update={"lr": lr})
    checkpoint = folder / f"checkpoint-model-{fingerprint}.pt"
    model, tables["history"] = model_training.fit(recipe, checkpoint)
    return model, recipe, tables


def choose_learning_rate(
    model_training: ModelTraining, recipe: Recipe, folder: Path
) -> tuple[float, list[dict]]:
    """Return the best of the recipe's learning rates, and one row per rate.

    A row has the rate and the accuracies on the images trained on and held out, None where it diverged.
    A rate whose training has ended is not tried again after a kill.

    Raises FloatingPointError where every rate diverges.
    """
    job = model_training.job
    fingerprint = model_training.study.fingerprint(job)
    seed = model_training.study.seed_for("search", job.dataset)
    train_index, validation_index = hold_out(model_training.images.labels, seed)
    rows = []
    for lr in recipe.rates:
        file = folder / f"checkpoint-search-{lr}-{fingerprint}.pt"
        row = records.read_json(file.with_suffix(".json"))
        if row is None or not _is_row(row, lr):
            epochs = recipe.search_epochs or recipe.epochs
            candidate = recipe.model_copy(update={"lr": lr, "epochs": epochs})
            row = _try_rate(model_training, candidate, file, train_index, validation_index)
            records.write_json(file.with_suffix(".json"), row)
            file.unlink(missing_ok=True)
        rows.append(row)
    converged = [row for row in rows if row["validation_accuracy"] is not None]
    if not converged:
        raise FloatingPointError(
            f"{job.id}: every learning rate of {list(recipe.rates)} diverged: add lower ones"
        )
    best = max(converged, key=lambda row: (row["validation_accuracy"], -row["lr"]))
    return best["lr"], rows


def hold_out(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of 80 % of the images to train on and of 20 % to validate on, each in order.

    A fifth of each class, rounded, is held out: a function of labels (N,) and seed alone.
    Raises StudyError where no class has the 3 images that it takes.
    """
    # By class, and at random within each: an image's rank in its class decides.
    classes = labels.cpu().numpy()
    order = np.lexsort((np.random.default_rng(seed).random(len(classes)), classes))
    counts = np.bincount(classes)
    first = np.cumsum(counts) - counts
    rank = np.arange(len(classes)) - first[classes[order]]
    is_validation = rank < np.rint(counts / 5)[classes[order]]
    if not is_validation.any():
        raise StudyError(
            f"no class has more than {counts.max()} training images: a search for a learning rate "
            "holds out one in five of a class; give a single lr"
        )
    train_index = torch.from_numpy(np.sort(order[~is_validation]))
    validation_index = torch.from_numpy(np.sort(order[is_validation]))
    return train_index, validation_index


def _is_row(row: dict, lr: float) -> bool:
    shares = (row.get("validation_accuracy", ""), row.get("train_accuracy", ""))
    return row.get("lr") == lr and all(share is None or isinstance(share, float) for share in shares)


def _try_rate(
    model_training: ModelTraining,
    candidate: Recipe,
    checkpoint: Path,
    train_index: Tensor,
    validation_index: Tensor,
) -> dict:
    """One row of the search: train with the candidate's rate, measure on the images held out."""
    row = {"lr": candidate.lr, "validation_accuracy": None, "train_accuracy": None}
    try:
        model, history = model_training.fit(candidate, checkpoint, train_index)
    except FloatingPointError:
        return row
    row["validation_accuracy"], _ = training.accuracy(model, model_training.images, validation_index)
    row["train_accuracy"] = history[-1]["train_accuracy"]
    return row
