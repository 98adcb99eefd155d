"""The logit bank: a teacher's logits of every view of every training image, computed once.

A view is a pure function of (seed, epoch, index), so all students of a data set see the same views.  The teacher, frozen and in
eval mode, is run over them once; its metrics are accumulated in fp64 from the unrounded logits on the way, before any student is
trained, and the logits are stored in fp16 for the students.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fgkd import metrics
from fgkd.models import Classifier
from fgkd.tables import disk_error
from fgkd.training import Images, batches


@dataclass(frozen=True)
class Bank:
    """Stored logits (E, N, C): E views of each of N training images, C classes."""

    stored: np.ndarray
    device: torch.device

    def logits(self, epoch: int, index: Tensor) -> Tensor:
        """The teacher's logits of images `index` (B,) in one epoch: fp32 (B, C) on the bank's device."""
        return torch.from_numpy(self.stored[epoch][index.numpy()]).to(self.device).float()


def write(file: Path, teacher: Classifier, images: Images, *, epochs: int, views_seed: int, classes: int) -> tuple[dict, list[dict]]:
    """Run the teacher over `epochs` views of all images and write its logits to `file` (.npy, fp16, (E, N, C)).

    Returns the metrics over all samples and epochs, and a row of them for each epoch.  The file appears only when it is whole.
    Raises ValueError for logits that are NaN, infinite or beyond fp16, OSError for a full disk.
    """
    partial = file.with_name(f".{file.name}.partial")
    header = {"descr": "<f2", "fortran_order": False, "shape": (epochs, len(images), classes)}
    values, nonpositive, rows = [], [], []
    try:
        with open(partial, "wb") as out:
            np.lib.format.write_array_header_1_0(out, header)
            for epoch in tqdm(range(epochs), desc="bank", unit="view", disable=None):
                logits = torch.cat([z for _, z in batches(teacher, images, images.epoch(views_seed, epoch))])
                values.append(metrics.samples(logits))
                nonpositive.append(logits.topk(2, dim=1).values[:, 1] <= 0)
                rows.append({"epoch": epoch} | metrics.summarize_samples(values[-1], nonpositive[-1]))
                out.write(_half(logits).numpy().tobytes())
        partial.replace(file)
    except OSError as error:
        raise disk_error(error, file) from error
    finally:
        partial.unlink(missing_ok=True)
    pooled = {name: torch.cat([v[name] for v in values]) for name in values[0]}
    return metrics.summarize_samples(pooled, torch.cat(nonpositive)), rows


def read(file: Path, *, epochs: int, samples: int, classes: int, device: torch.device) -> Bank | None:
    """The bank in `file`, memory mapped; None where it is absent, cut short or of another shape."""
    try:
        stored = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return Bank(stored, device) if stored.shape == (epochs, samples, classes) and stored.dtype == np.float16 else None


def _half(logits: Tensor) -> Tensor:
    half = logits.half().cpu()
    if not torch.isfinite(half).all():
        raise ValueError(f"the teacher's largest logit is {logits.abs().max().item():g}, beyond fp16 (65504): check that its training did not diverge")
    return half
