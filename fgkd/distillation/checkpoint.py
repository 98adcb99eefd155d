"""The state that a training resumes from: epochs that ended, and steps of the next one.

A training that was killed and started again ends, on a CPU, with the same numbers as one that was not; a
GPU's sums differ from run to run.  It may resume on another device, from that device's own random numbers.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fgkd.analysis.records import write_bytes
from fgkd.distillation.progress import Progress
from fgkd.study import StudyError

CHECKPOINT_SECONDS = 30


class Checkpoint:
    """Goes through a training's epochs and steps, and writes every 30 seconds where it is.

    history: a row for each epoch that ended.
    Model and optimizer are set to the file's state; how the optimizer computes stays as it is on this device.
    """

    def __init__(
        self, file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, title: str = "training"
    ) -> None:
        self.file = file
        self.title = title
        self.device = next(model.parameters()).device
        self.parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
        self.history: list[dict] = []
        self.begun: dict[str, Any] = {}  # of an epoch that a file ends in: steps, sums and random numbers
        self.sums: dict[str, Tensor] = {}  # over the epoch's images; on the device, so that no step waits
        self.written = time.monotonic()
        if (state := read(file)) is None:
            return
        try:
            for group in state["optimizer"]["param_groups"]:
                group["fused"] = optimizer.defaults["fused"]
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            self.history, self.begun = state["history"], state["begun"]
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise StudyError(f"checkpoint '{file}' is of another training: delete it") from error

    def epochs(self, epochs: int, stop: int | None = None) -> Iterator[int]:
        """The epochs that are left, those before `stop` where one is given.

        After that one the file is written in any case: a later training goes on from it.
        """
        with Progress(self.file.parent, self.title, epochs) as self.progress:
            for epoch in range(len(self.history), stop or epochs):
                yield epoch
                self._save(due=epoch + 1 == stop)

    def steps(self, batches: list) -> Iterator[tuple[int, Any]]:
        """(step, batch) of what is left of an epoch."""
        begun, self.begun = self.begun, {}
        done = begun.get("steps", 0)
        self.sums = {name: total.to(self.device) for name, total in begun.get("sums", {}).items()}
        if done:
            set_random_state(begun["random"], self.device)
        for step, batch in itertools.islice(enumerate(batches), done, None):
            if step > done:
                self._save(step)
            yield step, batch
            self.progress.update(len(self.history) + (step + 1) / len(batches))

    def add(self, terms: dict[str, Tensor], logits: Tensor, labels: Tensor) -> None:
        """Count a step: its terms of the loss, means over the batch, logits (B, C) and labels (B,)."""
        totals = {name: term.detach() * len(labels) for name, term in terms.items()}
        totals["train_accuracy"] = (logits.detach().argmax(1) == labels).sum()
        for name, total in totals.items():
            self.sums[name] = self.sums.get(name, 0) + total

    def end_epoch(self, n: int) -> dict[str, float]:
        """Add to the history, and return, the means of what was counted over the epoch's n images."""
        means = {name: total.item() / n for name, total in self.sums.items()}
        self.history.append({"epoch": len(self.history)} | means)
        loss = sum(means.values()) - means["train_accuracy"]
        self.progress.update(len(self.history), loss=loss)
        return self.history[-1]

    def _save(self, steps: int = 0, *, due: bool = False) -> None:
        """Write the file where it is due, after so many steps of an epoch."""
        if due or time.monotonic() - self.written > CHECKPOINT_SECONDS:
            begun = {"steps": steps, "sums": self.sums, "random": random_state(self.device)} if steps else {}
            states = {name: part.state_dict() for name, part in self.parts.items()}
            write(self.file, states | {"history": self.history, "begun": begun})
            self.written = time.monotonic()


def read(file: Path) -> Any:
    """What `write` wrote, on the CPU; None where the file is absent or unreadable (said)."""
    if not file.exists():
        return None
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types, by where the file is damaged
        print(f"checkpoint '{file.name}' cannot be read ({type(error).__name__}): it is computed anew")
        return None


def write(file: Path, state: Any) -> None:
    """Write tensors, alone or in lists and dicts, atomically.

    Raises OSError as `records.write_bytes` does.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(file, buffer.getvalue())


def random_state(device: torch.device) -> list[Tensor]:
    """The states of the CPU's random numbers and, on a GPU, of its own."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(states: list[Tensor], device: torch.device) -> None:
    """Set the states of `random_state`; a GPU's own stay where the states are a CPU's."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) == 2:
        torch.cuda.set_rng_state(states[1], device)
