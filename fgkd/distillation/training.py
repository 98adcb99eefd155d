"""One visible loop that trains teachers and students, and the passes over images around it.

Everything random in a training comes from its seed and the epoch's number.  A training that is killed and
started again goes on from its checkpoint and ends, on a CPU, with the very numbers of one that was not; a
GPU's sums are not the same twice.  It may go on on another device than it began on, from that device's own
random numbers.

What an epoch needs is sent to the device when it begins.  No step copies anything there or waits for it, but
for images that its memory cannot hold: a GPU computes while Python prepares the steps to come.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fgkd import metrics
from fgkd.data import views
from fgkd.data.datasets import Split
from fgkd.distillation import losses
from fgkd.models import cal
from fgkd.models.classifier import Classifier, Head
from fgkd.records import write_bytes
from fgkd.study import Distillation, Loss, Recipe, StudyError, Views

CHECKPOINT_SECONDS = 30
EVAL_BATCH = 256

Objective = Callable[[nn.Module, Tensor, int, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""(model, inputs (B, ...), epoch, index (B,)) -> the model's logits (B, C) and the parts of the loss by name,
to be added up; all of them, and the index, on the model's device."""


def device(name: str) -> torch.device:
    """'auto', 'cpu' or 'cuda' -> the device.  Raises StudyError for a GPU that is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise StudyError(
            "device is 'cuda', but PyTorch sees no GPU: install a driver, or set 'device: cpu' in the study"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


class Images:
    """A split's images as batches of views on a device; kept in its memory where they take at most half of
    what is free, else read from the disk batch by batch.

    indices: the device on which `batch` wants to be told which images: that of the images, or the CPU where
    they are read from the disk.
    """

    def __init__(self, split: Split, sizes: Views, on: torch.device):
        self.split, self.sizes, self.device = split, sizes, on
        self.labels = torch.from_numpy(split.labels).to(on)
        free = torch.cuda.mem_get_info(on)[0] if on.type == "cuda" else 4 * 2**30
        self.resident = (
            torch.from_numpy(np.array(split.images)).to(on) if split.images.nbytes <= free / 2 else None
        )
        self.indices = torch.device("cpu") if self.resident is None else self.labels.device

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(self, seed: int, epoch: int) -> views.Views:
        """The random views of all images in one epoch, on the device."""
        resize, crop = self.sizes.resize, self.sizes.crop
        return views.sample_views(len(self), seed=seed, epoch=epoch, resize=resize, crop=crop).to(self.device)

    def centre(self) -> views.Views:
        """The centre crops of all images, on the device."""
        return views.centre(len(self), resize=self.sizes.resize, crop=self.sizes.crop).to(self.device)

    def batch(self, index: Tensor, seen: views.Views) -> Tensor:
        """The views `seen`, of all images and on the device, of the images `index` (B,): uint8 (B, 3, S, S).

        index may lie on any device; one that does not lie on `indices` is copied there.
        """
        if self.resident is not None:
            pixels = self.resident.index_select(0, index.to(self.device))  # on a CPU faster than [...]
        else:
            pixels = torch.from_numpy(self.split.images[index.cpu().numpy()]).to(self.device)
        return views.crop_batch(pixels, seen[index.to(self.device)], self.sizes.crop)


def fit(
    model: nn.Module,
    inputs: Callable[[int, Tensor], Tensor],
    labels: Tensor,
    objective: Objective,
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: Path,
    title: str = "training",
    extra: nn.Module | None = None,
    only: Tensor | None = None,
    indices: torch.device | None = None,
) -> list[dict]:
    """Train `model` in place and return one row an epoch: the mean of each part of the loss, and the training
    accuracy.

    inputs: (epoch, index (B,)) -> what the model takes; labels: (N,) on the model's device; checkpoint: file
    to continue from, written every 30 seconds and left to the caller to delete; extra: weights of the loss
    itself, trained along; only: indices of the samples to train on, on the CPU, all unless given; indices:
    the device on which `inputs` gets its index, the labels' unless given.
    Raises FloatingPointError where the loss is no longer finite.
    """
    on = labels.device
    trained = model if extra is None else nn.ModuleList([model, extra])
    weights, optimizer = [*trained.parameters()], _optimizer(trained, recipe)
    history, begun = _resume(checkpoint, trained, optimizer)
    used = torch.arange(len(labels)) if only is None else only
    steps = math.ceil(len(used) / recipe.batch_size)
    saved = time.monotonic()
    for epoch in tqdm(range(len(history), recipe.epochs), desc=title, unit="epoch", disable=None):
        trained.train()
        torch.manual_seed(seed + epoch)  # what dropout and a counterfactual draw from
        order = used[torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(used)))]
        first, totals, hits = 0, {}, torch.zeros((), device=on)
        if begun:
            first, hits = begun["steps"], begun["hits"].to(on)
            totals = {name: total.to(on) for name, total in begun["totals"].items()}
            _set_random(begun["random"], on)
            begun = None
        parted = zip(*(order.to(there).tensor_split(steps) for there in (indices or on, on)), strict=True)
        for step, (rows, index) in itertools.islice(enumerate(parted), first, None):
            _set_rate(optimizer, recipe, step=epoch * steps + step, steps=steps * recipe.epochs)
            logits, parts = objective(model, inputs(epoch, rows), epoch, index)
            loss = sum(parts.values())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, recipe.clip)
            optimizer.step()
            for name, part in parts.items():
                totals[name] = totals.get(name, 0) + part.detach() * len(index)
            hits += (logits.detach().argmax(1) == labels[index]).sum()
            if time.monotonic() - saved > CHECKPOINT_SECONDS and step + 1 < steps:
                _save(
                    checkpoint,
                    trained,
                    optimizer,
                    history,
                    {"steps": step + 1, "totals": totals, "hits": hits, "random": _random(on)},
                )
                saved = time.monotonic()
        row = (
            {"epoch": epoch}
            | {n: t.item() / len(used) for n, t in totals.items()}
            | {"train_accuracy": hits.item() / len(used)}
        )
        if not all(math.isfinite(v) for v in row.values()):
            raise FloatingPointError(
                f"{title} diverged in epoch {epoch}: {row}. Lower the learning rate (now {recipe.lr}) or the clip ({recipe.clip})"
            )
        history.append(row)
        if (
            time.monotonic() - saved > CHECKPOINT_SECONDS
        ):  # after the last epoch too: a cell trains several students
            _save(checkpoint, trained, optimizer, history)
            saved = time.monotonic()
    return history


def cross_entropy(labels: Tensor) -> Objective:
    """Plain cross-entropy with labels (N,): what FZ and FT teachers and the CE baseline minimise."""

    def objective(model, x, epoch, index):
        logits = model(x)
        return logits, {"ce": F.cross_entropy(logits, labels[index])}

    return objective


def attention(labels: Tensor, seed: int) -> Objective:
    """What a CAL teacher minimises on a view, its attention crop and its attention drop; seed: of which maps
    and thresholds."""

    @functools.lru_cache(1)
    def draws(epoch):
        return views.draw_attention(len(labels), seed=seed, epoch=epoch).to(labels.device)

    def objective(model, x, epoch, index):
        y, raw = labels[index], model.attend(x)
        boxes, maps = cal.plan(raw.maps.detach(), draws(epoch)[index], x.shape[-1])
        augmented = model.attend(torch.cat([views.crop(x, boxes), views.drop(x, maps)]))
        parts = cal.loss(
            raw.logits,
            augmented.logits,
            torch.cat([raw.effects, augmented.effects]),
            y,
            raw.features,
            model.attention.nearest(y),
        )
        model.attention.step(raw.features.detach(), y)
        return raw.logits, parts

    return objective


def distillation(
    labels: Tensor,
    teacher: Callable[[Tensor, int, Tensor], dict[str, Tensor]],
    how: Distillation,
    *,
    augmented: bool = False,
    further: Callable | None = None,
    features: bool = False,
) -> Objective:
    """CE + beta * KD, what students minimise.  teacher: (images, epoch, index) -> what `bank.teacher_outputs` says, from a bank or by itself.

    augmented: TGDA, also on the crop and drop views of a CAL teacher, CE + beta (KD(raw) / 2 + KD(crop and drop)).
    further: a loss beside it, (student, teacher, labels, index) of logits, or of pooled features, -> scalar.
    """

    def objective(model, x, epoch, index):
        said, y = teacher(x, epoch, index), labels[index]
        pooled, logits = model.features_and_logits(x) if features else (None, model(x))
        soft = losses.kd(logits, said["logits"], how.temperature)
        parts = {"ce": F.cross_entropy(logits, y), "kd": how.beta * soft}
        if augmented:
            more = model(torch.cat([views.crop(x, said["boxes"]), views.drop(x, said["maps"])]))
            parts |= {
                "kd": how.beta * soft / 2,
                "views": how.beta * losses.kd(more, torch.cat([said["crop"], said["drop"]]), how.temperature),
            }
        if further is not None:
            pair = (pooled, said["features"]) if features else (logits, said["logits"])
            parts["further"] = further(*pair, y, index)
        return logits, parts

    return objective


class Further(nn.Module):
    """A further loss and the weights that it needs: student (B, Ds), teacher (B, Dt), labels (B,), index (B,) -> scalar.

    widths Ds and Dt; labels: (N,) of all training images.  A hint is projected to the teacher's width where the two differ (Romero et al. 2015).
    """

    def __init__(self, spec: Loss, student: int, teacher: int, labels: Tensor):
        super().__init__()
        self.spec = spec
        if spec.loss == "crd":
            self.crd = losses.CRD(student, teacher, labels, **spec.options)
        self.projection = (
            nn.Linear(student, teacher) if spec.loss == "hint" and student != teacher else nn.Identity()
        )

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        match self.spec.loss:
            case "crd":
                found = self.crd(student, teacher, index)
            case "hint":
                found = losses.hint(self.projection(student), teacher)
            case "dkd":
                found = losses.dkd(student, teacher, labels, **self.spec.options)
            case "rkd" | "pkt" as name:
                found = getattr(losses, name)(student, teacher, **self.spec.options)
        return self.spec.weight * found


@torch.inference_mode()
def predict(
    run: Callable[[Tensor], Tensor],
    images: Images,
    seen: views.Views | None = None,
    only: Tensor | None = None,
) -> Tensor:
    """What `run`, a model in eval mode or a method of one, says of the images, (N, ...) on the CPU; of all of
    them, unless `only` some, and through their centre crops unless other views are given."""
    seen = images.centre() if seen is None else seen
    return torch.cat([run(x) for _, x in batches(images, seen, only)]).cpu()


def batches(images: Images, seen: views.Views, only: Tensor | None = None):
    """(index (B,), views (B, 3, S, S)) of all images, or of the indices `only`, in order; each index lies
    where the images want it."""
    index = torch.arange(len(images)) if only is None else only
    for part in index.to(images.indices).split(EVAL_BATCH):
        yield part, images.batch(part, seen)


def features(
    model: Classifier, images: Images, recipe: Recipe, *, views_seed: int, title: str
) -> list[Tensor]:
    """The pooled features (N, D) of the frozen backbone in each view that recipe FZ trains on: computed once, for all trainings of a last layer."""
    model.eval()
    with torch.no_grad():
        return [
            torch.cat(
                [model.features_and_logits(x)[0] for _, x in batches(images, images.epoch(views_seed, epoch))]
            )
            for epoch in tqdm(
                range(min(recipe.views or recipe.epochs, recipe.epochs)),
                desc=f"{title}: features",
                unit="view",
                disable=None,
            )
        ]


def fit_head(
    model: Classifier, images: Images, features: list[Tensor], recipe: Recipe, **options
) -> list[dict]:
    """Train only the last layer, on `features` of the views in turn; options: those of `fit`."""
    check_head(model, images)

    def inputs(epoch, index):
        return features[epoch % len(features)][index]

    return fit(Head(model.head), inputs, images.labels, cross_entropy(images.labels), recipe, **options)


def fit_images(
    model: Classifier,
    images: Images,
    objective: Objective,
    recipe: Recipe,
    *,
    views_seed: int,
    views: int | None = None,
    compiled: bool = False,
    **options,
) -> list[dict]:
    """Train the whole model on random views of the images, view (views_seed, epoch, index) in every epoch;
    options: those of `fit`.

    views: how many of them there are, which the epochs then see in turn; one an epoch unless given.
    compiled: run the network through torch.compile, on a GPU in CUDA graphs, one a batch size.  What does not
    call it as a whole, such as the attention of a CAL teacher or a loss on features, runs as it is.
    """
    if compiled:
        model.net.compile(mode="reduce-overhead", dynamic=False)
    seen = functools.lru_cache(1)(lambda view: images.epoch(views_seed, view))

    def inputs(epoch, index):
        return images.batch(index, seen(epoch if views is None else epoch % views))

    return fit(model, inputs, images.labels, objective, recipe, indices=images.indices, **options)


def accuracy(model: Classifier, images: Images, only: Tensor | None = None) -> tuple[float, Tensor]:
    """Top-1 accuracy on centre crops in eval mode, of all images or of the indices `only`, and the logits (N, C) that it comes from; a CAL
    teacher's are those of eight views."""
    logits, labels = predict(model.eval().predict, images, only=only), images.labels.cpu()
    return metrics.accuracy(logits, labels if only is None else labels[only]), logits


