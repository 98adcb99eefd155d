"""The training loop: resumable bit for bit, its rate as planned, loud when it diverges; image passes."""

import itertools
import math

import numpy as np
import pytest
import torch
import trainings
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fgkd.analysis.records import write_bytes
from fgkd.data import views
from fgkd.data.datasets import Split
from fgkd.distillation import checkpoint as checkpoints
from fgkd.distillation import jobs, training
from fgkd.models import cal, classifier
from fgkd.study import Distillation, Model, Recipe, Sizes, StudyError

CPU = torch.device("cpu")
SIZES = Sizes(resize=36, crop=32)


class Huge(np.memmap):
    """A memory map that says it is larger than any memory."""

    nbytes = 2**50


def points(n=48, classes=3, *, seed=0):
    """Noisy points around a centre for each class: (n, 4) and labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return torch.eye(classes, 4)[labels] * 3 + torch.randn(n, 4, generator=generator), labels


def network(seed=0):
    """With BatchNorm and dropout, so that a resumed training has states and draws to get wrong."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
        )


def fit(model, x, labels, checkpoint, *, inputs=None, **values):
    recipe = Recipe(**({"epochs": 6, "batch_size": 10, "lr": 0.05, "warmup_steps": 3} | values))
    return training.fit(
        model,
        inputs or (lambda epoch, index: x[index]),
        labels,
        training.cross_entropy(labels),
        recipe,
        seed=11,
        checkpoint=checkpoint,
    )


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Where a training saves its state, here after every step."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", -1)
    return tmp_path / "checkpoint.pt"


@pytest.fixture
def split(tmp_path):
    rng = np.random.default_rng(2)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (20, 36, 36, 3), dtype=np.uint8))
    return Split(
        np.load(tmp_path / "images.npy", mmap_mode="r"), np.arange(20) % 4, tuple(map(str, range(20)))
    )


@pytest.fixture
def images(split):
    return training.Images(split, SIZES, CPU)


def model(name="test_byobnet", classes=4, **options):
    return classifier.build(Model(key="x", model=name, options=options), classes, crop=32, seed=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("killed_in", [0, 1, 4, 5])
@pytest.mark.fault("a training killed")
def test_a_killed_and_resumed_training_equals_an_uninterrupted_one_bit_for_bit(
    checkpoint, tmp_path, optimizer, killed_in
):
    x, labels = points()
    whole, broken, resumed = network(), network(), network(seed=9)
    expected = fit(whole, x, labels, tmp_path / "other.pt", optimizer=optimizer)

    def killed(epoch, index):
        if epoch == killed_in and killed.calls == 2:
            raise KeyboardInterrupt
        killed.calls += epoch == killed_in
        return x[index]

    killed.calls = 0
    with pytest.raises(KeyboardInterrupt):
        fit(broken, x, labels, checkpoint, inputs=killed, optimizer=optimizer)
    assert checkpoint.exists()
    assert fit(resumed, x, labels, checkpoint, optimizer=optimizer) == expected
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


@pytest.mark.fault("a checkpoint cut short")
@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_checkpoint_that_cannot_be_read_is_named_and_the_training_begins_anew(
    checkpoint, tmp_path, capsys, kept
):
    x, labels = points()
    expected = fit(network(), x, labels, checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:kept])
    assert fit(network(), x, labels, checkpoint) == expected
    assert "checkpoint 'checkpoint.pt' cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("kind", trainings.KINDS)
@pytest.mark.fault("a training killed")
def test_a_training_equals_a_plain_loop_whether_or_not_it_is_killed(checkpoint, tmp_path, monkeypatch, kind):
    """To the last bit: where indices, views, labels and answers lie changes nothing."""
    whole, resumed, plain = (trainings.network(kind) for _ in range(3))
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 30)
    history = trainings.train(kind, whole, tmp_path / "other.pt")
    assert history == plainly(kind, plain)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", -1)
    kill_at_write(monkeypatch, 6 + (trainings.KEPT if kind == "FZ" else 0))  # FZ writes its features first
    with pytest.raises(KeyboardInterrupt):
        trainings.train(kind, trainings.network(kind), checkpoint)
    monkeypatch.setattr(checkpoints, "write_bytes", write_bytes)
    # of the four of the second epoch
    assert torch.load(checkpoint, weights_only=True)["begun"]["steps"] == 2
    assert trainings.train(kind, resumed, checkpoint) == history
    for other in (resumed, plain):
        assert all(map(torch.equal, whole.state_dict().values(), other.state_dict().values()))


