"""A study's YAML file as frozen dataclasses: what to run, the jobs it falls into, their inputs, ids and folders.

A *job* is one notebook run, or one student of a distill job.  The stages and what a job of each stands
for:

    intro        the study                        01_what_is_ratio12
    data         a data set                       02_data
    teacher      data set, teacher, recipe        03_teacher
    bank         data set, teacher, recipe        04_ratio12        (TGDA students learn from the bank of the CAL teacher)
    distill      data set, teacher, strategy      05_distillation   (all students and losses of that teacher; CE has teacher 'none')
    student      the same, a student, a loss      -                 (a training of a distill job, its record)
    correlation  the study                        06_correlation
    report       the study                        07_report

Of several seeds, each repeats the teacher, bank and distill jobs, pretext and baseline included; images and conclusions are shared.

A job's fingerprint is a hash of what its result is a function of, and of nothing else: its own values in the
study file, the content of the photos, weights and plugins that it starts from, and the fingerprints of the
jobs that it reads.  Paths, times, the machine, its threads and what other students, losses or strategies the
study has are no part of it, nor are values that a recipe does not use. Where a file is not there, its content
is what the job's own record says: records alone, without photos and weights, are valid (`Study.contents`).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fgkd import contents

STAGES = {
    "intro": "01_what_is_ratio12",
    "data": "02_data",
    "teacher": "03_teacher",
    "bank": "04_ratio12",
    "distill": "05_distillation",
    "correlation": "06_correlation",
    "report": "07_report",
}
STRATEGIES = ("FZ", "FT", "CAL", "TGDA")
RECIPES = {"FZ": "FZ", "FT": "FT", "CAL": "CAL", "TGDA": "CAL"}  # how the teacher of each strategy is trained
# Losses and their options; 'kd' is KD itself with a temperature or beta of its own.  The defaults are those
# of the released code, but for CRD's, which are its paper's.
LOSSES = {
    "kd": {},
    "dkd": {"alpha": 1.0, "beta": 0.5, "temperature": 1.0},
    "rkd": {"distance_weight": 25.0, "angle_weight": 50.0},
    "pkt": {},
    "hint": {},
    "crd": {"width": 128, "negatives": 16384, "temperature": 0.07, "momentum": 0.5},
}
OFFICIAL = (
    "aircraft",
    "cars",
    "cub",
    "dogs",
    "flowers",
    "moe",
    "nabirds",
    "pets",
)  # the paper's data sets, each a kind of its own
PRETEXT = "pretext"
PROJECT = Path(__file__).resolve().parents[1]


class StudyError(ValueError):
    """A study file, or a notebook's parameter, that cannot be followed."""


@dataclass(frozen=True)
class DataSpec:
    """One data set: synthetic birds (`kind: birds`), a folder of images (`kind: folder`), or one of the paper's (`kind: cub`, ...)."""

    key: str
    kind: str = "birds"
    root: str | None = (
        None  # where it lies, relative to the study file; one of the paper's: its kind in FGKD_DATA where none is given
    )
    classes: tuple[str, ...] = ()  # folder: only these classes; empty takes all
    test_fraction: float = 0.2  # folder without train/ and test/: share of each class to test on
    species: int = 24  # birds: number of classes
    family_size: int = 4  # birds: sibling species in a family
    train: int = 40  # birds: training images a species
    test: int = 20  # birds: test images a species
    size: float = 1.0  # birds: share of the usual size in the picture, which a bird nearly fills
    seed: int = 0  # birds: which species; folder: which split
    check_counts: bool = True  # one of the paper's: refuse a set whose counts are not the official ones
    resize: int = 72  # pixels of the cached square images
    note: str = ""  # what a reader of its numbers should know


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the defaults are the paper's for teachers but for epochs and batch size.

    A tuple of learning rates is one to choose from, on a part of the training split (see `stages`).
    """

    epochs: int = 10
    batch_size: int = 32
    optimizer: str = "sgd"  # sgd | adamw
    lr: float | tuple[float, ...] = 0.01
    weight_decay: float = 0.0
    momentum: float = 0.9  # sgd only
    warmup_steps: int = 0
    min_lr: float = 1e-5  # where the cosine ends
    clip: float = 1.0  # largest gradient norm
    views: int = 0  # FZ and students: views of each image, seen in turn; 0: one an epoch
    maps: int = 32  # CAL only: attention maps
    search_epochs: int = 0  # of each training in a search for a rate; 0: as many as epochs

    @property
    def rates(self) -> tuple[float, ...]:
        """What `lr` leaves to choose from."""
        return self.lr if isinstance(self.lr, tuple) else (self.lr,)

    @property
    def seen(self) -> int:
        """How many different views of each image there are: epoch e sees view e % seen."""
        return min(self.views or self.epochs, self.epochs)


@dataclass(frozen=True)
class Model:
    """A teacher or a student: a timm name, where its weights come from, and what differs from the common recipe."""

    key: str
    model: str  # timm name, with its tag
    weights: str = "none"  # none | pretext | timm | a .safetensors or .pth file relative to the study file
    options: dict = field(default_factory=dict)  # keyword arguments for timm.create_model
    recipe: dict = field(default_factory=dict)  # values that replace the recipes', or one recipe's
    pretraining: str = ""  # what its weights were trained on; empty: as timm's tag says
    family: str = ""  # of which it is a member, such as the widths of one network
    architecture: str = ""  # such as convolution or transformer

    @property
    def file(self) -> str | None:
        """The absolute path of the file that its weights come from, None where they come from elsewhere."""
        return None if self.weights in ("none", "pretext", "timm") else self.weights


@dataclass(frozen=True)
class Views:
    resize: int = 72
    crop: int = 64


@dataclass(frozen=True)
class Distillation:
    temperature: float = 2.0
    beta: float = 10.0  # weight of the KD term beside cross-entropy


@dataclass(frozen=True)
class Loss:
    """A further loss, added to CE + beta * KD of some students; or KD itself with a temperature or beta that
    is not the study's."""

    key: str
    loss: str = ""  # kd | dkd | rkd | pkt | hint | crd; empty: that of its key
    temperature: float | None = None  # of the KD term; None: the study's
    beta: float | None = None  # weight of the KD term; None: the study's
    weight: float = 1.0  # of the further loss
    on: str = "logits"  # logits | features: the pooled ones before the last layer
    students: tuple[str, ...] = ()  # empty: all
    strategies: tuple[str, ...] = ()  # empty: all
    options: dict = field(default_factory=dict)  # keyword arguments of the function in `losses`