def hold_out(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the 80 % of images that a search for a learning rate trains on, and of the 20 % that it is measured on, each in order.

    A fifth of each class, rounded, is held out, which ones being a function of labels (N,) and seed alone.
    Raises StudyError where no class has the 3 images that it takes.
    """
    labels = labels.cpu().numpy()
    order = np.lexsort((np.random.default_rng(seed).random(len(labels)), labels))
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
    held = place < np.rint(counts / 5)[labels[order]]
    if not held.any():
        raise StudyError(
            f"no class has more than {counts.max()} training images: a search for a learning rate holds out one in five of a class; give a single lr"
        )
    return tuple(torch.from_numpy(np.sort(order[which])) for which in (~held, held))


def check_head(model: Classifier, images: Images) -> None:
    """Raise StudyError unless the model's logits are those of its last layer on its pooled features.

    They may differ by a thousandth of the largest logit; on a GPU, in bf16, by a hundredth.
    """
    x = images.batch(torch.arange(min(2, len(images))), images.centre())
    with torch.inference_mode():
        whole, parts = model.eval()(x), model.features_and_logits(x)[1]
    if not (whole - parts).abs().max() <= (1e-2 if x.is_cuda else 1e-3) * whole.abs().max():
        raise StudyError(
            f"'{type(model.net).__name__}' has more than its last layer after the pooled "
            "features: neither recipe FZ nor a loss on features applies to it"
        )


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW over the weights to be trained, on a GPU in one kernel for many weights.

    Biases, other weights of one dimension (norms, scales) and what the network itself exempts are not
    decayed, as in timm's `create_optimizer`, which the released code of arXiv 2605.15689 calls.
    """
    parts = [(place, module) for place, module in model.named_modules() if isinstance(module, Classifier)]
    exempt = {f"{place}.{name}".lstrip(".") for place, module in parts for name in module.no_weight_decay()}
    groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=exempt)
    fused = next(model.parameters()).is_cuda or None
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=fused)


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


