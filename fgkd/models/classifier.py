"""Teachers and students: timm networks, each fed its own normalisation.

The normalisation is part of the model, so that a teacher and a student with different means see the same
view, and a saved model can be used on raw pixels.

What timm's config.json beside a weights file says of the network counts: its architecture, mean, std and
`model_args`, over which an entry's own `options` go.  What it says of images does not, as it does not where
timm's own weights are named: their size is that of the study's views or of the entry's `resolution`, they are
squashed and resized by bicubic interpolation (see `data.views`), and its head's classes are replaced.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.nn import functional as F

from fgkd.analysis.records import write_bytes
from fgkd.models import van  # noqa: F401  (registers VAN with timm)
from fgkd.study import Model, StudyError, check_weights, contents

SLOW_IMPORT = 10  # seconds after which a plugin that is being imported is named


class Classifier(nn.Module):
    """A timm network with its normalisation: images (N, 3, S, S), 0 to 255 -> logits (N, C).

    The last layer computes in fp32 under autocast too, in place, whatever the network does before and after
    it: in bf16 logits have three digits, so that the two largest of an image are often equal.
    """

    net: Any  # an nn.Module with the methods of timm's networks
    mean: Tensor
    std: Tensor

    def __init__(self, net: Any, resolution: int = 0):
        """net: the timm network; resolution: side in pixels to which it resizes images, 0 for none."""
        super().__init__()
        self.resolution = resolution
        if not hasattr(net, "get_classifier"):
            raise StudyError(
                f"'{type(net).__name__}' has no get_classifier(): expected timm's method that "
                "gives the last layer; add it to the network"
            )
        self.net = net
        last = net.get_classifier()
        if isinstance(last, nn.Module):
            last.forward = functools.partial(_compute_in_fp32, last.forward)
        for name in ("mean", "std"):
            pixels = 255 * torch.tensor(net.pretrained_cfg[name]).view(1, 3, 1, 1)
            self.register_buffer(name, pixels, persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Resize to the network's own resolution, normalise by its mean and std, channels last."""
        if self.resolution not in (0, images.shape[-1]):
            size = (self.resolution, self.resolution)
            images = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def autocast(images: Tensor) -> torch.autocast:
        """bf16 on a GPU except in the last layer, fp32 on a CPU."""
        return torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda)

    def forward(self, images: Tensor) -> Tensor:
        with self.autocast(images):
            logits = self.net(self.normalize(images))
        return logits.float()

    def predict(self, images: Tensor) -> Tensor:
        """The logits (N, C) that accuracy is measured by."""
        return self(images)

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features before the last layer, fp32 (N, D), and its logits (N, C) of them."""
        with self.autocast(images):
            feature_map = self.net.forward_features(self.normalize(images))
            features = self.net.forward_head(feature_map, pre_logits=True)
        features = features.float()
        return features, Head(self.head)(features)

    @property
    def head(self) -> nn.Module:
        """The network's last layer: linear, or a 1 x 1 convolution."""
        layer = self.net.get_classifier()
        if not isinstance(layer, nn.Module):
            raise StudyError(
                f"'{type(self.net).__name__}' has {len(layer)} heads: expected one; "
                "for LeViT and DeiT set 'options: {distilled: false}'"
            )
        return layer

    def no_weight_decay(self) -> set[str]:
        """Names of the weights that the network itself exempts, such as a transformer's positions."""
        exempt = self.net.no_weight_decay() if hasattr(self.net, "no_weight_decay") else ()
        return {f"net.{name}" for name in exempt}


