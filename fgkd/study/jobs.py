"""A study's jobs: their inputs, ids, fingerprints and folders.

A *job* is one notebook run, or one student of a distill job.  A row of `STAGES` is all that is particular to
the jobs of a stage; what a job stands for:

    intro, correlation, report    the study
    data                          a dataset
    teacher, bank                 a dataset, teacher and recipe; TGDA students learn from the CAL teacher's
    distill                       a dataset, teacher and strategy: all students and losses of that teacher;
                                  CE has teacher 'none'
    student                       the same, a student and a loss: a training of a distill job, with a record
                                  but no notebook

Of several seeds, each repeats the teacher, bank and distill jobs, pretext and baseline included; images and
conclusions are shared.

A job's fingerprint is a hash of what its result is a function of, and of nothing else: its own values in the
study file, the content of the photos, weights and plugins that it starts from, and the fingerprints of the
jobs that it reads.  Paths, times, the machine, its threads and what other students, losses or strategies the
study has are no part of it, nor are values that a recipe does not use.  The content of a file that is not
there is what the job's own record says: records alone, without photos and weights, are valid.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import field
from itertools import chain, product
from pathlib import Path
from typing import Any

from pydantic import Field, SkipValidation

from fgkd.study import contents, plugins, stored
from fgkd.study.config import (
    LOSSES,
    PRETEXT,
    RECIPES,
    DataSpec,
    Distillation,
    Loss,
    Model,
    Recipe,
    StudyConfig,
)
from fgkd.study.errors import StudyError, expected, unknown_name

FIRST = -1  # a study's first seed, whichever it is: further ones may be added to a study later
BIRD_VALUES = ("species", "family_size", "train", "test", "size", "seed")  # on which drawn images depend
Own = tuple[dict[str, Any], dict[str, str | None]]  # values in the study file, digests of what it only names


@dataclasses.dataclass(frozen=True)
class Job:
    """One notebook run, or one student of it; a value that its stage does not have is empty."""

    stage: str
    dataset: str = ""
    teacher: str = ""
    strategy: str = ""  # of a teacher or bank: the recipe
    seed: int = FIRST
    student: str = ""  # stage student alone, as is the loss
    loss: str = ""

    @property
    def base_id(self) -> str:
        """Its place in the matrix, which every seed repeats."""
        stage = "distill" if self.stage == "student" else self.stage
        if not self.dataset:
            return f"study/{stage}"
        return "/".join(name for name in (stage, self.dataset, self.strategy, self.teacher) if name)

    @property
    def id(self) -> str:
        """Its name, and its folder below the study's."""
        name = self.base_id if self.seed == FIRST else f"{self.base_id}/seed-{self.seed}"
        return f"{name}/students/{self.student}/{self.loss}" if self.stage == "student" else name

    @property
    def notebook(self) -> str:
        """The name of its notebook."""
        return self.row.notebook

    @property
    def row(self) -> Stage:
        """What is particular to its stage."""
        if self.stage in STAGES:
            return STAGES[self.stage]
        if self.stage == "student":
            return STUDENT
        raise StudyError(f"stage '{self.stage}' is unknown: expected one of {', '.join(STAGES)}")

    def parameters(self, study: Study) -> dict[str, str | int | bool]:
        """The parameters that papermill hands to the notebook."""
        named = {"dataset": self.dataset, "teacher": self.teacher, self.row.strategy: self.strategy}
        seed = {} if self.seed == FIRST else {"seed": self.seed}  # a notebook's own default is the first
        given = {name: value for name, value in named.items() if value}
        return {"study": study.file} | given | seed | self.row.parameters


