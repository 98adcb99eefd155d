"""The loop that trains teachers and students, their objectives, and passes over images.

Everything random in a training comes from its seed and the epoch's number; `checkpoint` says how one resumes.

What an epoch needs is sent to the device when it begins.  No step copies anything there or waits for it,
except images that its memory cannot hold: a GPU computes while Python prepares the next steps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import Tensor, nn
from torch.nn import functional as F

from fgkd import metrics
from fgkd.data import views
from fgkd.data.datasets import Split
from fgkd.distillation import checkpoint as checkpoints
from fgkd.distillation import losses
from fgkd.distillation.checkpoint import Checkpoint
from fgkd.distillation.progress import Progress
from fgkd.models import cal
from fgkd.models.classifier import Classifier, Head
from fgkd.study import Distillation, Recipe, Sizes, StudyError

EVAL_BATCH = 256
CACHED_BATCH = 16  # of views above LARGE on a CPU, whose feature maps would leave its caches
LARGE = 96  # pixels

Objective = Callable[[nn.Module, Tensor, int, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""(model, inputs (B, ...), epoch, index (B,)) -> the model's logits (B, C) and the terms of the loss by name,
to be added up; all of them, and the index, on the model's device."""

TeacherOutputs = Callable[[Tensor, int, Tensor], dict[str, Tensor]]
"""(views (B, 3, S, S), epoch, index (B,)) -> what `bank.teacher_outputs` returns, stored or fresh."""


def device(name: str) -> torch.device:
    """The device of 'auto', 'cpu' or 'cuda'.  Raises StudyError for a GPU that is absent."""
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise StudyError(
            "device is 'cuda', but PyTorch sees no GPU: install a driver, or set 'device: cpu' in the study"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and has_gpu) else "cpu")


class Images:
    """A split's images as batches of views on a device.

    They are kept in its memory where they take at most half of what is free, else read from the disk batch by
    batch.  `index_device` is where `batch` wants its index: with the images, or the CPU where they are read
    from the disk.
    """

    def __init__(self, split: Split, sizes: Sizes, device: torch.device):
        self.split = split
        self.sizes = sizes
        self.device = device
        self.labels = torch.from_numpy(split.labels).to(device)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 4 * 2**30
        fits = split.images.nbytes <= free / 2
        self.resident = torch.from_numpy(np.array(split.images)).to(device) if fits else None
        self.index_device = self.labels.device if fits else torch.device("cpu")

    def __len__(self) -> int:
        return len(self.labels)

    def epoch(self, seed: int, epoch: int) -> views.Views:
        """The random views of all images in one epoch, on the device."""
        resize, crop = self.sizes.resize, self.sizes.crop
        return views.sample_views(len(self), seed=seed, epoch=epoch, resize=resize, crop=crop).to(self.device)

    def centre(self) -> views.Views:
        """The centre crops of all images, on the device."""
        return views.centre(len(self), resize=self.sizes.resize, crop=self.sizes.crop).to(self.device)

    def batch(self, index: Tensor, crops: views.Views) -> Tensor:
        """Views of the images `index` (B,): uint8 (B, 3, S, S).

        index: on any device; copied unless it is on `index_device`.
        crops: of all images, on the device.
        """
        if self.resident is not None:
            pixels = self.resident.index_select(0, index.to(self.device))  # on a CPU faster than [...]
        else:
            pixels = torch.from_numpy(self.split.images[index.cpu().numpy()]).to(self.device)
        return views.crop_batch(pixels, crops[index.to(self.device)], self.sizes.crop)


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
    auxiliary_loss: nn.Module | None = None,
    subset: Tensor | None = None,
    index_device: torch.device | None = None,
    stop: int | None = None,
) -> list[dict]:
    """Train `model` in place; return one row per epoch: mean loss terms and training accuracy.

    inputs: (epoch, index (B,)) -> what the model takes.
    labels: (N,) on the model's device.
    checkpoint: the file to resume from, written every 30 seconds and left to the caller to delete.
    auxiliary_loss: a loss with weights of its own, which are trained too.
    subset: indices of the samples to train on, on the CPU; all unless given.
    index_device: where `inputs` wants its index; the labels' device unless given.
    stop: end after so many of the recipe's epochs, in its schedule; a later call goes on from there.
    Raises FloatingPointError where the loss is no longer finite, StudyError where a batch has no spread.
    """
    # In one module, because gradients are clipped, and states saved, together.
    trained = model if auxiliary_loss is None else nn.ModuleList([model, auxiliary_loss])
    weights = list(trained.parameters())
    optimizer = make_optimizer(trained, recipe)
    train_index = torch.arange(len(labels)) if subset is None else subset
    steps = _count_batches(trained, len(train_index), recipe)
    devices = (index_device or labels.device, labels.device)
    state = Checkpoint(checkpoint, trained, optimizer, title)
    for epoch in state.epochs(recipe.epochs, stop):
        trained.train()
        torch.manual_seed(seed + epoch)  # for dropout and counterfactual attention
        batches = shuffled_batches(train_index, steps, seed=seed, epoch=epoch, devices=devices)
        for step, (rows, index) in state.steps(batches):
            set_learning_rate(optimizer, recipe, step=epoch * steps + step, steps=recipe.epochs * steps)
            logits, terms = objective(model, inputs(epoch, rows), epoch, index)
            loss: Tensor = sum(terms.values())  # type: ignore[assignment]  # of no terms it would be 0
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, recipe.clip)
            optimizer.step()
            state.add(terms, logits, labels[index])
        check_finite(title, state.end_epoch(len(train_index)), recipe)
    return state.history


