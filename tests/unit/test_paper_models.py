"""The paper's eight teachers and three students are the published networks, and fit the package.

Most are built on the meta device: names, shapes and counts without weights in memory.
"""

import functools

import pytest
import timm
import torch
from torch import nn

from fgkd.models import cal, classifier
from fgkd.study import PROJECT, Model

# Millions of weights with 1000 classes, the last feature map at 224 px, the pooled features, and the
# normalisation.  Counts are those of timm's results-imagenet.csv, except VAN (arXiv 2202.09741), LCNet (arXiv
# 2109.15099) and LeViT, which has 7.78 there: the second head that it loses here is a norm and a linear layer
# on 384 features, 0.386 million weights.
PAPER = {
    "vgg19_bn.tv_in1k": ("143.68", (512, 7, 7), 4096, "imagenet"),
    "resnet101.a1h_in1k": ("44.55", (2048, 7, 7), 2048, "imagenet"),
    "resnetv2_101.a1h_in1k": ("44.54", (2048, 7, 7), 2048, "half"),
    "van_b3": ("44.8", (512, 7, 7), 512, "half"),
    "convnext_base.fb_in22k": ("88.59", (1024, 7, 7), 1024, "imagenet"),
    "vit_base_patch16_224.orig_in21k": ("86.57", (768, 14, 14), 768, "half"),
    "swin_base_patch4_window7_224.ms_in22k": ("87.77", (1024, 7, 7), 1024, "imagenet"),
    "resnetv2_101x3_bit.goog_in21k": ("387.93", (6144, 7, 7), 6144, "half"),
    "lcnet_035": ("1.6", (176, 7, 7), 1280, "imagenet"),
    "resnet18": ("11.69", (512, 7, 7), 512, "imagenet"),
    "levit_128s": ("7.39", (384, 4, 4), 384, "imagenet"),
}
NORMALISATION = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
NATIVE_CLASSES = {
    "convnext_base.fb_in22k": 21841,
    "vit_base_patch16_224.orig_in21k": 0,  # its weights come without a head
    "swin_base_patch4_window7_224.ms_in22k": 21841,
    "resnetv2_101x3_bit.goog_in21k": 21843,
}
TEACHERS = list(PAPER)[:8]
REALDATA = PROJECT.parent / "shared" / "realdata"
LOCAL = [
    "mobilenetv1_025",
    "mobilenetv1_100_imagenet",
    "mobilenetv2_100",
    "mobilenet_edgetpu_075",
    "tf_efficientnet_lite0",
    "squeezenet1_0",
    "deit_tiny_patch16_224",
    "vit_tiny_patch16_224",
]
TINY = [
    "test_resnet",
    "test_byobnet",
    "test_efficientnet",
    "test_convnext3",
    "test_vit3.r160_in1k",
    "mobilenetv3_small_050",
    "vgg11",
]


def build(name, crop=224):
    return classifier.build(
        Model(key="x", model=name, options={"distilled": False} if name.startswith("levit") else {}),
        1000,
        crop=crop,
        seed=0,
    ).eval()


@functools.cache
def shape_of(name):
    """The model without memory for its weights."""
    with torch.device("meta"):
        return build(name)


@pytest.mark.parametrize("name", PAPER)
def test_a_network_has_its_published_number_of_weights(name):
    published = PAPER[name][0]
    assert f"{classifier.parameters(shape_of(name)) / 1e6:.{len(published.partition('.')[2])}f}" == published


@pytest.mark.parametrize("name", PAPER)
def test_a_name_is_known_with_its_tag_and_the_input_that_it_was_trained_on(name):
    classifier.check_name(name)
    config = timm.get_pretrained_cfg(name)
    assert (config.mean, config.std) == NORMALISATION[PAPER[name][3]] and config.input_size == (3, 224, 224)
    assert config.num_classes == NATIVE_CLASSES.get(name, 1000)


@pytest.mark.parametrize("name", PAPER)
def test_a_network_gives_pooled_features_and_logits(name):
    model = shape_of(name)
    features, logits = model.features_and_logits(
        torch.zeros(2, 3, 224, 224, dtype=torch.uint8, device="meta")
    )
    assert features.shape == (2, PAPER[name][2]) and logits.shape == (2, 1000)


@pytest.mark.parametrize("name", [*PAPER, *TINY])
def test_a_network_gives_one_last_feature_map_in_channels_first(name):
    """Swin keeps its channels last and ViT its tokens in a row; both are asked for a map."""
    net = shape_of(name).net
    image = torch.zeros(2, 3, 224, 224, device="meta")
    (found,) = net.forward_intermediates(
        image, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
    )
    assert found.shape == (2, net.feature_info[-1]["num_chs"], *found.shape[2:]) and found.ndim == 4
    assert name in TINY or found.shape[1:] == PAPER[name][1]


@pytest.mark.parametrize(
    "name, crop", [("lcnet_035", 224), ("resnet18", 224), ("levit_128s", 224), ("van_b3", 64)]
)
def test_a_network_with_weights_gives_finite_logits(name, crop):
    images = torch.randint(
        0, 256, (2, 3, crop, crop), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    with torch.inference_mode():
        logits = build(name, crop)(images)
    assert logits.shape == (2, 1000) and logits.isfinite().all() and not torch.equal(logits[0], logits[1])


def attentive(name, classes=200):
    """A CAL teacher of the network, without memory for its weights."""
    with torch.device("meta"):
        return cal.CAL(
            classifier.build(Model(key="x", model=name), classes, crop=224, seed=0).net, classes, 32
        )


@pytest.mark.parametrize("name", [*TEACHERS, *LOCAL])
def test_every_weight_of_a_cal_teacher_receives_a_gradient(name):
    """What it does not use is not kept: VGG's two layers of 4096 would be six sevenths of its teacher."""
    if name in LOCAL:
        if not REALDATA.is_dir():
            pytest.skip("the pretrained networks are not beside this checkout")
        classifier.load_plugins((str(REALDATA / "models.py"),))
    model = attentive(name)
    seen = model.attend(torch.zeros(2, 3, 224, 224, dtype=torch.uint8, device="meta"))
    (seen.logits.sum() + seen.effects.sum()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_vgg_19_has_the_paper_s_23_million_weights_under_cal():
    model = attentive("vgg19_bn.tv_in1k")
    assert f"{classifier.parameters(model.net) / 1e6:.2f}" == "20.04"
    assert f"{classifier.parameters(model) / 1e6:.2f}" == "23.33"


@pytest.mark.parametrize("name", TEACHERS)
def test_convnext_alone_of_the_papers_teachers_keeps_its_last_norm_in_the_head(name):
    norm = attentive(name).norm
    assert isinstance(norm, nn.LayerNorm if name.startswith("convnext") else nn.Identity)