class Study(StudyConfig):
    """A study file's values, with the jobs, fingerprints and folders that follow from them."""

    file: str = ""  # absolute path of the YAML file
    job_seed: int = FIRST  # the seed in force, as jobs hold it
    # by dataset, once its photos were listed and read: the content that `data.folders` found
    photos: SkipValidation[dict[str, Any]] = Field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The seed in force: the first, unless `at` names another."""
        return self.seeds[0] if self.job_seed == FIRST else self.job_seed

    @property
    def folder(self) -> Path:
        """Where the study's results go: next to its file, or in FGKD_RUNS."""
        return Path(os.environ.get("FGKD_RUNS") or os.path.dirname(self.file), self.name)

    def path(self, job: Job) -> Path:
        """The job's folder."""
        return self.folder / job.id

    def at(self, seed: int) -> Study:
        """The study with this one of its seeds in force; -1 is the first."""
        if seed not in (FIRST, *self.seeds):
            seeds = ", ".join(map(str, self.seeds))
            raise StudyError(f"seed {seed} is not in the study: expected one of {seeds}, or -1 for the first")
        return self.model_copy(update={"job_seed": FIRST if seed == self.seeds[0] else seed})

    def job(self, stage: str, dataset: str, teacher: str, strategy: str) -> Job:
        """A teacher, bank or distill job of the seed in force.

        strategy: how the students of a distill job are taught; of a teacher or bank, its recipe.
        Raises StudyError naming what the study lacks.
        """
        if stage == "distill":
            _find(self.datasets, dataset, "dataset")
            _find((*self.strategies, *["CE"] * self.baseline), strategy, "strategy")
            if (teacher == "none") != (strategy == "CE"):
                raise StudyError(
                    f"teacher '{teacher}' with strategy '{strategy}': "
                    "expected CE with teacher none, or another strategy with a teacher"
                )
        else:
            self.data(dataset)
            used = {RECIPES[name] for name in self.strategies}
            recipes = self.recipes.keys() - {"student"} if stage == "teacher" else used
            _find(sorted(recipes), strategy, "recipe")
            if (dataset == PRETEXT) != (strategy == PRETEXT):
                raise StudyError(
                    f"recipe '{strategy}' on dataset '{dataset}': "
                    "the recipe pretext and the dataset pretext go together"
                )
        if teacher != "none" or stage != "distill":
            self.teacher(teacher)
        return Job(stage, dataset, teacher, strategy, self.job_seed)

    @property
    def first(self) -> Job:
        """The first teacher of the first dataset and strategy, whose logits the introduction shows."""
        dataset, teacher = next(iter(self.datasets)), next(iter(self.teachers))
        return Job("teacher", dataset, teacher, RECIPES[self.strategies[0]])

    def seed_of(self, job: Job) -> int:
        """The seed of a job, whichever is in force."""
        return self.seeds[0] if job.seed == FIRST else job.seed

    def data(self, key: str) -> DataSpec:
        """A dataset, or the pretext set.  Raises StudyError where the study has none of that name."""
        return self.pretext if key == PRETEXT and self.pretext else _find(self.datasets, key, "dataset")

    def teacher(self, key: str) -> Model:
        """A teacher.  Raises StudyError where the study has none of that name."""
        return _find(self.teachers, key, "teacher")

    def student(self, key: str) -> Model:
        """A student.  Raises StudyError where the study has none of that name."""
        return _find(self.students, key, "student")

    def recipe(self, name: str, model: Model) -> Recipe:
        """The recipe of that name with the model's own values, those for it alone last."""
        recipe = _find(self.recipes, name, "recipe")
        for own in filter(None, (model.recipe, getattr(model.recipe, name, None))):
            given = own.model_fields_set & Recipe.model_fields.keys()
            recipe = recipe.model_copy(update={key: getattr(own, key) for key in given})
        return recipe

    @property
    def bank_views(self) -> int:
        """Views of each image that a bank holds: as many as the student that takes most of them."""
        return max(self.recipe("student", student).n_views for student in self.students.values())

    def losses_of(self, student: str, strategy: str) -> dict[str, Loss | None]:
        """The losses that a student is trained with, one training each.

        They are 'ce' without a teacher; else 'kd' and the auxiliary ones, which are added to it.
        """
        if strategy == "CE":
            return {"ce": None}
        losses = {
            name: loss
            for name, loss in self.losses.items()
            if student in (loss.students or self.students)
            and strategy in (loss.strategies or self.strategies)
        }
        return {"kd": None, **losses}

    def strategies_using(self, recipe: str) -> tuple[str, ...]:
        """The strategies whose students learn from the bank of a teacher of this recipe."""
        return tuple(strategy for strategy in self.strategies if RECIPES[strategy] == recipe)

    def bank_contents(self, recipe: str) -> dict[str, bool]:
        """Say what such a bank holds next to logits.

        augmented: crop and drop views, which TGDA reads.
        features: pooled features, where a loss is applied to them.
        """
        strategies = self.strategies_using(recipe)
        on_features = [loss for loss in self.losses.values() if loss.applies_to == "features"]
        return {
            "augmented": "TGDA" in strategies,
            "features": any({*(loss.strategies or self.strategies)} & {*strategies} for loss in on_features),
        }

    def seed_for(self, *names: str) -> int:
        """A seed of 63 bits for one use: a hash of the seed in force and the names."""
        text = json.dumps([self.seed, *names])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def jobs(self) -> tuple[Job, ...]:
        """All jobs that are notebook runs, each after those that must have ended before it."""
        order: dict[Job, None] = {}

        def visit(job):
            if job not in order:
                for earlier in self.before(job):
                    visit(earlier)
                order[job] = None

        visit(Job("report"))
        return tuple(order)

    def student_jobs(self, job: Job) -> tuple[Job, ...]:
        """The trainings of a distill job, one per student and loss."""
        parts = []
        for student in self.students:
            part = dataclasses.replace(job, stage="student", student=student)
            parts += [dataclasses.replace(part, loss=loss) for loss in self.losses_of(student, job.strategy)]
        return tuple(parts)

    def inputs(self, job: Job) -> tuple[Job, ...]:
        """The jobs whose results this one's is a function of.

        A student's is its teacher: the bank, if it reads one, holds no more than that teacher's outputs.
        """
        return job.row.inputs(self, job)

    def banks_of(self, job: Job) -> tuple[Job, ...]:
        """The bank that a distill job's students learn from; none for the CE baseline."""
        if job.strategy == "CE":
            return ()
        return (Job("bank", job.dataset, job.teacher, RECIPES[job.strategy], job.seed),)

    def before(self, job: Job) -> tuple[Job, ...]:
        """The jobs whose notebooks must have ended before this one's runs."""
        banks = self.banks_of(job) if job.stage == "distill" and not self.online else ()
        notebooks: dict[Job, None] = {}
        for source in banks or self.inputs(job):
            is_student = source.stage == "student"
            notebooks |= dict.fromkeys(self.inputs(source) if is_student else (source,))
        return tuple(notebooks)

    def fingerprint(self, job: Job, known: dict[Job, str] | None = None) -> str:
        """A hash of all that the job's result is a function of: see the module's docstring.

        known: fingerprints that were computed already, which gains this one and those below it.
        """
        known = {} if known is None else known
        if job not in known:
            inputs = [self.fingerprint(source, known) for source in self.inputs(job)]
            values, digests = self._own(job)
            # The empty ones are left out, so that a further kind one day leaves results without it valid.
            # The id is in, since seeds for an order of images and for weights are drawn from its names.
            used = {name: digest for name, digest in digests.items() if digest != ""}
            text = json.dumps([job.id, values, used, inputs], sort_keys=True)
            known[job] = contents.of_text(text)
        return known[job]

    def values(self, job: Job) -> dict[str, Any]:
        """The job's own values in the study file, without those of the jobs that it reads."""
        return self._own(job)[0]

    def contents(self, job: Job) -> dict[str, str | None]:
        """Digests of what the job's result is a function of and the study file only names.

        These are photos, weights, and plugins' code of a network, a loss or metrics.  Where the files are not
        there, the digest is what the job's own record says, and None without one.
        """
        return self._own(job)[1]

    def _own(self, job: Job) -> Own:
        values, digests = job.row.own(self, job)
        if None in digests.values():  # of an absent plugin no metric is known, of absent weights no config
            recorded = (stored.read(self.folder, job.id) or {}).get("contents")
            recorded = {"metrics": "", "config": ""} | (recorded if isinstance(recorded, dict) else {})
            digests = {name: recorded.get(name) if own is None else own for name, own in digests.items()}
        return values, digests

    def loss_of(self, job: Job) -> Loss | None:
        """The auxiliary loss of a student job; None where it is CE or KD alone."""
        return self.losses_of(job.student, job.strategy)[job.loss]

    def kd(self, loss: Loss | None) -> Distillation:
        """Temperature and beta of the KD term that goes with a loss."""
        own = {name: getattr(loss, name, None) for name in ("temperature", "beta")}
        given = {name: value for name, value in own.items() if value is not None}
        return self.distillation.model_copy(update=given)


