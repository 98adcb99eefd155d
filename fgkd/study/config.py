"""What a study file may say: its sections, their keys, types, bounds and choices, declared with pydantic.

A field's declaration is its check; `schema` makes of its description what editors show and the table of keys.
Validators raise ValueError with a message that continues the place in the file, such as ".crop is 37:
expected ...", or stands for itself; `explain` says pydantic's errors in the same words.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from fgkd.study import contents, plugins
from fgkd.study.errors import StudyError, expected, unknown_name

OfficialName = Literal["aircraft", "cars", "cub", "dogs", "flowers", "moe", "nabirds", "pets"]
Strategy = Literal["FZ", "FT", "CAL", "TGDA"]
RecipeName = Literal["pretext", "FZ", "FT", "CAL", "student"]
Stage = Literal["teacher", "bank", "distill"]
Kind = Literal["birds", "folder", OfficialName]
Outputs = Literal["logits", "features"]
Strategies = Annotated[tuple[Strategy, ...], Field(min_length=1)]

OFFICIAL = get_args(OfficialName)  # the paper's datasets, each a kind of its own
STRATEGIES = get_args(Strategy)
RECIPES = {"FZ": "FZ", "FT": "FT", "CAL": "CAL", "TGDA": "CAL"}  # how the teacher of a strategy is trained
PRETEXT = "pretext"
LOSSES: dict[str, dict[str, Any]]  # the built-in losses: the options of each with their defaults
LOSSES = {"kd": {}}  # KD itself, with its own temperature or beta
LOSSES |= plugins.loss_options((Path(__file__).parents[1] / "distillation/losses.py").read_text())

MAX_NAME = 100  # characters: names are those of folders, and parts of longer ones
FILLED_IN = {"key", "file", "job_seed", "photos"}  # fields that no file may give
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
EXPECTED = {  # by the type of pydantic's error
    "bool_type": WORDS[bool],
    "int_type": WORDS[int],
    "float_type": WORDS[float],
    "string_type": WORDS[str],
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "tuple_type": "a list",
    "too_short": "one or more",
    "finite_number": "a finite number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than_equal": "{le:,} or less",
    "less_than": "less than {lt:g}",
}


def _to_float(value: Any) -> Any:
    """A number as a float, if need be from text; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or "_" in str(value):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _to_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) else value


def _to_path(path: str, info: ValidationInfo) -> str:
    """An absolute path from one relative to the study file; as it is where no file is read.

    `~`, `$VARIABLE` and `${VARIABLE:-default}` are expanded.
    """
    if info.context is None:
        return path
    path = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: os.environ.get(match[1]) or match[2], path)
    try:
        return contents.absolute(os.path.expandvars(path), info.context["folder"])
    except StudyError as error:
        raise ValueError(f": {error}") from None


def _to_weights(weights: str, info: ValidationInfo) -> str:
    if weights in ("none", "pretext", "timm"):
        return weights
    if Path(weights).suffix not in (".safetensors", ".pth", ".pt", ".bin", ".tar"):
        files = "a .safetensors, .pth, .pt, .bin or .pth.tar file"
        raise ValueError(f" is '{weights}': expected none, pretext, timm, or {files}")
    return _to_path(weights, info)


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        values = "text, finite numbers, true, false, empty values, and lists and mappings of these"
        raise ValueError(f" cannot be written as JSON ({error}): expected {values}") from None
    return options


Key = SkipJsonSchema[str]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MAX_NAME)]
MayBeEmpty = BeforeValidator(lambda entry: {} if entry is None else entry)  # with defaults alone
ToText = BeforeValidator(_to_text, json_schema_input_type=str | float | bool)
Written = Annotated[str, ToText]  # `files` hands it over as it is written
FileName = Annotated[Name, ToText]
RelativePath = Annotated[str, AfterValidator(_to_path)]
Weights = Annotated[str, AfterValidator(_to_weights)]
Options = Annotated[dict[str, Any], AfterValidator(_check_options)]
Seed = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
Whole = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Few = Annotated[int, Field(strict=True, ge=1, le=1024)]
Species = Annotated[int, Field(strict=True, ge=2, le=10_000)]
Pixels = Annotated[int, Field(strict=True, ge=1, le=10_000)]
Number = Annotated[float, Field(strict=True), BeforeValidator(_to_float)]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False), BeforeValidator(_to_float)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), BeforeValidator(_to_float)]
Share = Annotated[float, Field(strict=True, gt=0, lt=1), BeforeValidator(_to_float)]
BirdSize = Annotated[float, Field(strict=True, ge=0.2, le=1), BeforeValidator(_to_float)]
NUMBERS = TypeAdapter(tuple[Number, ...])


