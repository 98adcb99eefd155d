"""How far a running job is: a small file in its folder, for `fgkd run` and `fgkd status` to show."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from fgkd.analysis import records

FILE = "progress.json"
SECONDS = 2.0  # between two writes


class Progress:
    """Writes `progress.json` in a job's folder, every few seconds until its context ends.

    No result depends on the file: where it cannot be written, as on a full disk, the job goes on.
    folder: the job's; what: which training or bank of the job this is; epochs: how many there will be.
    """

    def __init__(self, folder: Path, what: str, epochs: int):
        self.file = folder / FILE
        self.what = what
        self.epochs = epochs
        self.started = time.time()
        self.first: tuple[float, float] | None = None  # epochs and clock at the first update
        self.loss: float | None = None
        self.written = -SECONDS

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self.file.unlink()

    def update(self, epoch: float, loss: float | None = None) -> None:
        """Note how many epochs have ended, with the share of the current one, and the last loss."""
        now = time.monotonic()
        self.first = self.first or (epoch, now)
        self.loss = self.loss if loss is None else loss
        if now - self.written < SECONDS:
            return
        self.written = now
        epochs, seconds = epoch - self.first[0], now - self.first[1]
        values = {
            "what": self.what,
            "epoch": round(epoch, 2),
            "epochs": self.epochs,
            "loss": self.loss,
            "seconds_per_epoch": seconds / epochs if epochs else None,
            "started": self.started,
            "updated": time.time(),
        }
        with contextlib.suppress(OSError):
            records.write_json(self.file, values)


def read(folder: Path) -> dict | None:
    """What a running job's `Progress` wrote last; None where there is nothing, or another thing."""
    values = records.read_json(folder / FILE) or {}
    numbers = [values.get(name) for name in ("epoch", "epochs", "started", "updated")]
    optional = [values.get(name) for name in ("loss", "seconds_per_epoch")]
    optional = [number for number in optional if number is not None]
    is_whole = isinstance(values.get("what"), str) and {"loss", "seconds_per_epoch"} <= values.keys()
    return values if is_whole and all(isinstance(n, int | float) for n in numbers + optional) else None
