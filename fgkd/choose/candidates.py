"""The networks that could teach: where they come from, whether they load, and what each costs here.

Of these, in this order:

    --weights DIR    every weights file there, or in a folder of it with timm's config.json
    --plugins FILE   the files in a plugin's dict WEIGHTS, whose values have `model` and `file`
    neither          SMALL or LARGE of timm's hub, where it can be reached, or what of them was downloaded

The network of a file is the one that a plugin's WEIGHTS names, else the `architecture` in its metadata or in
config.json beside it, else the one of its stem.  config.json also gives its normalisation, arguments and
resolution.  A file that is a link is named by the link, and read beside it.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from timm.models import is_model_pretrained
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from fgkd.distillation import training
from fgkd.models import classifier
from fgkd.study import Model, Recipe, StudyError, contents
from fgkd.study.config import MAX_NAME
from fgkd.study.errors import expected

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
PROBE_SECONDS = 5.0
GPU_MEMORY = 7 * 2**30  # bytes from which a GPU takes the large ones
BATCH = 32  # images whose pass is timed
SMALL = (
    *("convnext_atto.d2_in1k", "deit_tiny_patch16_224.fb_in1k", "efficientnet_b0.ra_in1k"),
    *("mobilenetv2_100.ra_in1k", "mobilenetv3_large_100.ra_in1k", "regnety_008.pycls_in1k"),
    *("resnet18.a1_in1k", "resnet34.a1_in1k", "tiny_vit_5m_224.dist_in22k_ft_in1k"),
    *("vit_tiny_patch16_224.augreg_in21k_ft_in1k",),
)
LARGE = (
    *("convnext_base.fb_in22k", "convnext_tiny.fb_in22k", "deit3_base_patch16_224.fb_in22k_ft_in1k"),
    *("efficientnet_b3.ra2_in1k", "regnety_032.ra_in1k", "resnet50.a1_in1k", "resnet101.a1h_in1k"),
    *("resnetv2_50x1_bit.goog_in21k", "swin_base_patch4_window7_224.ms_in22k"),
    *("vit_base_patch16_224.augreg_in21k", "vit_base_patch16_clip_224.openai"),
    *("vit_small_patch14_dinov2.lvd142m",),
)
DEMO = ("byobnet", "efficientnet", "efficientnet_gn", "resnet")  # timm's test_<name>
HEADS = {1000: "in1k", 11221: "in21k", 11821: "in12k", 21841: "in21k", 21843: "in21k"}  # by their classes
UNREACHABLE = f"timm's hub does not answer within {PROBE_SECONDS:g} seconds"


@dataclass(frozen=True)
class Candidate:
    """A network that could teach.

    weights: 'timm', 'pretext', or a file.
    resolution: side in pixels that it was pretrained at; 0: the views' own.
    pretraining: what its weights were trained on, by its tag or its head.
    licence: of the weights, 'unknown' where nothing says it.
    megabytes, parameters: of all of its weights, in fp32 or as the file is.
    """

    name: str
    model: str
    weights: str
    resolution: int = 0
    pretraining: str = "unknown"
    licence: str = "unknown"
    megabytes: float = 0.0
    parameters: int = 0

    def section(self) -> dict[str, Any]:
        """Its entry under `teachers:` of a study file."""
        values: dict[str, Any] = {"model": self.model, "weights": self.weights}
        if self.resolution:
            values["resolution"] = self.resolution
        return values if self.weights == "pretext" else values | {"pretraining": self.pretraining}


@dataclass(frozen=True)
class Found:
    """The candidates, by name, and why others are left out."""

    candidates: tuple[Candidate, ...]
    left_out: dict[str, str]

    def table(self) -> pd.DataFrame:
        """One row per candidate: what it is and what it weighs."""
        frame = pd.DataFrame(list(self.candidates))
        frame["pixels"] = [size or "as the views" for size in frame.resolution]
        frame["parameters"] /= 1e6
        names = {"name": "teacher", "parameters": "million weights", "megabytes": "MB"}
        columns = ["teacher", "model", "pixels", "pretraining", "million weights", "MB", "licence"]
        return frame.rename(columns=names)[columns]


def find(names: list[str], folder: Path | None, plugins: tuple[str, ...], device: torch.device) -> Found:
    """The candidates that load, sorted by name, and why others do not.

    names: limits them; one that is not among the files is a network of timm's hub. Empty: all.
    folder: with weights.
    Raises StudyError where none is left, and for a name that cannot be had.
    """
    classifier.load_plugins(plugins)
    files = _files(folder, plugins)
    names = [_plain(name) if name not in files and _plain(name) in files else name for name in names]
    _check_names(names, files, folder)
    candidates = []
    left_out: dict[str, str] = {}
    for name in sorted(names or files or _hub_names(device)):
        try:
            candidates.append(_load(name, files.get(name), plugins))
        except StudyError as error:
            if names:
                raise
            left_out[name] = str(error)
    if not candidates:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in left_out.items())
        raise StudyError(f"no network is left that could teach:{reasons}")
    return Found(tuple(candidates), left_out)


def demo(names: tuple[str, ...] = ()) -> Found:
    """Four tiny networks of timm whose pretraining is a set of other drawn birds.

    names: limits them; empty: all.
    Raises StudyError for another name.
    """
    candidates = []
    for name in names or DEMO:
        if name not in DEMO:
            raise StudyError(f"teacher '{name}' is none of the drawn birds'{expected(name, DEMO)}")
        model = f"test_{name}.r160_in1k"
        count = classifier.parameters(timm.create_model(model))
        candidates.append(Candidate(name, model, "pretext", 0, "pretext", "its own", 4 * count / 1e6, count))
    return Found(tuple(candidates), {})


def pretrained(model: str, folder: Path | None, plugins: tuple[str, ...]) -> Candidate | None:
    """The student's own network with pretrained weights, of a file or the hub; None without."""
    base = model.partition(".")[0]
    for name, file in _files(folder, plugins).items():
        if (_network(file, plugins) or "").partition(".")[0] == base:
            return _load(name, file, plugins)
    try:
        return _load(model, None, plugins) if is_model_pretrained(model) and _is_at_hand(model) else None
    except StudyError:
        return None