def kill_at_write(monkeypatch, number):
    """Interrupt a training when it has written that many checkpoints."""
    files = []

    def write(file, content):
        write_bytes(file, content)
        files.append(file)
        if len(files) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "write_bytes", write)


def plainly(kind, net):
    """What `trainings.train` does, in a loop that slices, looks up and draws batch by batch."""
    pixels, labels = torch.from_numpy(np.array(trainings.images("cpu").split.images)), torch.arange(20) % 4
    bank = {name: torch.from_numpy(array) for name, array in trainings.stored().items()}
    recipe, history, last = trainings.recipe(kind), [], net
    frozen = (
        [net.eval().features_and_logits(cut(pixels, epoch))[0].detach() for epoch in range(2)]
        if kind == "FZ"
        else []
    )
    if kind == "FZ":
        last = net.head
    weights = [*last.parameters()]
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [w for w in weights if w.ndim == 1], "weight_decay": 0},
    ]
    sgd = recipe.optimizer == "sgd"
    optimizer = torch.optim.SGD(groups, lr=1, momentum=0.9) if sgd else torch.optim.AdamW(groups, lr=1)
    net.train(kind != "FZ")
    for epoch in range(3):
        torch.manual_seed(trainings.SEED + epoch)
        order = np.random.default_rng([trainings.SEED, epoch]).permutation(20)
        sums, hits = {}, 0
        for number, index in enumerate(np.array_split(order, 4), 4 * epoch):
            fallen = 1e-5 + (0.02 - 1e-5) * (1 + math.cos(math.pi * (number - 2) / 10)) / 2
            for group in optimizer.param_groups:
                group["lr"] = 0.02 * (number + 1) / 2 if number < 2 else fallen
            said = {name: array[epoch % 2, index] for name, array in bank.items()}
            if kind == "FZ":
                logits = net.head(frozen[epoch % 2][index])
                parts = {"ce": F.cross_entropy(logits, labels[index])}
            else:
                logits, parts = loss(kind, net, cut(pixels, epoch)[index], labels[index], said, epoch, index)
            optimizer.zero_grad()
            sum(parts.values()).backward()
            nn.utils.clip_grad_norm_(weights, 1)
            optimizer.step()
            for name, part in parts.items():
                sums[name] = sums.get(name, 0) + part.detach() * len(index)
            hits += (logits.argmax(1) == labels[index]).sum().item()
        means = {name: total.item() / 20 for name, total in sums.items()}
        history.append({"epoch": epoch} | means | {"train_accuracy": hits / 20})
    return history


def cut(pixels, epoch):
    """The views of all images in an epoch, one after the other."""
    seen, found = views.sample_views(20, seed=trainings.VIEWS_SEED, epoch=epoch, resize=72, crop=64), []
    for image, top, left, flip in zip(pixels, seen.top, seen.left, seen.flip, strict=True):
        view = image[top : top + 64, left : left + 64]
        found.append(view.flip(1) if flip else view)
    return torch.stack(found).permute(0, 3, 1, 2)


