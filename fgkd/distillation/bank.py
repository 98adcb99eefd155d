"""The logit bank: a teacher's outputs for every view of every training image, computed once.

A view is a pure function of (seed, epoch, index), so all students of a dataset see the same views.  The
teacher, frozen and in eval mode, runs over them once; its metrics come from the unrounded logits on the way,
before any student is trained, and what students need is stored, logits in fp16.  A CAL teacher's bank also
holds where its attention crops each view, what it drops, and its logits of both.

A bank grows view by view in a folder next to its own.  A manifest there says how many views are complete: a
writer that was killed, or whose disk was full, continues after these, and ends with the same bytes and
metrics as one that was not.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fgkd import metrics, records
from fgkd.data.views import crop, draw_attention, drop
from fgkd.distillation.training import Images, TeacherOutputs, batches, eval_batch
from fgkd.models import cal
from fgkd.models.classifier import Classifier
from fgkd.progress import Progress

MANIFEST = "manifest.json"
EXACT = ("boxes", "maps")  # what students need as it is stored


@dataclass(frozen=True)
class Bank:
    """Stored arrays (V, N, ...) by name, of V views of N images; always `logits` (V, N, C)."""

    arrays: dict[str, np.ndarray]
    device: torch.device
    _slab: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def outputs(self, epoch: int, index: Tensor) -> dict[str, Tensor]:
        """Return the stored teacher outputs for images `index` (B,) in `epoch`.

        They lie on the bank's device, index on any.  Epoch e reads view e modulo V.  A view is read whole
        from the disk, and kept until another one is asked for.
        """
        view = epoch % len(self.arrays["logits"])
        if view not in self._slab:
            self._slab.clear()
            self._slab[view] = {
                name: torch.from_numpy(np.array(array[view])).to(self.device)
                for name, array in self.arrays.items()
            }
        rows = index.to(self.device)
        outputs = {name: values[rows] for name, values in self._slab[view].items()}
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
    """Write a teacher's outputs for `views` views of all images, as .npy files (V, N, ...).

    Returns the metrics over all samples and views, and one row of them per view; augmented adds R12 of the
    crop and drop views.  The folder appears only when it is complete.

    keep: how many views, the first ones, are stored, V; all unless given.
    key: names the inputs that the outputs depend on and that are not given here, such as the images.  A bank
    that was begun with another key, other weights of the teacher or other arguments is not continued.
    Raises ValueError for logits that are NaN, infinite or beyond fp16, OSError for a full disk.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    contents = {"augmented": augmented, "features": features}
    given = {
        "key": key,
        "weights": _digest(teacher),
        "images": len(images),
        "views": views,
        "keep": keep,
        "views_seed": views_seed,
    } | contents
    complete, sizes = _resume(partial, given)
    stored = views if keep is None else min(keep, views)
    bar = tqdm(range(complete, views), desc="bank", unit="view", initial=complete, total=views, disable=None)
    progress = Progress(folder.parent, "views", views)
    try:
        for view in bar:
            inputs = _inputs(images, views_seed, view)
            outputs = _concatenate([teacher_outputs(teacher, x, draws, **contents) for _, x, draws in inputs])
            for name, values in _samples(outputs, images.labels).items():
                sizes[f"samples/{name}"] = append(partial / f"samples/{name}.npy", values, views, view)
            for name, values in outputs.items() if view < stored else ():
                sizes[name] = append(partial / f"{name}.npy", _to_16_bits(values), stored, view)
            records.write_json(partial / MANIFEST, {"given": given, "whole": view + 1, "bytes": sizes})
            progress.update(view + 1)
    except ValueError:
        shutil.rmtree(partial)
        raise
    progress.close()
    summaries = _summaries(partial, [name for name in sizes if name.startswith("samples/")])
    shutil.rmtree(partial / "samples")
    for file in partial.glob(".*"):  # what a kill left while writing the manifest
        file.unlink()
    records.retract(folder.parent)
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
    differences = dict.fromkeys(bank.arrays, 0.0)
    contents = {"augmented": "boxes" in bank.arrays, "features": "features" in bank.arrays}
    parts = torch.arange(len(images)).split(eval_batch(images))
    for _ in range(number):
        view = int(rng.integers(len(bank.arrays["logits"])))
        part = parts[rng.integers(len(parts))]
        ((index, x, draws),) = _inputs(images, views_seed, view, part)
        outputs = teacher_outputs(teacher, x, draws, **contents)
        for name, stored in bank.outputs(view, index).items():
            difference = (stored.float() - _to_16_bits(outputs[name]).float()).abs().max()
            share = difference / stored.abs().max().clamp(min=1e-6)
            differences[name] = max(differences[name], share.item())
    return differences