class Head(nn.Module):
    """The last layer of a classifier on its own: features (N, D) -> logits (N, C)."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, features: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Conv2d):
            features = features[:, :, None, None]
        return self.layer(features).flatten(1)


def build(spec: Model, classes: int | None, *, crop: int, seed: int, start: bool = True) -> Classifier:
    """Build the network of `spec` with a new head, in train mode, on the CPU.

    A file's weights are loaded strictly, all but the head, into the network that config.json beside it says.

    classes: of the head; None keeps the head of pretrained weights.
    crop: the side of its views, pixels; with a resolution of its own the network resizes them.
    seed: of the random initialisation.
    start: with the weights of `spec`; without, random ones of the same network, such as others go into.
    Raises StudyError for a name that timm does not know and for weights that are absent or do not fit.
    """
    check_name(spec.model)
    if start:
        check_weights(spec)
    config = contents.config(spec.file) if spec.file else {}
    said = {"config.json beside them says": config, "their metadata say": metadata(spec.weights)}
    for source, words in said.items():
        named = words.get("architecture", spec.model)
        if named.partition(".")[0] != spec.model.partition(".")[0]:
            raise StudyError(
                f"weights '{spec.weights}' are of '{named}', as {source}, but 'model:' is '{spec.model}': "
                "name that network, or put the file elsewhere"
            )
    size = spec.resolution or crop
    arguments = config.get("model_args", {})
    options = arguments | ({"img_size": size} if "img_size" in arguments else {}) | spec.options
    weights = spec.weights if start else "none"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _create(spec.model_copy(update={"options": options, "weights": weights}), classes, size)
        if weights not in ("none", "pretext") and classes is not None:
            net.reset_classifier(classes)
    own = {name: tuple(config[name]) for name in ("mean", "std") if name in config}
    net.pretrained_cfg = dict(net.pretrained_cfg) | own
    return Classifier(net, spec.resolution).to(memory_format=torch.channels_last)


def check_name(name: str) -> None:
    """Raise StudyError unless timm (with the plugins imported so far) has the model and its tag."""
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models(), n=3)
        advice = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise StudyError(
            f"model '{name}' is not known to timm {timm.__version__}: {advice} "
            "A model of your own goes into 'plugins:'"
        )
    tags = [pretrained.partition(".")[2] for pretrained in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        expected = f"one of {', '.join(tags)}" if tags else "no tag"
        raise StudyError(f"model '{base}' has no tag '{tag}': expected {expected}")


def load_plugins(files: tuple[str, ...]) -> None:
    """Import each Python file once.

    It registers networks by timm's `register_model`, losses by `fgkd.distillation.losses.loss`.  One whose
    import takes long is named on standard error, since nothing else says what is waited for.
    Raises StudyError for a file that is no Python file, or whose import fails or ends the interpreter.
    """
    for file in files:
        name = f"fgkd_plugin_{hashlib.sha256(file.encode()).hexdigest()[:12]}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise StudyError(f"plugin '{file}' is not a Python file: expected a name that ends in .py")
        if os.path.exists(file) and not os.path.isfile(file):
            raise StudyError(f"plugin '{file}' is a folder, a device or a pipe: expected a Python file")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        words = f"plugin '{file}' is still being imported after {SLOW_IMPORT} seconds"
        timer = threading.Timer(SLOW_IMPORT, print, (words,), {"file": sys.stderr, "flush": True})
        timer.daemon = True
        timer.start()
        try:
            spec.loader.exec_module(module)
        except KeyboardInterrupt:
            del sys.modules[name]
            raise
        except BaseException as error:  # SystemExit, too, would end a command without a word
            del sys.modules[name]
            reason = f"{type(error).__name__}: {error}"
            raise StudyError(f"plugin '{file}' failed to import: {reason.rstrip(': ')}") from error
        finally:
            timer.cancel()


def metadata(file: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file; {} of another file, and of one that cannot be read."""
    if Path(file).suffix != ".safetensors":
        return {}
    try:
        with safe_open(file, "pt") as content:
            return content.metadata() or {}
    except (OSError, SafetensorError):  # loading it says so
        return {}


def save(model: nn.Module, file: Path) -> None:
    """Write a model's weights as safetensors, atomically."""
    write_bytes(file, to_bytes(model.state_dict()))


