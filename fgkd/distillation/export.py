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

import contextlib
import importlib.util
import inspect
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import timm
import torch
from timm.models import model_entrypoint
from timm.models._hub import save_config_for_hf
from torch import Tensor

from fgkd.analysis import records
from fgkd.analysis.correlation import share_interval
from fgkd.data import datasets, images
from fgkd.data.views import centre, crop_batch
from fgkd.distillation import stages
from fgkd.models import classifier
from fgkd.study import Job, Model, Study, StudyError, check_weights
from fgkd.study.errors import expected, hint

TEXTS = Path(__file__).parents[1] / "report" / "templates"
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
NETWORK = "network.py"
FILES = {
    *("config.json", "model.safetensors", "model.onnx", "classes.txt", "predict.py", "README.md", NETWORK)
}
COMPARED = 32  # test images on which the folder's networks are compared with the one that was trained
TOLERANCE = 1e-3  # largest difference of a probability there
NOISE = {"cpu": 0.01}  # and of what the machine predicted that trained it
GPU_NOISE = 0.2  # in bf16


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
    def accuracy(self) -> float:
        """Top-1 accuracy on the test split, as reported."""
        return self.record["rows"][0]["tac" if self.job.stage == "teacher" else "accuracy"]

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
    with _replacing(folder.resolve()) as new:
        _write_timm(trained, model, new)
        deployed = Deployed(load_plain(new, trained.architecture), trained.spec.resolution).eval()
        _write_onnx(deployed, views, new / "model.onnx")
        with torch.inference_mode():
            probabilities = model(views.permute(0, 3, 1, 2)).softmax(1).numpy()
            _compare("config.json and model.safetensors", deployed(views).numpy(), probabilities)
        _compare("model.onnx", run_onnx(new / "model.onnx", views.numpy()), probabilities)
        _write_texts(trained, new)
    return folder.resolve()


def find(study: Study, job: Job, student: str | None = None, loss: str | None = None) -> Trained:
    """The trained network of a student of a distill job, or of a teacher.

    Raises StudyError as `hand_over` does; nothing is trained.
    """
    if job.stage == "distill":
        if student is None and len(study.students) > 1:
            raise StudyError(f"'{job.id}' has several students: name one of {', '.join(study.students)}")
        spec: Model = study.student(student or next(iter(study.students)))
        losses = study.losses_of(spec.key, job.strategy)
        loss = loss or next(iter(losses))
        if loss not in losses:
            raise StudyError(
                f"'{job.id}' has no student '{spec.key}' of loss '{loss}'{expected(loss, losses)}"
            )
        return _read(study, replace(job, stage="student", student=spec.key, loss=loss), spec)
    if job.stage != "teacher":
        raise StudyError(f"'{job.id}' trains no network: expected a job distill/... or teacher/...")
    if student or loss:
        raise StudyError(f"'{job.id}' is a teacher: it has no students, leave out student and loss")
    if job.strategy == "CAL":
        raise StudyError(
            f"'{job.id}' is no plain timm network, but has attention of its own: "
            "expected a student, or a teacher of recipe FZ or FT"
        )
    return _read(study, job, study.teacher(job.teacher))


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


class Deployed(classifier.Classifier):
    """A network as it is deployed: pixels (N, S, S, 3) uint8 -> probabilities (N, C)."""

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).float()
        return self.net(self.normalize(images)).softmax(1)


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
    for name in LIBRARIES:
        if importlib.util.find_spec(name) is None:
            raise StudyError(f"{name} is not installed: pip install 'fgkd[export]' adds it")


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds what no hand-over wrote."""
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"'{folder}' is a file: expected a new folder, or that of an earlier hand-over")
    others = sorted({path.name for path in folder.glob("*")} - FILES)
    if others:
        raise StudyError(
            f"folder '{folder}' holds '{others[0]}', which is of no hand-over: name a new or empty folder"
        )


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder, at the end put in place of an earlier hand-over's, whole: no reader sees files of both.

    What hand-overs to this folder left that were killed is removed, an earlier one's files put back first.
    """
    for work in records.leftovers(folder.parent, folder.name):
        if (work / "old").exists() and not folder.exists():
            (work / "old").rename(folder)
        shutil.rmtree(work)
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    new = work / "new"
    try:
        new.mkdir(parents=True)
        yield new
        _check_folder(folder)  # again: it was some time ago
        if folder.exists():
            shutil.copymode(folder, new)
            folder.rename(work / "old")
        new.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


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


def _write_texts(trained: Trained, folder: Path) -> None:
    sizes = trained.study.views
    texts = {
        "classes.txt": "".join(f"{' '.join(name.splitlines())}\n" for name in trained.dataset.classes),
        "predict.py": predict_script(sizes.resize, sizes.crop),
        "README.md": card(trained, own_network=(folder / NETWORK).exists()),
    }
    for name, text in texts.items():
        records.write_bytes(folder / name, text.encode(errors="backslashreplace"))


def predict_script(resize: int, crop: int) -> str:
    """predict.py, which decodes a photo by the very code that decoded those of the study."""
    decoder = "\n\n".join(inspect.getsource(part) for part in images.DECODER).rstrip()
    return render("predict.py.txt", resize=resize, crop=crop, images=images, decoder=decoder)


def card(trained: Trained, *, own_network: bool = False) -> str:
    """The model card, Markdown with Hugging Face's header.

    own_network: timm lacks the network, which network.py registers.
    """
    study, job, spec, dataset = trained.study, trained.job, trained.spec, trained.dataset
    is_taught = job.stage == "student" and job.strategy != "CE"
    loss = study.losses_of(job.student, job.strategy)[job.loss] if is_taught else None
    return render(
        "card.md.j2",
        trained=trained,
        interval=share_interval(round(trained.accuracy * len(dataset.test)), len(dataset.test)),
        recipe=study.recipe(job.strategy if job.stage == "teacher" else "student", spec),
        start=Path(spec.weights).name if spec.file else spec.weights,
        notes=[note for note in (study.data(job.dataset).note, *dataset.notes) if note],
        own_network=own_network,
        teacher=study.teacher(job.teacher) if is_taught else None,
        teacher_record=records.record(study, study.inputs(job)[0]) if is_taught else None,
        loss=loss,
        kd=study.kd(loss) if is_taught else None,
    )


def render(template: str, **values: Any) -> str:
    """A text by one of the Jinja templates of report/templates, plain and not escaped."""
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string((TEXTS / template).read_text(encoding="utf-8")).render(values) + "\n"