def loss(kind, net, x, y, said, epoch, index):
    """A batch's logits and the parts of its loss, by the formulas of the papers."""
    if kind == "CAL":
        raw, drawn = net.attend(x), views.draw_attention(20, seed=trainings.SEED, epoch=epoch)[index]
        boxes, maps = cal.plan(raw.maps.detach(), drawn, 64)
        more = net.attend(torch.cat([views.crop(x, boxes), views.drop(x, maps)]))
        effects = torch.cat([raw.effects, more.effects])
        parts = cal.loss(raw.logits, more.logits, effects, y, raw.features, net.attention.nearest(y))
        net.attention.step(raw.features.detach(), y)
        return raw.logits, parts
    logits = net(x)
    parts = {"ce": F.cross_entropy(logits, y)}
    if kind != "CE":
        parts["kd"] = 10 * soft(logits, said["logits"])
    if kind == "TGDA":
        more = net(torch.cat([views.crop(x, said["boxes"]), views.drop(x, said["maps"])]))
        parts["kd"] = parts["kd"] / 2
        parts["views"] = 10 * soft(more, torch.cat([said["crop"], said["drop"]]))
    return logits, parts


def soft(student, teacher):
    """KD at temperature 2."""
    pair = F.log_softmax(student / 2, 1), F.log_softmax(teacher.float() / 2, 1)
    return 4 * F.kl_div(*pair, reduction="batchmean", log_target=True)


class Host(TorchDispatchMode):
    """Notes each operation that reads or writes a tensor of the CPU, or makes one of Python's numbers."""

    def __init__(self):
        super().__init__()
        self.seen, self.operations = [], 0

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        found = operation(*given, **(named or {}))
        tensors = [leaf for leaf in tree_leaves((given, named, found)) if isinstance(leaf, torch.Tensor)]
        self.operations += 1
        if "lift_fresh" in str(operation) or any(tensor.device == CPU for tensor in tensors):
            self.seen.append(str(operation))
        return found


@pytest.mark.parametrize("kind", (*trainings.KINDS, *trainings.AUXILIARY))
def test_no_step_touches_the_memory_of_the_cpu(tmp_path, monkeypatch, kind):
    """On PyTorch's device without memory: what lies there is on no CPU, and cannot be asked for its values.

    A training ends there with its first epoch, whose losses are asked for.
    """
    host, recipe, autocast = Host(), Recipe(epochs=3, batch_size=5), torch.autocast
    watched = trainings.Steps(host, monkeypatch)
    # That device has no autocast, and a check of the head that looks at values.
    monkeypatch.setattr(torch, "autocast", lambda kind, *dtype, enabled: autocast("cuda", enabled=False))
    monkeypatch.setattr(training, "check_head", lambda model, images: None)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"item.*meta|meta.*item"):
        net = trainings.network(kind).to("meta")
        trainings.train(kind, net, tmp_path / "c", device="meta", with_recipe=recipe)
    assert host.seen == [] and watched.number == 3 and host.operations > 20


def on_disk(on):
    """The images of `trainings.images`, that seem to fit no memory."""
    split = trainings.images("cpu").split
    huge = Split(split.images.view(Huge), split.labels, split.names)
    return training.Images(huge, trainings.SIZES, torch.device(on))


def test_images_on_the_disk_are_found_by_indices_on_the_cpu(tmp_path, monkeypatch):
    """And the rest of the step by those on the device."""
    seen, huge = trainings.images("meta"), on_disk("meta")
    assert huge.resident is None and (huge.index_device, seen.index_device) == (CPU, torch.device("meta"))
    host = Host()
    trainings.Steps(host, monkeypatch)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"item.*meta|meta.*item"):
        net = trainings.network("CE").to("meta")
        trainings.train("CE", net, tmp_path / "c", device="meta", source=huge)
    copied = [name for name in host.seen if "_to_copy" in name]
    assert len(copied) == 2 * 2  # of the two steps watched: the pixels, and where their views are


