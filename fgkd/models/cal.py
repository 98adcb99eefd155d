r"""Counterfactual attention learning (CAL) over the feature maps of any timm backbone.

M attention maps A_m = ReLU(BN(conv(F))) weigh a feature map F (B, D, h, w); each gives one pooled vector
(bilinear attention pooling):

    f_m = mean over positions of A_m F,   f = L2norm(sign(f) sqrt(|f| + 1e-6)),   logits = W (100 f)

What attention itself contributes is learned by comparing with a counterfactual one, drawn at random (all
ones in eval mode):

    effect = logits - logits of the counterfactual

A teacher is trained on the view, on its attention crop and on its attention drop (`views.boxes`,
`views.drop`), and tested on the mean over eight views: the image and three crops, and the same of its mirror
image.

Source: Rao et al., "Counterfactual Attention Learning", ICCV 2021, arXiv 2108.08728.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgkd.data import views
from fgkd.models.classifier import Classifier

CENTRE_STEP = 0.05
# Thresholds in training lie between these shares of a map's maximum.
CROP = (0.4, 0.6)
DROP = (0.2, 0.5)
PADDING = 0.1  # of a crop's box, as a share of the view
TEST_CROPS = ((0.3, 0.1), (0.2, 0.1), (0.1, 0.05))  # threshold and padding of each


class Attended(NamedTuple):
    """CAL's outputs for a batch."""

    logits: Tensor  # (B, C)
    effects: Tensor  # (B, C)
    features: Tensor  # (B, M D), of unit length
    maps: Tensor  # (B, M, h, w)


class Attention(nn.Module):
    """CAL's head, a feature map (B, D, h, w) -> Attended, with a feature centre of each class."""

    centres: Tensor

    def __init__(self, width: int, classes: int, maps: int):
        super().__init__()
        self.conv = nn.Conv2d(width, maps, 1, bias=False)
        self.norm = nn.BatchNorm2d(maps, eps=1e-3)
        self.fc = nn.Linear(maps * width, classes, bias=False)
        self.register_buffer("centres", torch.zeros(classes, maps * width))

    def forward(self, features: Tensor) -> Attended:
        maps = F.relu(self.norm(self.conv(features)))
        pooled = pool(features, maps)
        # Times 100, because the weights act on a vector of length 1: its logits would stay near each other.
        logits = self.fc(100 * pooled)
        # Of mean 1, as the ones of eval mode are.
        counterfactual_maps = 2 * torch.rand_like(maps) if self.training else torch.ones_like(maps)
        counterfactual_logits = self.fc(100 * pool(features, counterfactual_maps))
        return Attended(logits, logits - counterfactual_logits, pooled, maps)

    def nearest(self, labels: Tensor) -> Tensor:
        """The labels' (B,) feature centres, of unit length: (B, M D)."""
        return F.normalize(self.centres[labels], dim=1)

    @torch.no_grad()
    def step(self, features: Tensor, labels: Tensor) -> None:
        """Move the labels' centres c towards these features f (B, M D) by 0.05 (f - c / |c|).

        The n images of one class move their centre together by 1 - 0.95^n of the way to their mean, as far as
        one after another would: never past it, in whatever order.  The released code does the same for n = 1;
        of more it keeps one, which one being left open.
        """
        count = (labels[:, None] == labels).sum(1, keepdim=True)
        # Each of n images takes an n-th of the common move: (1 - 0.95^n) / n.
        share = -torch.expm1(count * math.log1p(-CENTRE_STEP)) / count
        self.centres.index_add_(0, labels, share * (features - self.nearest(labels)))


