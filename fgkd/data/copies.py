"""Photos that are near copies of one another: scaled, compressed again or brightened, but not cropped.

Their perceptual hashes of 256 bits (imagehash's phash) differ in a tenth of the bits at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import imagehash
import numpy as np
from PIL import Image

HASH_SIDE = 16  # a perceptual hash has the square of it as bits
NEAR_BITS = HASH_SIDE**2 // 10  # in which the hashes of copies differ at most
ROWS = 512  # hashes that are compared with all others at once


def perceptual_hash(pixels: np.ndarray) -> str:
    """The perceptual hash of an image (R, R, 3) uint8, hexadecimal."""
    return str(imagehash.phash(Image.fromarray(pixels), HASH_SIDE))


def near_pairs(hashes: Sequence[str], others: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The positions of each hash and of each other hash that belong to copies."""
    words = HASH_SIDE**2 // 64
    first, second = (
        np.frombuffer(bytes.fromhex("".join(part)), np.uint64).reshape(-1, words) for part in (hashes, others)
    )
    for start in range(0, len(first), ROWS):
        rows = first[start : start + ROWS]
        bits = np.zeros((len(rows), len(second)), np.uint16)
        for word in range(words):
            bits += np.bitwise_count(rows[:, None, word] ^ second[None, :, word])
        for row, column in np.argwhere(bits <= NEAR_BITS):
            yield start + int(row), int(column)
