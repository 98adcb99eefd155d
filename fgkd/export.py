"""The hand-over of a trained network: a folder that plain timm loads, and an ONNX file that needs no PyTorch.

    config.json, model.safetensors   timm.create_model("local-dir:FOLDER", pretrained=True), with the classes'
                                     names and the preprocessing by which accuracy was measured
    model.onnx                       pixels (N, S, S, 3) uint8 -> probabilities (N, C), normalisation inside
    classes.txt                      the name of each class, a line each
    predict.py                       photos -> class and probability; needs onnxruntime, numpy and Pillow
    README.md                        the model card
    network.py                       where timm has no such network: the file that registers it

Before the folder is in place, what it holds is loaded, and its predictions of test images are compared with
the test logits that the training left.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import timm
import torch
from timm.models import model_entrypoint
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn
from torch.nn import functional as F

from fgkd import records, stages
from fgkd.analysis.correlation import share_interval
from fgkd.data import datasets, images
from fgkd.data.views import centre, crop_batch
from fgkd.models import classifier
from fgkd.study import PRETEXT, Job, Model, Study, StudyError, check_weights
from fgkd.study.errors import expected, hint

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
NETWORK = "network.py"
FILES = {
    *("config.json", "model.safetensors", "model.onnx", "classes.txt", "predict.py", "README.md", NETWORK)
}
COMPARED = 32  # test images on which the folder's networks are compared with the one that was trained
TOLERANCE = 1e-3  # largest difference of a probability there
NOISE = {"cpu": 0.01}  # and of what the machine predicted that trained it
GPU_NOISE = 0.2  # in bf16
PREDICT = '''"""Name the class of each photo: python predict.py PHOTO ..."""

import functools
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

FOLDER = Path(__file__).parent
RESIZE, CROP = $resize, $crop  # pixels: a photo is squashed to a square, and its middle is cut out
CLASSES = (FOLDER / "classes.txt").read_text(encoding="utf-8").splitlines()
FORMATS = $formats
MAX_PIXELS = $pixels


$decoder


@functools.cache
def network():
    """The network, loaded once."""
    import onnxruntime

    return onnxruntime.InferenceSession(str(FOLDER / "model.onnx"), providers=["CPUExecutionProvider"])


def photo(path):
    """A photo as the study saw it, for timm's transform."""
    return Image.fromarray(decode(path, RESIZE))


def predict(path):
    """The class of a photo, and its probability."""
    corner = (RESIZE - CROP) // 2
    view = np.asarray(photo(path))[corner : corner + CROP, corner : corner + CROP]
    (probabilities,) = network().run(None, {"pixels": view[None]})[0]
    return CLASSES[probabilities.argmax()], probabilities.max()


