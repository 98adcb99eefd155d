"""A study's students: how one is built and trained with its loss, from a teacher or without."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fgkd.distillation import training
from fgkd.distillation.losses import AuxiliaryLoss
from fgkd.models import classifier
from fgkd.study import Job, Loss, Recipe, Study


@dataclass(frozen=True)
class StudentTraining:
    """A student's training, which may be repeated with other learning rates.

    Neither the order of images nor the initial weights depend on teacher and loss: students differ in what
    they are taught.

    job: of stage student.
    images: the training split.
    classes: their number.
    teacher: its outputs by views, number of the view, and index; None for the CE baseline.
    """

    study: Study
    job: Job
    images: training.Images
    classes: int
    teacher: training.TeacherOutputs | None = None

    def fit(
        self, recipe: Recipe, checkpoint: Path, subset: Tensor | None = None, stop: int | None = None
    ) -> tuple[classifier.Classifier, list[dict]]:
        """Train a new student on all images or a subset; return it and its history.

        stop: end after so many epochs, as `training.fit` does.
        """
        job = self.job
        model = self._build()
        auxiliary_loss = self._auxiliary_loss(model)
        history = training.fit_images(
            model,
            self.images,
            self._objective(recipe, auxiliary_loss),
            recipe,
            auxiliary_loss=auxiliary_loss,
            views_seed=self.study.seed_for("student views", job.dataset),
            n_views=recipe.n_views,
            compiled=self.study.compile,
            seed=self.study.seed_for("order", job.dataset, job.student),
            checkpoint=checkpoint,
            subset=subset,
            stop=stop,
            title=f"{job.student} from {job.teacher} {job.strategy} {job.loss}",
        )
        return model, history

    @property
    def _loss(self) -> Loss | None:
        return self.study.losses_of(self.job.student, self.job.strategy)[self.job.loss]

    def _build(self) -> classifier.Classifier:
        spec = self.study.student(self.job.student)
        seed = self.study.seed_for("student", self.job.dataset, self.job.student)
        model = classifier.build(spec, self.classes, crop=self.study.views.crop, seed=seed)
        return model.to(self.images.device)

    def _objective(self, recipe: Recipe, auxiliary_loss: AuxiliaryLoss | None) -> training.Objective:
        teacher = self.teacher
        if teacher is None:
            return training.cross_entropy(self.images.labels)
        return training.distillation(
            self.images.labels,
            lambda x, epoch, index: teacher(x, epoch % recipe.n_views, index),
            self.study.kd(self._loss),
            augmented=self.job.strategy == "TGDA",
            auxiliary_loss=auxiliary_loss,
        )

    def _auxiliary_loss(self, model: classifier.Classifier) -> AuxiliaryLoss | None:
        """The student's auxiliary loss, if any, built for the widths of what it compares."""
        spec = self._loss
        if spec is None or spec.loss == "kd" or self.teacher is None:
            return None
        if spec.applies_to == "features":
            training.check_head(model, self.images)
        index = torch.arange(min(2, len(self.images)))
        views_seed = self.study.seed_for("student views", self.job.dataset)
        x = self.images.batch(index, self.images.epoch(views_seed, 0))
        with torch.no_grad():
            features, logits = model.eval().features_and_logits(x)
        student_outputs = {"features": features, "logits": logits}[spec.applies_to]
        teacher_outputs = self.teacher(x, 0, index)[spec.applies_to]
        labels = self.images.labels.cpu()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.study.seed_for("loss", self.job.dataset, spec.key))
            loss = AuxiliaryLoss(spec, student_outputs.shape[1], teacher_outputs.shape[1], labels)
        return loss.to(self.images.device)