def test_images_on_the_disk_train_as_those_in_memory_do(tmp_path):
    nets, sources = [trainings.network("CE") for _ in range(2)], (trainings.images("cpu"), on_disk("cpu"))
    assert [seen.resident is None for seen in sources] == [False, True]
    histories = [
        trainings.train("CE", net, tmp_path / "c", source=source)
        for net, source in zip(nets, sources, strict=True)
    ]
    assert histories[0] == histories[1]
    assert all(map(torch.equal, nets[0].state_dict().values(), nets[1].state_dict().values()))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_gpus_checkpoint_leaves_its_kind_of_optimizer_behind(checkpoint, optimizer):
    """On a GPU one kernel updates all weights; what it wrote says so, and must not hold on a CPU."""
    x, labels = points()
    net, recipe = network(), Recipe(optimizer=optimizer)
    fit(net, x, labels, checkpoint, optimizer=optimizer)
    state = torch.load(checkpoint, weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = True
    torch.save(state, checkpoint)
    resumed = training.make_optimizer(net, recipe)
    checkpoints.Checkpoint(checkpoint, net, resumed)
    assert {group["fused"] for group in resumed.param_groups} == {None}


def test_a_killed_training_goes_on_in_the_middle_of_an_epoch(checkpoint, tmp_path):
    x, labels = points()
    whole, calls = [], []
    fit(
        network(),
        x,
        labels,
        tmp_path / "other.pt",
        inputs=lambda epoch, index: (whole.append(epoch), x[index])[1],
    )

    def inputs(epoch, index):
        calls.append(epoch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return x[index]

    with pytest.raises(KeyboardInterrupt):
        fit(network(), x, labels, checkpoint, inputs=inputs)
    fit(network(), x, labels, checkpoint, inputs=inputs)
    assert (
        whole.count(0) > 4 and calls == whole[:3] + whole[3:4] + whole[3:]
    )  # the step that was killed, again


@pytest.mark.fault("a training that moves to another device")
def test_a_training_goes_on_elsewhere_than_it_began(checkpoint):
    """A GPU's checkpoint holds the state of its own random numbers too, a CPU's does not."""
    x, labels = points()
    expected, calls = fit(network(), x, labels, checkpoint.with_name("other.pt")), []

    def killed(epoch, index):
        calls.append(epoch)
        if calls.count(2) == 2:
            raise KeyboardInterrupt
        return x[index]

    with pytest.raises(KeyboardInterrupt):
        fit(network(), x, labels, checkpoint, inputs=killed)
    state = torch.load(checkpoint, weights_only=True)
    state["begun"]["random"].append(torch.zeros(16, dtype=torch.uint8))
    torch.save(state, checkpoint)
    assert fit(network(), x, labels, checkpoint) == expected
    own = torch.get_rng_state()
    checkpoints.set_random_state([own], torch.device("cuda"))
    assert torch.equal(torch.get_rng_state(), own)


def test_a_resumed_training_does_not_repeat_epochs(checkpoint):
    x, labels = points()
    fit(network(), x, labels, checkpoint)
    seen = []
    fit(network(), x, labels, checkpoint, inputs=lambda epoch, index: (seen.append(epoch), x[index])[1])
    assert not seen  # that of a training which had ended is kept until its job's record is written


def test_no_checkpoint_is_written_before_its_time(tmp_path):
    x, labels = points()
    fit(network(), x, labels, tmp_path / "checkpoint.pt")
    assert not list(tmp_path.iterdir())


def test_another_seed_gives_another_training(tmp_path):
    x, labels = points()
    objective = training.cross_entropy(labels)

    def run(seed):
        options = {"seed": seed, "checkpoint": tmp_path / "c"}
        return training.fit(network(), lambda e, i: x[i], labels, objective, Recipe(epochs=1), **options)

    assert run(1) == run(1) != run(2)


def test_an_easy_task_is_learnt(tmp_path):
    x, labels = points(n=90)
    history = fit(network(), x, labels, tmp_path / "c", epochs=15)
    assert [row["epoch"] for row in history] == list(range(15))
    assert history[-1]["ce"] < history[0]["ce"] / 2 and history[-1]["train_accuracy"] > 0.85


def test_a_row_is_the_mean_over_samples(tmp_path):
    x, labels = points(n=25)
    layer = nn.Linear(4, 3)
    (row,) = fit(layer, x, labels, tmp_path / "c", epochs=1, lr=1e-12)
    assert row["ce"] == pytest.approx(F.cross_entropy(layer(x), labels).item(), rel=1e-5)
    assert row["train_accuracy"] == pytest.approx((layer(x).argmax(1) == labels).float().mean().item())


@pytest.mark.parametrize("spoil", ["lr", "inputs"])
@pytest.mark.fault("a training that diverges")
def test_a_training_that_diverges_names_its_epoch_and_learning_rate(tmp_path, spoil):
    x, labels = points()
    lr = 1e38 if spoil == "lr" else 0.05
    inputs = (lambda epoch, index: x[index] * (math.nan if epoch == 2 else 1)) if spoil == "inputs" else None
    where = "epoch 2" if spoil == "inputs" else "epoch [01]"
    with pytest.raises(
        FloatingPointError,
        match=rf"training diverged in {where}: .*Lower the learning rate \(now {lr:g}".replace("+", r"\+"),
    ):
        fit(network(), x, labels, tmp_path / "c", inputs=inputs, lr=lr)


@pytest.mark.parametrize("warmup, epochs", [(4, 3), (0, 3), (100, 2)])
def test_the_rate_rises_linearly_then_falls_as_a_cosine(tmp_path, warmup, epochs):
    """With gradient 1 a weight moves by the learning rate in each step."""
    layer, seen, recipe = (
        nn.Linear(1, 1, bias=False).double(),
        [],
        Recipe(epochs=epochs, batch_size=2, lr=0.5, min_lr=0.1, momentum=0, warmup_steps=warmup, clip=10),
    )

    def objective(model, x, epoch, index):
        seen.append(layer.weight.item())
        return model(x), {"weight": layer(x).mean()}

    training.fit(
        layer,
        lambda e, i: torch.ones(len(i), 1, dtype=torch.double),
        torch.zeros(8, dtype=torch.long),
        objective,
        recipe,
        seed=0,
        checkpoint=tmp_path / "c",
    )
    rates = -np.diff([*seen, layer.weight.item()])
    steps = 4 * epochs
    warm = min(warmup, steps - 1)
    assert len(rates) == steps
    if warm:
        assert rates[0] == pytest.approx(0.5 / warm) and rates[warm - 1] == pytest.approx(0.5)
    assert rates[warm] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(
        0.1 + 0.4 * (1 + math.cos(math.pi * (steps - 1 - warm) / (steps - warm))) / 2
    )
    if warmup == 4:
        assert rates[8] == pytest.approx(0.3)


def test_a_minimum_above_the_rate_does_not_raise_it(tmp_path):
    layer = nn.Linear(1, 1, bias=False).double()
    start = layer.weight.item()
    recipe = Recipe(epochs=2, batch_size=4, lr=0.001, min_lr=0.1, momentum=0)
    training.fit(
        layer,
        lambda e, i: torch.ones(len(i), 1, dtype=torch.double),
        torch.zeros(4, dtype=torch.long),
        lambda m, x, e, i: (m(x), {"weight": m(x).mean()}),
        recipe,
        seed=0,
        checkpoint=tmp_path / "c",
    )
    assert layer.weight.item() == pytest.approx(start - 0.002)


@pytest.mark.parametrize(
    "n, batch", [(33, 32), (32, 32), (65, 32), (31, 32), (7, 3), (2, 32), (15, 2), (3, 2)]
)
def test_every_sample_is_used_once_an_epoch_in_batches_of_two_or_more(tmp_path, n, batch):
    x, labels = points(n=n)
    seen = []
    fit(
        network(),
        x,
        labels,
        tmp_path / "c",
        inputs=lambda e, i: (seen.append(i), x[i])[1],
        epochs=1,
        batch_size=batch,
    )
    assert sorted(torch.cat(seen).tolist()) == list(range(n))
    assert min(map(len, seen)) >= 2 and max(map(len, seen)) <= max(batch, 3)


def test_batches_are_those_of_before_but_where_one_image_was_alone():
    changed = set()
    for n, batch in itertools.product(range(2, 400), range(1, 70)):
        before = math.ceil(n / batch)
        if training.count_batches(n, batch) != before:
            changed.add((n % 2, batch))
            assert n // before == 1
    assert changed == {(1, 2)}


@pytest.mark.parametrize("n, batch", [(6, 1), (1, 4)])
def test_a_batch_of_one_is_refused_where_it_has_no_spread(n, batch, tmp_path):
    x, labels = points(n=n)
    with_norm = nn.Sequential(nn.BatchNorm1d(x.shape[1]), nn.Linear(x.shape[1], 4))
    with pytest.raises(StudyError, match=f"batch_size {batch} of {n} training images"):
        fit(with_norm, x, labels, tmp_path / "c", epochs=1, batch_size=batch)
    assert len(fit(with_norm[1], x, labels, tmp_path / "c", epochs=1, batch_size=batch)) == 1


def test_only_the_samples_that_are_named_are_trained_on(tmp_path):
    x, labels = points()
    seen, subset = [], torch.arange(3, 48, 2)
    expected = fit(network(), x[subset], labels[subset], tmp_path / "c", epochs=2)
    recipe = Recipe(epochs=2, batch_size=10, lr=0.05, warmup_steps=3)
    found = training.fit(
        network(),
        lambda e, i: (seen.append(i), x[i])[1],
        labels,
        training.cross_entropy(labels),
        recipe,
        seed=11,
        checkpoint=tmp_path / "c",
        subset=subset,
    )
    assert found == expected and sorted(torch.cat(seen).tolist()) == sorted(2 * subset.tolist())


@pytest.mark.parametrize("counts", [[10, 5, 30], [1, 2, 3, 7, 8], [3]])
def test_a_search_holds_out_a_fifth_of_each_class(counts):
    labels = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts)))
    used, held = jobs.hold_out(labels, 5)
    assert (
        sorted([*used.tolist(), *held.tolist()]) == list(range(len(labels)))
        and used.diff().gt(0).all()
        and held.diff().gt(0).all()
    )
    assert torch.bincount(labels[held], minlength=len(counts)).tolist() == [round(n / 5) for n in counts]