def main(paths):
    """Name the photos; returns the exit status, 1 where one cannot be read."""
    if not paths:
        sys.exit("usage: python predict.py PHOTO ...")
    status = 0
    for path in paths:
        try:
            name, probability = predict(path)
            print(f"{path}: {name} ({probability:.1%})")
        except DataError as error:
            print(error, file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
'''


@dataclass(frozen=True)
class Trained:
    """A trained network of a study.

    job: of stage student or teacher.
    spec: its entry in the study file.
    record: what its training left.
    """

    study: Study
    job: Job
    spec: Model
    dataset: datasets.Dataset
    record: dict

    @property
    def row(self) -> dict[str, Any]:
        """Its row of students.csv or teachers.csv."""
        return self.record["rows"][0]

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy on the test split, as reported."""
        return self.row["tac" if self.job.stage == "teacher" else "accuracy"]

    @property
    def architecture(self) -> str:
        """The name of the network without a tag."""
        return self.spec.model.partition(".")[0]

    def load(self) -> classifier.Classifier:
        """The network with its weights, in eval mode, on the CPU."""
        crop = self.study.views.crop
        if self.record["contents"].get("config"):  # beside its first weights: what the network is, too
            check_weights(self.spec)
        model = classifier.build(self.spec, len(self.dataset.classes), crop=crop, seed=0, start=False)
        classifier.restore(model, self.study.path(self.job) / "model.safetensors")
        return model.eval().requires_grad_(False)


def hand_over(study: Study, job: Job, student: str | None, loss: str | None, folder: Path) -> Path:
    """Write a trained student, or teacher, to a folder (see the module); return the folder.

    job: of stage distill, or teacher with recipe FZ or FT.
    student, loss: of a distill job; None takes the only student, and the loss kd, or ce without a teacher.
    folder: absent, empty, or that of an earlier hand-over, which is replaced.
    Raises StudyError for a name that the study lacks, a job without a valid result or its weights, a folder
    with other files, a package that is not installed, and a network that ONNX cannot express.
    """
    _check_libraries()
    _check_folder(folder)
    trained = find(study, job, student, loss)
    if words := fault(trained):
        again = (
            f"'fgkd check {study.file} --repair' removes what does not fit, and 'fgkd run' trains it again"
        )
        raise StudyError(f"{trained.job.id}: {words}; {again}")
    model = trained.load()
    views = _test_views(trained)
    folder = folder.resolve()
    _recover(folder)
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    partial = work / "new"
    try:
        partial.mkdir(parents=True)
        _write_timm(trained, model, partial)
        net = load_plain(partial, trained.architecture)
        deployed = Deployed(net, trained.spec.resolution).eval()
        _write_onnx(deployed, views, partial / "model.onnx")
        with torch.inference_mode():
            expected_ = model(views.permute(0, 3, 1, 2)).softmax(1).numpy()
            _compare("config.json and model.safetensors", deployed(views).numpy(), expected_)
        _compare("model.onnx", run_onnx(partial / "model.onnx", views.numpy()), expected_)
        _write_texts(trained, partial)
        _move(partial, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def find(study: Study, job: Job, student: str | None = None, loss: str | None = None) -> Trained:
    """The trained network of a student of a distill job, or of a teacher.

    Raises StudyError as `hand_over` does; nothing is trained.
    """
    if job.stage == "teacher":
        return _find_teacher(study, job, student, loss)
    if job.stage != "distill":
        raise StudyError(f"'{job.id}' trains no network: expected a job distill/... or teacher/...")
    student = student or _only_student(study, job)
    spec = study.student(student)
    losses = study.losses_of(student, job.strategy)
    loss = loss or next(iter(losses))
    if loss not in losses:
        raise StudyError(f"'{job.id}' has no student '{student}' of loss '{loss}'{expected(loss, losses)}")
    return _read(study, replace(job, stage="student", student=student, loss=loss), spec)


def find_job(study: Study, name: str) -> Job:
    """The job of a name that `fgkd status` shows.  Raises StudyError where there is none."""
    jobs = {job.id: job for job in study.jobs() if job.stage in ("teacher", "distill")}
    if name not in jobs:
        advice = f"expected one that 'fgkd status' names, such as {list(jobs)[-1]}"
        raise StudyError(f"job '{name}' is not in the study{hint(name, jobs)}: {advice}")
    return jobs[name]


def load_plain(folder: Path, architecture: str) -> Any:
    """Load a folder's network as its card says, by timm alone."""
    if not (folder / NETWORK).exists():
        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    net: Any = timm.create_model(architecture, checkpoint_path=weights, **config["model_args"])
    net.pretrained_cfg = dict(net.pretrained_cfg) | config["pretrained_cfg"]
    return net


class Deployed(nn.Module):
    """A network as it is deployed: pixels (N, S, S, 3) uint8 -> probabilities (N, C).

    resolution: side in pixels to which the network resizes its views, 0 for none.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: Any, resolution: int = 0):
        super().__init__()
        self.net = net
        self.resolution = resolution
        for name in ("mean", "std"):
            self.register_buffer(name, 255 * torch.tensor(net.pretrained_cfg[name]).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).float()
        if self.resolution not in (0, images.shape[-1]):
            size = (self.resolution, self.resolution)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self.net((images - self.mean) / self.std).softmax(1)


def run_onnx(file: Path, pixels: np.ndarray) -> np.ndarray:
    """Run an ONNX file on the CPU: pixels (N, S, S, 3) uint8 -> probabilities (N, C)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": pixels})[0]


def crop_share(resize: int, crop: int) -> float:
    """The `crop_pct` by which timm resizes to `resize` pixels before it crops to `crop`.

    timm computes floor(crop / crop_pct), which may fall one short of `resize` by rounding.

    >>> crop_share(72, 64), math.floor(32 / crop_share(36, 32))
    (0.8888888888888888, 36)
    """
    share = crop / resize
    while math.floor(crop / share) < resize:
        share = math.nextafter(share, 0)
    return share


def _check_libraries() -> None:
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        verb, them = ("are", "them") if len(missing) > 1 else ("is", "it")
        raise StudyError(
            f"{' and '.join(missing)} {verb} not installed: pip install 'fgkd[export]' adds {them}"
        )


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds what no hand-over wrote."""
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"'{folder}' is a file: expected a new folder, or that of an earlier hand-over")
    others = sorted({path.name for path in folder.glob("*")} - FILES)
    if others:
        raise StudyError(
            f"folder '{folder}' holds '{others[0]}', which is of no hand-over: name a new or empty folder"
        )


def _find_teacher(study: Study, job: Job, student: str | None, loss: str | None) -> Trained:
    if student or loss:
        raise StudyError(f"'{job.id}' is a teacher: it has no students, leave out student and loss")
    if job.strategy == "CAL":
        raise StudyError(
            f"'{job.id}' is no plain timm network, but has attention of its own: "
            "expected a student, or a teacher of recipe FZ or FT"
        )
    return _read(study, job, study.teacher(job.teacher))


def _only_student(study: Study, job: Job) -> str:
    if len(study.students) > 1:
        raise StudyError(f"'{job.id}' has several students: name one of {', '.join(study.students)}")
    return next(iter(study.students))


def _read(study: Study, job: Job, spec: Model) -> Trained:
    """Read what a training left; raises StudyError where it is not done, stale, or without weights."""
    folder = study.path(job)
    again = f"run 'fgkd run {study.file}' first"
    if records.read_record(study, job) is None:
        raise StudyError(f"'{job.id}' is not done: {again}")
    dataset = stages.data(study, job.dataset)
    classifier.load_plugins(study.plugins)
    record = records.record(study, job)
    if record is None:
        raise StudyError(f"'{job.id}' is out of date, since an input changed after its training: {again}")
    if not (folder / "model.safetensors").exists():
        raise StudyError(
            f"'{job.id}' has its record, but not its weights, which do not travel with it: bring "
            f"model.safetensors to '{folder}', or write {{}} to record.json there and train it by 'fgkd run'"
        )
    return Trained(study, job, spec, dataset, record)


def _test_views(trained: Trained) -> Tensor:
    """The first test images as they are deployed on: centre crops (N, S, S, 3) uint8."""
    sizes = trained.study.views
    images = torch.from_numpy(np.array(trained.dataset.test.images[:COMPARED]))
    views = centre(len(images), resize=sizes.resize, crop=sizes.crop)
    return crop_batch(images, views, sizes.crop).permute(0, 2, 3, 1).contiguous()


def _write_timm(trained: Trained, model: classifier.Classifier, folder: Path) -> None:
    """Write config.json and model.safetensors by timm, and network.py where timm has no such network."""
    net = model.net
    size = trained.spec.resolution or trained.study.views.crop
    resize = round(trained.study.views.resize * size / trained.study.views.crop)
    config = {
        "label_names": list(trained.dataset.classes),
        "pretrained_cfg": {
            "architecture": trained.architecture,
            "tag": trained.job.dataset,
            "license": None,  # that of the weights which the training started from is not the student's
        },
    }
    save_config_for_hf(
        net,
        str(folder / "config.json"),
        model_config=config,
        model_args=net._model_args,
        data_config={
            "input_size": (3, size, size),
            "interpolation": "bicubic",
            "crop_mode": "squash",
            "crop_pct": crop_share(resize, size),
            "mean": tuple(net.pretrained_cfg["mean"]),
            "std": tuple(net.pretrained_cfg["std"]),
        },
    )
    classifier.save(net, folder / "model.safetensors")
    module = model_entrypoint(trained.architecture).__module__
    if not module.startswith("timm."):
        file = inspect.getsourcefile(sys.modules[module])
        assert file is not None
        shutil.copyfile(file, folder / NETWORK)


def _write_onnx(deployed: Deployed, views: Tensor, file: Path) -> None:
    """Write a network of any number of images as ONNX, its weights inside the file."""
    try:
        program = torch.onnx.export(
            deployed,
            (views[:2],),
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise StudyError(
            f"'{type(deployed.net).__name__}' cannot be written as ONNX ({reason}): hand over another network"
        ) from error
    assert program is not None
    records.write_bytes(file, program.model_proto.SerializeToString())


def _compare(name: str, probabilities: np.ndarray, trained: np.ndarray) -> None:
    """Raise StudyError where a file of the folder predicts other than the network that was trained."""
    difference = float(np.abs(probabilities - trained).max())
    if not difference <= TOLERANCE:
        raise StudyError(
            f"{name} predict other probabilities than the trained network, by up to {difference:.2g}: "
            "expected the same; the network cannot be handed over"
        )


def fault(trained: Trained, *, predict: bool = True) -> str | None:
    """What of a training's record, weights and test logits does not fit; None where all does.

    predict: compare predictions by the weights, too.
    """
    study, job, dataset, record = trained.study, trained.job, trained.dataset, trained.record
    folder = study.path(job)
    here = tuple(name for name in records.KEPT if (folder / name).exists())
    if other := records.lost(folder, record, here):
        return f"its {' and '.join(other)} are not those that its record was written with"
    if "test.npy" not in here:
        return None
    try:
        logits = np.load(folder / "test.npy")
    except (OSError, ValueError, EOFError):
        return "its test.npy cannot be read"
    labels = dataset.test.labels
    if logits.shape != (len(labels), len(dataset.classes)) or not np.isfinite(logits).all():
        return f"its test.npy is not the logits of {len(labels)} images and {len(dataset.classes)} classes"
    accuracy = float((logits.argmax(1) == labels).mean())
    if abs(accuracy - trained.accuracy) > 1e-6:
        return f"its accuracy is {trained.accuracy:.2%}, but {accuracy:.2%} by its test.npy"
    if not predict or "model.safetensors" not in here:
        return None
    with torch.inference_mode():
        predicted = trained.load()(_test_views(trained).permute(0, 3, 1, 2)).softmax(1)
    difference = float((torch.from_numpy(logits[:COMPARED]).float().softmax(1) - predicted).abs().max())
    if difference <= NOISE.get(record["provenance"]["device"], GPU_NOISE):
        return None
    return f"its weights predict other probabilities than its test.npy, by up to {difference:.2g}"


def _move(partial: Path, folder: Path) -> None:
    """Put a finished folder in place of an earlier one, whole: no reader sees files of both."""
    _check_folder(folder)  # again: it was some time ago
    if folder.exists():
        shutil.copymode(folder, partial)
        folder.rename(partial.with_name("old"))
    partial.rename(folder)


def _recover(folder: Path) -> None:
    """Remove what hand-overs to this folder left that were killed, an earlier one's files put back first."""
    for work in records.leftovers(folder.parent, folder.name):
        if (work / "old").exists() and not folder.exists():
            (work / "old").rename(folder)
        shutil.rmtree(work)


def _write_texts(trained: Trained, folder: Path) -> None:
    sizes = trained.study.views
    names = [" ".join(name.splitlines()) for name in trained.dataset.classes]
    script = predict_script(sizes.resize, sizes.crop)
    for file, text in (
        ("classes.txt", "\n".join([*names, ""])),
        ("predict.py", script),
        ("README.md", card(trained, own_network=(folder / NETWORK).exists())),
    ):
        records.write_bytes(folder / file, text.encode(errors="backslashreplace"))


def predict_script(resize: int, crop: int) -> str:
    """predict.py, which decodes a photo by the very code that decoded those of the study."""
    return Template(PREDICT).substitute(
        resize=resize,
        crop=crop,
        formats=images.FORMATS,
        pixels=images.MAX_PIXELS,
        decoder="\n\n".join(inspect.getsource(part) for part in images.DECODER).rstrip(),
    )


def card(trained: Trained, *, own_network: bool = False) -> str:
    """The model card, Markdown with Hugging Face's header.

    own_network: timm lacks the network, which network.py registers.
    """
    dataset = trained.dataset
    low, high = share_interval(round(trained.accuracy * len(dataset.test)), len(dataset.test))
    rows = _describe_training(trained) | _describe_provenance(trained)
    notes = [f"- {note}" for note in (trained.study.data(trained.job.dataset).note, *dataset.notes) if note]
    title = trained.job.student or trained.job.teacher
    parts = [
        "---\nlibrary_name: timm\ntags:\n- image-classification\n- timm\n- onnx\n---",
        f"# {title}: {len(dataset.classes)} classes of {trained.job.dataset}",
        f"Top-1 accuracy on {len(dataset.test)} test images: **{trained.accuracy:.1%}** "
        f"(95 % interval {low:.1%} to {high:.1%}), after the last epoch.",
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]),
        "\n".join(notes),
        f"## Use\n\n    python predict.py photo.jpg\n\n{_describe_onnx(trained)}",
        _describe_timm(trained, own_network),
        "## Terms\n\nThose of the photos, and of the weights that the training started from, hold for this "
        "network too; neither is stated here.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _describe_training(trained: Trained) -> dict[str, str]:
    """What the network is and how it was trained: rows of the card."""
    study, job, row = trained.study, trained.job, trained.row
    dataset = trained.dataset
    is_teacher = job.stage == "teacher"
    recipe = study.recipe(job.strategy if is_teacher else "student", trained.spec)
    start = Path(trained.spec.weights).name if trained.spec.file else trained.spec.weights
    if job.strategy == PRETEXT:  # this is the training that weights 'pretext' come from
        start = "none"
    starts = {"none": "random", "timm": "timm's of that name", "pretext": "of a training on the pretext set"}
    words = {
        "network": f"{trained.spec.model}, {row['parameters']:,} weights",
        "data": f"{job.dataset}: {len(dataset.train)} training and {len(dataset.test)} test images",
        "weights before": starts.get(start, start),
        "recipe": f"epochs {recipe.epochs}, batch size {recipe.batch_size}, {recipe.optimizer}, "
        f"learning rate {row['lr']:g}, weight decay {recipe.weight_decay:g}",
    }
    if is_teacher:
        return words | {"trained as": f"teacher, {job.strategy}"}
    return words | {"teacher": _describe_teacher(trained), "loss": _describe_loss(trained)}


def _describe_teacher(trained: Trained) -> str:
    study, job = trained.study, trained.job
    if job.strategy == "CE":
        return "none"
    (teacher,) = study.inputs(job)
    record = records.record(study, teacher)
    tac = f", test accuracy {record['rows'][0]['tac']:.1%}" if record else ""
    return f"{job.teacher} ({study.teacher(job.teacher).model}), strategy {job.strategy}{tac}"


def _describe_loss(trained: Trained) -> str:
    """The loss of a student as a formula with its values."""
    study, job = trained.study, trained.job
    if job.strategy == "CE":
        return "cross-entropy (CE)"
    loss = study.losses_of(job.student, job.strategy)[job.loss]
    kd = study.kd(loss)
    text = f"{job.loss}: CE + beta T² KD with T = {kd.temperature:g}, beta = {kd.beta:g}"
    if loss is None or loss.loss == "kd":
        return text
    options = "".join(f", {name} {value}" for name, value in loss.options.items())
    return f"{text}; + {loss.weight:g} {loss.loss} on {loss.applies_to}{options}"


def _describe_provenance(trained: Trained) -> dict[str, str]:
    source = trained.record["provenance"]
    packages = ", ".join(f"{name} {version}" for name, version in source["packages"].items())
    return {
        "study": f"{trained.study.name}, job {trained.job.id}",
        "fingerprint": trained.record["fingerprint"],
        "trained by": f"fgkd at commit {source['commit']}, seed {source['seed']}, on {source['device']}, "
        f"in {source['seconds']:.0f} s",
        "packages": packages,
    }


def _describe_onnx(trained: Trained) -> str:
    sizes = trained.study.views
    return (
        "`predict.py` needs `onnxruntime`, `numpy` and `pillow` alone. `model.onnx` takes plain pixels: "
        f"`pixels` (N, {sizes.crop}, {sizes.crop}, 3), uint8, RGB, and gives `probabilities` "
        f"(N, {len(trained.dataset.classes)}) in the order of `classes.txt`; the normalisation is inside. "
        f"A photo is first turned upright, squashed to {sizes.resize} x {sizes.resize} pixels (bicubic), and "
        f"its central {sizes.crop} x {sizes.crop} are cut out. Other preprocessing costs accuracy: other "
        "libraries clip photos of 16 or 32 bits, for example."
    )


def _describe_timm(trained: Trained, own_network: bool) -> str:
    """How timm loads the folder, and where its preprocessing is not quite the one of the study."""
    load = 'net = timm.create_model("local-dir:FOLDER", pretrained=True).eval()'
    first = ""
    if own_network:
        load = (
            f'net = timm.create_model("{trained.architecture}", checkpoint_path="FOLDER/model.safetensors", '
            '**config["model_args"]).eval()'
        )
        first = "import network  # beside this card: registers the network, which timm lacks\n    "
    imported, transform = _timm_transform(trained)
    lines = [f"{first}import json, timm", imported]
    lines += ["from predict import photo  # beside this card: opens a photo as the study did"]
    lines += ['config = json.load(open("FOLDER/config.json"))']
    lines += [load, *transform, '# net(transform(photo("photo.jpg"))[None]).softmax(1)']
    return "\n\n".join(filter(None, ["With timm:", "    " + "\n    ".join(lines), _warn_of_timm(trained)]))


def _timm_transform(trained: Trained) -> tuple[str, list[str]]:
    """The import and the lines that make `transform`: timm's own, or one that resizes twice."""
    sizes, resolution = trained.study.views, trained.spec.resolution
    if resolution in (0, sizes.crop):
        return "from timm.data import create_transform, resolve_data_config", [
            'data = resolve_data_config(pretrained_cfg=config["pretrained_cfg"])',
            "transform = create_transform(**data)",
        ]
    view = f"Resize(({sizes.resize}, {sizes.resize}), 3), CenterCrop({sizes.crop})"  # 3: bicubic
    return "from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor", [
        'cfg = config["pretrained_cfg"]',
        f"resize = Compose([{view}, ToTensor(), Resize({resolution})])",
        'transform = Compose([resize, Normalize(cfg["mean"], cfg["std"])])',
    ]


def _warn_of_timm(trained: Trained) -> str:
    """Where timm's transform gives other pixels than the study's; '' where it gives the same."""
    sizes = trained.study.views
    resolution = trained.spec.resolution
    if resolution not in (0, sizes.crop):
        return (
            f"The network was trained on views of {sizes.crop} pixels that were then resized to {resolution} "
            "(bilinear, antialiased), as this transform does, and `model.onnx` inside. timm's own, by "
            "config.json, resizes photos once: by it accuracy may differ from the one above."
        )
    margin = sizes.resize - sizes.crop
    if round(margin / 2) != margin // 2:
        return (
            f"Of an odd margin of {margin} pixels timm cuts one more above and to the left than the study: "
            "accuracy may differ a little from the one above."
        )
    return ""
