"""A small training of each kind on any device, for tests of what its steps compute and where."""

import numpy as np
import torch

from fgkd.data.datasets import Split
from fgkd.distillation import bank, losses, training
from fgkd.models import cal, classifier
from fgkd.study import Distillation, Loss, Model, Recipe, Sizes

KINDS = ("CE", "KD", "TGDA", "CAL", "FZ")
AUXILIARY = ("dkd", "rkd", "pkt", "hint", "crd")
SIZES = Sizes(resize=72, crop=64)  # the network maps it to 2 x 2 places, for CAL to choose from
N, CLASSES, STORED, KEPT = 20, 4, 2, 2  # images, classes, views of the bank, views of FZ
RECIPE = Recipe(epochs=3, batch_size=5, lr=0.02, weight_decay=0.1, warmup_steps=2)
SEED, VIEWS_SEED = 2, 7  # of the order and whatever else a step draws, and of the views


def images(on):
    """Random pixels, the same each time."""
    pixels = np.random.default_rng(1).integers(0, 256, (N, 72, 72, 3), dtype=np.uint8)
    return training.Images(Split(pixels, np.arange(N) % CLASSES, ("",) * N), SIZES, torch.device(on))


def stored():
    """What a CAL teacher might have said: the arrays of a bank of two views."""
    rng = np.random.default_rng(3)
    low, size = rng.integers(0, 32, (STORED, N, 2)), rng.integers(16, 32, (STORED, N, 2))
    shape = (STORED, N, CLASSES)
    said = {name: rng.normal(size=shape).astype(np.float16) for name in ("logits", "crop", "drop")}
    maps = rng.uniform(0, 2, (STORED, N, 4, 4)).astype(np.float16)
    return said | {"boxes": np.concatenate([low, low + size], 2).astype(np.int16), "maps": maps}


def network(kind):
    """The network before its training, on the CPU."""
    net = classifier.build(Model(key="x", model="test_byobnet"), CLASSES, crop=SIZES.crop, seed=0)
    if kind != "CAL":
        return net
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return cal.CAL(net.net, CLASSES, 3)


def recipe(kind):
    """Students learn by AdamW, teachers by SGD."""
    if kind in ("CE", "CAL", "FZ"):
        return RECIPE
    return RECIPE.model_copy(update={"optimizer": "adamw"})


def train(kind, model, checkpoint, *, device="cpu", source=None, with_recipe=None):
    """Train `model`, which lies on the device, as `kind` says; returns the history.

    kind: one of KINDS, or one of AUXILIARY, a loss on logits added to KD; source: the images, all in memory
    unless given; with_recipe: that of the kind unless given.
    """
    source = images(device) if source is None else source
    with_recipe = with_recipe or recipe(kind)
    options = {"seed": SEED, "checkpoint": checkpoint}
    if kind == "FZ":
        kept = checkpoint.with_name(f"{checkpoint.name}-features.pt")
        of = {"views_seed": VIEWS_SEED, "title": "FZ", "checkpoint": kept}
        features = training.features(model, source, Recipe(epochs=KEPT), **of)
        return training.fit_head(model, source, features, with_recipe, **options)
    match kind:
        case "CE":
            objective = training.cross_entropy(source.labels)
        case "CAL":
            objective = training.attention(source.labels, SEED)
        case _:
            objective, options["auxiliary_loss"] = _student(kind, source.labels, checkpoint.parent)
    return training.fit_images(model, source, objective, with_recipe, views_seed=VIEWS_SEED, **options)


def _student(kind, labels, folder):
    """The objective of a student of the stored bank, and its auxiliary loss, if any."""
    files = tuple(folder / f"{view}.safetensors" for view in range(STORED))
    for view, file in enumerate(files):
        bank.write_view(file, {name: torch.from_numpy(array[view]) for name, array in stored().items()}, {})
    teacher = bank.Bank(files, labels.device)
    auxiliary_loss = None
    if kind in AUXILIARY:
        spec = Loss(
            key=kind, loss=kind, options={"dkd": {"alpha": 1, "beta": 8, "temperature": 4}}.get(kind, {})
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            auxiliary_loss = losses.AuxiliaryLoss(spec, CLASSES, CLASSES, torch.arange(N) % CLASSES)
        auxiliary_loss.to(labels.device)

    def outputs(x, epoch, index):
        return teacher.outputs(epoch, index)

    options = {"augmented": kind == "TGDA", "auxiliary_loss": auxiliary_loss}
    kd = Distillation(temperature=2, beta=10)
    return training.distillation(labels, outputs, kd, **options), auxiliary_loss


class Steps:
    """Enters a context at the beginning of the second step of a training, and leaves it at the beginning of
    the last one of its first epoch: around whole steps, once all is there that is made but once.

    number: of the last step that has begun.
    """

    def __init__(self, context, monkeypatch):
        self.context, self.number, plain = context, 0, training.set_learning_rate

        def begin(optimizer, recipe, *, step, steps):
            if step == 1:
                context.__enter__()
            if step == steps // recipe.epochs - 1:
                context.__exit__(None, None, None)
            self.number = max(self.number, step)
            plain(optimizer, recipe, step=step, steps=steps)

        monkeypatch.setattr(training, "set_learning_rate", begin)