def test_what_a_search_holds_out_is_a_function_of_labels_and_seed():
    labels = torch.arange(200) % 4
    held = [jobs.hold_out(labels, seed)[1].tolist() for seed in (1, 1, 2)]
    assert held[0] == held[1] != held[2]
    assert jobs.hold_out(labels, 1)[1].ne(jobs.hold_out(labels.sort().values, 1)[1]).any()


def test_classes_too_small_to_hold_any_image_out_are_refused():
    with pytest.raises(StudyError, match=r"no class has more than 2 training images.*give a single lr"):
        jobs.hold_out(torch.tensor([0, 1, 1]), 0)


def test_the_order_of_samples_changes_from_epoch_to_epoch(tmp_path):
    x, labels = points()
    orders = {}
    fit(
        network(),
        x,
        labels,
        tmp_path / "c",
        inputs=lambda e, i: (orders.setdefault(e, []).extend(i.tolist()), x[i])[1],
        epochs=3,
    )
    assert len({tuple(order) for order in orders.values()}) == 3


def test_distillation_is_ce_plus_beta_kd_of_the_batchs_own_teacher_logits():
    labels, teacher = (
        torch.tensor([0, 1, 2, 0]),
        torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)),
    )
    logits, index = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 1])
    objective = training.distillation(
        labels,
        lambda images, epoch, index: {"logits": teacher[epoch, index]},
        Distillation(temperature=2, beta=10),
    )
    found, parts = objective(nn.Identity(), logits, 1, index)
    assert found is logits and set(parts) == {"ce", "kd"}
    assert parts["ce"].item() == pytest.approx(F.cross_entropy(logits, torch.tensor([0, 1])).item())
    soft = F.kl_div((logits / 2).log_softmax(1), (teacher[1, [3, 1]] / 2).softmax(1), reduction="batchmean")
    assert parts["kd"].item() == pytest.approx(10 * 4 * soft.item(), rel=1e-5)