@dataclass(frozen=True)
class Job:
    """One notebook run; `teacher` and `strategy` are empty where the stage has none."""

    stage: str
    dataset: str = ""
    teacher: str = ""
    strategy: str = ""
    seed: int | None = (
        None  # None: the study's first, or of no seed; a study that ran once may so be given further seeds
    )
    student: str = ""  # stage student alone, as is the loss
    loss: str = ""

    @property
    def place(self) -> str:
        """Where it stands in the matrix, which every seed repeats."""
        stage = "distill" if self.stage == "student" else self.stage
        return (
            "/".join(p for p in (stage, self.dataset, self.strategy, self.teacher) if p)
            if self.dataset
            else f"study/{stage}"
        )

    @property
    def id(self) -> str:
        of_seed = self.place if self.seed is None else f"{self.place}/seed-{self.seed}"
        return f"{of_seed}/students/{self.student}/{self.loss}" if self.stage == "student" else of_seed

    @property
    def notebook(self) -> str:
        return STAGES[self.stage]

    def parameters(self, study: "Study") -> dict[str, str | int]:
        """What papermill hands to the notebook."""
        names = {
            "dataset": self.dataset,
            "teacher": self.teacher,
            "recipe" if self.stage in ("teacher", "bank") else "strategy": self.strategy,
        }
        return {
            "study": study.file,
            **{k: v for k, v in names.items() if v},
            **({} if self.seed is None else {"seed": self.seed}),
        }


@dataclass(frozen=True)
class Resources:
    """What a run of a stage asks of the machine or the cluster; no result depends on it."""

    gpus: int = 1  # 0 or 1; without a GPU it runs on the CPU
    memory: int = 8000  # MB
    minutes: int = 1440  # a cluster ends it then; started again it goes on from its last checkpoint


