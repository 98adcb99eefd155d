"""The logit bank: what a teacher says of every view of every training image, computed once.

A view is a pure function of (seed, epoch, index), so all students of a data set see the same views.  The
teacher, frozen and in eval mode, is run over them once; its metrics come from the unrounded logits on the
way, before any student is trained, and what students need is stored, logits in fp16.  A CAL teacher's bank
also holds where its attention crops each view, what it drops, and its logits of both.

A bank grows view by view in a folder beside its own.  A manifest there says how many views are whole: a
writer that was killed, or whose disk was full, goes on after these, and ends with the very bytes and metrics
of one that was not.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fgkd import metrics, records
from fgkd.data.views import crop, draw_attention, drop
from fgkd.distillation.training import EVAL_BATCH, Images, batches
from fgkd.models import cal
from fgkd.models.classifier import Classifier

MANIFEST = "manifest.json"
EXACT = ("boxes", "maps")  # what students need as it is stored


@dataclass(frozen=True)
class Bank:
    """Stored arrays (V, N, ...) by name: V views of each of N training images; always `logits` (V, N, C)."""

    arrays: dict[str, np.ndarray]
    device: torch.device
    _slab: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def outputs(self, epoch: int, index: Tensor) -> dict[str, Tensor]:
        """What the teacher said of images `index` (B,) in an epoch: as `answer`, on the bank's device.

        Epoch e reads view e modulo V.  A view is read whole from the disk, when it is first asked for, and
        kept until another one is.  index may lie on any device.
        """
        view, rows = epoch % len(self.arrays["logits"]), index.to(self.device)
        if view not in self._slab:
            self._slab.clear()
            self._slab[view] = {
                name: torch.from_numpy(np.array(array[view])).to(self.device)
                for name, array in self.arrays.items()
            }
        found = {name: value[rows] for name, value in self._slab[view].items()}
        return {name: value if name in EXACT else value.float() for name, value in found.items()}


@torch.no_grad()
def teacher_outputs(
    teacher: Classifier, x: Tensor, draws: Tensor, *, augmented: bool = False, features: bool = False
) -> dict[str, Tensor]:
    """What a teacher in eval mode says of views x (B, 3, S, S), to its students and to the bank.

    `logits` fp32 (B, C); features: also `features` fp32 (B, D); augmented (CAL only): also `boxes` int16
    (B, 4) and `maps` fp16 (B, h, w), where its attention crops and drops by draws (B, 4), and `crop` and
    `drop`, its logits of both.
    """
    said = {"features": teacher.features_and_logits(x)[0]} if features else {}
    if not augmented:
        return said | {"logits": teacher(x)}
    seen = teacher.attend(x)
    boxes, maps = cal.plan(seen.maps, draws, x.shape[-1])
    cropped, dropped = teacher(torch.cat([crop(x, boxes), drop(x, maps)])).chunk(2)
    return said | {
        "logits": seen.logits,
        "boxes": boxes.short(),
        "maps": maps,
        "crop": cropped,
        "drop": dropped,
    }


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
    """Run the teacher over `views` views of all images; write what it says, an .npy file (V, N, ...) a name.

    keep: how many views, the first ones, are stored, V; all unless given.  key: names what is not given here
    and the answers depend on, such as the images.  A bank that was begun with another key, other weights of
    the teacher or other arguments is not continued.
    Returns the metrics over all samples and views, and a row of them for each view; augmented adds R12 of the
    crop and drop views.  The folder appears only when it is whole.
    Raises ValueError for logits that are NaN, infinite or beyond fp16, OSError for a full disk.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    how = {"augmented": augmented, "features": features}
    given = {
        "key": key,
        "weights": _digest(teacher),
        "images": len(images),
        "views": views,
        "keep": keep,
        "views_seed": views_seed,
    } | how
    whole, sizes = _begun(partial, given)
    stored = views if keep is None else min(keep, views)
    left = tqdm(range(whole, views), desc="bank", unit="view", initial=whole, total=views, disable=None)
    try:
        for view in left:
            said = [
                teacher_outputs(teacher, x, draws, **how) for _, x, draws in _inputs(images, views_seed, view)
            ]
            said = {name: torch.cat([s[name] for s in said]) for name in said[0]}
            samples = {f"samples/{name}": value for name, value in _samples(said, images.labels).items()}
            for name, value in samples.items():
                sizes[name] = append(partial / f"{name}.npy", value, views, view)
            for name, value in said.items() if view < stored else ():
                sizes[name] = append(partial / f"{name}.npy", _stored(value), stored, view)
            records.write_json(partial / MANIFEST, {"given": given, "whole": view + 1, "bytes": sizes})
    except ValueError:
        shutil.rmtree(partial)
        raise
    found = _summaries(partial, [name for name in sizes if name.startswith("samples/")])
    shutil.rmtree(partial / "samples")
    for file in (partial / MANIFEST, *partial.glob(".*")):  # and what a kill left of its writing
        file.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return found