def _to_rates(value: Any) -> float | tuple[float, ...]:
    """One learning rate, or different ones to choose from."""
    is_list = isinstance(value, list | tuple)
    rates = NUMBERS.validate_python(value if is_list else [value])
    if not 0 < len(rates) == len(set(rates)) or not all(0 < rate < math.inf for rate in rates):
        given = rates if is_list else rates[0]
        raise ValueError(f" is {given}: expected more than 0, or a list of different rates to choose from")
    return rates if is_list else rates[0]


def _to_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _check_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not 0 < len(seeds) == len(set(seeds)):
        raise ValueError(f" is {list(seeds)}: expected one, or a list of different ones")
    return seeds


RatesInput = Positive | list[Positive]
Rates = Annotated[float | tuple[float, ...], PlainValidator(_to_rates, json_schema_input_type=RatesInput)]
SeedList = BeforeValidator(_to_list, json_schema_input_type=Seed | list[Seed])
Seeds = Annotated[tuple[Seed, ...], SeedList, AfterValidator(_check_seeds)]


def about(description: str, default: Any = ..., **options: Any) -> Any:
    """A key of a section: what it means, and its default."""
    return Field(default, description=description, **options)


class Section(BaseModel):
    """A mapping of a study file, its keys declared as fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True)

    @classmethod
    def keys(cls, values: dict) -> list[str]:
        """The keys that a file may give which gives `values`."""
        fields = cls.model_fields.items()
        return [str(field.validation_alias or name) for name, field in fields if name not in FILLED_IN]

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any, info: ValidationInfo) -> Any:
        if info.context is None or not isinstance(values, dict):  # Python takes the fields' names too
            return values
        if message := unknown_name(values, cls.keys(values), "key"):
            raise ValueError(f": {message}")
        return values


class DataSpec(Section):
    """One dataset: drawn birds, a folder of images, or one of the paper's datasets."""

    key: Key = ""
    kind: Kind = about("birds: drawn; folder: your own images; else one of the paper's datasets", "birds")
    root: RelativePath | None = about("its folder; one of the paper's: its kind in FGKD_DATA", None)
    classes: tuple[Written, ...] = about("folder: only these classes; empty: all", ())
    split: RelativePath | None = about("folder, moe: a CSV file with the columns class, path and split", None)
    test_fraction: Share = about("folder without train/ and test/: share of each class to test on", 0.2)
    species: Species = about("birds: number of classes", 24)
    family_size: Count = about("birds: sibling species in a family", 4)
    train: Count = about("birds: training images per species", 40)
    test: Count = about("birds: test images per species", 20)
    size: BirdSize = about("birds: share of the usual size, in which a bird nearly fills the image", 1.0)
    seed: Seed = about("birds: which species; folder: which split", 0)
    check_counts: StrictBool = about("one of the paper's: refuse counts that are not the official ones", True)
    resize: Pixels = about("side in pixels of the cached square images: that of `views`", 72)
    note: str = about("what a reader of its numbers should know", "")

    @classmethod
    def keys(cls, values: dict) -> list[str]:
        """Those of its kind."""
        if values.get("kind") in OFFICIAL:
            split = ["split"] if values["kind"] == "moe" else []  # the others have official ones
            return ["kind", "root", *split, "check_counts", "resize", "note"]
        return super().keys(values)


