"""The logit bank: a teacher's outputs for every view of every training image, computed once.

A view is a pure function of (seed, epoch, index), so all students of a dataset see the same views.  The
teacher, frozen and in eval mode, runs over them once; its metrics come from the unrounded logits on the way,
before any student is trained, and what students need is stored, logits in fp16.  A CAL teacher's bank also
holds where its attention crops each view, what it drops, and its logits of both.

A bank is a folder with a safetensors file a view, each written at once; its metadata say what it was computed
from.  It grows in a hidden folder beside its own: which files are there says where a writer that was killed,
or whose disk was full, goes on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fgkd import metrics
from fgkd.analysis import records
from fgkd.data.views import crop, draw_attention, drop
from fgkd.distillation.progress import Progress
from fgkd.distillation.training import Images, TeacherOutputs, batches, eval_batch
from fgkd.models import cal, classifier
from fgkd.models.classifier import Classifier

EXACT = ("boxes", "maps")  # what students need as it is stored


@dataclass(frozen=True)
class Bank:
    """A teacher's stored outputs, by name (N, ...), in a file for each view of N images."""

    files: tuple[Path, ...]
    device: torch.device
    _last: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def view(self, number: int) -> dict[str, Tensor]:
        """The outputs of one view as they are stored, on the bank's device; `logits` fp16 (N, C).

        They are read whole from the disk, and kept until another view is asked for: an epoch's students need
        all rows of one view, in random order.
        """
        if number not in self._last:
            stored = safetensors.torch.load(self.files[number].read_bytes())
            self._last.clear()
            self._last[number] = {name: values.to(self.device) for name, values in stored.items()}
        return self._last[number]

    def logits(self, view: int) -> Tensor:
        """The logits fp32 (N, C) of one view, on the CPU."""
        return self.view(view)["logits"].float().cpu()

    def outputs(self, epoch: int, index: Tensor) -> dict[str, Tensor]:
        """The teacher's outputs for images `index` (B,) in `epoch`, on the bank's device.

        index: on any device.  Epoch e reads view e modulo V, the number of views.
        """
        rows = index.to(self.device)
        outputs = {name: values[rows] for name, values in self.view(epoch % len(self.files)).items()}
        return {name: value if name in EXACT else value.float() for name, value in outputs.items()}


@torch.no_grad()
def teacher_outputs(
    teacher: Classifier, x: Tensor, draws: Tensor, *, augmented: bool = False, features: bool = False
) -> dict[str, Tensor]:
    """Outputs of a teacher in eval mode for views x (B, 3, S, S), for its students and the bank.

    `logits` fp32 (B, C); features: also `features` fp32 (B, D); augmented (CAL only): also `boxes` int16
    (B, 4) and `maps` fp16 (B, h, w), where its attention crops and drops, and `crop` and `drop`, its logits
    of both.

    draws: (B, 4), by which `cal.plan` chooses what to crop and to drop.
    """
    outputs = {"features": teacher.features_and_logits(x)[0]} if features else {}
    if not augmented:
        return outputs | {"logits": teacher(x)}
    assert isinstance(teacher, cal.CAL), "only a CAL teacher has attention"
    attended = teacher.attend(x)
    boxes, maps = cal.plan(attended.maps, draws, x.shape[-1])
    crop_logits, drop_logits = teacher(torch.cat([crop(x, boxes), drop(x, maps)])).chunk(2)
    return outputs | {
        "logits": attended.logits,
        "boxes": boxes.short(),
        "maps": maps,
        "crop": crop_logits,
        "drop": drop_logits,
    }


def online_outputs(
    teacher: Classifier, images: Images, *, views_seed: int, augmented: bool = False, features: bool = False
) -> TeacherOutputs:
    """The outputs of a teacher that its students run in every step, with its bank's options."""

    @functools.lru_cache(1)
    def attention_draws(view):
        return draw_attention(len(images), seed=views_seed, epoch=view).to(images.device)

    def outputs(x, view, index):
        draws = attention_draws(view)[index]
        return teacher_outputs(teacher, x, draws, augmented=augmented, features=features)

    return outputs


