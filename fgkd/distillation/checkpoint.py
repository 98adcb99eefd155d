"""The state that a training resumes from: epochs that ended, and steps of the next one.

A training that was killed and started again ends, on a CPU, with the same numbers as one that was not; a
GPU's sums differ from run to run.  It may resume on another device, from that device's own random numbers.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fgkd.records import write_bytes
from fgkd.study import StudyError

CHECKPOINT_SECONDS = 30


@dataclass
class EpochProgress:
    """An epoch's steps so far, and sums over their images.

    totals: of each term of the loss; hits: of correct predictions; both on the model's device, so that no
    step waits for it.
    """

    steps: int
    totals: dict[str, Tensor]
    hits: Tensor

    @classmethod
    def start(cls, epoch_state: dict | None, device: torch.device) -> EpochProgress:
        """Start an epoch, or resume it from its state, which sets the random numbers too."""
        if epoch_state is None:
            return cls(0, {}, torch.zeros((), device=device))
        set_random_state(epoch_state["random"], device)
        totals = {name: total.to(device) for name, total in epoch_state["totals"].items()}
        return cls(epoch_state["steps"], totals, epoch_state["hits"].to(device))

    def remaining(self, batches: Iterable) -> Iterator[tuple]:
        """(step, batch) of the batches that are left of the epoch's."""
        return itertools.islice(enumerate(batches), self.steps, None)

    def add(self, terms: dict[str, Tensor], logits: Tensor, labels: Tensor) -> None:
        """Count a step: its terms of the loss, means over the batch, logits (B, C) and labels (B,)."""
        for name, term in terms.items():
            self.totals[name] = self.totals.get(name, 0) + term.detach() * len(labels)
        self.hits += (logits.detach().argmax(1) == labels).sum()
        self.steps += 1

    def means(self, n: int) -> dict[str, float]:
        """The terms of the loss and the training accuracy, means over the epoch's n images."""
        terms = {name: total.item() / n for name, total in self.totals.items()}
        return terms | {"train_accuracy": self.hits.item() / n}

    def state(self) -> dict:
        """What `start` takes, the random numbers' state among it."""
        random = random_state(self.hits.device)
        return {"steps": self.steps, "totals": self.totals, "hits": self.hits, "random": random}


class Checkpoint:
    """The file of a training's state, written when 30 seconds have passed since it last was."""

    def __init__(self, file: Path, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.file = file
        self.model = model
        self.optimizer = optimizer
        self.written = time.monotonic()

    def load(self) -> tuple[list[dict], dict | None]:
        """Set model and optimizer to the file's state; return its history and epoch's state.

        ([], None) without a file, or with one that cannot be read.  How the optimizer computes stays as it is
        on this device.
        """
        state = read(self.file)
        if state is None:
            return [], None
        try:
            self.model.load_state_dict(state["model"])
            for group in state["optimizer"]["param_groups"]:
                group["fused"] = self.optimizer.defaults["fused"]
            self.optimizer.load_state_dict(state["optimizer"])
            return state["history"], state["begun"]
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise StudyError(f"checkpoint '{self.file}' is of another training: delete it") from error

    def save_if_due(
        self, history: list[dict], progress: EpochProgress | None = None, *, due: bool = False
    ) -> None:
        """Write the state after the epochs of `history` and the steps of `progress`, if due.

        due: write it whenever it was written before.
        """
        if not due and time.monotonic() - self.written <= CHECKPOINT_SECONDS:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": history,
            "begun": None if progress is None else progress.state(),
        }
        write(self.file, state)
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
    """Set the states of `random_state`, perhaps of another machine.

    A GPU's own random numbers stay where the states are a CPU's.
    """
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) == 2:
        torch.cuda.set_rng_state(states[1], device)