def _save(
    file: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: list[dict],
    begun: dict | None = None,
) -> None:
    """A checkpoint after the epochs of `history`, and, of one that has begun, its steps so far, their sums and the state of the random numbers."""
    buffer = io.BytesIO()
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": history,
            "begun": begun,
        },
        buffer,
    )
    write_bytes(file, buffer.getvalue())


def _resume(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[dict], dict | None]:
    """What `_save` wrote: its history and begun epoch; none where no file is, or one that cannot be read.

    How the optimizer computes is this device's affair, not that of the one that wrote the file.
    """
    if not file.exists():
        return [], None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types, by where the file is damaged
        print(f"checkpoint '{file.name}' cannot be read ({type(error).__name__}): the training begins anew")
        return [], None
    model.load_state_dict(state["model"])
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = optimizer.defaults["fused"]
    optimizer.load_state_dict(state["optimizer"])
    return state["history"], state["begun"]


def _random(on: torch.device) -> list[Tensor]:
    """The states of the random numbers: of the CPU, and, on a GPU, of it."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(on)] if on.type == "cuda" else [])


def _set_random(states: list[Tensor], on: torch.device) -> None:
    """Set what `_random` gave, perhaps elsewhere: a GPU of which it says nothing keeps its own state."""
    torch.set_rng_state(states[0])
    if on.type == "cuda" and len(states) == 2:
        torch.cuda.set_rng_state(states[1], on)