class CAL(Classifier):
    """A timm network whose last feature map feeds CAL's head, in place of all that followed it.

    timm itself brings the map of a convolutional, hierarchical or plain transformer network to (B, D, h, w),
    prefix tokens set aside.  The map has passed the network's last norm: where that follows the pooling, as
    in ConvNeXt or a ViT of mean tokens, it is applied here in each place.  A network that is not timm's and
    has no `prune_intermediate_layers` loses its classifier and keeps whatever else it has.
    """

    def __init__(self, net: Any, classes: int, maps: int, resolution: int = 0):
        super().__init__(net, resolution)
        width = net.feature_info[-1]["num_chs"]
        self.norm = _behead(net, width)
        self.attention = Attention(width, classes, maps)

    @property
    def head(self) -> nn.Module:
        return self.attention.fc

    def attend(self, images: Tensor) -> Attended:
        """Images (B, 3, S, S), 0 to 255 -> Attended."""
        return self.attention(self.feature_map(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.attend(images).logits

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.feature_map(images)
        return features.mean((2, 3)), self.attention(features).logits

    def predict(self, images: Tensor) -> Tensor:
        """Mean logits (B, C) over eight views: images and mirror images, and three crops of each."""
        return (self._predict_crops(images) + self._predict_crops(images.flip(3))) / 2

    def _predict_crops(self, images: Tensor) -> Tensor:
        """Mean logits over the images and three attention crops of each."""
        attended = self.attend(images)
        attention = attended.maps.mean(1)  # not a map drawn at random: a test must give the same twice
        logits = [attended.logits]
        for threshold, padding in TEST_CROPS:
            thresholds = attention.new_full((len(images),), threshold)
            boxes = views.boxes(attention, thresholds, padding=padding, size=images.shape[-1])
            logits.append(self(views.crop(images, boxes)))
        return torch.stack(logits).mean(0)

    def feature_map(self, images: Tensor) -> Tensor:
        """The last feature map, (B, D, h, w), behind the network's last norm."""
        with self.autocast(images):
            (features,) = self.net.forward_intermediates(
                self.normalize(images), indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
            )
        return _normalize_channels(self.norm, features.float())


def pool(features: Tensor, maps: Tensor) -> Tensor:
    """Pool features (B, D, h, w) under each of the maps (B, M, h, w): (B, M D) of unit length."""
    pooled = torch.einsum("bmhw,bdhw->bmd", maps, features).flatten(1) / maps[0, 0].numel()
    return F.normalize(pooled.sign() * (pooled.abs() + 1e-6).sqrt(), dim=1)


def loss(
    raw: Tensor, augmented: Tensor, effects: Tensor, labels: Tensor, features: Tensor, centres: Tensor
) -> dict[str, Tensor]:
    """The terms of CAL's loss, to be added up.

        CE(raw) / 3 + 2/3 CE(crop and drop) + CE(effects) + squared distance to the centres / B

    raw: logits (B, C) of the views.
    augmented: (2 B, C), of their crops, then of their drops.
    effects: (3 B, C), of all of these.
    features, centres: (B, M D).
    """
    return {
        "ce": F.cross_entropy(raw, labels) / 3,
        "views": F.cross_entropy(augmented, labels.repeat(2)) * 2 / 3,
        "effects": F.cross_entropy(effects, labels.repeat(3)),
        "centres": (features - centres).square().sum() / len(labels),
    }


def plan(maps: Tensor, draws: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Choose each view's attention crop, boxes (B, 4), and what its drop hides, fp16 (B, h, w).

    maps: (B, M, h, w).
    draws: (B, 4) uniform in [0, 1), from `views.draw_attention`: which map crops, which drops, and both
    thresholds.
    """
    crop_map, drop_map = select(maps, draws[:, :2]).unbind(1)
    crop_threshold = CROP[0] + (CROP[1] - CROP[0]) * draws[:, 2]
    drop_threshold = DROP[0] + (DROP[1] - DROP[0]) * draws[:, 3]
    boxes = views.boxes(crop_map, crop_threshold, padding=PADDING, size=size)
    return boxes, views.drop_map(drop_map, drop_threshold)


def select(maps: Tensor, draws: Tensor) -> Tensor:
    """Draw K maps of each image, with probabilities proportional to sqrt(sum): (B, K, h, w).

    maps: (B, M, h, w); draws: (B, K) in [0, 1).
    """
    weights = (maps.sum((2, 3)) + 1e-6).sqrt()
    # The draw falls into one of M intervals of [0, 1): the number of their ends below it is the map's.
    ends = (weights / weights.sum(1, keepdim=True)).cumsum(1)[:, None, :-1]
    chosen = (draws[:, :, None] >= ends).sum(2)
    return maps[torch.arange(len(maps), device=maps.device)[:, None], chosen]


def _behead(net: Any, width: int) -> nn.Module:
    """Cut what follows a network's last map, of `width` channels; return the norm it began with.

    Of what goes and is not part of the classifier, that norm is the first module with weights, and the only
    norm of this width: the head of a CaiT, which has blocks of its own, begins with the norm of a block.
    """
    before = list(net.modules())
    last = net.get_classifier()
    classifier = set(nn.ModuleList(last if isinstance(last, tuple) else [last]).modules())
    if hasattr(net, "prune_intermediate_layers"):
        net.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
    else:
        net.reset_classifier(0)
    stays = set(net.modules()) | classifier
    removed = [part for part in before if part not in stays and list(part.parameters(recurse=False))]
    norms = [part for part in removed if _is_norm(part) and part.weight.shape == (width,)]
    return norms[0] if len(norms) == 1 and norms[0] is removed[0] else nn.Identity()


def _is_norm(layer: nn.Module) -> bool:
    """Whether a layer normalises by an image's own statistics, by timm's names of such layers."""
    return any(kind in type(layer).__name__ for kind in ("LayerNorm", "RmsNorm", "GroupNorm"))


def _normalize_channels(norm: nn.Module, features: Tensor) -> Tensor:
    """Apply a norm, which may expect channels first or last, in each place of (B, D, h, w)."""
    if isinstance(norm, nn.GroupNorm | nn.Identity) or "2d" in type(norm).__name__:
        return norm(features)
    return norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
