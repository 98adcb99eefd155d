"""A study's trainings: how its teachers and students are built and trained, at which learning rate.

Where a recipe has several rates, a model is first trained with each on 80 % of the training images; the rate
with the highest accuracy on the other 20 % after the last epoch is taken, the smallest of equal ones.  The
paper (arXiv 2605.15689) searches so, on an 80/20 split.  Its released code has lists of such a split, which
put the first 80 % of each class on one side, and takes one learning rate, so that the search itself is not in
it; ours draws from each class with the seed, the same for all models of a dataset.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgkd.analysis import records
from fgkd.distillation import training
from fgkd.distillation.losses import AuxiliaryLoss
from fgkd.metrics import transfer
from fgkd.models import cal, classifier
from fgkd.models.classifier import Classifier
from fgkd.study import Job, Recipe, Study, StudyError

Train = Callable[..., tuple[Classifier, list[dict]]]
"""(recipe, checkpoint, subset=None) -> a new model, trained on all images or a subset, and its history."""


def train_teacher(
    study: Study,
    job: Job,
    images: training.Images,
    classes: int,
    recipe: Recipe,
    checkpoint: Path,
    subset: Tensor | None = None,
    *,
    pretext_weights: Path | None = None,
) -> tuple[Classifier, list[dict]]:
    """Train a new teacher on the images or a subset; return it and its history.

    images: the training split, of so many classes.
    pretext_weights: the file of the same network trained on the pretext set; None where it starts elsewhere.
    """
    model = build_teacher(study, job, classes, pretext_weights).to(images.device)
    views_seed = study.seed_for("teacher views", job.dataset)
    seed = study.seed_for("order", job.base_id)
    title = f"{job.teacher} {job.strategy}"
    options: dict[str, Any] = {"seed": seed, "checkpoint": checkpoint, "subset": subset, "title": title}
    if job.strategy == "FZ":
        # Of the study's recipe, not of a candidate's: a search's shorter trainings see the same views.
        full = study.recipe("FZ", study.teacher(job.teacher))
        file = study.path(job) / f"checkpoint-features-{study.fingerprint(job)}.pt"
        pooled = training.features(model, images, full, views_seed=views_seed, title=title, checkpoint=file)
        return model, training.fit_head(model, images, pooled, recipe, **options)
    is_cal = job.strategy == "CAL"
    objective = training.attention(images.labels, seed) if is_cal else training.cross_entropy(images.labels)
    options |= {"views_seed": views_seed, "compiled": study.compile}
    return model, training.fit_images(model, images, objective, recipe, **options)


def train_student(
    study: Study,
    job: Job,
    images: training.Images,
    classes: int,
    teacher: training.TeacherOutputs | None,
    recipe: Recipe,
    checkpoint: Path,
    subset: Tensor | None = None,
    *,
    stop: int | None = None,
) -> tuple[Classifier, list[dict]]:
    """Train a new student on the images or a subset; return it and its history.

    Neither the order of images nor the initial weights depend on teacher and loss: students differ in what
    they are taught.

    teacher: its outputs by views, number of the view, and index; None for the CE baseline.
    stop: end after so many epochs, as `training.fit` does.
    """
    seed = study.seed_for("student", job.dataset, job.student)
    model = classifier.build(study.student(job.student), classes, crop=study.views.crop, seed=seed)
    model = model.to(images.device)
    auxiliary_loss = None
    objective = training.cross_entropy(images.labels)
    if teacher is not None:
        auxiliary_loss = _auxiliary_loss(study, job, images, model, teacher)
        objective = training.distillation(
            images.labels,
            lambda x, epoch, index: teacher(x, epoch % recipe.n_views, index),
            study.kd(study.loss_of(job)),
            augmented=job.strategy == "TGDA",
            auxiliary_loss=auxiliary_loss,
        )
    history = training.fit_images(
        model,
        images,
        objective,
        recipe,
        auxiliary_loss=auxiliary_loss,
        views_seed=study.seed_for("student views", job.dataset),
        n_views=recipe.n_views,
        compiled=study.compile,
        seed=study.seed_for("order", job.dataset, job.student),
        checkpoint=checkpoint,
        subset=subset,
        stop=stop,
        title=f"{job.student} from {job.teacher} {job.strategy} {job.loss}",
    )
    return model, history


def train_at_best_rate(
    train: Train, study: Study, job: Job, images: training.Images, recipe: Recipe, folder: Path
) -> tuple[Classifier, Recipe, dict[str, list[dict]]]:
    """Train with the best of a recipe's learning rates; return model, recipe and tables.

    The recipe has that rate alone.  The tables are the training's `history` and, where there were several
    rates, their `search`: a row per rate with the accuracies on the images trained on and held out, None
    where it diverged.

    folder: where checkpoints lie.  A rate whose training has ended is not tried again after a kill.
    Raises FloatingPointError where every rate diverges.
    """
    fingerprint = study.fingerprint(job)
    tables: dict[str, list[dict]] = {}
    lr = recipe.rates[0]
    if len(recipe.rates) > 1:
        split = hold_out(images.labels, study.seed_for("search", job.dataset))
        tables["search"] = rows = []
        for rate in recipe.rates:
            epochs = recipe.search_epochs or recipe.epochs
            candidate = recipe.model_copy(update={"lr": rate, "epochs": epochs})
            file = folder / f"checkpoint-search-{rate}-{fingerprint}.pt"
            rows.append(_try_rate(train, images, split, candidate, file))
        converged = [row for row in rows if row["validation_accuracy"] is not None]
        if not converged:
            raise FloatingPointError(
                f"{job.id}: every learning rate of {list(recipe.rates)} diverged: add lower ones"
            )
        lr = max(converged, key=lambda row: (row["validation_accuracy"], -row["lr"]))["lr"]
    recipe = recipe.model_copy(update={"lr": lr})
    model, tables["history"] = train(recipe, folder / f"checkpoint-model-{fingerprint}.pt")
    return model, recipe, tables


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
    return torch.from_numpy(np.sort(order[~is_validation])), torch.from_numpy(np.sort(order[is_validation]))


def build_teacher(study: Study, job: Job, classes: int, pretext_weights: Path | None = None) -> Classifier:
    """Build the network of a teacher job with a new head, on the CPU.

    pretext_weights: a file that its backbone starts from; else its spec's weights.
    """
    classifier.load_plugins(study.plugins)
    spec = study.teacher(job.teacher)
    seed = study.seed_for("teacher", job.teacher)
    model = classifier.build(spec, classes, crop=study.views.crop, seed=seed)
    if pretext_weights is not None:
        classifier.restore(model, pretext_weights, skip=classifier.head_prefix(model))
    if job.strategy != "CAL":
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cal.CAL(model.net, classes, study.recipe("CAL", spec).maps, spec.resolution)


def transfer_scores(pretrained: Classifier | None, images: training.Images) -> dict[str, float | None]:
    """LogME, LEEP and NCE of a network on centre crops; None without a network, or a head."""
    scores: dict[str, float | None] = dict.fromkeys(records.TRANSFER)
    if pretrained is None:
        return scores
    with torch.inference_mode():
        passes = training.batches(images, images.centre())
        outputs = [pretrained.features_and_logits(x) for _, x in passes]
    features, logits = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    scores["logme"] = transfer.logme(features, images.labels)
    if pretrained.net.num_classes:
        scores["leep"] = transfer.leep(logits.double().softmax(1), images.labels)
        scores["nce"] = transfer.nce(logits.argmax(1), images.labels)
    return scores


def _try_rate(
    train: Train, images: training.Images, split: tuple[Tensor, Tensor], candidate: Recipe, file: Path
) -> dict:
    """One row of the search: train with the candidate's rate, measure on the images held out.

    The row is kept beside the checkpoint `file`, and read where it is there.
    """
    (lr,) = candidate.rates
    kept = records.read_json(file.with_suffix(".json"))
    if kept and _is_row(kept, lr):
        return kept
    row: dict[str, Any] = {"lr": lr, "validation_accuracy": None, "train_accuracy": None}
    train_index, validation_index = split
    try:
        model, history = train(candidate, file, train_index)
        row["validation_accuracy"], _ = training.accuracy(model, images, validation_index)
        row["train_accuracy"] = history[-1]["train_accuracy"]
    except FloatingPointError:
        pass
    records.write_json(file.with_suffix(".json"), row)
    file.unlink(missing_ok=True)
    return row


def _is_row(row: dict, lr: float) -> bool:
    shares = (row.get("validation_accuracy", ""), row.get("train_accuracy", ""))
    return row.get("lr") == lr and all(share is None or isinstance(share, float) for share in shares)


def _auxiliary_loss(
    study: Study, job: Job, images: training.Images, model: Classifier, teacher: training.TeacherOutputs
) -> AuxiliaryLoss | None:
    """The student's auxiliary loss, if any, built for the widths of what it compares."""
    spec = study.loss_of(job)
    if spec is None or spec.loss == "kd":
        return None
    if spec.applies_to == "features":
        training.check_head(model, images)
    index = torch.arange(min(2, len(images)))
    x = images.batch(index, images.epoch(study.seed_for("student views", job.dataset), 0))
    with torch.no_grad():
        features, logits = model.eval().features_and_logits(x)
    student_width = (features if spec.applies_to == "features" else logits).shape[1]
    teacher_width = teacher(x, 0, index)[spec.applies_to].shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(study.seed_for("loss", job.dataset, spec.key))
        loss = AuxiliaryLoss(spec, student_width, teacher_width, images.labels.cpu())
    return loss.to(images.device)