@dataclass(frozen=True)
class Study:
    name: str
    file: str  # absolute path of the YAML file
    question: str
    seed: int  # the one in force: the first, unless `at` names another
    seeds: tuple[int, ...]  # each repeats the whole matrix
    device: str  # auto | cpu | cuda
    threads: int  # CPU threads of one run
    compile: bool  # True runs networks through torch.compile
    online: bool  # True runs the teacher in every step instead of reading the bank
    plugins: tuple[str, ...]  # Python files that register models with timm
    views: Views
    datasets: dict[str, DataSpec]
    pretext: DataSpec | None
    teachers: dict[str, Model]
    students: dict[str, Model]
    strategies: tuple[str, ...]
    baseline: bool  # also train every student without a teacher (CE)
    recipes: dict[str, Recipe]
    distillation: Distillation
    losses: dict[str, Loss]
    resources: dict[str, Resources]  # by stage: teacher, bank, distill
    runs_per_gpu: int  # how many runs share a GPU of this machine
    # By data set, once its photos were looked at: its `datasets.Content`.
    photos: dict = field(default_factory=dict, compare=False)

    @property
    def folder(self) -> Path:
        """Where the study's results go: beside its file, or in FGKD_RUNS."""
        root = os.environ.get("FGKD_RUNS")
        return (Path(root) if root else Path(self.file).parent) / self.name

    def path(self, job: Job) -> Path:
        """The job's folder."""
        return self.folder / job.id

    def at(self, seed: int) -> "Study":
        """The study with this one of its seeds in force; -1 is the first."""
        if seed not in (-1, *self.seeds):
            raise StudyError(
                f"seed {seed} is not in the study: expected one of {', '.join(map(str, self.seeds))}, or -1 for the first"
            )
        return dataclasses.replace(self, seed=self.seeds[0] if seed == -1 else seed)

    def job(self, stage: str, dataset: str, teacher: str, strategy: str) -> Job:
        """A teacher, bank or distill job of the seed in force.

        strategy: how a job of students is taught, or the recipe of a teacher's or bank's.  Raises StudyError
        naming what the study lacks.
        """
        if stage == "distill":
            _known(self.datasets, dataset, "data set")
            _known(dict.fromkeys(self.strategies + ("CE",) * self.baseline), strategy, "strategy")
            if (teacher == "none") != (strategy == "CE"):
                pair = f"teacher '{teacher}' with strategy '{strategy}'"
                raise StudyError(f"{pair}: expected CE with teacher none, or another strategy with a teacher")
        else:
            self.data(dataset)
            recipes = (
                self.recipes.keys() - {"student"} if stage == "teacher" else map(RECIPES.get, self.strategies)
            )
            _known(dict.fromkeys(sorted(recipes)), strategy, "recipe")
            if (dataset == PRETEXT) != (strategy == PRETEXT):
                pair = f"recipe '{strategy}' on data set '{dataset}'"
                raise StudyError(f"{pair}: the recipe pretext and the data set pretext go together")
        if teacher != "none" or stage != "distill":
            self.teacher(teacher)
        return Job(stage, dataset, teacher, strategy, None if self.seed == self.seeds[0] else self.seed)

    @property
    def first(self) -> Job:
        """The first teacher of the first data set and strategy, whose logits the introduction looks at."""
        return Job(
            "teacher", next(iter(self.datasets)), next(iter(self.teachers)), RECIPES[self.strategies[0]]
        )

    def seed_of(self, job: Job) -> int:
        return self.seeds[0] if job.seed is None else job.seed

    def data(self, key: str) -> DataSpec:
        return self.pretext if key == PRETEXT and self.pretext else _known(self.datasets, key, "data set")

    def teacher(self, key: str) -> Model:
        return _known(self.teachers, key, "teacher")

    def student(self, key: str) -> Model:
        return _known(self.students, key, "student")

    def recipe(self, name: str, model: Model) -> Recipe:
        """The recipe of that name with the model's own values in it, those for this recipe alone last."""
        own = {key: value for key, value in model.recipe.items() if not isinstance(value, dict)}
        own |= model.recipe.get(name, {})
        return dataclasses.replace(_known(self.recipes, name, "recipe"), **own)

    @property
    def bank_views(self) -> int:
        """Views of each image that a bank holds: as many as the student that sees most of them."""
        return max(self.recipe("student", s).seen for s in self.students.values())

    def losses_of(self, student: str, strategy: str) -> dict[str, Loss | None]:
        """The losses that a student is trained with, one training each: 'ce', or 'kd' and the further ones, which are added to it."""
        if strategy == "CE":
            return {"ce": None}
        return {"kd": None} | {
            k: v
            for k, v in self.losses.items()
            if student in (v.students or self.students) and strategy in (v.strategies or self.strategies)
        }

    def strategies_using(self, recipe: str) -> tuple[str, ...]:
        """The strategies whose students learn from the bank of a teacher of this recipe."""
        return tuple(s for s in self.strategies if RECIPES[s] == recipe)

    def bank_contents(self, recipe: str) -> dict[str, bool]:
        """What such a bank holds beside logits: crop and drop views where TGDA reads it, pooled features where a loss asks for them."""
        asked = [
            loss
            for strategy in self.strategies_using(recipe)
            for k in self.students
            for loss in self.losses_of(k, strategy).values()
            if loss
        ]
        return {
            "augmented": "TGDA" in self.strategies_using(recipe),
            "features": any(loss.on == "features" for loss in asked),
        }

    def seed_for(self, *names: str) -> int:
        """A seed of 63 bits for one use, independent of all others: a hash of the seed in force and the names."""
        text = json.dumps([self.seed, *names])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def jobs(self) -> tuple[Job, ...]:
        """All jobs that are notebook runs, each after those that must have ended before it."""
        seen: dict[Job, None] = {}

        def visit(job):
            if job not in seen:
                for earlier in self.before(job):
                    visit(earlier)
                seen[job] = None

        visit(Job("report"))
        return tuple(seen)

    def student_jobs(self, job: Job) -> tuple[Job, ...]:
        """The trainings of a distill job, one a student and loss."""
        trainings = [(key, name) for key in self.students for name in self.losses_of(key, job.strategy)]
        return tuple(
            dataclasses.replace(job, stage="student", student=key, loss=name) for key, name in trainings
        )

    def inputs(self, job: Job) -> tuple[Job, ...]:
        """The jobs whose results this one's is a function of.

        A student's is one of its teacher: the bank that it reads, if it reads one, is no more than what that
        teacher says.
        """
        d, t, s, seed = job.dataset, job.teacher, job.strategy, job.seed
        match job.stage:
            case "intro":
                return (self.first,)
            case "data":
                return ()
            case "teacher":
                pretext = s != PRETEXT and self.teacher(t).weights == "pretext"
                return (Job("data", d), *((Job("teacher", PRETEXT, t, PRETEXT, seed),) if pretext else ()))
            case "bank":
                return (Job("teacher", d, t, s, seed),)
            case "student":
                return (Job("data", d) if s == "CE" else Job("teacher", d, t, RECIPES[s], seed),)
            case "distill":
                return self.student_jobs(job)
            case "correlation":
                distilled = [
                    Job("distill", d, *pair, k)
                    for k in (None, *self.seeds[1:])
                    for d in self.datasets
                    for pair in self._pairs()
                ]
                return tuple(dict.fromkeys(c for job in distilled for c in (*self.banks_of(job), job)))
            case "report":
                return (Job("intro"), Job("correlation"))
        raise StudyError(f"stage '{job.stage}' is unknown: expected one of {', '.join(STAGES)}")

    def banks_of(self, job: Job) -> tuple[Job, ...]:
        """The bank that a distill job's students learn from; none for the CE baseline."""
        return (
            ()
            if job.strategy == "CE"
            else (Job("bank", job.dataset, job.teacher, RECIPES[job.strategy], job.seed),)
        )

    def before(self, job: Job) -> tuple[Job, ...]:
        """The jobs whose notebooks must have ended before this one's runs."""
        if job.stage != "distill":
            return self.inputs(job)
        sources = dict.fromkeys(c for student in self.student_jobs(job) for c in self.inputs(student))
        return tuple(sources) if self.online else self.banks_of(job) or tuple(sources)

    def _pairs(self):
        yield from ((t, s) for s in self.strategies for t in self.teachers)
        if self.baseline:
            yield ("none", "CE")

    def fingerprint(self, job: Job, known: dict[Job, str] | None = None) -> str:
        """A hash of all that the job's result is a function of: see the module's docstring.

        known: fingerprints that were computed already, which gains this one and those below it.
        """
        return _fingerprint(self, job, {} if known is None else known)

    def values(self, job: Job) -> dict:
        """The job's own values in the study file, without those of the jobs that it reads."""
        common = {"seed": self.seed_of(job), "crop": self.views.crop}
        match job.stage:
            case "data":
                spec = self.data(job.dataset)
                drawn = (
                    ("species", "family_size", "train", "test", "size", "seed")
                    if spec.kind == "birds"
                    else ()
                )
                return {"resize": spec.resize} | {name: getattr(spec, name) for name in drawn}
            case "teacher":
                model = self.teacher(job.teacher)
                return common | {
                    "model": _network(model),
                    "recipe": _used(self.recipe(job.strategy, model), job.strategy),
                }
            case "bank":
                return {"crop": self.views.crop, "views": self.bank_views}
            case "student":
                model, loss = (
                    self.student(job.student),
                    self.losses_of(job.student, job.strategy)[job.loss],
                )
                found = common | {
                    "model": _network(model),
                    "recipe": _used(self.recipe("student", model), "student"),
                }
                if job.strategy != "CE":
                    found |= {
                        "kd": dataclasses.asdict(self.kd(loss)) | ({"online": True} if self.online else {})
                    }
                if loss is not None and loss.loss != "kd":
                    found |= {
                        "further": {
                            "loss": loss.loss,
                            "weight": loss.weight,
                            "on": loss.on,
                            "options": loss.options,
                        }
                    }
                return found
        return {}

    def kd(self, loss: Loss | None) -> Distillation:
        """Temperature and beta of the KD term beside a loss."""
        own = {
            name: value
            for name in ("temperature", "beta")
            if (value := getattr(loss, name, None)) is not None
        }
        return dataclasses.replace(self.distillation, **own)

    def contents(self, job: Job) -> dict[str, str | None]:
        """Digests of what the job's result is a function of and the study file only names: photos, weights,
        a plugin's network or metrics.

        Where the files are not there it is what the job's own record says, and None without one.
        """
        match job.stage:
            case "data" if self.data(job.dataset).kind != "birds":
                seen = self.photos.get(job.dataset)
                found = {"photos": seen and seen.digest}
            case "teacher" | "student":
                model = self.teacher(job.teacher) if job.stage == "teacher" else self.student(job.student)
                found = {"network": contents.of_network(model.model, self.plugins)}
                if model.file is not None:
                    found["weights"] = contents.of_file(model.file)
            case "bank":
                found = {"metrics": contents.of_metrics(self.plugins)}
            case _:
                return {}
        if None in found.values():
            recorded = _recorded(self.path(job) / "record.json")
            if job.stage == "bank":
                recorded = {"metrics": ""} | recorded  # no metric is known of an absent plugin
            found = {name: recorded.get(name) if value is None else value for name, value in found.items()}
        return found


