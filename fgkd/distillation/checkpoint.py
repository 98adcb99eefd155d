"""The state that a training resumes from: epochs that ended, and steps of the next one.

A training that was killed and started again ends, on a CPU, with the same numbers as one that was not; a
GPU's sums differ from run to run.  It may resume on another device, from that device's own random numbers.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fgkd.records import write_bytes
from fgkd.study import StudyError

CHECKPOINT_SECONDS = 30


class Checkpoint:
    """A training's history and current epoch, in a file that is written every 30 seconds.

    history: a row for each epoch that ended.
    begun: the state of the epoch that was going on, where there is a file that says so.
    Model and optimizer are set to the file's state; how the optimizer computes stays as it is on this device.
    """

    def __init__(
        self, file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        self.file = file
        self.parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
        self.history: list[dict] = []
        self.begun: dict | None = None
        self.totals: dict[str, Tensor] = {}  # of each term of the loss, over the epoch's images
        self.hits = torch.zeros((), device=device)  # on the model's device, so that no step waits for it
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

    def steps(self, batches: Iterable) -> Iterator[tuple]:
        """(step, batch) of what is left of an epoch's batches; between them the file is written."""
        begun, self.begun = self.begun, None
        self.totals, self.hits, done = {}, torch.zeros_like(self.hits), 0
        if begun is not None:
            set_random_state(begun["random"], self.hits.device)
            self.totals = {name: total.to(self.hits.device) for name, total in begun["totals"].items()}
            self.hits, done = begun["hits"].to(self.hits.device), begun["steps"]
        for step, batch in itertools.islice(enumerate(batches), done, None):
            if step > done and self._is_due:
                random = random_state(self.hits.device)
                sums = {"totals": self.totals, "hits": self.hits}
                self._save({"steps": step, "random": random} | sums)
            yield step, batch

    def add(self, terms: dict[str, Tensor], logits: Tensor, labels: Tensor) -> None:
        """Count a step: its terms of the loss, means over the batch, logits (B, C) and labels (B,)."""
        for name, term in terms.items():
            self.totals[name] = self.totals.get(name, 0) + term.detach() * len(labels)
        self.hits += (logits.detach().argmax(1) == labels).sum()

    def means(self, n: int) -> dict[str, float]:
        """The terms of the loss and the training accuracy, means over the epoch's n images."""
        terms = {name: total.item() / n for name, total in self.totals.items()}
        return terms | {"train_accuracy": self.hits.item() / n}

    def end_epoch(self, row: dict, *, due: bool = False) -> None:
        """Add an epoch's row to the history.

        due: write the file whenever it was written before.
        """
        self.history.append(row)
        if due or self._is_due:
            self._save(None)

    @property
    def _is_due(self) -> bool:
        return time.monotonic() - self.written > CHECKPOINT_SECONDS

    def _save(self, begun: dict | None) -> None:
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
