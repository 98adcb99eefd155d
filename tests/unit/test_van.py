"""VAN: its paper's equations, its authors' checkpoints, loaded strictly, and timm's own behaviour."""

import re

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fgkd.models import classifier, van
from fgkd.study import Model, StudyError

PIXELS = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
PARTS = {"downsample": "patch_embed", "blocks": "block", "norm": "norm"}


@pytest.fixture(scope="module")
def net():
    """A VAN-B0 of seven classes whose norms and scales all matter."""
    torch.manual_seed(0)
    net = timm.create_model("van_b0", num_classes=7)
    for name, value in net.state_dict().items():
        if "norm" in name and value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
        elif "layer_scale" in name:
            value.copy_(torch.rand_like(value) / 10)
    return net.eval()


@pytest.fixture(scope="module")
def checkpoint(net, tmp_path_factory):
    """The file of that network's weights by the authors' names, as they publish theirs."""
    file = tmp_path_factory.mktemp("van") / "van_tiny.pth.tar"
    torch.save({"epoch": 300, "state_dict": theirs(net.state_dict())}, file)
    return file


def theirs(state):
    """This package's names of weights -> those of the authors' checkpoints."""

    def rename(name):
        name = re.sub(r"^stages\.(\d)\.(\w+)", lambda found: f"{PARTS[found[2]]}{int(found[1]) + 1}", name)
        return name.replace("mlp.dwconv", "mlp.dwconv.dwconv").replace(".gamma", "")

    return {rename(name): value for name, value in state.items()}


def build(file, model="van_b0", classes=7):
    return classifier.build(Model(key="van", model=model, weights=str(file)), classes, crop=64, seed=0)


