"""One visible loop that trains teachers and students, and the passes over images around it.

Everything random in a training comes from its seed and the epoch's number.  A training that is killed and started again goes on
from its checkpoint and ends with the very numbers of one that was not.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fgkd import losses, metrics, views
from fgkd.datasets import Split
from fgkd.models import Classifier, Head
from fgkd.study import Distillation, Recipe, StudyError, Views
from fgkd.tables import write_bytes

CHECKPOINT_SECONDS = 30
EVAL_BATCH = 256

Objective = Callable[[Tensor, Tensor, int, Tensor], dict[str, Tensor]]
"""(logits (B, C), inputs (B, ...), epoch, index (B,)) -> named parts of the loss, to be added up."""


def device(name: str) -> torch.device:
    """'auto', 'cpu' or 'cuda' -> the device.  Raises StudyError for a GPU that is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise StudyError("device is 'cuda', but PyTorch sees no GPU: install a driver, or set 'device: cpu' in the study")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


class Images:
    """A split's images as batches of views on a device; kept in its memory where they take at most half of what is free."""

    def __init__(self, split: Split, sizes: Views, on: torch.device):
        self.split, self.sizes, self.device = split, sizes, on
        self.labels = torch.from_numpy(split.labels).to(on)
        free = torch.cuda.mem_get_info(on)[0] if on.type == "cuda" else 4 * 2**30
        self.resident = torch.from_numpy(np.array(split.images)).to(on) if split.images.nbytes <= free / 2 else None

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(self, seed: int, epoch: int) -> views.Views:
        """The random views of all images in one epoch."""
        return views.draw(len(self), seed=seed, epoch=epoch, resize=self.sizes.resize, crop=self.sizes.crop)

    def centre(self) -> views.Views:
        return views.centre(len(self), resize=self.sizes.resize, crop=self.sizes.crop)

    def batch(self, index: Tensor, seen: views.Views) -> Tensor:
        """The views `seen` (of all images) of the images `index` (B,): uint8 (B, 3, S, S)."""
        if self.resident is not None:
            pixels = self.resident[index.to(self.device)]
        else:
            pixels = torch.from_numpy(self.split.images[index.numpy()]).to(self.device)
        return views.cut(pixels, seen[index].to(self.device), self.sizes.crop)


def fit(model: nn.Module, inputs: Callable[[int, Tensor], Tensor], labels: Tensor, objective: Objective, recipe: Recipe, *,
        seed: int, checkpoint: Path, title: str = "training") -> list[dict]:
    """Train `model` in place and return one row an epoch: the mean of each part of the loss, and the training accuracy.

    inputs: (epoch, index (B,)) -> what the model takes; labels: (N,) on the model's device; checkpoint: file to continue from,
    written every 30 seconds and left to the caller to delete.  Raises FloatingPointError where the loss is no longer finite.
    """
    on = labels.device
    optimizer = _optimizer(model, recipe)
    start, history = _resume(checkpoint, model, optimizer)
    steps = math.ceil(len(labels) / recipe.batch_size)
    saved = time.monotonic()
    for epoch in tqdm(range(start, recipe.epochs), desc=title, unit="epoch", disable=None):
        model.train()
        torch.manual_seed(seed + epoch)  # what dropout draws from
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(labels)))
        totals, hits = {}, torch.zeros((), device=on)
        for step, index in enumerate(order.tensor_split(steps)):
            _set_rate(optimizer, recipe, step=epoch * steps + step, steps=steps * recipe.epochs)
            x = inputs(epoch, index)
            with torch.autocast(on.type, torch.bfloat16, enabled=on.type == "cuda"):
                logits = model(x)
            parts = objective(logits.float(), x, epoch, index)
            loss = sum(parts.values())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            for name, part in parts.items():
                totals[name] = totals.get(name, 0) + part.detach() * len(index)
            hits += (logits.detach().argmax(1) == labels[index.to(on)]).sum()
        row = {"epoch": epoch} | {n: t.item() / len(labels) for n, t in totals.items()} | {"train_accuracy": hits.item() / len(labels)}
        if not all(math.isfinite(v) for v in row.values()):
            raise FloatingPointError(f"{title} diverged in epoch {epoch}: {row}. Lower the learning rate (now {recipe.lr}) or the clip ({recipe.clip})")
        history.append(row)
        if time.monotonic() - saved > CHECKPOINT_SECONDS and epoch + 1 < recipe.epochs:
            _save(checkpoint, model, optimizer, history)
            saved = time.monotonic()
    return history