def to_bytes(values: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Tensors by name, on any device, as a safetensors file's bytes."""
    on_cpu = {name: value.contiguous().cpu() for name, value in values.items()}
    return safetensors.torch.save(on_cpu, metadata)


def restore(model: nn.Module, file: Path, *, skip: str = "") -> None:
    """Load weights that `save` wrote, strictly.

    skip: how the entries begin that keep their values, such as a head of other classes.
    Raises StudyError for a file that cannot be read or does not fit.
    """
    try:
        state = safetensors.torch.load_file(file)
    except (OSError, SafetensorError) as error:
        raise StudyError(
            f"weights '{file}' cannot be read: {error}. Delete the file to train it anew"
        ) from error
    if skip:
        state = {name: weight for name, weight in state.items() if not name.startswith(skip)}
        state |= {name: weight for name, weight in model.state_dict().items() if name.startswith(skip)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise StudyError(
            f"weights '{file}' do not fit the model: {_shorten(error)}. Delete the file to train it anew"
        ) from None


def head_prefix(model: Classifier) -> str:
    """The beginning of the names of the last layer's weights, 'net.head.fc.' for example."""
    return next(f"{name}." for name, module in model.named_modules() if module is model.head)


def parameters(model: nn.Module) -> int:
    """The number of a model's weights."""
    return sum(weight.numel() for weight in model.parameters())


def pretraining(spec: Model) -> str:
    """The set that the network was pretrained on: by the study, else none, pretext or unknown.

    timm's tag of a network ends with it, such as in1k; in22k is the same set as in21k.
    """
    if spec.pretraining or spec.weights in ("none", "pretext"):
        return spec.pretraining or spec.weights
    config = timm.get_pretrained_cfg(spec.model)
    if config is None or not config.tag or config.tag == "untrained":
        return "unknown"
    return config.tag.rsplit("_")[-1].replace("22k", "21k")


def norm(model: nn.Module) -> str:
    """The kind of most normalisation layers: BatchNorm, GroupNorm, LayerNorm, RmsNorm, or none."""
    layers: Counter[str] = Counter()
    for module in model.modules():
        for kind in ("BatchNorm", "GroupNorm", "LayerNorm", "RmsNorm"):
            if kind in type(module).__name__:
                layers[kind] += 1
    return layers.most_common(1)[0][0] if layers else "none"


def _compute_in_fp32(forward: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """Call a layer's `forward` without autocast, which would round its inputs and outputs."""
    with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
        return forward(features.float())


def _create(spec: Model, classes: int | None, size: int) -> Any:
    """Create timm's network for images of `size` pixels, with its weights and their own head."""
    options = dict(spec.options)
    if timm.models.is_model_pretrained(spec.model):
        config = timm.get_pretrained_cfg(spec.model, allow_unregistered=False)
        if config and config.fixed_input_size and config.input_size[-1] != size:
            options.setdefault("img_size", size)
    try:
        if spec.weights in ("none", "pretext"):
            return timm.create_model(spec.model, num_classes=classes, **options)
        if spec.weights == "timm":
            return timm.create_model(spec.model, pretrained=True, **options)
        return _from_file(spec, options)
    except StudyError:
        raise
    except Exception as error:  # a hub's and a builder's errors are of many types
        failures = {
            "none": "could not be built",
            "pretext": "could not be built",
            "timm": "could not be loaded from timm's hub",
        }
        failure = failures.get(spec.weights, f"could not load weights '{spec.weights}'")
        raise StudyError(f"model '{spec.model}' {failure}: {_shorten(error)}") from error


def _from_file(spec: Model, options: dict) -> nn.Module:
    """Load a network with its file's number of classes, strictly, by timm's own conversion."""
    try:
        state = load_state_dict(spec.weights, use_ema=False, device="cpu", weights_only=True)
    except Exception as error:
        # of a pickle PyTorch's own message is left out, since it advises to run what the file says
        reason = _shorten(error) if isinstance(error, OSError | SafetensorError) else type(error).__name__
        raise StudyError(
            f"weights '{spec.weights}' cannot be read: {reason}. Expected a safetensors file or a PyTorch "
            "state dict of tensors alone; a pickle that needs code is refused, since it may run any: convert "
            "the weights to safetensors where they were saved"
        ) from error
    network: Any = timm.create_model(spec.model, **options)
    head = network.pretrained_cfg["classifier"]
    weights = [f"{name}.weight" for name in ([head] if isinstance(head, str) else head)]
    classes = next((state[name].shape[0] for name in weights if name in state), 0)
    try:
        return timm.create_model(
            spec.model,
            pretrained=True,
            num_classes=classes,
            pretrained_cfg_overlay={"file": spec.weights, "num_classes": classes},
            **options,
        )
    except RuntimeError as error:
        raise StudyError(
            f"weights '{spec.weights}' do not fit model '{spec.model}': {_shorten(error)}. "
            "Name the model that they were saved from"
        ) from None


def _shorten(error: Exception) -> str:
    """The first 400 characters of an error's message, in one line."""
    return " ".join(str(error).split())[:400]