def by_equations(w, x):
    """Logits by the paper's equations from weights by the authors' names; BatchNorm by running statistics."""

    def conv(x, name, **options):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    def batch_norm(x, name):
        return F.batch_norm(
            x, *(w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        )

    for i, depth in enumerate((3, 3, 5, 2), start=1):
        x = batch_norm(
            conv(x, f"patch_embed{i}.proj", stride=4 if i == 1 else 2, padding=3 if i == 1 else 1),
            f"patch_embed{i}.norm",
        )
        for block in (f"block{i}.{j}" for j in range(depth)):
            shortcut = batch_norm(x, f"{block}.norm1")
            u = F.gelu(conv(shortcut, f"{block}.attn.proj_1"))
            unit, channels = f"{block}.attn.spatial_gating_unit", u.shape[1]
            gate = conv(
                conv(u, f"{unit}.conv0", padding=2, groups=channels),
                f"{unit}.conv_spatial",
                padding=9,
                dilation=3,
                groups=channels,
            )
            x = x + w[f"{block}.layer_scale_1"][:, None, None] * (
                shortcut + conv(u * conv(gate, f"{unit}.conv1"), f"{block}.attn.proj_2")
            )
            hidden = conv(batch_norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
            hidden = F.gelu(conv(hidden, f"{block}.mlp.dwconv.dwconv", padding=1, groups=hidden.shape[1]))
            x = x + w[f"{block}.layer_scale_2"][:, None, None] * conv(hidden, f"{block}.mlp.fc2")
        x = F.layer_norm(
            x.movedim(1, -1), x.shape[1:2], w[f"norm{i}.weight"], w[f"norm{i}.bias"], eps=1e-6
        ).movedim(-1, 1)
    return F.linear(x.mean((2, 3)), w["head.weight"], w["head.bias"])


def test_the_network_is_its_equations(net):
    with torch.inference_mode():
        torch.testing.assert_close(
            net(PIXELS), by_equations(theirs(net.state_dict()), PIXELS), rtol=1e-4, atol=1e-5
        )


def test_names_map_to_the_authors_and_back_one_to_one(net):
    state = net.state_dict()
    renamed = theirs(state)
    assert len(renamed) == len(state) and renamed.keys() & state.keys() == {"head.weight", "head.bias"}
    back = van.checkpoint_filter_fn(renamed, net)
    assert list(back) == list(state) and all(
        back[k] is renamed[n] for k, n in zip(back, renamed, strict=True)
    )
    assert list(van.checkpoint_filter_fn(state, net)) == list(state)


@pytest.mark.parametrize("classes", [7, 4])
def test_an_authors_checkpoint_gives_its_features_and_a_new_head(net, checkpoint, classes):
    model = build(checkpoint, classes=classes).eval()
    images = torch.randint(
        0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    with torch.inference_mode():
        features, logits = model.features_and_logits(images)
        torch.testing.assert_close(
            features,
            net.forward_head(net.forward_features((images / 255 - 0.5) / 0.5), pre_logits=True),
            rtol=1e-4,
            atol=1e-4,
        )
        torch.testing.assert_close(logits, model(images))
    assert model.head.weight.shape == (classes, 256)


@pytest.mark.parametrize(
    "lost, ours",
    [
        ("norm4.bias", "stages.3.norm.bias"),
        ("block2.1.layer_scale_2", "stages.1.blocks.1.layer_scale_2.gamma"),
    ],
)
@pytest.mark.fault("weights that lack an entry")
def test_a_checkpoint_that_lacks_a_weight_is_refused(net, tmp_path, lost, ours):
    save_file(
        {name: value for name, value in theirs(net.state_dict()).items() if name != lost},
        file := tmp_path / "van.safetensors",
    )
    with pytest.raises(
        StudyError, match=f"van.safetensors' do not fit model 'van_b0': .*Missing key.*{ours}"
    ):
        build(file)


def test_a_checkpoint_of_another_network_is_refused_with_the_remedy(tmp_path):
    save_file(timm.create_model("test_resnet").state_dict(), file := tmp_path / "resnet.safetensors")
    with pytest.raises(
        StudyError,
        match=r"resnet.safetensors' do not fit model 'van_b0': .*Name the model that they were saved from",
    ):
        build(file)


def test_there_are_no_weights_to_download():
    with pytest.raises(
        StudyError,
        match="model 'van_b0' could not be loaded from timm's hub: No pretrained weights exist for van_b0",
    ):
        build("timm")


def test_a_study_may_name_a_checkpoint_as_the_authors_call_it(make_study, checkpoint):
    study = make_study({"teachers.van": {"model": "van_b0", "weights": str(checkpoint)}})
    assert study.teacher("van").weights == str(checkpoint)


@pytest.mark.parametrize("name", ["van_b0", "pvt_v2_b0"])
def test_intermediates_are_those_that_a_model_of_timm_gives(name):
    """pvt_v2_b0, timm's own of the same stages, is held to the same."""
    net = timm.create_model(name).eval()
    with torch.inference_mode():
        features = net.forward_features(PIXELS)
        last, maps = net.forward_intermediates(PIXELS)
        assert [tuple(m.shape) for m in maps] == [
            (2, info["num_chs"], 64 // info["reduction"], 96 // info["reduction"])
            for info in net.feature_info
        ]
        assert torch.equal(last, features) and torch.equal(maps[-1], features)
        for norm in (True, False):
            (only,) = net.forward_intermediates(
                PIXELS, indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True
            )
            assert torch.equal(only, features)
        last, chosen = net.forward_intermediates(PIXELS, indices=[-3, 0], stop_early=True)
        assert torch.equal(last, maps[1]) and all(
            torch.equal(a, b) for a, b in zip(chosen, maps[:2], strict=True)
        )
        assert torch.equal(net.get_submodule(net.feature_info[2]["module"])(maps[1]), maps[2])
    with pytest.raises((AssertionError, ValueError), match="NCHW"):
        net.forward_intermediates(PIXELS, output_fmt="NLC")


@pytest.mark.parametrize("name", ["van_b0", "pvt_v2_b0"])
def test_the_head_is_replaced_or_removed_as_in_a_model_of_timm(name):
    net = timm.create_model(name).eval()
    assert net.num_features == net.head_hidden_size == net.feature_info[-1]["num_chs"] == 256
    net.reset_classifier(5)
    assert (
        net.get_classifier().weight.shape == (5, 256) and net(PIXELS).shape == (2, 5) and net.num_classes == 5
    )
    net.reset_classifier(0)
    assert net(PIXELS).shape == (2, 256)
    net.reset_classifier(0, "")
    assert net(PIXELS).shape == (2, 256, 2, 3)
    with pytest.raises((AssertionError, ValueError), match="avg"):
        net.reset_classifier(5, "max")


def test_a_loss_reaches_every_weight():
    net = timm.create_model("van_b0", num_classes=3, drop_path_rate=0.1)
    F.cross_entropy(net(PIXELS), torch.tensor([0, 2])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