def read(folder: Path, shapes: dict[str, tuple[int, ...]], device: torch.device, *, key: str) -> Bank | None:
    """The bank in `folder`, memory mapped; None where it is another's, or not whole.

    shapes: by array, its first dimensions; key: as it was written with.
    """
    given = (records.read_json(folder / MANIFEST) or {}).get("given")
    if not isinstance(given, dict) or given.get("key") != key:
        return None
    arrays = {}
    for name, shape in shapes.items():
        try:
            arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        dtype = np.int16 if name == "boxes" else np.float16
        if arrays[name].shape[: len(shape)] != shape or arrays[name].dtype != dtype:
            return None
    return Bank(arrays, device)


def names(*, augmented: bool, features: bool) -> tuple[str, ...]:
    """The arrays of a bank."""
    of_features = ("features",) if features else ()
    of_views = ("boxes", "maps", "crop", "drop") if augmented else ()
    return ("logits", *of_features, *of_views)


def append(file: Path, values: Tensor, number: int, view: int) -> int:
    """Append a view (N, ...) to an .npy file (number, N, ...), synced; return the file's bytes."""
    array = values.cpu().numpy()
    try:
        with open(file, "ab" if view else "wb") as out:
            if view == 0:
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": (number, *array.shape)}
                np.lib.format.write_array_header_1_0(out, header)
            out.write(array.tobytes())
            out.flush()
            os.fsync(out.fileno())
            return out.tell()
    except OSError as error:
        raise records.disk_error(error, file) from error


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


def _summaries(partial: Path, sample_files: list[str]) -> tuple[dict, list[dict]]:
    """The metrics over the samples of all views, and of each view, from the files of samples."""
    arrays = {}
    for name in sample_files:
        array = np.load(partial / f"{name}.npy", mmap_mode="c")
        arrays[Path(name).name] = torch.from_numpy(array)
    rows = []
    for view in range(len(arrays["ratio12"])):
        summary = metrics.summarize_all({name: array[view] for name, array in arrays.items()})
        rows.append({"epoch": view} | summary)
    return metrics.summarize_all({name: array.flatten() for name, array in arrays.items()}), rows


def _resume(partial: Path, given: dict) -> tuple[int, dict[str, int]]:
    """Complete views in a folder begun with the same arguments, and its files' bytes by name.

    What was written after them is cut off.  A folder of other arguments, or that lacks a part, is emptied.
    """
    manifest = records.read_json(partial / MANIFEST) or {}
    names, whole = manifest.get("bytes"), manifest.get("whole")
    if manifest.get("given") == given and isinstance(names, dict) and isinstance(whole, int):
        sizes = {partial / f"{name}.npy": size for name, size in names.items()}
        if all(file.exists() and file.stat().st_size >= size for file, size in sizes.items()):
            for file, size in sizes.items():
                os.truncate(file, size)
            return whole, names
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "samples").mkdir(parents=True)
    return 0, {}


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
    digest = hashlib.blake2b(digest_size=16)
    for name, values in teacher.state_dict().items():
        digest.update(name.encode())
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()
