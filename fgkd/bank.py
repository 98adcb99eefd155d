"""The logit bank: what a teacher says of every view of every training image, computed once.

A view is a pure function of (seed, epoch, index), so all students of a data set see the same views.  The teacher, frozen and in
eval mode, is run over them once; its metrics are accumulated in fp64 from the unrounded logits on the way, before any student is
trained, and what students need is stored, logits in fp16.  A CAL teacher's bank also holds where its attention crops each view, what
it drops, and its logits of both.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fgkd import cal, metrics
from fgkd.models import Classifier
from fgkd.tables import disk_error
from fgkd.training import Images, batches
from fgkd.views import crop, draw_attention, drop


@dataclass(frozen=True)
class Bank:
    """Stored arrays (E, N, ...) by name: E views of each of N training images; `logits` (E, N, C) is always there."""

    arrays: dict[str, np.ndarray]
    device: torch.device

    def answer(self, epoch: int, index: Tensor) -> dict[str, Tensor]:
        """What the teacher said of images `index` (B,) in one epoch, on the bank's device: as `answer`, from the disk."""
        found = {name: torch.from_numpy(array[epoch][index.numpy()]).to(self.device) for name, array in self.arrays.items()}
        return {name: value if name in ("boxes", "maps") else value.float() for name, value in found.items()}


@torch.no_grad()
def answer(teacher: Classifier, x: Tensor, draws: Tensor, *, augmented: bool = False, features: bool = False) -> dict[str, Tensor]:
    """What a teacher in eval mode says of views x (B, 3, S, S), to its students and to the bank.

    `logits` fp32 (B, C); features: also `features` fp32 (B, D); augmented (CAL only): also `boxes` int16 (B, 4) and `maps` fp16 (B, h, w),
    where its attention crops and drops by draws (B, 4), and `crop` and `drop`, its logits of both.
    """
    said = {"features": teacher.parts(x)[0]} if features else {}
    if not augmented:
        return said | {"logits": teacher(x)}
    seen = teacher.attend(x)
    boxes, maps = cal.plan(seen.maps, draws, x.shape[-1])
    cropped, dropped = teacher(torch.cat([crop(x, boxes), drop(x, maps)])).chunk(2)
    return said | {"logits": seen.logits, "boxes": boxes.short(), "maps": maps, "crop": cropped, "drop": dropped}


def write(folder: Path, teacher: Classifier, images: Images, *, views: int, views_seed: int, keep: int | None = None,
          augmented: bool = False, features: bool = False) -> tuple[dict, list[dict]]:
    """Run the teacher over `views` views of all images and write what it says to `folder`, an .npy file (E, N, ...) a name.

    Returns the metrics over all samples and views, and a row of them for each view; augmented adds R12 of the crop and drop views.
    keep: how many of the views are stored, the first ones; all unless given.
    The folder appears only when it is whole.  Raises ValueError for logits that are NaN, infinite or beyond fp16, OSError for a full disk.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    values, rows, stored = [], [], views if keep is None else keep
    try:
        for epoch in tqdm(range(views), desc="bank", unit="view", disable=None):
            draws = draw_attention(len(images), seed=views_seed, epoch=epoch)
            said = [answer(teacher, x, draws[index].to(x.device), augmented=augmented, features=features) for index, x in batches(images, images.epoch(views_seed, epoch))]
            whole = {name: torch.cat([s[name] for s in said]) for name in said[0]}
            values.append(_samples(whole, images.labels))
            rows.append({"epoch": epoch} | _summary(values[-1:]))
            for name, value in whole.items() if epoch < stored else ():
                _append(partial / f"{name}.npy", value, stored, first=epoch == 0)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    except OSError as error:
        raise disk_error(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _summary(values), rows


def read(folder: Path, shapes: dict[str, tuple[int, ...]], device: torch.device) -> Bank | None:
    """The bank in `folder`, memory mapped; None where an array of `shapes` is absent, cut short or begins with another shape."""
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
    return ("logits", *(("features",) if features else ()), *(("boxes", "maps", "crop", "drop") if augmented else ()))


def _samples(said: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Every metric of every sample, name -> (N,): those of its logits, those that its label allows."""
    more = {f"ratio12_{view}": metrics.ratio12(said[view]) for view in ("crop", "drop") if view in said}
    return metrics.all_samples(said["logits"], labels) | more


def _summary(values: list[dict[str, Tensor]]) -> dict[str, float]:
    return metrics.summarize_all({name: torch.cat([v[name] for v in values]) for name in values[0]})


def _append(file: Path, value: Tensor, epochs: int, *, first: bool) -> None:
    """Add one epoch's rows (N, ...) to an .npy file (E, N, ...); what is not of 16 bits becomes fp16."""
    value = value.cpu()
    if value.dtype not in (torch.int16, torch.float16):
        value = _half(value)
    array = value.numpy()
    with open(file, "ab") as out:
        if first:
            np.lib.format.write_array_header_1_0(out, {"descr": array.dtype.str, "fortran_order": False, "shape": (epochs, *array.shape)})
        out.write(array.tobytes())


def _half(values: Tensor) -> Tensor:
    half = values.half()
    if not torch.isfinite(half).all():
        raise ValueError(f"the teacher's largest output is {values.abs().max().item():g}, beyond fp16 (65504): check that its training did not diverge")
    return half