class Recipe(Section):
    """How a model is trained.

    The defaults are the paper's for teachers, but for epochs and batch size.
    A tuple of learning rates is one to choose from, on a part of the training split (see `stages`).
    """

    epochs: Count = about("passes over the training images", 10)
    batch_size: Count = about("images per step", 32)
    optimizer: Literal["sgd", "adamw"] = about("sgd, with momentum, or adamw", "sgd")
    lr: Rates = about("learning rate, or several to choose from", 0.01)
    weight_decay: NotNegative = about("but not of biases and norms", 0.0)
    momentum: NotNegative = about("sgd only", 0.9)
    warmup_steps: Whole = about("steps in which the learning rate rises", 0)
    min_lr: NotNegative = about("learning rate where the cosine ends", 1e-5)
    clip: Positive = about("largest gradient norm", 1.0)
    views: Whole = about("FZ and students: views of each image, taken in turn; 0: one per epoch", 0)
    maps: Few = about("CAL only: attention maps", 32)
    search_epochs: Whole = about("of each training in a search for a rate; 0: as many as epochs", 0)

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates to choose from."""
        return self.lr if isinstance(self.lr, tuple) else (self.lr,)

    @property
    def n_views(self) -> int:
        """Number of different views of each image: epoch e takes view e % n_views."""
        return min(self.views or self.epochs, self.epochs)


class TeacherRecipe(Recipe):
    """A teacher's own values, those below a recipe's name for that recipe alone."""

    pretext: Recipe | None = about("for the recipe pretext alone", None)
    FZ: Recipe | None = about("for the recipe FZ alone", None)
    FT: Recipe | None = about("for the recipe FT alone", None)
    CAL: Recipe | None = about("for the recipe CAL alone", None)


class Model(Section):
    """A student, or what a teacher has in common with one: a timm network and its weights."""

    key: Key = ""
    model: str = about("timm name, with its tag")
    weights: Weights = about("none, pretext (teachers alone), timm, or a .safetensors or .pth file", "none")
    options: Options = about("keyword arguments of timm.create_model", {})
    resolution: Whole = about("side in pixels to which the network resizes its views; 0: as they come", 0)
    recipe: Recipe = about("values that replace those of its recipe", default_factory=Recipe)
    pretraining: str = about("what its weights were trained on; empty: as timm's tag says", "")
    family: str = about("of which it is a member, such as the widths of one network", "")
    architecture: str = about("such as convolution or transformer", "")

    @property
    def file(self) -> str | None:
        """The absolute path of the file that its weights come from, None where there is no file."""
        return None if self.weights in ("none", "pretext", "timm") else self.weights


class Teacher(Model):
    """A teacher: a timm network, its weights, and its own values of the recipes."""

    recipe: TeacherRecipe = about(
        "values that replace the recipes', or one recipe's", default_factory=TeacherRecipe
    )


class Sizes(Section):
    """The sizes of images and of the crops that networks take."""

    resize: Pixels = about("side in pixels of the cached square images", 72)
    crop: Pixels = about("side in pixels of what a network is given", 64)

    @model_validator(mode="after")
    def _check_crop(self) -> Sizes:
        if self.crop > self.resize:
            raise ValueError(f".crop is {self.crop}: expected 1 to views.resize ({self.resize})")
        return self


class Distillation(Section):
    """The KD term of every student's loss, CE + beta * KD."""

    temperature: Positive = about("softens both distributions", 2.0)
    beta: NotNegative = about("weight of the KD term next to cross-entropy", 10.0)


class Loss(Section):
    """An auxiliary loss, added to CE + beta * KD, or KD itself with its own temperature or beta."""

    key: Key = ""
    loss: str = about("kd, dkd, rkd, pkt, hint, crd, or one of a plugin; empty: its name here", "")
    temperature: Positive | None = about("of the KD term; by default the study's", None)
    beta: NotNegative | None = about("weight of the KD term; by default the study's", None)
    weight: NotNegative = about("of the auxiliary loss", 1.0)
    applies_to: Outputs = about(
        "logits, or features: the pooled ones, but not of dkd", "logits", validation_alias="on"
    )
    students: tuple[Written, ...] = about("trained with it; empty: all", ())
    strategies: tuple[str, ...] = about("in which it is added; empty: all", ())
    options: Options = about("keyword arguments of the loss's function", {})


class Resources(Section):
    """What a run of a stage requests from the machine or the cluster; no result depends on it."""

    gpus: Literal[0, 1] = about("0 or 1; without a GPU it runs on the CPU", 1)
    memory: Count = about("MB", 8000)
    minutes: Count = about("a cluster ends it then; started again it resumes from its last checkpoint", 1440)


