"""What all datasets are made of: a list of image files with labels, and the pixels of one of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SPLITS = ("train", "test")
SHOWN = 20  # problems listed by name in one message
Files = dict[str, list[tuple[str, int]]]  # for each split: (path below the root, label) of each image


class DataError(ValueError):
    """A dataset that cannot be used, with the value, what was expected and what to do."""


class UnreadableImages(DataError):
    """Images that cannot be decoded.

    failures: one reason per image.
    """

    def __init__(self, message: str, failures: list[str]):
        super().__init__(message)
        self.failures = failures


@dataclass(frozen=True)
class Listing:
    """The images of a dataset before any is opened.

    files: paths below `root` and labels, which are indices into `classes`.
    notes: sentences that a reader of the results should see.
    shared_cache: the folder next to the images that caches them for all studies, if there is one.
    """

    classes: tuple[str, ...]
    root: Path
    files: Files
    notes: tuple[str, ...] = ()
    shared_cache: Path | None = None


def decode(path: Path, resize: int) -> np.ndarray:
    """Read an image as (R, R, 3) uint8 RGB: upright, squashed to R = `resize`, bicubic.

    Transparency is laid over white. Grey of 16 bits is scaled by 1/257; grey of 32 bits (I, F) by the
    smallest of the ranges 0..1 (F only), 0..255 and 0..65535 that holds all its values, else by its own
    minimum and maximum. Of an animation, the first image.

    Raises DataError for a file that is missing, truncated or no image.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
        if image.mode[0] in "IF":
            image = _to_eight_bits(image)
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB").resize((resize, resize), Image.Resampling.BICUBIC))
    except Exception as error:  # Pillow's plugins raise whatever their parsers stumble on
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not an image that Pillow can read" if os.path.getsize(path) else "empty file"
        raise DataError(f"{str(path)!r} cannot be decoded: {reason}") from error


def quote_some(names: list[str]) -> str:
    """Quote the first names and count the others, for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert grey of 16 or 32 bits to mode L, by the rule in `decode`."""
    values = np.asarray(image, dtype=np.float64)
    low = values.min()
    high = values.max()
    if not np.isfinite([low, high]).all():
        raise DataError("pixels that are NaN or infinite")
    maxima = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    for maximum in maxima:
        if low >= 0 and high <= maximum:
            low = 0
            high = maximum
            break
    scale = 255 / ((high - low) or 1)
    return Image.fromarray(np.rint((values - low) * scale).astype(np.uint8))
