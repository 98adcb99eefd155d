"""VAN, a convolutional network whose large kernels gate its features, registered with timm.

With u = gelu(proj_1(x)), attention is

    x + proj_2(u * conv1(conv_spatial(conv0(u))))

where a depthwise 5 x 5, a depthwise 7 x 7 that looks at every third pixel and a 1 x 1 convolution stand for
one of 21 x 21.  A block adds this and a feed-forward net, each behind BatchNorm and scaled by a learnt
vector; a stage shrinks the map, runs its blocks and ends with LayerNorm.

Guo, Lu, Liu, Cheng, Hu: Visual Attention Network, arXiv 2202.09741.  Their checkpoints load as they are: name
the file as a model's `weights`.  VAN-B3 is the VAN-Large of
github.com/Visual-Attention-Network/VAN-Classification, VAN-B0 its VAN-Tiny.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

from timm.layers import DropPath, LayerNorm2d, LayerScale2d, calculate_drop_path_rates, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn


class LargeKernelAttention(nn.Sequential):
    """Features times a map of themselves: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__(
            OrderedDict(
                conv0=nn.Conv2d(dim, dim, 5, padding=2, groups=dim),
                conv_spatial=nn.Conv2d(dim, dim, 7, padding=9, groups=dim, dilation=3),
                conv1=nn.Conv2d(dim, dim, 1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


class Attention(nn.Sequential):
    """The gate between two 1 x 1 convolutions, with a shortcut: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__(
            OrderedDict(
                proj_1=nn.Conv2d(dim, dim, 1),
                activation=nn.GELU(),
                spatial_gating_unit=LargeKernelAttention(dim),
                proj_2=nn.Conv2d(dim, dim, 1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Block(nn.Module):
    """Attention, then a feed-forward net: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, dim: int, hidden: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = Attention(dim)
        self.layer_scale_1 = LayerScale2d(dim, 0.01)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Conv2d(dim, hidden, 1),
                dwconv=nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
                act=nn.GELU(),
                fc2=nn.Conv2d(hidden, dim, 1),
            )
        )
        self.layer_scale_2 = LayerScale2d(dim, 0.01)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.layer_scale_2(self.mlp(self.norm2(x))))


class VAN(nn.Module):
    """Four stages and a linear head: (N, 3, H, W) -> (N, num_classes).

    It has the methods and attributes that timm's models have.
    """

    global_pool: str

    def __init__(
        self,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        mlp_ratios: tuple[int, ...] = (8, 8, 4, 4),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        drops: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        widths = (in_chans, *dims)
        self.stages = nn.Sequential()
        self.feature_info = []
        for i, dim in enumerate(dims):
            self.stages.append(_stage(widths[i], dim, dim * mlp_ratios[i], drops[i], first=i == 0))
            self.feature_info.append({"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"})
        self.num_features = self.head_hidden_size = dims[-1]
        self.reset_classifier(num_classes, global_pool)
        self.apply(_initialize)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool not in ("avg", "", None):
            raise ValueError(f"global_pool is '{global_pool}': expected avg, or '' for none")
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of some stages, as timm's models return them.

        `norm` changes nothing: every stage ends with its own.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is '{output_fmt}': expected NCHW")
        take, last = feature_take_indices(len(self.stages), indices)
        maps = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stages(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3)) if self.global_pool else x
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the weights of an authors' checkpoint; names of this module stay as they are."""
    parts = {"patch_embed": "downsample", "block": "blocks", "norm": "norm"}

    def stage_part(match: re.Match) -> str:
        return f"stages.{int(match[2]) - 1}.{parts[match[1]]}"

    def rename(name: str) -> str:
        name = re.sub(r"^(patch_embed|block|norm)(\d)", stage_part, name)
        return re.sub(r"(layer_scale_\d)$", r"\1.gamma", name).replace("dwconv.dwconv", "dwconv")

    return {rename(name): value for name, value in state.items()}


# Mean and std are not ImageNet's: the authors' code leaves them to timm 0.4.12, whose default for a model
# configured like a ViT was 0.5; OpenMMLab's configurations of VAN have the same.
default_cfgs = generate_default_cfgs(
    {
        name: {
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "num_classes": 1000,
            "first_conv": "stages.0.downsample.proj",
            "classifier": "head",
            "license": "apache-2.0",
        }
        for name in ("van_b0.in1k", "van_b3.in1k")
    }
)


@register_model
def van_b0(pretrained: bool = False, **options) -> VAN:
    """The authors' VAN-Tiny."""
    return _create("van_b0", pretrained, dims=(32, 64, 160, 256), depths=(3, 3, 5, 2), **options)


@register_model
def van_b3(pretrained: bool = False, **options) -> VAN:
    """The authors' VAN-Large."""
    return _create("van_b3", pretrained, dims=(64, 128, 320, 512), depths=(3, 5, 27, 3), **options)


def _create(name: str, pretrained: bool, **options) -> VAN:
    return build_model_with_cfg(VAN, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **options)


def _stage(before: int, dim: int, hidden: int, drops: list[float], *, first: bool) -> nn.Sequential:
    """Overlapping patches, blocks and a norm: (N, before, H, W) -> (N, dim, H/2, W/2).

    first: (N, dim, H/4, W/4) instead.
    """
    size, stride = (7, 4) if first else (3, 2)
    return nn.Sequential(
        OrderedDict(
            downsample=nn.Sequential(
                OrderedDict(proj=nn.Conv2d(before, dim, size, stride, size // 2), norm=nn.BatchNorm2d(dim))
            ),
            blocks=nn.Sequential(*(Block(dim, hidden, drop) for drop in drops)),
            norm=LayerNorm2d(dim),
        )
    )


def _initialize(layer: nn.Module) -> None:
    """Draw a layer's weights as the authors do."""
    if isinstance(layer, nn.Conv2d):
        outputs = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1] // layer.groups
        nn.init.normal_(layer.weight, std=(2 / outputs) ** 0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.Linear):
        trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