def check_parameters(namespace: dict[str, Any], **types_: type) -> None:
    """Refuse a notebook's parameter of another type or name.

    namespace: the notebook's `globals()` in the cell after its parameters.
    types_: each parameter's name and type.
    papermill itself accepts any name and ends with exit status 0.  Names are checked once in a kernel: a cell
    that runs again finds those that the notebook's other cells have made.
    Raises StudyError naming the parameter.
    """
    simple = (str, int, float, bool, list, tuple, dict, type(None))
    jupyter = {"In", "Out", "exit", "quit"}
    names = {name for name, value in namespace.items() if isinstance(value, simple)} - jupyter
    public = {name for name in names if not name.startswith("_")}
    if not namespace.get("_names_checked") and (message := unknown_name(public, types_, "parameter")):
        raise StudyError(f"this notebook: {message}")
    namespace["_names_checked"] = True
    for name, kind in types_.items():
        value = namespace[name]
        is_bool = isinstance(value, bool)
        if not isinstance(value, kind) or (is_bool and kind is not bool):
            raise StudyError(
                f"parameter '{name}' is {value!r} ({type(value).__name__}): expected {kind.__name__}"
            )


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is particular to the jobs of a stage.

    notebook: which runs them, and the section of the report that shows it.
    inputs: of a job of a study, the jobs that it reads.
    own: what else its result is a function of: its values in the study file, and digests of what the file
    only names, None for what is not there.
    jobs: of a study, where no other job reads them; the report comes after these.
    table: of `records.collect`, to which the rows of its records go.
    networks: whether it runs any.
    priority: data first, so that faults in them show at once; students as soon as there is a bank.
    strategy: what its notebook calls a job's strategy.  parameters: further ones of its notebook.
    """

    notebook: str
    section: str
    inputs: Callable[[Study, Job], tuple[Job, ...]]
    own: Callable[[Study, Job], Own] = lambda study, job: ({}, {})
    jobs: Callable[[Study], tuple[Job, ...]] = lambda study: ()
    table: str = ""
    networks: bool = False
    priority: int = 0
    strategy: str = "strategy"
    parameters: dict[str, Any] = field(default_factory=dict)


def _teacher_inputs(study: Study, job: Job) -> tuple[Job, ...]:
    """Its dataset, and the training that its backbone starts from, where that has no other weights."""
    data = Job("data", job.dataset)
    if job.strategy == PRETEXT or study.teacher(job.teacher).weights != PRETEXT:
        return (data,)
    return (data, Job("teacher", PRETEXT, job.teacher, PRETEXT, job.seed))


def _student_inputs(study: Study, job: Job) -> tuple[Job, ...]:
    if job.strategy == "CE":
        return (Job("data", job.dataset),)
    return (Job("teacher", job.dataset, job.teacher, RECIPES[job.strategy], job.seed),)


def _banks_and_students(study: Study, job: Job) -> tuple[Job, ...]:
    """All distill jobs, each after the bank that its students learn from."""
    pairs = list(product(study.strategies, study.teachers)) + [("CE", "none")] * study.baseline
    jobs: dict[Job, None] = {}
    for seed, dataset, (strategy, teacher) in product((FIRST, *study.seeds[1:]), study.datasets, pairs):
        distill = Job("distill", dataset, teacher, strategy, seed)
        jobs |= dict.fromkeys((*study.banks_of(distill), distill))
    return tuple(jobs)


def _conclusions(study: Study, job: Job) -> tuple[Job, ...]:
    further = (row.jobs(study) for row in STAGES.values())
    return (Job("intro"), Job("correlation"), *chain.from_iterable(further))


def _data(study: Study, job: Job) -> Own:
    spec = study.data(job.dataset)
    if spec.kind == "birds":
        return {name: getattr(spec, name) for name in ("resize", *BIRD_VALUES)}, {}
    photos = study.photos.get(job.dataset)
    return {"resize": spec.resize}, {"photos": photos and photos.digest}


def _bank(study: Study, job: Job) -> Own:
    metrics = contents.of_code(study.plugins, plugins.METRIC)
    return {"crop": study.views.crop, "views": study.bank_views}, {"metrics": metrics}


def _student(study: Study, job: Job) -> Own:
    loss = study.loss_of(job)
    values, digests = _training(study, job, study.student(job.student), "student")
    if job.strategy != "CE":
        # Both ways give the same losses but for rounding, and so count as two.
        values["kd"] = study.kd(loss).model_dump() | ({"online": True} if study.online else {})
    if loss is not None and loss.loss != "kd":
        values["further"] = {
            "loss": loss.loss,
            "weight": loss.weight,
            "on": loss.applies_to,
            "options": loss.options,
        }
        if loss.loss not in LOSSES:
            digests["loss"] = contents.of_code(study.plugins, plugins.LOSS, loss.loss)
    return values, digests


def _training(study: Study, job: Job, model: Model, recipe: str) -> Own:
    values = {
        "seed": study.seed_of(job),
        "crop": study.views.crop,
        "model": _network_values(model),
        "recipe": _recipe_values(study.recipe(recipe, model), recipe),
    }
    network = contents.of_code(study.plugins, plugins.NETWORK, model.model)
    return values, {"network": network} | (contents.of_weights(model.file) if model.file else {})


STAGES = {
    "intro": Stage("01_what_is_ratio12", "The idea", lambda study, job: (study.first,)),
    "data": Stage(
        notebook="02_data",
        section="Data",
        inputs=lambda study, job: (),
        own=_data,
        table="data",
        priority=3,
    ),
    "teacher": Stage(
        notebook="03_teacher",
        section="Teachers",
        inputs=_teacher_inputs,
        own=lambda study, job: _training(study, job, study.teacher(job.teacher), job.strategy),
        table="teachers",
        networks=True,
        strategy="recipe",
    ),
    "bank": Stage(
        notebook="04_ratio12",
        section="Banks and R12",
        inputs=lambda study, job: (dataclasses.replace(job, stage="teacher"),),
        own=_bank,
        table="metrics",
        networks=True,
        priority=1,
        strategy="recipe",
        parameters={"compare": False},  # the other teachers have jobs of their own
    ),
    "distill": Stage(
        notebook="05_distillation",
        section="Students",
        inputs=lambda study, job: study.student_jobs(job),
        table="students",
        networks=True,
        priority=2,
    ),
    "correlation": Stage("06_correlation", "Analysis", _banks_and_students),
    "report": Stage("07_report", "Analysis", _conclusions),
}
STUDENT = Stage("", "Students", _student_inputs, _student, networks=True)


def _find(known: Any, key: str, what: str) -> Any:
    """The value of a key in a mapping, or a name among others."""
    if key not in known:
        raise StudyError(f"{what} '{key}' is not in the study{expected(key, known)}")
    return known[key] if isinstance(known, Mapping) else key


def _network_values(model: Model) -> dict[str, Any]:
    """The values of a model that its result depends on: not its key, nor where its weights lie."""
    values: dict[str, Any] = {"model": model.model, "weights": "file" if model.file else model.weights}
    optional = {"options": model.options, "resolution": model.resolution}
    return values | {name: value for name, value in optional.items() if value}


def _recipe_values(recipe: Recipe, name: str) -> dict[str, Any]:
    """The values of a recipe that a training by it uses.

    One that is added to recipes one day must be left out at its default, so that old results stay valid.
    """
    values = recipe.model_dump()
    is_used = {
        "views": name in ("FZ", "student") and recipe.n_views < recipe.epochs,
        "maps": name == "CAL",
        "momentum": recipe.optimizer == "sgd",
        "search_epochs": recipe.search_epochs > 0 and len(recipe.rates) > 1,
    }
    return {key: value for key, value in values.items() if is_used.get(key, True)}