@pytest.mark.parametrize("views_kept", [0, 1, 3])
def test_fz_changes_the_last_layer_and_nothing_else(images, tmp_path, views_kept):
    net = model()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    recipe = Recipe(epochs=3, lr=0.1, views=views_kept)
    kept = tmp_path / "features.pt"
    features = training.features(net, images, recipe, views_seed=1, title="FZ", checkpoint=kept)
    history = training.fit_head(net, images, features, recipe, seed=2, checkpoint=tmp_path / "c", title="FZ")
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if k.startswith(classifier.head_prefix(net))}
    assert (
        any("running_mean" in k for k in before) and len(history) == 3 and len(features) == (views_kept or 3)
    )


@pytest.mark.fault("features of FZ computed in part")
def test_features_of_fz_are_read_where_a_killed_run_has_left_them(images, tmp_path, monkeypatch):
    net = model()
    options = {"views_seed": 1, "title": "FZ", "checkpoint": tmp_path / "features.pt"}
    whole = training.features(net, images, Recipe(epochs=3, views=3), **options)
    (tmp_path / "features-1.pt").write_bytes(b"cut short")
    (tmp_path / "features-2.pt").unlink()
    passes = []
    parts = net.features_and_logits
    monkeypatch.setattr(net, "features_and_logits", lambda x: passes.append(len(x)) or parts(x))
    resumed = training.features(net, images, Recipe(epochs=3, views=3), **options)
    assert sum(passes) == 2 * len(images)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_fz_is_refused_where_more_than_the_last_layer_follows_the_features(images, tmp_path, monkeypatch):
    net = model()
    parts = type(net).features_and_logits
    monkeypatch.setattr(
        type(net), "features_and_logits", lambda self, x: (parts(self, x)[0], parts(self, x)[1] + 1)
    )
    with pytest.raises(
        StudyError, match=r"more than its last layer.*neither recipe FZ nor a loss on features"
    ):
        training.fit_head(net, images, [], Recipe(epochs=1), seed=2, checkpoint=tmp_path / "c", title="FZ")


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_a_head_is_judged_by_the_size_of_its_logits(images, monkeypatch, scale):
    """A hundred-thousandth of the largest is rounding, a tenth is another network, at any scale."""
    net = model()
    with torch.no_grad():
        net.head.weight.mul_(scale)
        net.head.weight[0] = 0
        net.head.bias.zero_()
    plain = type(net).features_and_logits

    def off_by(share):
        def features_and_logits(self, x):
            features, logits = plain(self, x)
            return features, logits + share * logits.abs().max()

        monkeypatch.setattr(type(net), "features_and_logits", features_and_logits)

    off_by(1e-5)
    training.check_head(net, images)
    off_by(0.1)
    with pytest.raises(StudyError, match="more than its last layer"):
        training.check_head(net, images)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_norms_biases_and_what_a_network_exempts_do_not_decay(tmp_path, optimizer):
    """Where the loss has no gradient only decay moves a weight: by 1 - lr * weight_decay in a step."""
    net = classifier.build(Model(key="x", model="test_vit3", options={"img_size": 32}), 4, crop=32, seed=0)
    extra = nn.Linear(4, 3)
    with torch.no_grad():
        for weight in (*net.parameters(), *extra.parameters()):
            weight.add_(1)
    before = {k: v.clone() for k, v in nn.ModuleList([net, extra]).named_parameters()}
    recipe = Recipe(epochs=1, batch_size=8, optimizer=optimizer, lr=0.1, weight_decay=0.5)

    def still(trained, x, epoch, index):
        logits = extra(trained(x))
        return logits, {"still": 0 * logits.sum()}

    x, labels = torch.zeros(8, 3, 32, 32), torch.zeros(8, dtype=torch.long)
    options = {"seed": 0, "checkpoint": tmp_path / "c", "auxiliary_loss": extra}
    training.fit(net, lambda epoch, index: x[index], labels, still, recipe, **options)
    after = dict(nn.ModuleList([net, extra]).named_parameters())
    used = {k for k, v in after.items() if v.grad is not None}
    kept = {k for k in used if torch.equal(after[k], before[k])}
    assert {"0.net.pos_embed", "0.net.reg_token", "0.net.norm.weight", "0.net.head.bias", "1.bias"} <= kept
    assert {"1.weight", "0.net.head.weight", "0.net.blocks.0.attn.qkv.weight"} <= used - kept
    assert all(k in kept or after[k].ndim > 1 for k in used)
    for name in used - kept:
        torch.testing.assert_close(after[name], 0.95 * before[name])