def resolution(model: str) -> int:
    """Side in pixels of the images that timm's network is made for.

    Raises StudyError for a name that timm does not know.
    """
    classifier.check_name(model)
    config = timm.get_pretrained_cfg(model)
    if config is None:  # a plugin's network without a configuration under its own name
        network: Any = timm.create_model(model)
        return int(network.pretrained_cfg["input_size"][-1])
    return int(config.input_size[-1])


def images_per_second(spec: Model, classes: int, device: torch.device, *, crop: int, train: bool) -> float:
    """Images a second of a network: passes forward, or with `train` its steps; a mean of 3."""
    model = classifier.build(spec, classes, crop=crop, seed=0, start=False).to(device).train(train)
    pixels = torch.randint(0, 256, (BATCH, 3, crop, crop), dtype=torch.uint8).to(device)
    labels = torch.zeros(BATCH, dtype=torch.long, device=device)
    optimizer = training.make_optimizer(model, Recipe())

    def step() -> None:
        with torch.set_grad_enabled(train):
            logits = model(pixels)
        if train:
            F.cross_entropy(logits, labels).backward()
            optimizer.step()

    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return BATCH / timer.timeit(3).mean


def is_reachable() -> bool:
    """Whether timm's hub answers within five seconds; not where HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # of many types: no route, no name, a proxy's refusal
        return False
    return True


def _hub_names(device: torch.device) -> list[str]:
    """The hub's networks of a size that suits the machine; those downloaded where it cannot be reached."""
    large = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory > GPU_MEMORY
    if is_reachable():
        return list(LARGE if large else SMALL)
    names = [name for name in (*SMALL, *LARGE) if _is_cached(name)]
    if not names:
        raise StudyError(
            f"no network to choose from: {UNREACHABLE}, and neither --weights DIR (a folder of weights "
            "files) nor --plugins FILE (a Python file with WEIGHTS) is given"
        )
    return names


def _check_names(names: list[str], files: dict[str, Path], folder: Path | None) -> None:
    """Raise StudyError for a name that is neither a file's nor a pretrained network of a hub that answers."""
    if len(set(names)) < len(names):
        raise StudyError(f"--teachers names {', '.join(names)}: expected each once")
    for name in names:
        if name not in files and not is_model_pretrained(name):
            place = f"in '{folder}', " if folder else ""
            raise StudyError(
                f"teacher '{name}' is not {place}of a plugin's WEIGHTS, nor a pretrained network of timm"
                f"{expected(name, files)}"
            )
        if name not in files and not _is_at_hand(name):
            raise StudyError(
                f"teacher '{name}' has no weights here: {UNREACHABLE}; bring a file of them by --weights"
            )


