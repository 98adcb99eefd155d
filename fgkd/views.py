"""Views: (seed, epoch, index) -> where an image is cropped and whether it is flipped; applied to whole batches.

A view is a pure function of those three numbers.  A teacher can therefore be run once over the very views that every one of
its students will be trained on, in any order and on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """Views of n images: the crop's upper left corner in pixels and whether it is mirrored, each (n,)."""

    top: Tensor
    left: Tensor
    flip: Tensor

    def __getitem__(self, index) -> "Views":
        return Views(self.top[index], self.left[index], self.flip[index])

    def to(self, device) -> "Views":
        return Views(self.top.to(device), self.left.to(device), self.flip.to(device))


def draw(n: int, *, seed: int, epoch: int, resize: int, crop: int) -> Views:
    """Random crops and flips of images 0 to n - 1 in one epoch; image i's view does not depend on n.

    resize, crop: side of the stored image and of the view, pixels.
    """
    u = torch.from_numpy(np.random.default_rng([seed, epoch]).random((n, 3)))
    corners = ((resize - crop + 1) * u[:, :2]).long()
    return Views(corners[:, 0], corners[:, 1], u[:, 2] < 0.5)


def centre(n: int, *, resize: int, crop: int) -> Views:
    """The centre crop of n images, not flipped: what test images are seen through."""
    corner = torch.full((n,), (resize - crop) // 2)
    return Views(corner, corner, torch.zeros(n, dtype=torch.bool))


def cut(images: Tensor, views: Views, crop: int) -> Tensor:
    """Each image's own crop: uint8 (B, R, R, 3) -> uint8 (B, 3, crop, crop), channels last in memory."""
    steps = torch.arange(crop, device=images.device)
    rows = views.top[:, None] + steps
    columns = views.left[:, None] + torch.where(views.flip[:, None], crop - 1 - steps, steps)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return images[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