@torch.no_grad()
def check(
    bank: Bank, teacher: Classifier, images: Images, *, views_seed: int, number: int = 3, seed: int = 0
) -> dict[str, float]:
    """What the teacher says now against what `bank` holds, in `number` random batches, each of a random view.

    Returns by array the largest difference, as a share of the largest stored value: 0 on the machine that
    wrote it, some thousandths on another; more where teacher, images or views are not those of the bank.
    """
    rng, found = np.random.default_rng(seed), dict.fromkeys(bank.arrays, 0.0)
    parts = torch.arange(len(images)).split(EVAL_BATCH)
    for _ in range(number):
        view, part = rng.integers(len(bank.arrays["logits"])), parts[rng.integers(len(parts))]
        ((index, x, draws),) = _inputs(images, views_seed, int(view), part)
        said = teacher_outputs(teacher, x, draws, augmented="boxes" in found, features="features" in found)
        for name, stored in bank.outputs(view, index).items():
            apart = (stored.float() - _stored(said[name]).float()).abs().max()
            found[name] = max(found[name], (apart / stored.abs().max().clamp(min=1e-6)).item())
    return found


def read(folder: Path, shapes: dict[str, tuple[int, ...]], device: torch.device) -> Bank | None:
    """The bank in `folder`, memory mapped; None where an array of `shapes` is absent, cut short or of another
    shape in its first dimensions."""
    arrays = {}
    for name, shape in shapes.items():
        try:
            arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        if arrays[name].shape[: len(shape)] != shape:
            return None
    return Bank(arrays, device)


def names(*, augmented: bool, features: bool) -> tuple[str, ...]:
    """The arrays of a bank."""
    more = ("boxes", "maps", "crop", "drop") if augmented else ()
    return ("logits", *(("features",) if features else ()), *more)


def _inputs(images: Images, views_seed: int, view: int, only: Tensor | None = None):
    """(index (B,), views (B, 3, S, S), draws (B, 4)) of all images, or of the indices `only`, in order."""
    drawn = draw_attention(len(images), seed=views_seed, epoch=view).to(images.device)
    for index, x in batches(images, images.epoch(views_seed, view), only):
        yield index, x, drawn[index.to(x.device)]


def _samples(said: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Every metric of every sample, name -> (N,): those of its logits, those that its label allows."""
    more = {f"ratio12_{view}": metrics.ratio12(said[view]) for view in ("crop", "drop") if view in said}
    return metrics.all_samples(said["logits"], labels) | more


def _summaries(partial: Path, names_: list[str]) -> tuple[dict, list[dict]]:
    """The metrics over the samples of all views, and those of each view, from the files of samples."""
    arrays = {
        Path(name).name: torch.from_numpy(np.load(partial / f"{name}.npy", mmap_mode="c")) for name in names_
    }
    rows = [
        {"epoch": view} | metrics.summarize_all({name: array[view] for name, array in arrays.items()})
        for view in range(len(arrays["ratio12"]))
    ]
    return metrics.summarize_all({name: array.flatten() for name, array in arrays.items()}), rows


def _begun(partial: Path, given: dict) -> tuple[int, dict[str, int]]:
    """The views that lie whole in a folder begun with the same arguments, and the bytes of its files by name.

    What was written after them is cut off.  A folder of other arguments, or that lacks a part, is emptied.
    """
    found = records.read_json(partial / MANIFEST)
    if found and found["given"] == given:
        sizes = {partial / f"{name}.npy": size for name, size in found["bytes"].items()}
        if all(file.exists() and file.stat().st_size >= size for file, size in sizes.items()):
            for file, size in sizes.items():
                os.truncate(file, size)
            return found["whole"], found["bytes"]
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "samples").mkdir(parents=True)
    return 0, {}


def append(file: Path, value: Tensor, number: int, view: int) -> int:
    """Add a view's rows (N, ...) to an .npy file (number, N, ...), down to the disk; returns its bytes."""
    array = value.cpu().numpy()
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


def _stored(values: Tensor) -> Tensor:
    """What is of 16 bits as it is, else as fp16.  Raises ValueError where that cannot hold it."""
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
    found = hashlib.blake2b(digest_size=16)
    for name, value in teacher.state_dict().items():
        found.update(name.encode())
        found.update(value.cpu().numpy().tobytes())
    return found.hexdigest()
