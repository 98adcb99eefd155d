"""A study's teachers: built and trained, and the transfer scores of a pretrained network."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgkd.distillation import training
from fgkd.metrics import transfer
from fgkd.models import cal, classifier
from fgkd.records import TRANSFER
from fgkd.study import Job, Recipe, Study


@dataclass(frozen=True)
class TeacherTraining:
    """A teacher's training, which may be repeated with other learning rates.

    images: the training split.
    classes: their number.
    pretext_weights: the file of the same network trained on the pretext set; None where it starts elsewhere.
    """

    study: Study
    job: Job
    images: training.Images
    classes: int
    pretext_weights: Path | None = None

    def fit(
        self, recipe: Recipe, checkpoint: Path, subset: Tensor | None = None
    ) -> tuple[classifier.Classifier, list[dict]]:
        """Train a new teacher on all images or a subset; return it and its history."""
        model = self._build()
        seed = self.study.seed_for("order", self.job.base_id)
        options: dict[str, Any] = {"seed": seed, "checkpoint": checkpoint, "subset": subset}
        options["title"] = f"{self.job.teacher} {self.job.strategy}"
        if self.job.strategy == "FZ":
            return model, training.fit_head(model, self.images, self._frozen_features, recipe, **options)
        labels = self.images.labels
        is_cal = self.job.strategy == "CAL"
        objective = training.attention(labels, seed) if is_cal else training.cross_entropy(labels)
        options |= {"views_seed": self._views_seed, "compiled": self.study.compile}
        return model, training.fit_images(model, self.images, objective, recipe, **options)

    def _build(self) -> classifier.Classifier:
        model = build(self.study, self.job, self.classes, self.pretext_weights)
        return model.to(self.images.device)

    @functools.cached_property
    def _frozen_features(self) -> list[Tensor]:
        """The backbone's features in each view, computed once for all trainings of the last layer."""
        recipe = self.study.recipe("FZ", self.study.teacher(self.job.teacher))
        file = self.study.path(self.job) / f"checkpoint-features-{self.study.fingerprint(self.job)}.pt"
        options: dict[str, Any] = {"views_seed": self._views_seed, "title": f"{self.job.teacher} FZ"}
        return training.features(self._build(), self.images, recipe, checkpoint=file, **options)

    @property
    def _views_seed(self) -> int:
        return self.study.seed_for("teacher views", self.job.dataset)


def build(study: Study, job: Job, classes: int, pretext_weights: Path | None = None) -> classifier.Classifier:
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


def transfer_scores(
    pretrained: classifier.Classifier | None, images: training.Images
) -> dict[str, float | None]:
    """LogME, LEEP and NCE of a network on centre crops; None without a network, or a head."""
    scores: dict[str, float | None] = dict.fromkeys(TRANSFER)
    if pretrained is None:
        return scores
    features_of_batches = []
    logits_of_batches = []
    with torch.inference_mode():
        for _, x in training.batches(images, images.centre()):
            features, logits = pretrained.features_and_logits(x)
            features_of_batches.append(features)
            logits_of_batches.append(logits)
    logits = torch.cat(logits_of_batches)
    scores["logme"] = transfer.logme(torch.cat(features_of_batches), images.labels)
    if pretrained.net.num_classes:
        scores["leep"] = transfer.leep(logits.double().softmax(1), images.labels)
        scores["nce"] = transfer.nce(logits.argmax(1), images.labels)
    return scores