def write(
    folder: Path,
    teacher: Classifier,
    images: Images,
    *,
    views: int,
    views_seed: int,
    key: str,
    keep: int | None = None,
    augmented: bool = False,
    features: bool = False,
) -> tuple[dict, list[dict]]:
    """Write a teacher's outputs for `views` views of all images.

    `folder` appears when all are there.  Returns the metrics over all samples and views, and one row of them
    per view; augmented adds R12 of the crop and drop views.

    keep: how many views, the first ones, are stored; all unless given.
    key: names the inputs that the outputs depend on and that are not given here, such as the images.  Views
    that were computed with another key, other weights of the teacher or other arguments are computed anew.
    Raises ValueError for logits that are NaN, infinite or beyond fp16, OSError for a full disk.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    contents = {"augmented": augmented, "features": features}
    numbers = {"images": len(images), "views": views, "views_seed": views_seed, "keep": keep}
    computed_from = {"key": key, "weights": _digest(teacher)} | numbers | contents
    # In one entry, because a file's entries come in any order: the same bank has the same bytes.
    given = {"given": json.dumps(computed_from)}
    for path in partial.glob("*"):  # of another teacher or of an earlier version, or half written
        if classifier.metadata(path) != given:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    sample_files = [_file(partial, view, "samples") for view in range(views)]
    try:
        with Progress(folder.parent, "views", views) as progress:
            for view, sample_file in enumerate(sample_files):
                if not sample_file.exists():
                    inputs = _inputs(images, views_seed, view)
                    outputs = _concatenate(
                        [teacher_outputs(teacher, x, draws, **contents) for _, x, draws in inputs]
                    )
                    samples = _samples(outputs, images.labels)
                    if keep is None or view < keep:
                        halves = {name: _to_16_bits(values) for name, values in outputs.items()}
                        write_view(_file(partial, view), halves, given)
                    # Last, because it says that the view is whole.
                    write_view(sample_file, samples, given)
                progress.update(view + 1)
    except ValueError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    summaries = _summaries(sample_files)
    for file in sample_files:
        file.unlink()
    records.retract(folder.parent)  # so that a kill from here on leaves no record beside another's bank
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return summaries


@torch.no_grad()
def check(
    bank: Bank, teacher: Classifier, images: Images, *, views_seed: int, number: int = 3, seed: int = 0
) -> dict[str, float]:
    """Compare the teacher's outputs with the bank's in a number of random batches and views.

    Returns, for each array, the largest difference as a share of the largest stored value: 0 on the machine
    that wrote it, some thousandths on another; more where teacher, images or views are not the bank's.
    """
    rng = np.random.default_rng(seed)
    names = bank.view(0).keys()
    differences = dict.fromkeys(names, 0.0)
    contents = {"augmented": "boxes" in names, "features": "features" in names}
    parts = torch.arange(len(images)).split(eval_batch(images))
    for _ in range(number):
        view = int(rng.integers(len(bank.files)))
        part = parts[rng.integers(len(parts))]
        ((index, x, draws),) = _inputs(images, views_seed, view, part)
        outputs = teacher_outputs(teacher, x, draws, **contents)
        for name, stored in bank.outputs(view, index).items():
            difference = (stored.float() - _to_16_bits(outputs[name]).float()).abs().max()
            share = difference / stored.abs().max().clamp(min=1e-6)
            differences[name] = max(differences[name], share.item())
    return differences


def read(
    folder: Path,
    device: torch.device,
    *,
    views: int,
    images: int,
    key: str,
    augmented: bool = False,
    features: bool = False,
) -> Bank | None:
    """The bank that `write` left in `folder`; None where it is another's, or not whole."""
    of_views = ("boxes", "maps", "crop", "drop") if augmented else ()
    names = {"logits", *(("features",) if features else ()), *of_views}
    files = tuple(_file(folder, view) for view in range(views))
    wanted = {"key": key, "images": images}
    for file in files:
        try:
            with safe_open(file, "pt") as content:  # which refuses a file that is cut short
                given = json.loads((content.metadata() or {}).get("given", "{}"))
                if not (wanted.items() <= given.items() and names <= {*content.keys()}):
                    return None
        except (OSError, SafetensorError):
            return None
    return Bank(files, device)


def write_view(file: Path, values: dict[str, Tensor], given: dict[str, str]) -> None:
    """Write a view's values atomically; given: what they were computed from."""
    records.write_bytes(file, classifier.to_bytes(values, given))


def _file(folder: Path, view: int, kind: str = "view") -> Path:
    return folder / f"{kind}-{view:04}.safetensors"


def _inputs(
    images: Images, views_seed: int, view: int, subset: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(index (B,), views (B, 3, S, S), draws (B, 4)) of all images or a subset, in order."""
    draws = draw_attention(len(images), seed=views_seed, epoch=view).to(images.device)
    for index, x in batches(images, images.epoch(views_seed, view), subset):
        yield index, x, draws[index.to(x.device)]


def _concatenate(outputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The outputs of all batches, by name."""
    return {name: torch.cat([batch[name] for batch in outputs]) for name in outputs[0]}


def _samples(outputs: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Every metric of every sample, name -> (N,)."""
    samples = metrics.all_samples(outputs["logits"], labels)
    for view in ("crop", "drop"):
        if view in outputs:
            samples[f"ratio12_{view}"] = metrics.ratio12(outputs[view])
    return samples


def _summaries(files: list[Path]) -> tuple[dict, list[dict]]:
    """The metrics over the samples of all views, and of each view, from the files of samples."""
    samples = [safetensors.torch.load_file(file) for file in files]
    rows = [{"epoch": view} | metrics.summarize_all(values) for view, values in enumerate(samples)]
    # Not the mean of the rows: the median and the calibration error need all samples together.
    return metrics.summarize_all(_concatenate(samples)), rows


def _to_16_bits(values: Tensor) -> Tensor:
    """Values of 16 bits as they are, others as fp16.  Raises ValueError beyond its range."""
    if values.dtype in (torch.int16, torch.float16):
        return values
    half = values.half()
    if not torch.isfinite(half).all():
        largest = values.abs().max().item()
        raise ValueError(
            f"the teacher's largest output is {largest:g}, beyond fp16 (65504): check that its "
            "training did not diverge"
        )
    return half


def _digest(teacher: Classifier) -> str:
    """A hash of the teacher's weights and buffers."""
    return hashlib.sha256(classifier.to_bytes(teacher.state_dict())).hexdigest()