def test_of_the_smallest_students_93_weights_60_do_not_decay():
    optimizer = training.make_optimizer(model("lcnet_035"), Recipe(optimizer="adamw", weight_decay=0.05))
    weights = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert {decay: len(found) for decay, found in weights.items()} == {0: 60, 0.05: 33}
    assert {weight.ndim for weight in weights[0]} == {1}


def test_training_on_images_sees_the_views_of_its_seed_and_epoch(images, tmp_path):
    seen = {}

    def objective(model, x, epoch, index):
        seen[epoch] = (x.clone(), index)
        return training.cross_entropy(images.labels)(model, x, epoch, index)

    training.fit_images(
        model(),
        images,
        objective,
        Recipe(epochs=2, batch_size=32, lr=0.01),
        views_seed=7,
        seed=2,
        checkpoint=tmp_path / "c",
        title="FT",
    )
    for epoch, (x, index) in seen.items():
        drawn = views.sample_views(20, seed=7, epoch=epoch, resize=36, crop=32)
        assert torch.equal(
            x, views.crop_batch(torch.from_numpy(np.array(images.split.images))[index], drawn[index], 32)
        )
    assert set(seen) == {0, 1}


def test_images_too_large_for_memory_give_the_same_batches_from_the_disk(split, images):
    huge = Split(split.images.view(Huge), split.labels, split.names)
    mapped = training.Images(huge, SIZES, CPU)
    assert mapped.resident is None and images.resident is not None
    seen, index = images.epoch(3, 1), torch.tensor([19, 0, 7, 7])
    assert torch.equal(mapped.batch(index, seen), images.batch(index, seen))
    assert torch.equal(mapped.labels, images.labels) and len(mapped) == 20