def _is_at_hand(name: str) -> bool:
    return _is_cached(name) or is_reachable()


def _is_cached(name: str) -> bool:
    """Whether the weights of a network were downloaded from timm's hub before."""
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return False
    return isinstance(try_to_load_from_cache(config.hf_hub_id, "model.safetensors"), str)


def _files(folder: Path | None, plugins: tuple[str, ...]) -> dict[str, Path]:
    """The weights files, by the name of each: its stem, or that of its folder beside config.json."""
    if folder is None:
        return _named({str(name): file for name, (_, file) in _registered(plugins).items()})
    if not folder.is_dir():
        raise StudyError(f"--weights is '{folder}': expected a folder with weights files")
    files = {}
    for path in sorted([*folder.iterdir(), *folder.glob("*/model.safetensors")]):
        if path.suffix in SUFFIXES and path.is_file():
            name = path.stem if path.parent == folder else path.parent.name
            files[str(path.relative_to(folder)) if name in files else name] = path
    if not files:
        raise StudyError(f"--weights is '{folder}': it holds no {', '.join(SUFFIXES)} file")
    return _named(files)


def _named(files: dict[str, Path]) -> dict[str, Path]:
    """The files by the names that a study file takes, each another one where folders ignore case."""
    named: dict[str, Path] = {}
    taken = {"none"}
    for name, file in sorted(files.items(), key=lambda item: (item[0] != _plain(item[0]), item[0])):
        plain = _plain(name)
        numbers = itertools.count(2)
        while plain.casefold() in taken:
            plain = f"{_plain(name)[: MAX_NAME - 5]}-{next(numbers)}"
        taken.add(plain.casefold())
        named[plain] = file
    return named


def _plain(name: str) -> str:
    """A name as a study file takes it, which names a folder."""
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]", "_", letters).lstrip("._-")[:MAX_NAME] or "weights"


def _registered(plugins: tuple[str, ...]) -> dict[str, tuple[str, Path]]:
    """The networks and files of the plugins' WEIGHTS, as far as the files are there, by name."""
    found = {}
    for plugin in plugins:
        module = next(m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == plugin)
        for name, value in dict(getattr(module, "WEIGHTS", {})).items():
            if not all(isinstance(getattr(value, key, None), str | Path) for key in ("model", "file")):
                raise StudyError(
                    f"plugin '{plugin}' has {value!r} as WEIGHTS['{name}']: expected a value with the texts "
                    "model and file"
                )
            file = Path(contents.absolute(value.file, Path(plugin).parent))
            if file.is_file():
                found[name] = (value.model, file)
    return found


def _network(file: Path, plugins: tuple[str, ...]) -> str | None:
    """The timm model of a weights file, None where nothing says it: see the module."""
    for model, other in _registered(plugins).values():
        if os.path.samefile(other, file):
            return model
    named = contents.config(str(file)) | classifier.metadata(file)
    own = file.stem if timm.is_model(file.stem.partition(".")[0]) else None
    return named.get("architecture") or own


def _load(name: str, file: Path | None, plugins: tuple[str, ...]) -> Candidate:
    """A candidate, its network built and its weights loaded once; raises StudyError where they do not fit."""
    model = name if file is None else _network(file, plugins)
    if model is None:
        raise StudyError(
            f"'{file}' has no network: name it after a timm model, or in a plugin's WEIGHTS "
            "(see runs/README.md), or beside a config.json of timm"
        )
    weights = "timm" if file is None else str(file)
    config = {} if file is None else contents.config(weights)
    size = int(config["input_size"][-1]) if "input_size" in config else resolution(model)
    spec = Model(key=name, model=model, weights=weights, resolution=size)
    net = classifier.build(spec, None, crop=size, seed=0)
    if not isinstance(net.net.get_classifier(), torch.nn.Module):
        raise StudyError(f"'{model}' has several heads, none of which a teacher could train")
    count = classifier.parameters(net)
    if file is None:
        pretraining, stored = classifier.pretraining(spec), 4 * count
        licence = net.net.pretrained_cfg.get("license") or "unknown"
    else:  # of which a name says nothing
        classes = net.net.num_classes
        pretraining = HEADS.get(classes, f"{classes} classes" if classes else "unknown")
        licence = (config | classifier.metadata(file)).get("license", "unknown")
        stored = os.path.getsize(file)
    return Candidate(name, model, weights, size, pretraining, licence, stored / 1e6, count)
