r"""Counterfactual attention learning (CAL; Rao et al., ICCV 2021, arXiv 2108.08728) over the feature maps of any timm backbone.

M attention maps A_m = ReLU(BN(conv(F))) weigh a feature map F (B, D, h, w); each gives one pooled vector (bilinear attention pooling):

    f_m = mean over positions of A_m F,   f = L2norm(sign(f) sqrt(|f| + 1e-6)),   logits = W (100 f)

What attention itself contributes is learned by comparing with a counterfactual one, drawn at random (all ones in eval mode):

    effect = logits - logits of the counterfactual

A teacher is trained on the view, on its attention crop and on its attention drop (`views.boxes`, `views.drop`), and tested on the mean
over eight views: the image and three crops, and the same of its mirror image.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgkd.data import views
from fgkd.models.classifier import Classifier

CENTRE_STEP = 0.05
CROP, DROP, PADDING = (
    (0.4, 0.6),
    (0.2, 0.5),
    0.1,
)  # thresholds drawn in training, as shares of a map's maximum
TEST_CROPS = ((0.3, 0.1), (0.2, 0.1), (0.1, 0.05))  # threshold and padding of each


class Attended(NamedTuple):
    """What CAL says of a batch: logits and effects (B, C), features (B, M D) of unit length, maps (B, M, h, w)."""

    logits: Tensor
    effects: Tensor
    features: Tensor
    maps: Tensor


class Attention(nn.Module):
    """CAL's head: a feature map (B, D, h, w) -> Attended; it also keeps each class's feature centre (C, M D)."""

    def __init__(self, width: int, classes: int, maps: int):
        super().__init__()
        self.conv = nn.Conv2d(width, maps, 1, bias=False)
        self.norm = nn.BatchNorm2d(maps, eps=1e-3)
        self.fc = nn.Linear(maps * width, classes, bias=False)
        self.register_buffer("centres", torch.zeros(classes, maps * width))

    def forward(self, features: Tensor) -> Attended:
        maps = F.relu(self.norm(self.conv(features)))
        pooled = pool(features, maps)
        logits = self.fc(100 * pooled)
        other = 2 * torch.rand_like(maps) if self.training else torch.ones_like(maps)
        return Attended(logits, logits - self.fc(100 * pool(features, other)), pooled, maps)

    def nearest(self, labels: Tensor) -> Tensor:
        """The labels' (B,) feature centres, of unit length: (B, M D)."""
        return F.normalize(self.centres[labels], dim=1)

    @torch.no_grad()
    def step(self, features: Tensor, labels: Tensor) -> None:
        """Move the labels' centres c towards these features f (B, M D): by 0.05 (f - c / |c|).

        The n images of one class move their centre together by 1 - 0.95^n of the way to their mean, as far as
        one after another would: never past it, in whatever order.  The released code does the same for n = 1;
        of more it keeps one, which one being left open.
        """
        count = (labels[:, None] == labels).sum(1, keepdim=True)
        share = -torch.expm1(count * math.log1p(-CENTRE_STEP)) / count
        self.centres.index_add_(0, labels, share * (features - self.nearest(labels)))