def test_an_image_files_pixels_survive_whatever_is_done_to_a_batch(images):
    before = images.resident.clone()
    images.batch(torch.arange(20), images.centre()).zero_()
    assert torch.equal(images.resident, before)


@pytest.mark.parametrize("name", ["test_byobnet", "test_vit3"])
def test_predictions_do_not_depend_on_the_batch_size(images, monkeypatch, name):
    net = model(name, **({"img_size": 32} if name == "test_vit3" else {}))
    expected = training.predict(net.eval(), images)
    assert expected.shape == (20, 4) and expected.dtype == torch.float32
    for size in (1, 7):
        monkeypatch.setattr(training, "EVAL_BATCH", size)
        torch.testing.assert_close(training.predict(net, images), expected, rtol=1e-4, atol=1e-4)


def test_predictions_go_through_centre_crops_unless_other_views_are_given(images):
    net, index = model(), torch.arange(20)
    with torch.inference_mode():
        centre, other = (
            net.eval()(images.batch(index, seen)) for seen in (images.centre(), images.epoch(1, 0))
        )
    torch.testing.assert_close(training.predict(net, images), centre)
    torch.testing.assert_close(training.predict(net, images, images.epoch(1, 0)), other)


def test_accuracy_is_that_of_the_logits_it_gives(images):
    net = model()
    share, logits = training.accuracy(net, images)
    assert not net.training and share == (logits.argmax(1) == images.labels).float().mean().item()
    only = torch.tensor([19, 3, 4])
    share, some = training.accuracy(net, images, only)
    torch.testing.assert_close(some, logits[only])
    assert share == pytest.approx((logits[only].argmax(1) == images.labels[only]).float().mean().item())


@pytest.mark.fault("an absent GPU")
def test_a_gpu_that_is_absent_is_an_error_and_auto_takes_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert training.device("auto") == training.device("cpu") == CPU
    with pytest.raises(StudyError, match=r"device is 'cuda'.*no GPU.*'device: cpu'"):
        training.device("cuda")


def test_a_gpu_that_is_there_is_taken_where_the_study_allows_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training.device("auto").type == training.device("cuda").type == "cuda"
    assert training.device("cpu") == CPU