class StudyConfig(Section):
    """A study file: which teachers, students, datasets and recipes make up its matrix."""

    name: FileName = about("names the folder of its results; by default the file's name", "")
    question: str = about("what the study asks, for its report", "")
    seeds: Seeds = about("one, or several: each repeats the whole matrix", (0,), validation_alias="seed")
    device: Literal["auto", "cpu", "cuda"] = about("auto takes a GPU where there is one", "auto")
    threads: Few = about("CPU threads of one run", 1)
    online: StrictBool = about("true runs the teacher in every step instead of reading the bank", False)
    compile: StrictBool = about("true runs networks through torch.compile", False)
    plugins: tuple[RelativePath, ...] = about("Python files that add networks, losses or metrics", ())
    views: Sizes = about("sizes of images and crops", default_factory=Sizes)
    datasets: dict[Name, Annotated[DataSpec, MayBeEmpty]] = about("each below its name", min_length=1)
    pretext: DataSpec | None = about("on which teachers with weights 'pretext' are trained first", None)
    teachers: dict[Name, Annotated[Teacher, MayBeEmpty]] = about("each below its name", min_length=1)
    students: dict[Name, Annotated[Model, MayBeEmpty]] = about("each below its name", min_length=1)
    strategies: Strategies = about("how students are taught", STRATEGIES)
    baseline: StrictBool = about("also train every student without a teacher (CE)", True)
    recipes: dict[RecipeName, Recipe] = about("how students are trained, and teachers of each strategy", {})
    distillation: Distillation = about("the KD term", default_factory=Distillation)
    losses: dict[Name, Annotated[Loss, MayBeEmpty]] = about(
        "further ones, one more training each", {}, validate_default=True
    )
    resources: dict[Stage, Resources] = about("what a stage's runs request", {}, validate_default=True)
    runs_per_gpu: Few = about("how many runs share a GPU of this machine", 1)

    @field_validator("datasets", "pretext", "teachers", "students", "losses")
    @classmethod
    def _name_entries(cls, entries: Any, info: ValidationInfo) -> Any:
        """Tell each entry its name, and a loss what its function says of it."""
        if info.field_name == PRETEXT:
            return entries and _named(entries, PRETEXT, info.data)
        named = {name: _named(entry, name, info.data) for name, entry in entries.items()}
        return complete_losses(named, info.data.get("plugins", ())) if info.field_name == "losses" else named

    @field_validator("resources")
    @classmethod
    def _complete_resources(cls, resources: dict[Stage, Resources]) -> dict[Stage, Resources]:
        return {stage: resources.get(stage, Resources()) for stage in get_args(Stage)}

    @model_validator(mode="after")
    def _check_names(self) -> StudyConfig:
        """Check what one section says of another."""
        places = {f"datasets.{name}": spec for name, spec in self.datasets.items()}
        if self.pretext:
            places[PRETEXT] = self.pretext
        for place, spec in places.items():
            if spec.kind == "folder" and spec.root is None:
                folder = "the folder that holds train/ and test/, or one folder per class"
                raise ValueError(f"{place}.root is missing: expected {folder}")
            if spec.resize != self.views.resize:
                size = f"views.resize ({self.views.resize}), at which all datasets are cached"
                raise ValueError(f"{place}.resize is {spec.resize}: expected {size}")
        if PRETEXT in self.datasets or "none" in self.teachers:
            raise ValueError("'pretext' as a dataset and 'none' as a teacher are taken: give other names")
        for names in ((*self.datasets, PRETEXT), self.teachers, self.students, (*self.losses, "ce", "kd")):
            _check_different(names)
        for loss in self.losses.values():
            for field, known in (("students", self.students), ("strategies", self.strategies)):
                unknown = [name for name in getattr(loss, field) if name not in known]
                if unknown:
                    choices = expected(unknown[0], known)
                    raise ValueError(f"losses.{loss.key}.{field} is {unknown[0]!r}{choices}")
        return self

    @model_validator(mode="after")
    def _check_recipes(self) -> StudyConfig:
        """Check that there is a recipe, and a pretext dataset, for all that is trained."""
        if students := [name for name, model in self.students.items() if model.weights == "pretext"]:
            raise ValueError(
                f"student '{students[0]}' has weights 'pretext': "
                "only teachers are trained on the pretext set; expected none, timm or a file"
            )
        teachers = [name for name, model in self.teachers.items() if model.weights == "pretext"]
        if teachers and self.pretext is None:
            raise ValueError(
                f"teacher '{teachers[0]}' has weights 'pretext', but the study has no 'pretext:' dataset: "
                "add one, or name other weights"
            )
        needed = {"student", *(RECIPES[strategy] for strategy in self.strategies)}
        if teachers:
            needed.add(PRETEXT)
        if missing := ", ".join(sorted(needed - self.recipes.keys())):
            raise ValueError(
                f"recipes lacks {missing}: add each with its epochs, batch_size, optimizer and lr"
            )
        return self


def _check_different(names: Iterable[str]) -> None:
    """Refuse names of folders that some file systems take for one: those that differ only in case."""
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(name.casefold(), name)
        if other != name:
            raise ValueError(f"'{other}' and '{name}' differ only in case, as folders may not: rename one")


def check_weights(model: Model) -> None:
    """Raise StudyError unless the file is there that the model's weights come from."""
    if model.file and not os.path.isfile(model.file):
        advice = "check the path, which is relative to the study's folder"
        if "$" in model.weights:
            advice = "a variable in it is not set: export it"
        raise StudyError(f"weights '{model.weights}' of '{model.key}' do not exist: {advice}")