def count_batches(images: int, batch_size: int) -> int:
    """Batches of an epoch: of at most `batch_size` images, one more where one would be alone.

    >>> count_batches(16, 2), count_batches(15, 2), count_batches(15, 1), count_batches(1, 8)
    (8, 7, 15, 1)
    """
    batches = math.ceil(images / batch_size)
    return batches if batch_size == 1 else max(1, min(batches, images // 2))


def _count_batches(model: nn.Module, images: int, recipe: Recipe) -> int:
    """`count_batches`.  Raises StudyError for one image a batch and a model with batch normalisation."""
    batches = count_batches(images, recipe.batch_size)
    has_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if has_norm and images < 2 * batches:
        raise StudyError(
            f"batch_size {recipe.batch_size} of {images} training images: batches of one image, of which "
            "batch normalisation has no spread; set batch_size to 2 or more"
            + (", and add images" if images == 1 else "")
        )
    return batches


def shuffled_batches(
    train_index: Tensor, steps: int, *, seed: int, epoch: int, devices: tuple[torch.device, ...]
) -> list[tuple[Tensor, ...]]:
    """The batches of an epoch, each as its index (B,) on each of `devices`.

    Their sizes differ by one at most: no image is left out, and none is alone at the end.
    """
    permutation = np.random.default_rng([seed, epoch]).permutation(len(train_index))
    order = train_index[torch.from_numpy(permutation)]
    # The whole order is sent at once, and cut where it lies: a step that copied its own would wait for it.
    return list(zip(*(order.to(device).tensor_split(steps) for device in devices), strict=True))


def check_finite(title: str, row: dict[str, float], recipe: Recipe) -> None:
    """Raise FloatingPointError where an epoch ended with numbers that are not finite."""
    if not all(math.isfinite(value) for value in row.values()):
        raise FloatingPointError(
            f"{title} diverged in epoch {row['epoch']}: {row}. "
            f"Lower the learning rate (now {recipe.lr}) or the clip ({recipe.clip})"
        )


def cross_entropy(labels: Tensor) -> Objective:
    """Cross-entropy with labels (N,): for FZ and FT teachers and students without a teacher."""

    def objective(model, x, epoch, index):
        logits = model(x)
        return logits, {"ce": F.cross_entropy(logits, labels[index])}

    return objective


def attention(labels: Tensor, seed: int) -> Objective:
    """CAL's loss of a view, its attention crop and its attention drop; seed: of both."""

    @functools.lru_cache(1)
    def attention_draws(epoch):
        return views.draw_attention(len(labels), seed=seed, epoch=epoch).to(labels.device)

    def objective(model, x, epoch, index):
        y = labels[index]
        raw = model.attend(x)
        boxes, maps = cal.plan(raw.maps.detach(), attention_draws(epoch)[index], x.shape[-1])
        augmented = model.attend(torch.cat([views.crop(x, boxes), views.drop(x, maps)]))
        effects = torch.cat([raw.effects, augmented.effects])
        centres = model.attention.nearest(y)
        terms = cal.loss(raw.logits, augmented.logits, effects, y, raw.features, centres)
        model.attention.step(raw.features.detach(), y)
        return raw.logits, terms

    return objective


def distillation(
    labels: Tensor,
    teacher: TeacherOutputs,
    kd: Distillation,
    *,
    augmented: bool = False,
    auxiliary_loss: losses.AuxiliaryLoss | None = None,
) -> Objective:
    """CE + beta * KD, for students.

    labels: (N,) of all training images.
    augmented: TGDA, with a CAL teacher's crop and drop views: CE + beta (KD(raw) / 2 + KD(crop and drop)).
    auxiliary_loss: a loss of logits or pooled features, added to it.
    """
    on_features = auxiliary_loss is not None and auxiliary_loss.applies_to == "features"
    kd_weight = kd.beta / 2 if augmented else kd.beta

    def objective(model, x, epoch, index):
        outputs = teacher(x, epoch, index)
        y = labels[index]
        features, logits = model.features_and_logits(x) if on_features else (None, model(x))
        # KD before CE: gradients are summed in reverse order, and another order would round otherwise.
        kd_term = kd_weight * losses.kd(logits, outputs["logits"], kd.temperature)
        terms = {"ce": F.cross_entropy(logits, y), "kd": kd_term}
        if augmented:
            student = model(torch.cat([views.crop(x, outputs["boxes"]), views.drop(x, outputs["maps"])]))
            teacher_logits = torch.cat([outputs["crop"], outputs["drop"]])
            terms["views"] = kd.beta * losses.kd(student, teacher_logits, kd.temperature)
        if auxiliary_loss is not None:
            student = features if on_features else logits
            terms["further"] = auxiliary_loss(student, outputs[auxiliary_loss.applies_to], y, index)
        return logits, terms

    return objective


@torch.inference_mode()
def predict(
    forward: Callable[[Tensor], Tensor],
    images: Images,
    crops: views.Views | None = None,
    subset: Tensor | None = None,
) -> Tensor:
    """Concatenate `forward(x)` over the images, (N, ...) on the CPU.

    crops: the views of all images; centre crops unless given.
    subset: indices of the images; all unless given.
    """
    crops = images.centre() if crops is None else crops
    return torch.cat([forward(x) for _, x in batches(images, crops, subset)]).cpu()


def eval_batch(images: Images) -> int:
    """Images of a pass forward: on a CPU few of large views, faster and in less memory."""
    is_large = images.device.type == "cpu" and images.sizes.crop > LARGE
    return CACHED_BATCH if is_large else EVAL_BATCH


def batches(
    images: Images, crops: views.Views, subset: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """(index (B,), views (B, 3, S, S)) of all images, or of a subset of indices, in order."""
    index = torch.arange(len(images)) if subset is None else subset
    for part in index.to(images.index_device).split(eval_batch(images)):
        yield part, images.batch(part, crops)


@torch.no_grad()
def features(
    model: Classifier, images: Images, recipe: Recipe, *, views_seed: int, title: str, checkpoint: Path
) -> list[Tensor]:
    """The frozen backbone's pooled features (N, D) in each view that recipe FZ trains on.

    checkpoint: where each view's are kept, with its number added to the name, and left to the caller to
    delete.
    """
    model.eval()
    features_of_views = []
    with Progress(checkpoint.parent, f"{title}: features", recipe.n_views) as progress:
        for view in range(recipe.n_views):
            file = checkpoint.with_name(f"{checkpoint.stem}-{view}{checkpoint.suffix}")
            pooled = checkpoints.read(file)
            if pooled is None:
                crops = images.epoch(views_seed, view)
                pooled = torch.cat([model.features_and_logits(x)[0] for _, x in batches(images, crops)])
                checkpoints.write(file, pooled)
            features_of_views.append(pooled.to(images.device))
            progress.update(view + 1)
    return features_of_views


def fit_head(
    model: Classifier, images: Images, features: list[Tensor], recipe: Recipe, **options
) -> list[dict]:
    """Train the last layer alone, on `features` of the views in turn; options: those of `fit`."""
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
    n_views: int | None = None,
    compiled: bool = False,
    **options,
) -> list[dict]:
    """Train the whole model on random views of the images.

    Epoch e sees view (views_seed, e, index) of each image.

    n_views: how many views there are, which the epochs see in turn; one per epoch unless given.
    compiled: run the network through torch.compile, on a GPU in CUDA graphs, one for each batch size.  What
    does not call it as a whole, such as a CAL teacher's attention or a loss on features, is not compiled.
    options: those of `fit`.
    """
    if compiled:
        model.net.compile(mode="reduce-overhead", dynamic=False)

    @functools.lru_cache(1)
    def sample_crops(view):
        return images.epoch(views_seed, view)

    def inputs(epoch, index):
        return images.batch(index, sample_crops(epoch if n_views is None else epoch % n_views))

    options["index_device"] = images.index_device
    return fit(model, inputs, images.labels, objective, recipe, **options)


def accuracy(model: Classifier, images: Images, subset: Tensor | None = None) -> tuple[float, Tensor]:
    """Top-1 accuracy on centre crops in eval mode, and the logits (N, C) that it comes from.

    A CAL teacher's logits are means over eight views.

    subset: indices of the images; all unless given.
    """
    logits = predict(model.eval().predict, images, subset=subset)
    labels = images.labels.cpu()
    return metrics.accuracy(logits, labels if subset is None else labels[subset]), logits


def check_head(model: Classifier, images: Images) -> None:
    """Raise StudyError unless the model's logits are its last layer's on its pooled features.

    They may differ by a thousandth of the largest logit; on a GPU, in bf16, by a hundredth.
    """
    x = images.batch(torch.arange(min(2, len(images))), images.centre())
    with torch.inference_mode():
        logits = model.eval()(x)
        head_logits = model.features_and_logits(x)[1]
    tolerance = (1e-2 if x.is_cuda else 1e-3) * logits.abs().max()
    if not (logits - head_logits).abs().max() <= tolerance:
        raise StudyError(
            f"'{type(model.net).__name__}' has more than its last layer after the pooled "
            "features: neither recipe FZ nor a loss on features applies to it"
        )


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with classical momentum, or AdamW, by timm; on a GPU in one kernel for many weights.

    Biases, other weights of one dimension (norms, scales) and what the network itself exempts are not
    decayed, as in timm's `create_optimizer`, which the released code of arXiv 2605.15689 calls.  timm would
    ask the model itself for exemptions, which here may be one part of what is trained.
    """
    exempt = set()
    for place, module in model.named_modules():
        if isinstance(module, Classifier):
            exempt |= {f"{place}.{name}".lstrip(".") for name in module.no_weight_decay()}
    groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=exempt)
    name = {"sgd": "momentum", "adamw": "adamw"}[recipe.optimizer]  # timm's 'sgd' is Nesterov's
    fused = next(model.parameters()).is_cuda or None
    (lr,) = recipe.rates
    return create_optimizer_v2(groups, name, lr=lr, momentum=recipe.momentum, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, *, step: int, steps: int) -> None:
    """Set the rate of a step out of `steps`: linear warm-up, then a cosine from lr to min_lr."""
    (peak,) = recipe.rates
    warm = min(recipe.warmup_steps, steps - 1)
    if step < warm:
        lr = peak * (step + 1) / warm
    else:
        low = min(recipe.min_lr, peak)
        lr = low + (peak - low) * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2
    for group in optimizer.param_groups:
        group["lr"] = lr
