"""Teachers and students: timm networks, each fed its own normalisation.

The normalisation is a part of the model, so that a teacher and a student with different means see the very same view, and a
saved model can be used on raw pixels.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from fgkd.models import van  # noqa: F401  (registers VAN with timm)
from fgkd.records import write_bytes
from fgkd.study import Model, StudyError, check_weights


class Classifier(nn.Module):
    """A timm network with its normalisation: images (N, 3, S, S), 0 to 255 -> fp32 logits (N, C).

    The last layer computes in fp32 under autocast too, in place, whatever the network does before and after
    it: in bf16 logits have three digits, so that the two largest of an image are often equal.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        if not hasattr(net, "get_classifier"):
            raise StudyError(
                f"'{type(net).__name__}' has no get_classifier(): expected timm's method that "
                "gives the last layer; add it to the network"
            )
        self.net = net
        if isinstance(last := net.get_classifier(), nn.Module):
            last.forward = functools.partial(_in_fp32, last.forward)
        config = net.pretrained_cfg
        self.register_buffer("mean", 255 * torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def autocast(images: Tensor) -> torch.autocast:
        """bf16 on a GPU but for the last layer, fp32 on a CPU."""
        return torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda)

    def forward(self, images: Tensor) -> Tensor:
        with self.autocast(images):
            logits = self.net(self.normalize(images))
        return logits.float()

    def predict(self, images: Tensor) -> Tensor:
        """The logits that a test looks at."""
        return self(images)

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features before the last layer, fp32 (N, D), and the logits (N, C) that it makes of them."""
        with self.autocast(images):
            features = self.net.forward_head(
                self.net.forward_features(self.normalize(images)), pre_logits=True
            )
        features = features.float()
        return features, Head(self.head)(features)

    @property
    def head(self) -> nn.Module:
        """The network's last layer: linear, or a 1 x 1 convolution."""
        layer = self.net.get_classifier()
        if not isinstance(layer, nn.Module):
            raise StudyError(
                f"'{type(self.net).__name__}' has {len(layer)} heads: expected one; for LeViT and DeiT set 'options: {{distilled: false}}'"
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


def build(spec: Model, classes: int | None, *, crop: int, seed: int) -> Classifier:
    """The network of `spec` with a new head for `classes` classes, for views of `crop` pixels; in train mode, on the CPU.

    classes: None keeps the head of pretrained weights.  seed: of the random initialisation.  A file's weights are loaded strictly, all but the head.
    Raises StudyError for a name that timm does not know and for weights that are absent or do not fit.
    """
    check_name(spec.model)
    check_weights(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _create(spec, classes, crop)
        if spec.weights not in ("none", "pretext") and classes is not None:
            net.reset_classifier(classes)
    return Classifier(net).to(memory_format=torch.channels_last)


def check_name(name: str) -> None:
    """Raise StudyError unless timm (with the plugins imported so far) has the model and its tag."""
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models(), n=3)
        raise StudyError(
            f"model '{name}' is not known to timm {timm.__version__}: "
            f"{'did you mean ' + ', '.join(close) + '?' if close else 'see timm.list_models()'} A model of your own goes into 'plugins:'"
        )
    tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise StudyError(
            f"model '{base}' has no tag '{tag}': expected {'one of ' + ', '.join(tags) if tags else 'no tag'}"
        )


def load_plugins(files: tuple[str, ...]) -> None:
    """Import each Python file once; it registers its models with timm's `register_model`."""
    for file in files:
        name = f"fgkd_plugin_{hashlib.sha256(file.encode()).hexdigest()[:12]}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, file)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise StudyError(f"plugin '{file}' failed to import: {type(error).__name__}: {error}") from error


def save(model: nn.Module, file: Path) -> None:
    """Write a model's weights as safetensors, atomically."""
    write_bytes(
        file, safetensors.torch.save({k: v.contiguous().cpu() for k, v in model.state_dict().items()})
    )


def restore(model: nn.Module, file: Path, *, skip: str = "") -> None:
    """Load weights that `save` wrote, strictly but for the entries that begin with `skip` (a head of other classes)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise StudyError(
            f"weights '{file}' cannot be read: {error}. Delete the file to train it anew"
        ) from error
    own = model.state_dict()
    if skip:
        state = {k: v for k, v in state.items() if not k.startswith(skip)} | {
            k: v for k, v in own.items() if k.startswith(skip)
        }
    if wrong := _misfits(state, own):
        raise StudyError(f"weights '{file}' do not fit the model: {wrong}. Delete the file to train it anew")
    model.load_state_dict(state)


def head_prefix(model: Classifier) -> str:
    """How the names of the last layer's weights begin, 'net.head.fc.' for example."""
    return next(f"{name}." for name, module in model.named_modules() if module is model.head)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def pretraining(spec: Model) -> str:
    """What the network was trained on before: none, pretext, or the end of its timm tag, such as in1k (in21k for in22k too, which is the same set), or unknown."""
    if spec.pretraining or spec.weights in ("none", "pretext"):
        return spec.pretraining or spec.weights
    config = timm.get_pretrained_cfg(spec.model)
    return (
        "unknown"
        if config is None or config.tag in ("", "untrained")
        else config.tag.rsplit("_")[-1].replace("22k", "21k")
    )


def norm(model: nn.Module) -> str:
    """The kind of normalisation that most of the network's layers have: BatchNorm, GroupNorm, LayerNorm, RmsNorm, or none."""
    kinds = Counter(
        kind
        for module in model.modules()
        for kind in ("BatchNorm", "GroupNorm", "LayerNorm", "RmsNorm")
        if kind in type(module).__name__
    )
    return kinds.most_common(1)[0][0] if kinds else "none"


def _in_fp32(forward: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """What a layer's `forward` makes of its features without autocast, which would round both."""
    with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
        return forward(features.float())


def _create(spec: Model, classes: int, crop: int) -> nn.Module:
    options = dict(spec.options)
    config = (
        timm.get_pretrained_cfg(spec.model, allow_unregistered=False)
        if timm.models.is_model_pretrained(spec.model)
        else None
    )
    if config is not None and config.fixed_input_size and config.input_size[-1] != crop:
        options.setdefault("img_size", crop)
    try:
        if spec.weights in ("none", "pretext"):
            return timm.create_model(spec.model, num_classes=classes, **options)
        if spec.weights == "timm":
            return timm.create_model(spec.model, pretrained=True, **options)
        return _from_file(spec, options)
    except StudyError:
        raise
    except Exception as error:  # a hub's and a builder's errors are of many types
        source = {
            "none": "could not be built",
            "pretext": "could not be built",
            "timm": "could not be loaded from timm's hub",
        }
        what = source.get(spec.weights, f"could not load weights '{spec.weights}'")
        raise StudyError(f"model '{spec.model}' {what}: {' '.join(str(error).split())[:400]}") from error


def _from_file(spec: Model, options: dict) -> nn.Module:
    """The network with the file's own number of classes, loaded strictly through timm's own key conversion."""
    try:
        state = load_state_dict(spec.weights, use_ema=False, device="cpu", weights_only=True)
    except Exception as error:
        raise StudyError(
            f"weights '{spec.weights}' cannot be read: {error}. Expected a safetensors file or a PyTorch state dict"
        ) from error
    head = timm.create_model(spec.model, **options).pretrained_cfg["classifier"]
    names = [head] if isinstance(head, str) else list(head)
    weight = next((state[f"{n}.weight"] for n in names if f"{n}.weight" in state), None)
    classes = 0 if weight is None else weight.shape[0]
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
            f"weights '{spec.weights}' do not fit model '{spec.model}': {' '.join(str(error).split())[:400]}. "
            "Name the model that they were saved from"
        ) from None


def _misfits(state: dict, own: dict) -> str:
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    parts = [
        f"{what} {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}"
        for what, names in (("missing", missing), ("unexpected", extra), ("shape of", shapes))
        if names
    ]
    return "; ".join(parts)