def cross_entropy(labels: Tensor) -> Objective:
    """Plain cross-entropy with labels (N,): what teachers and the CE baseline minimise."""
    return lambda logits, _, epoch, index: {"ce": F.cross_entropy(logits, labels[index.to(labels.device)])}


def distillation(labels: Tensor, teacher: Callable[[Tensor, int, Tensor], Tensor], how: Distillation) -> Objective:
    """CE + beta * KD.  teacher: (images, epoch, index) -> its logits (B, C), from a bank or from the teacher itself."""
    hard = cross_entropy(labels)

    def objective(logits, images, epoch, index):
        soft = losses.kd(logits, teacher(images, epoch, index), how.temperature)
        return hard(logits, images, epoch, index) | {"kd": how.beta * soft}

    return objective


@torch.inference_mode()
def predict(model: Classifier, images: Images, seen: views.Views | None = None) -> Tensor:
    """Logits of all images in eval mode, fp32 on the CPU (N, C); through their centre crops unless other views are given."""
    return torch.cat([logits.cpu() for _, logits in batches(model, images, images.centre() if seen is None else seen)])


@torch.inference_mode()
def batches(model: Classifier, images: Images, seen: views.Views, *, features: bool = False):
    """Yield (index (B,), fp32 logits (B, C) or pooled features (B, D)) of all images in order, in eval mode."""
    model.eval()
    run = model.features if features else model
    for index in torch.arange(len(images)).split(EVAL_BATCH):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
            out = run(images.batch(index, seen))
        yield index, out.float()


def fit_head(model: Classifier, images: Images, recipe: Recipe, *, views_seed: int, seed: int, checkpoint: Path, title: str) -> list[dict]:
    """Train only the last layer, on features of the frozen backbone that are computed once a view and used in turn."""
    count = min(recipe.views or recipe.epochs, recipe.epochs)
    features = []
    for epoch in tqdm(range(count), desc=f"{title}: features", unit="view", disable=None):
        features.append(torch.cat([f for _, f in batches(model, images, images.epoch(views_seed, epoch), features=True)]))
    head = Head(model.head)
    _check_head(model, head, images)

    def inputs(epoch, index):
        return features[epoch % count][index.to(images.device)]

    return fit(head, inputs, images.labels, cross_entropy(images.labels), recipe, seed=seed, checkpoint=checkpoint, title=title)


def fit_images(model: Classifier, images: Images, objective: Objective, recipe: Recipe, *, views_seed: int, seed: int, checkpoint: Path, title: str) -> list[dict]:
    """Train the whole model on random views of the images: view (views_seed, epoch, index) in every epoch."""
    seen = {}

    def inputs(epoch, index):
        if epoch not in seen:
            seen.clear()
            seen[epoch] = images.epoch(views_seed, epoch)
        return images.batch(index, seen[epoch])

    return fit(model, inputs, images.labels, objective, recipe, seed=seed, checkpoint=checkpoint, title=title)


def accuracy(model: Classifier, images: Images) -> tuple[float, Tensor]:
    """Top-1 accuracy on centre crops, and the logits (N, C) that it comes from."""
    logits = predict(model, images)
    return metrics.accuracy(logits, images.labels.cpu()), logits


def _check_head(model: Classifier, head: Head, images: Images) -> None:
    index = torch.arange(min(2, len(images)))
    x = images.batch(index, images.centre())
    with torch.inference_mode():
        whole, parts = model.eval()(x), head(model.features(x))
    if not torch.allclose(whole, parts, rtol=1e-3, atol=1e-3):
        raise StudyError(f"'{type(model.net).__name__}' has more than its last layer after the pooled features: recipe FZ does not apply; use FT")


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)


def _set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, *, step: int, steps: int) -> None:
    """Linear warm-up, then a cosine from lr to min_lr."""
    warm = min(recipe.warmup_steps, steps - 1)
    if step < warm:
        rate = recipe.lr * (step + 1) / warm
    else:
        low = min(recipe.min_lr, recipe.lr)
        rate = low + (recipe.lr - low) * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2
    for group in optimizer.param_groups:
        group["lr"] = rate


def _save(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, history: list[dict]) -> None:
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}, buffer)
    write_bytes(file, buffer.getvalue())


def _resume(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict]]:
    if not file.exists():
        return 0, []
    state = torch.load(file, map_location=next(model.parameters()).device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return len(state["history"]), state["history"]
