"""What all datasets are made of: a list of image files with labels, and the pixels of one of them.

`DECODER`, which is `decode` and the functions that it calls, needs numpy and Pillow alone: predict.py of a
hand-over has it word for word.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

SPLITS = ("train", "test")
SHOWN = 20  # problems listed by name in one message
Files = dict[str, list[tuple[str, int]]]  # for each split: (path below the root, label) of each image
FORMATS = (  # of photos and drawings; Pillow also opens PostScript, by another program, and arrays of science
    *("AVIF", "BMP", "CUR", "DDS", "DIB", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "PCX", "PNG"),
    *("PPM", "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM"),
)
MAX_PIXELS = 2**27  # 134 megapixels, more than the largest usual cameras have; they take about a gigabyte


class DataError(ValueError):
    """A dataset that cannot be used, with the value, what was expected and what to do."""


@dataclass(frozen=True)
class Listing:
    """The images of a dataset before any is opened.

    files: paths below `root` and labels, which are indices into `classes`.
    notes: sentences that a reader of the results should see.
    shared_cache: the folder next to the images that caches them for all studies, if there is one.
    is_split: whether the splits are the set's own.
    """

    classes: tuple[str, ...]
    root: Path
    files: Files
    notes: tuple[str, ...] = ()
    shared_cache: Path | None = None
    is_split: bool = True


def quote_some(names: list[str]) -> str:
    """Quote the first names and count the others, for a message."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def decode(path: str | Path, resize: int, remarks: list[str] | None = None) -> np.ndarray:
    """Read an image as (R, R, 3) uint8 RGB: upright, squashed to R = `resize`, bicubic.

    Transparency is laid over white. Grey of 16 bits is scaled by 1/257; grey of 32 bits (I, F) by the
    smallest of the ranges 0..1 (F only), 0..255 and 0..65535 that holds all its values, else by its own
    minimum and maximum. Of an animation, the first image. Metadata that cannot be read are left aside.

    remarks: gains the reason where metadata were left aside.
    Raises DataError for a file that is missing, truncated, no photo, or of too many pixels.
    """
    aside = [] if remarks is None else remarks
    try:
        image = turn_upright(open_photo(path, aside), aside)
        if image.mode[0] in "IF":
            image = to_eight_bits(image)
        elif image.has_transparency_data:
            image = lay_over_white(image)
        if image.mode != "RGB":
            image = image.convert("RGB")
        return np.asarray(image.resize((resize, resize), Image.Resampling.BICUBIC))
    except Exception as error:  # Pillow's plugins raise whatever their parsers stumble on
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not an image that Pillow can read" if os.path.getsize(path) else "empty file"
        raise DataError(f"{str(path)!r} cannot be decoded: {reason}") from error


def open_photo(path: str | Path, aside: list[str]) -> Image.Image:
    """Read the pixels of a file, of a PNG without its metadata where these cannot be read."""
    setting = os.environ.get("FGKD_MAX_PIXELS") or str(MAX_PIXELS)
    if not setting.isdecimal():
        raise ValueError(f"FGKD_MAX_PIXELS is {setting!r}, expected a whole number")
    Image.MAX_IMAGE_PIXELS = int(setting)  # where Pillow refuses twice as many, and warns of what we refuse
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    try:
        try:
            return read_photo(path)
        except Image.DecompressionBombError:
            raise
        except Exception as error:  # Pillow's parser raises whatever it stumbles on
            with open(path, "rb") as file:
                bare = without_metadata(file.read())
            if bare is None:
                raise
            image = read_photo(io.BytesIO(bare))
            aside.append(str(error))
            return image
    except Image.DecompressionBombError as error:
        raise ValueError(f"more pixels than {int(setting):,}; FGKD_MAX_PIXELS raises this limit") from error


def read_photo(file: str | Path | io.BytesIO) -> Image.Image:
    """Read the pixels of a file in one of FORMATS, if by its header they are not too many."""
    Image.init()
    with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):
            raise Image.DecompressionBombError
        image.load()
        return image


def without_metadata(content: bytes) -> bytes | None:
    """A PNG with nothing but its pixels, palette and transparency; None for other files."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    chunks = [content[:8]]
    start = 8
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        name = content[start + 4 : start + 8]
        if name[:1].isupper() or name == b"tRNS":  # a small letter begins what a reader may ignore
            chunks.append(content[start:end])
        start = end
    return b"".join(chunks)


def turn_upright(image: Image.Image, aside: list[str]) -> Image.Image:
    """Turn a picture as its EXIF says, if that can be read."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(0x0112, 1))
    except Exception as error:  # Pillow's parser raises whatever it stumbles on
        aside.append(str(error))
        return image
    return image if turn is None else image.transpose(turn)


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert grey of 16 or 32 bits to mode L, by the rule in `decode`."""
    ranges: list[float] = []
    for _, strip in strips(image):
        values = np.asarray(strip)
        ranges += [float(values.min()), float(values.max())]
    low, high = float(np.min(ranges)), float(np.max(ranges))  # NaN stays NaN
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels that are NaN or infinite")
    maxima = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    for maximum in maxima:
        if low >= 0 and high <= maximum:
            low, high = 0, maximum
            break
    scale = 255 / ((high - low) or 1)

    def convert(strip: Image.Image) -> Image.Image:
        return Image.fromarray(np.rint((np.asarray(strip, np.float64) - low) * scale).astype(np.uint8))

    return convert_strips(image, "L", convert)


def lay_over_white(image: Image.Image) -> Image.Image:
    """Lay a picture with transparency over white: mode RGB."""

    def convert(strip: Image.Image) -> Image.Image:
        return Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip.convert("RGBA"))

    return convert_strips(image, "RGB", convert)


def convert_strips(
    image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Convert a picture by strips, so that copies of all of it do not fill the memory."""
    whole = Image.new(mode, image.size)
    for top, strip in strips(image):
        whole.paste(convert(strip).convert(mode), (0, top))
    return whole


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Cut a picture into strips of a few megapixels, each with its first row."""
    rows = max(1, 2**22 // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


DECODER = (
    *(DataError, decode, open_photo, read_photo, without_metadata, turn_upright, to_eight_bits),
    *(lay_over_white, convert_strips, strips),
)
