"""Views: (seed, epoch, index) -> where an image is cropped and whether it is flipped, for whole batches.

A view is a pure function of those three numbers. A teacher can therefore be run once over the very views that
every one of its students will be trained on, in any order and on any machine.

A CAL teacher's attention makes two more of each view (Hu et al. 2019, arXiv 1901.09891; Rao et al. 2021): the
*crop* enlarges the box around what it looks at, the *drop* hides what it looks at.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Views:
    """Views of n images: the crop's upper left corner in pixels, and whether it is mirrored."""

    top: Tensor
    left: Tensor
    flip: Tensor

    def __getitem__(self, index) -> Views:
        return Views(self.top[index], self.left[index], self.flip[index])

    def to(self, device) -> Views:
        return Views(self.top.to(device), self.left.to(device), self.flip.to(device))


def sample_views(n: int, *, seed: int, epoch: int, resize: int, crop: int) -> Views:
    """Sample the views of images 0 to n - 1 in one epoch; image i's does not depend on n.

    resize: side of the stored image, pixels.
    crop: side of the view, pixels.
    """
    u = torch.from_numpy(np.random.default_rng([seed, epoch]).random((n, 3)))
    corners = ((resize - crop + 1) * u[:, :2]).long()
    return Views(corners[:, 0], corners[:, 1], u[:, 2] < 0.5)


def centre(n: int, *, resize: int, crop: int) -> Views:
    """Return the centre crop of n images, not flipped: the view of test images."""
    corner = torch.full((n,), (resize - crop) // 2)
    return Views(corner, corner, torch.zeros(n, dtype=torch.bool))


def crop_batch(images: Tensor, views: Views, crop: int) -> Tensor:
    """Crop each image by its view: uint8 (B, R, R, 3) -> uint8 (B, 3, crop, crop).

    The result is channels last in memory. A CPU copies row by row, some tens of times faster than it picks
    pixels one by one; a GPU picks them for the whole batch in one kernel.
    """
    if images.device.type != "cpu":
        return _gather_crops(images, views, crop)
    crops = images.new_empty(len(images), crop, crop, 3)
    corners = zip(views.top.tolist(), views.left.tolist(), views.flip.tolist(), strict=True)
    for i, (top, left, flip) in enumerate(corners):
        part = images[i, top : top + crop, left : left + crop]
        crops[i] = part.flip(1) if flip else part
    return crops.permute(0, 3, 1, 2)


def draw_attention(n: int, *, seed: int, epoch: int) -> Tensor:
    """Draw four uniform numbers per image, fp32 (n, 4); `cal.plan` chooses by them."""
    return torch.from_numpy(np.random.default_rng([seed, epoch, 1]).random((n, 4), dtype=np.float32))


def boxes(attention: Tensor, threshold: Tensor, *, padding: float, size: int) -> Tensor:
    """Return the box around attention (B, h, w) that reaches its threshold, int64 (B, 4).

    A box is top, left, bottom, right in pixels of a view, the last two exclusive, and has at least one pixel.
    A map that is zero everywhere gives the whole view; a peak that upsampling flattens below its threshold
    gives the place of the peak.

    threshold: (B,), a share of each map's maximum.
    padding: a share of the view's side `size`.
    """
    whole = _upsample(attention, size)
    limit = torch.minimum(threshold * attention.flatten(1).amax(1), whole.flatten(1).amax(1))
    inside = whole >= limit[:, None, None]
    lines = torch.stack([inside.any(2), inside.any(1)], 1).int()
    low = (lines.argmax(2) - padding * size).clamp(min=0).floor()
    high = (size - 1 - lines.flip(2).argmax(2) + padding * size).floor().clamp(max=size)
    return torch.cat([low, torch.maximum(high, low + 1)], 1).long()


def crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Enlarge each image's box (B, 4) to the whole view: (B, 3, S, S) -> fp32 (B, 3, S, S).

    Bilinear, with aligned corners.
    """
    size = images.shape[-1]
    low = boxes[:, :2].float()
    high = boxes[:, 2:].float()
    steps = torch.linspace(0, 1, size, device=images.device)
    lines = 2 * (low[:, :, None] + (high - 1 - low)[:, :, None] * steps) / (size - 1) - 1
    rows = lines[:, 0, :, None].expand(-1, -1, size)
    columns = lines[:, 1, None, :].expand(-1, size, -1)
    grid = torch.stack([columns, rows], 3)
    return F.grid_sample(images.float(), grid, align_corners=True, padding_mode="border")


def drop_map(attention: Tensor, threshold: Tensor) -> Tensor:
    """Divide attention (B, h, w) >= 0 by its threshold: fp16 (B, h, w), 0 for a map of zeros.

    `drop` hides what exceeds 1. Rounded here, so that a stored map and a fresh one hide the very same pixels.

    threshold: (B,), a share of each map's maximum.
    """
    limit = (threshold * attention.flatten(1).amax(1))[:, None, None]
    return torch.where(limit > 0, attention / limit, 0).half()


def drop(images: Tensor, maps: Tensor) -> Tensor:
    """Fill what maps (B, h, w) of `drop_map` mark with ImageNet's mean colour.

    images: (B, 3, S, S), 0 to 255; the result is fp32.
    """
    hidden = _upsample(maps.float(), images.shape[-1]) >= 1
    return torch.where(hidden[:, None], _mean_colour(images.device), images.float())


def centred(boxes: Tensor, size: int) -> Tensor:
    """Move boxes (N, 4) to the middle of a view of `size` pixels."""
    middle = (boxes[:, :2] + boxes[:, 2:] - size).repeat(1, 2) / 2
    return boxes - middle


def overlap(boxes: Tensor, truth: Tensor) -> Tensor:
    """Return the intersection over union of boxes (N, 4) and (N, 4): (N,) in [0, 1]."""
    low = torch.maximum(boxes[:, :2], truth[:, :2])
    high = torch.minimum(boxes[:, 2:], truth[:, 2:])
    intersection = (high - low).clamp(min=0).prod(1)
    one, other = ((part[:, 2:] - part[:, :2]).prod(1) for part in (boxes, truth))
    return intersection / (one + other - intersection)


@functools.cache
def _mean_colour(device: torch.device) -> Tensor:
    """Return ImageNet's mean colour (3, 1, 1), cached: a copy to a GPU waits for its queue."""
    return 255 * torch.tensor(IMAGENET_DEFAULT_MEAN, device=device)[:, None, None]


def _upsample(attention: Tensor, size: int) -> Tensor:
    return F.interpolate(attention[:, None], size=(size, size), mode="bilinear", align_corners=True)[:, 0]


def _gather_crops(images: Tensor, views: Views, crop: int) -> Tensor:
    steps = torch.arange(crop, device=images.device)
    rows = views.top[:, None] + steps
    columns = views.left[:, None] + torch.where(views.flip[:, None], crop - 1 - steps, steps)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return images[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