class CAL(Classifier):
    """A timm network whose last feature map feeds CAL's head; all that followed that map is removed.

    timm itself brings the map of a convolutional, hierarchical or plain transformer network to (B, D, h, w),
    prefix tokens set aside.  The map has passed the network's last norm: where that follows the pooling, as
    in ConvNeXt or a ViT of mean tokens, it is applied here in each place.  A network that is not timm's and
    has no `prune_intermediate_layers` loses its classifier and keeps whatever else it has.
    """

    def __init__(self, net: nn.Module, classes: int, maps: int):
        super().__init__(net)
        width = net.feature_info[-1]["num_chs"]
        self.norm = _behead(net, width)
        self.attention = Attention(width, classes, maps)

    @property
    def head(self) -> nn.Module:
        return self.attention.fc

    def attend(self, images: Tensor) -> Attended:
        """Images (B, 3, S, S), 0 to 255 -> Attended."""
        return self.attention(self._map(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.attend(images).logits

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self._map(images)
        return features.mean((2, 3)), self.attention(features).logits

    def predict(self, images: Tensor) -> Tensor:
        """The mean over eight views: the images, three attention crops of each, and the same of their mirror images; (B, C)."""
        return sum(self._crops(x) for x in (images, images.flip(3))) / 2

    def _crops(self, images: Tensor) -> Tensor:
        seen, size = self.attend(images), images.shape[-1]
        crops = [
            views.crop(
                images,
                views.boxes(seen.maps.mean(1), seen.maps.new_full((len(images),), t), padding=p, size=size),
            )
            for t, p in TEST_CROPS
        ]
        return torch.stack([seen.logits, *map(self, crops)]).mean(0)

    def _map(self, images: Tensor) -> Tensor:
        with self.autocast(images):
            found = self.net.forward_intermediates(
                self.normalize(images), indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
            )
        return _normed(self.norm, found[0].float())


def pool(features: Tensor, maps: Tensor) -> Tensor:
    """Bilinear attention pooling: features (B, D, h, w), maps (B, M, h, w) -> (B, M D) of unit length."""
    pooled = torch.einsum("bmhw,bdhw->bmd", maps, features).flatten(1) / maps[0, 0].numel()
    return F.normalize(pooled.sign() * (pooled.abs() + 1e-6).sqrt(), dim=1)


def loss(
    raw: Tensor, augmented: Tensor, effects: Tensor, labels: Tensor, features: Tensor, centres: Tensor
) -> dict[str, Tensor]:
    """CAL's loss by its parts, to be added up: CE(raw) / 3 + 2/3 CE(crop and drop) + CE(effects) + squared distance to the centres / B.

    raw: (B, C); augmented: (2 B, C), crops then drops; effects: (3 B, C), of all of these; features, centres: (B, M D).
    """
    return {
        "ce": F.cross_entropy(raw, labels) / 3,
        "views": F.cross_entropy(augmented, labels.repeat(2)) * 2 / 3,
        "effects": F.cross_entropy(effects, labels.repeat(3)),
        "centres": (features - centres).square().sum() / len(labels),
    }


def plan(maps: Tensor, draws: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where a view's attention crop lies and what its drop hides: maps (B, M, h, w) -> boxes (B, 4), drop map fp16 (B, h, w).

    draws: (B, 4) uniform in [0, 1), from `views.draw_attention`: which map crops, which drops, and both thresholds.
    """
    cropped, dropped = select(maps, draws[:, :2]).unbind(1)
    low, high = (a + (b - a) * draws[:, 2 + i] for i, (a, b) in enumerate((CROP, DROP)))
    return views.boxes(cropped, low, padding=PADDING, size=size), views.drop_map(dropped, high)


def select(maps: Tensor, draws: Tensor) -> Tensor:
    """K maps of each image, drawn with probabilities proportional to sqrt(sum): maps (B, M, h, w), draws (B, K) in [0, 1) -> (B, K, h, w)."""
    weights = (maps.sum((2, 3)) + 1e-6).sqrt()
    ends = (weights / weights.sum(1, keepdim=True)).cumsum(1)[:, None, :-1]
    chosen = (draws[:, :, None] >= ends).sum(2)
    return maps[torch.arange(len(maps), device=maps.device)[:, None], chosen]


def _behead(net: nn.Module, width: int) -> nn.Module:
    """Cut what follows a network's last map, of `width` channels; give the norm it began with, if any.

    Of what goes and is no part of the classifier, that norm is the first with weights, and the only norm of
    this width: the head of a CaiT, which has blocks of its own, begins with the norm of a block.
    """
    before, last = list(net.modules()), net.get_classifier()
    heads = last if isinstance(last, tuple) else (last,)
    classifier = {part for head in heads for part in head.modules()}
    if hasattr(net, "prune_intermediate_layers"):
        net.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
    else:
        net.reset_classifier(0)
    stays = {*net.modules()} | classifier
    gone = [part for part in before if part not in stays and [*part.parameters(recurse=False)]]
    norms = [part for part in gone if _is_norm(part) and part.weight.shape == (width,)]
    return norms[0] if len(norms) == 1 and norms[0] is gone[0] else nn.Identity()


def _is_norm(layer: nn.Module) -> bool:
    """Whether a layer normalises by an image's own statistics, as timm names such layers."""
    return any(kind in type(layer).__name__ for kind in ("LayerNorm", "RmsNorm", "GroupNorm"))


def _normed(norm: nn.Module, features: Tensor) -> Tensor:
    """A norm of channels, which may expect them first or last, in each place of a map (B, D, h, w)."""
    if isinstance(norm, nn.GroupNorm | nn.Identity) or "2d" in type(norm).__name__:
        return norm(features)
    return norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