def complete_losses(losses: dict[str, Loss], files: tuple[str, ...]) -> dict[str, Loss]:
    """The losses, each with its function's name and all options that the function has.

    files: plugins, which may define further functions.
    Raises ValueError for a function or an option that there is not.
    """
    options = LOSSES | _plugin_losses(files)
    absent = "".join(f" (plugin '{file}' cannot be read)" for file in files if plugins.read(file) is None)
    complete = {}
    for name, loss in losses.items():
        function = loss.loss or name
        if function not in options:
            raise ValueError(f".{name}.loss is {function!r}{expected(function, options)}{absent}")
        complete[name] = _complete_loss(loss, function, options[function])
    return complete


def explain(error: ValidationError, file: str) -> str:
    """Say the first error of a study file: its place, the value, and what was expected."""
    first = error.errors(include_url=False)[0]
    kind = first["type"]
    value = first["input"]
    details = first.get("ctx", {})
    names = [str(name) for name in first["loc"] if not isinstance(name, int)]
    place = ".".join(names)
    noun = {"losses": "loss", "resources": "stage"}.get(names[0], names[0].removesuffix("s")) if names else ""
    if kind == "value_error":
        message = str(details["error"])
        if message.startswith(":"):
            return f"{place or file}{message}"
        return f"{place}{message}" if message.startswith((".", " ")) else message
    if place in ("datasets", "teachers", "students"):
        return f"{file}: '{place}' is missing or empty: expected a mapping of names to settings"
    if kind == "missing":
        return f"{'.'.join(names[:-1])} lacks '{names[-1]}': add it"
    if kind in ("string_pattern_mismatch", "string_too_long"):
        characters = f"letters, digits, '.', '_' and '-', at most {MAX_NAME}, the first a letter or digit"
        return f"{noun} is named {value!r}: expected {characters}, since it names a folder"
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in re.split(", | or ", details["expected"])]
        if names[-1] == "[key]":
            return f"{names[0]}: {unknown_name([value], choices, noun)}"
        return f"{place} is {value!r}{expected(value, choices)}"
    given = "empty" if value is None or kind == "too_short" else repr(value)
    return f"{place} is {given}: expected {EXPECTED.get(kind, 'another value').format(**details)}"


def _named(entry: Any, name: str, known: dict[str, Any]) -> Any:
    """An entry told its name, and a dataset the size of images in `known`, unless it says another."""
    own: dict[str, Any] = {"key": name}
    if isinstance(entry, DataSpec) and "views" in known and "resize" not in entry.model_fields_set:
        own["resize"] = known["views"].resize
    return entry.model_copy(update=own)


def _plugin_losses(files: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The options of each loss that plugins define; plugins that cannot be parsed have none."""
    losses: dict[str, dict[str, Any]] = {}
    for file in files:
        try:
            own = plugins.loss_options(plugins.read(file) or "")
        except SyntaxError:  # reported when the plugin is imported
            continue
        for name in own.keys() & (LOSSES.keys() | losses.keys()):
            raise ValueError(f"plugin '{file}' defines a loss '{name}', which is taken: give it another name")
        losses |= own
    return losses


def _complete_loss(loss: Loss, function: str, defaults: dict[str, Any]) -> Loss:
    """The loss with the name of its function and all of its options, which have `defaults`."""
    if message := unknown_name(loss.options, defaults, "option"):
        raise ValueError(f".{loss.key}.options: {message}")
    if function == "kd" and loss.temperature is loss.beta is None:
        raise ValueError(
            f".{loss.key} is KD with the study's own temperature and beta, which every study has: "
            "give it a temperature or beta"
        )
    if loss.key in ("ce", "kd"):
        raise ValueError(f": '{loss.key}' is taken, every study has it: give the further loss another name")
    if loss.applies_to == "features" and function in ("kd", "dkd"):
        raise ValueError(
            f".{loss.key}.on is 'features': {function.upper()} is defined on logits; expected logits"
        )
    options = {
        option: _to_option(loss.options.get(option, default), default, f".{loss.key}.options.{option}")
        for option, default in defaults.items()
    }
    return loss.model_copy(update={"loss": function, "options": options})


def _to_option(value: Any, default: Any, where: str) -> Any:
    """An option's value, of its default's type; of any type where the default is None."""
    if isinstance(default, float):
        value = _to_float(value)
    if default is not None and type(value) is not type(default):
        given = "empty" if value is None else repr(value)
        raise ValueError(f"{where} is {given}: expected {WORDS.get(type(default), type(default).__name__)}")
    return value