def load(study: str) -> Study:
    """Read a study from a YAML file, or by the name of a file in `runs/`.

    Raises StudyError naming the key or value that is wrong, what was expected and what to do.  Data and weights need not be there yet.
    """
    file = _find(study)
    return _build(_read(file), file.resolve())


def check_weights(model: Model) -> None:
    """Raise StudyError unless the file is there that the model's weights are to come from."""
    if model.file and not os.path.isfile(model.file):
        advice = (
            "a variable in it is not set: export it"
            if "$" in model.weights
            else "check the path, which is relative to the study's folder"
        )
        raise StudyError(f"weights '{model.weights}' of '{model.key}' do not exist: {advice}")


def check_parameters(namespace: dict, **types_: type) -> None:
    """Refuse a notebook's parameter that is mistyped or that papermill was handed under another name.

    namespace: the notebook's `globals()` in the job after its parameters; types_: each parameter's name and type.
    papermill itself accepts any name and ends with exit status 0.
    """
    simple = (str, int, float, bool, list, tuple, dict, type(None))
    jupyter = {"In", "Out", "exit", "quit"}
    given = {
        k
        for k, v in namespace.items()
        if isinstance(v, simple) and not k.startswith("_") and k not in jupyter
    }
    _check_keys(given, set(types_), "parameter", "this notebook")
    for name, kind in types_.items():
        if not isinstance(namespace[name], kind) or (kind is not bool and isinstance(namespace[name], bool)):
            raise StudyError(
                f"parameter '{name}' is {namespace[name]!r} ({type(namespace[name]).__name__}): expected {kind.__name__}"
            )


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which it would keep the last, and to which `on` is a word, as in YAML 1.2."""

    yaml_implicit_resolvers = {
        first: [(tag, regex) for tag, regex in found if tag != "tag:yaml.org,2002:bool"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        if twice := [key for key, _ in node.value if keys.count(key.value) > 1]:
            raise StudyError(
                f"key '{twice[-1].value}' is there twice, again in line {twice[-1].start_mark.line + 1}: remove or rename one"
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF")
)


def _find(study: str) -> Path:
    if Path(study).suffix in (".yaml", ".yml"):
        if not (file := Path(study)).is_file():
            raise StudyError(
                f"study file '{study}' does not exist: give the path of a YAML file, or the name of one in runs/"
            )
        return file
    folders = [Path.cwd() / "runs", PROJECT / "runs"]
    for folder in folders:
        if (file := folder / f"{study}.yaml").is_file():
            return file
    known = sorted({f.stem for folder in folders for f in folder.glob("*.yaml")})
    raise StudyError(
        f"study '{study}' is unknown{_hint(study, known)}: expected one of {', '.join(known)}, or the path of a YAML file"
    )


def _read(file: Path, *above: Path) -> dict:
    """The file's keys and values, over those of the study beside it that its `base` names, all but its name."""
    try:
        raw = yaml.load(file.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        advice = ": indent with spaces, not tabs" if r"'\t'" in str(error) else ""
        raise StudyError(f"{file} is not YAML: {' '.join(str(error).split())}{advice}") from None
    if not isinstance(raw, dict):
        found = "is empty" if raw is None else f"holds {'a list' if isinstance(raw, list) else 'one value'}"
        raise StudyError(f"{file} {found}: expected keys and values such as 'datasets:' and 'teachers:'")
    if "base" not in raw:
        return raw
    base = file.parent / _typed(raw.pop("base"), str, "base")
    if base.parent != file.parent or not base.is_file():
        raise StudyError(
            f"{file.name}: base '{base}' does not exist: expected the name of a study file in {file.parent}"
        )
    if base in (file, *above):
        raise StudyError(f"{file.name}: base '{base.name}' leads back to itself: leave one of the two out")
    return _merged({k: v for k, v in _read(base, file, *above).items() if k != "name"}, raw)


def _merged(base: dict, own: dict) -> dict:
    """`own` over `base`, mappings key by key; an empty value takes a key of `base` away."""
    both = base | {
        k: _merged(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v
        for k, v in own.items()
    }
    return {k: v for k, v in both.items() if k not in base or own.get(k, True) is not None}


def _build(raw: dict, file: Path) -> Study:
    top = {f.name for f in dataclasses.fields(Study)} - {"file", "seeds", "photos"}
    _check_keys(set(raw), top, "key", file.name)
    for key in ("datasets", "teachers", "students"):
        if not isinstance(raw.get(key), dict) or not raw[key]:
            raise StudyError(
                f"{file.name}: '{key}' is missing or empty: expected a mapping of names to settings"
            )
    views, seeds = _make(Views, _section(raw, "views"), "views"), _seeds(raw.get("seed", 0))
    if not 0 < views.crop <= views.resize:
        raise StudyError(f"views.crop is {views.crop}: expected 1 to views.resize ({views.resize})")
    data = {k: _data(k, v, views, file) for k, v in _section(raw, "datasets").items()}
    pretext = _data(PRETEXT, raw["pretext"], views, file) if raw.get("pretext") is not None else None
    recipes = {k: _recipe(v, f"recipes.{k}") for k, v in _section(raw, "recipes").items()}
    study = Study(
        name=_name(str(raw.get("name", file.stem)), "name"),
        file=str(file),
        question=_typed(raw.get("question", ""), str, "question"),
        seed=seeds[0],
        seeds=seeds,
        device=_choice(raw.get("device", "auto"), ("auto", "cpu", "cuda"), "device"),
        threads=_at_least(1, _typed(raw.get("threads", 1), int, "threads"), "threads"),
        online=_typed(raw.get("online", False), bool, "online"),
        compile=_typed(raw.get("compile", False), bool, "compile"),
        plugins=tuple(
            _beside(file, p, "plugins", exists=False)
            for p in _typed(raw.get("plugins") or [], list, "plugins")
        ),
        views=views,
        datasets=data,
        pretext=pretext,
        teachers={k: _model(k, v, "teachers", file) for k, v in _section(raw, "teachers").items()},
        students={k: _model(k, v, "students", file) for k, v in _section(raw, "students").items()},
        strategies=tuple(
            _choice(s, STRATEGIES, "strategies")
            for s in _typed(raw.get("strategies", list(STRATEGIES)), list, "strategies")
        ),
        baseline=_typed(raw.get("baseline", True), bool, "baseline"),
        recipes=recipes,
        distillation=_make(Distillation, _section(raw, "distillation"), "distillation"),
        losses={k: _loss(k, v) for k, v in _section(raw, "losses").items()},
        resources=_resources(_section(raw, "resources")),
        runs_per_gpu=_at_least(1, _typed(raw.get("runs_per_gpu", 1), int, "runs_per_gpu"), "runs_per_gpu"),
    )
    _check(study)
    return study


def _check(study: Study) -> None:
    if not study.strategies:
        raise StudyError(f"strategies is empty: expected one or more of {', '.join(STRATEGIES)}")
    pretext = [t for t, m in study.teachers.items() if m.weights == "pretext"]
    if pretext and study.pretext is None:
        raise StudyError(
            f"teacher '{pretext[0]}' has weights 'pretext', but the study has no 'pretext:' data set: add one, or name other weights"
        )
    if PRETEXT in study.datasets or "none" in study.teachers:
        raise StudyError("'pretext' as a data set and 'none' as a teacher are taken: give them other names")
    if students := [s for s, m in study.students.items() if m.weights == "pretext"]:
        raise StudyError(
            f"student '{students[0]}' has weights 'pretext': only teachers are trained on the pretext set; expected none, timm or a file"
        )
    _positive(study.distillation, "distillation", "temperature")
    _at_least(0, study.distillation.beta, "distillation.beta")
    for loss in study.losses.values():
        for s in loss.students:
            _choice(s, study.students, f"losses.{loss.key}.students")
        for s in loss.strategies:
            _choice(s, study.strategies, f"losses.{loss.key}.strategies")
    needed = {"student", *(RECIPES[s] for s in study.strategies), *([PRETEXT] if pretext else [])}
    _check_keys(set(study.recipes), needed | {PRETEXT, *RECIPES.values()}, "recipe", "recipes")
    if missing := needed - set(study.recipes):
        raise StudyError(
            f"recipes lacks {', '.join(sorted(missing))}: add each with its epochs, batch_size, optimizer and lr"
        )


def _seeds(raw) -> tuple[int, ...]:
    seeds = tuple(
        _at_least(0, _typed(seed, int, "seed"), "seed") for seed in (raw if isinstance(raw, list) else [raw])
    )
    if not 0 < len(seeds) == len(set(seeds)):
        raise StudyError(f"seed is {raw}: expected one, or a list of different ones")
    return seeds


def _resources(raw: dict) -> dict[str, Resources]:
    stages = ("teacher", "bank", "distill")
    _check_keys(set(raw), set(stages), "stage", "resources")
    found = {
        k: _make(Resources, _typed(raw.get(k, {}), dict, f"resources.{k}"), f"resources.{k}") for k in stages
    }
    for key, spec in found.items():
        if spec.gpus not in (0, 1):
            raise StudyError(
                f"resources.{key}.gpus is {spec.gpus}: expected 0 or 1, since a run uses one device"
            )
        for name in ("memory", "minutes"):
            _at_least(1, getattr(spec, name), f"resources.{key}.{name}")
    return found


def _data(key: str, raw, views: Views, file: Path) -> DataSpec:
    where = key if key == PRETEXT else f"datasets.{key}"
    spec = _make(
        DataSpec, {"resize": views.resize} | _typed(raw, dict, where), where, key=_name(key, "data set")
    )
    if spec.resize != views.resize:
        raise StudyError(
            f"{where}.resize is {spec.resize}: expected views.resize ({views.resize}), at which all data sets are cached"
        )
    _choice(spec.kind, ("birds", "folder", *OFFICIAL), f"{where}.kind")
    if spec.kind in OFFICIAL:
        _check_keys(set(raw), {"kind", "root", "check_counts", "resize", "note"}, "key", where)
        if spec.root is None:
            return spec
    if spec.kind != "birds":
        if spec.root is None:
            raise StudyError(
                f"{where}.root is missing: expected the folder that holds train/ and test/, or one folder a class"
            )
        return dataclasses.replace(spec, root=_beside(file, spec.root, f"{where}.root", exists=False))
    for name, least in (("species", 2), ("family_size", 1), ("train", 1), ("test", 1)):
        _at_least(least, getattr(spec, name), f"{where}.{name}")
    if not 0.2 <= spec.size <= 1:
        raise StudyError(
            f"{where}.size is {spec.size}: expected 0.2, a bird of a few pixels, to 1, one that nearly fills the picture"
        )
    return spec


def _model(key: str, raw, where: str, file: Path) -> Model:
    model = _make(Model, _typed(raw, dict, f"{where}.{key}"), f"{where}.{key}", key=_name(key, where[:-1]))
    model = dataclasses.replace(model, recipe=_own_recipe(model.recipe, where, key))
    if model.weights in ("none", "pretext", "timm"):
        return model
    if Path(model.weights).suffix not in (".safetensors", ".pth", ".pt", ".bin", ".tar"):
        raise StudyError(
            f"{where}.{key}.weights is '{model.weights}': expected none, pretext, timm, or a .safetensors, .pth, .pt, .bin or .pth.tar file"
        )
    return dataclasses.replace(
        model, weights=_beside(file, model.weights, f"{where}.{key}.weights", exists=False)
    )


def _own_recipe(raw: dict, where: str, key: str) -> dict:
    """A model's own values, of a teacher those for one recipe alone below its name, each of its type."""
    recipes = {*RECIPES.values(), PRETEXT} if where == "teachers" else set()
    place = f"{where}.{key}.recipe"
    common = {name: value for name, value in raw.items() if name not in recipes}
    own = {name: getattr(_recipe(common, place), name) for name in common}
    for name in raw.keys() & recipes:
        given = _typed(raw[name], dict, f"{place}.{name}")
        own[name] = {value: getattr(_recipe(given, f"{place}.{name}"), value) for value in given}
    return own


def _loss(key: str, raw) -> Loss:
    where = f"losses.{key}"
    loss = _make(Loss, _typed({} if raw is None else raw, dict, where), where, key=_name(key, "loss"))
    defaults = LOSSES[_choice(loss.loss or key, LOSSES, f"{where}.loss")]
    _check_keys(set(loss.options), set(defaults), "option", f"{where}.options")
    given = {k: _typed(v, type(defaults[k]), f"{where}.options.{k}") for k, v in loss.options.items()}
    loss = dataclasses.replace(loss, loss=loss.loss or key, options=defaults | given)
    if loss.loss == "kd" and loss.temperature is loss.beta is None:
        raise StudyError(
            f"{where} is KD with the study's own temperature and beta, which every study has: "
            "give it a temperature or beta"
        )
    for name, low in (("temperature", 1e-9), ("beta", 0)):
        if (value := getattr(loss, name)) is not None and not low <= value < math.inf:
            raise StudyError(f"{where}.{name} is {value}: expected {'more than 0' if low else '0 or more'}")
    if key in ("ce", "kd"):
        raise StudyError(f"losses: '{key}' is taken, every study has it: give the further loss another name")
    if loss.on == "features" and loss.loss in ("kd", "dkd"):
        raise StudyError(
            f"{where}.on is 'features': {loss.loss.upper()} is defined on logits; expected logits"
        )
    _choice(loss.on, ("logits", "features"), f"{where}.on")
    _at_least(0, loss.weight, f"{where}.weight")
    return loss


def _recipe(raw, where: str) -> Recipe:
    recipe = _make(Recipe, _typed(raw, dict, where), where)
    _choice(recipe.optimizer, ("sgd", "adamw"), f"{where}.optimizer")
    _positive(recipe, where, "epochs", "batch_size", "clip", "maps")
    if not 0 < len(recipe.rates) == len(set(recipe.rates)) or not all(
        0 < rate < math.inf for rate in recipe.rates
    ):
        raise StudyError(
            f"{where}.lr is {recipe.lr}: expected more than 0, or a list of different rates to choose from"
        )
    for name in ("weight_decay", "momentum", "warmup_steps", "min_lr", "views", "search_epochs"):
        _at_least(0, getattr(recipe, name), f"{where}.{name}")
    return recipe


def _section(raw: dict, key: str) -> dict:
    """A mapping of the file, empty where it is absent; names that YAML reads as numbers are text."""
    return {str(k): v for k, v in _typed({} if raw.get(key) is None else raw[key], dict, key).items()}


def _make(cls, raw: dict, where: str, *, key: str | None = None):
    """A dataclass from a mapping, its keys and the types of its values checked; `key` is its name, which the mapping lacks."""
    hints, own = typing.get_type_hints(cls), {} if key is None else {"key": key}
    _check_keys(set(raw), set(hints) - set(own), "key", where)
    required = {
        f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING
    }
    if missing := required - set(raw) - set(own):
        raise StudyError(f"{where} lacks '{sorted(missing)[0]}': add it")
    return cls(**own, **{k: _typed(v, hints[k], f"{where}.{k}") for k, v in raw.items()})


def _positive(values, where: str, *names: str) -> None:
    for name in names:
        if not 0 < getattr(values, name) < math.inf:
            raise StudyError(f"{where}.{name} is {getattr(values, name)}: expected more than 0")


def _at_least(least: int, value, where: str):
    if not least <= value < math.inf:
        raise StudyError(f"{where} is {value}: expected {least} or more")
    return value


def _typed(value, kind, where: str):
    """The value as `kind`; YAML reads 1e-5 as text and 1 as an integer, both serve as a float."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in options and value is None:
        return None
    kind = next((o for o in options if typing.get_origin(o) is tuple and isinstance(value, list)), options[0])
    if typing.get_origin(kind) is tuple:
        return tuple(_typed(v, typing.get_args(kind)[0], where) for v in _typed(value, list, where))
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    words = {
        dict: "a mapping",
        bool: "true or false",
        float: "a number",
        int: "a whole number",
        str: "text",
        list: "a list",
    }
    raise StudyError(f"{where} is {'empty' if value is None else repr(value)}: expected {words[kind]}")


def _choice(value, allowed, where: str):
    if value not in allowed:
        raise StudyError(f"{where} is {value!r}{_hint(value, allowed)}: expected one of {', '.join(allowed)}")
    return value


def _name(name: str, what: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise StudyError(
            f"{what} is named {name!r}: expected letters, digits, '.', '_' and '-', beginning with a letter or digit, since it names a folder"
        )
    return name


def _known(mapping: dict, key: str, what: str):
    if key not in mapping:
        raise StudyError(
            f"{what} '{key}' is not in the study{_hint(key, mapping)}: expected one of {', '.join(mapping)}"
        )
    return mapping[key]


def _check_keys(given: set, allowed: set, what: str, where: str) -> None:
    for name in sorted(map(str, given - allowed)):
        raise StudyError(
            f"{where}: {what} '{name}' is unknown{_hint(name, allowed)}: expected one of {', '.join(sorted(allowed))}"
        )


def _hint(name, known) -> str:
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _beside(file: Path, path, where: str, exists: bool = True) -> str:
    """An absolute path from one written relative to the study file; `~`, `$VARIABLE` and
    `${VARIABLE:-default}` are expanded."""
    given = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: os.environ.get(m[1]) or m[2], _typed(path, str, where))
    full = (file.parent / os.path.expandvars(os.path.expanduser(given))).resolve()
    if exists and not full.is_file():
        raise StudyError(
            f"{where}: file '{full}' does not exist: check the path, which is relative to {file.parent}"
        )
    return str(full)


def _network(model: Model) -> dict:
    """What of a model its result depends on: not its name in the study, nor where its weights lie."""
    return {
        "model": model.model,
        "weights": "file" if model.file else model.weights,
        **({"options": model.options} if model.options else {}),
    }


def _used(recipe: Recipe, name: str) -> dict:
    """The values of a recipe that a training by it uses; one that is added to recipes one day is to be left
    out at its default."""
    uses = {
        "views": name in ("FZ", "student") and recipe.seen < recipe.epochs,
        "maps": name == "CAL",
        "momentum": recipe.optimizer == "sgd",
        "search_epochs": recipe.search_epochs > 0 and len(recipe.rates) > 1,
    }
    return {key: value for key, value in dataclasses.asdict(recipe).items() if uses.get(key, True)}


def _recorded(file: Path) -> dict[str, str]:
    """The contents that a job's record names; none where there is no record, or one that is not whole."""
    try:
        return json.loads(file.read_text()).get("contents", {})
    except (OSError, ValueError):
        return {}


def _fingerprint(study: Study, job: Job, known: dict[Job, str]) -> str:
    if job not in known:
        upstream = [_fingerprint(study, c, known) for c in study.inputs(job)]
        content = {name: digest for name, digest in study.contents(job).items() if digest != ""}
        known[job] = contents.of_text(
            json.dumps([job.id, study.values(job), content, upstream], sort_keys=True)
        )
    return known[job]
