"""CAL: the released implementation's values, timm's feature maps, and the limits of an attention map."""

import json
import math

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from fgkd.data import views
from fgkd.data.datasets import Split
from fgkd.distillation import checkpoint, losses, training
from fgkd.models import cal, classifier
from fgkd.study import Distillation, Model, Recipe, Sizes


@pytest.fixture
def given(reference):
    return {k: torch.from_numpy(v) for k, v in np.load(reference / "golden.npz").items()}


@pytest.fixture
def golden(reference):
    return json.loads((reference / "golden.json").read_text())


def draws(n, seed=0):
    return torch.rand(n, 4, generator=torch.Generator().manual_seed(seed))


def attention(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def teacher(name="test_resnet", classes=5, maps=4, **options):
    torch.manual_seed(3)
    return cal.CAL(
        classifier.build(Model(key="t", model=name, options=options), classes, crop=64, seed=1).net,
        classes,
        maps,
    ).eval()


def images(n=6, size=64):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, size, size), dtype=np.uint8))


def test_head_and_counterfactual_equal_the_released_implementation(given):
    head = cal.Attention(40, 11, 8).eval()
    names = {
        "conv.weight": "conv_weight",
        "norm.weight": "bn_weight",
        "norm.bias": "bn_bias",
        "norm.running_mean": "bn_mean",
        "norm.running_var": "bn_var",
        "fc.weight": "fc_weight",
    }
    head.load_state_dict(head.state_dict() | {ours: given[f"cal/{theirs}"] for ours, theirs in names.items()})
    found = head(given["cal/features"])
    for ours, theirs in {
        "logits": "logits",
        "effects": "counterfactual_logits",
        "features": "feature_matrix",
        "maps": "attention_maps",
    }.items():
        torch.testing.assert_close(
            getattr(found, ours),
            given[f"cal/{theirs}"],
            rtol=1e-5,
            atol=1e-5 * given[f"cal/{theirs}"].abs().max().item(),
        )
    torch.testing.assert_close(
        found.maps.mean(1, keepdim=True), given["cal/attention_map"], rtol=1e-5, atol=1e-6
    )


def test_crop_and_drop_equal_the_released_implementation(given):
    pictures, seen = given["views/images"], given["views/attention"][:, 0]
    boxes = views.boxes(seen, torch.full((5,), 0.5), padding=0.1, size=56)
    torch.testing.assert_close(
        views.crop(pictures, boxes), given["views/crop_theta0.5_pad0.1"], rtol=1e-4, atol=1e-4
    )
    hidden = views.drop(torch.ones_like(pictures), views.drop_map(seen, torch.full((5,), 0.35)))
    kept = given["views/drop_theta0.35"] != 0
    assert torch.equal(hidden == 1, kept) and 0.1 < kept.float().mean() < 0.9


def test_the_loss_equals_the_released_implementation(given, golden):
    g = {k.removeprefix("cal_loss/"): v for k, v in given.items() if k.startswith("cal_loss/")}
    parts = cal.loss(g["raw"], g["aug"], g["aux"], g["labels"], g["feature_matrix"], g["center"])
    assert sum(parts.values()).item() == pytest.approx(golden["cal_loss"]["total"], rel=1e-5)


def test_tgda_equals_the_released_implementation(given, golden):
    class Student(nn.Module):
        def forward(self, x):
            return given["losses/student_logits"] if len(x) == 24 else given["tgda/student_aug"]

    crop, drop = given["tgda/teacher_aug"].chunk(2)
    said = {
        "logits": given["losses/teacher_logits"],
        "crop": crop,
        "drop": drop,
        "boxes": torch.tensor([[0, 0, 8, 8]] * 24),
        "maps": torch.zeros(24, 2, 2),
    }
    objective = training.distillation(
        given["losses/labels"], lambda *_: said, Distillation(temperature=2, beta=10), augmented=True
    )
    _, parts = objective(Student(), torch.zeros(24, 3, 8, 8), 0, torch.arange(24))
    assert sum(parts.values()).item() == pytest.approx(golden["tgda"]["total_T2_beta10"], rel=1e-5)


@pytest.mark.parametrize(
    "name, options",
    [
        ("test_resnet", {}),
        ("test_resnet", {"output_stride": 8}),
        ("test_efficientnet", {}),
        ("test_byobnet", {}),
        ("test_convnext3", {}),
        ("test_vit3", {"img_size": 64}),
        ("mobilenetv3_small_050", {}),
        ("lcnet_035", {}),
        ("vgg11", {}),
        ("levit_128s", {"distilled": False, "img_size": 64}),
        ("resnetv2_50", {}),
        (
            "swin_tiny_patch4_window7_224",
            {
                "img_size": 64,
                "window_size": 2,
                "embed_dim": 24,
                "num_heads": (2, 2, 2, 2),
                "depths": (1, 1, 1, 1),
            },
        ),
        ("deit3_small_patch16_224", {"img_size": 64, "depth": 1}),
        ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 1}),
    ],
)
def test_every_kind_of_backbone_gives_spatial_maps_in_their_place(name, options):
    model = teacher(name, **options)
    size = options.get("img_size", 64)
    with torch.no_grad():
        seen = model.attend(images(2, size))
        features, logits = model.features_and_logits(images(2, size))
    assert (
        seen.logits.shape == (2, 5)
        and seen.maps.shape[:2] == (2, 4)
        and seen.maps.shape[2] == seen.maps.shape[3]
    )
    torch.testing.assert_close(logits, seen.logits)
    assert features.shape == (2, model.net.feature_info[-1]["num_chs"])


@pytest.mark.parametrize("name", ["test_vit3", "deit3_small_patch16_224"])
def test_a_patchs_token_lies_where_the_patch_does(name):
    """In a transformer without blocks each token is its patch's own, and changes one place of the map."""
    net = timm.create_model(name, img_size=64, depth=1, num_classes=5, global_pool="avg").eval()
    net.blocks = nn.Sequential(nn.Identity())
    model, x = cal.CAL(net, 5, 4).eval(), images(1)
    with torch.no_grad():
        before, x[:, :, 16:32, 48:64] = model.feature_map(x), 0
        changed = (model.feature_map(x) != before).any(1)[0]
    assert changed.nonzero().tolist() == [[1, 3]]


def test_swins_map_is_neither_transposed_nor_flattened():
    net = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=2,
        embed_dim=24,
        num_heads=(2, 2, 2, 2),
        depths=(1, 1, 1, 1),
    )
    with torch.no_grad():
        expected = net.eval().forward_features(images(2).float())
        found = net.forward_intermediates(
            images(2).float(), indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )[0]
    torch.testing.assert_close(found, expected.permute(0, 3, 1, 2))


def test_the_multi_view_prediction_is_the_mean_over_the_image_three_crops_and_their_mirror_images():
    model, x = teacher(output_stride=8), images(3)
    expected = []
    with torch.no_grad():
        for picture in (x, x.flip(3)):
            seen = model.attend(picture)
            expected.append(seen.logits)
            for threshold, padding in ((0.3, 0.1), (0.2, 0.1), (0.1, 0.05)):
                boxes = views.boxes(seen.maps.mean(1), torch.full((3,), threshold), padding=padding, size=64)
                expected.append(model(views.crop(picture, boxes)))
        assert len(expected) == 8
        torch.testing.assert_close(model.predict(x), torch.stack(expected).mean(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.predict(x), model.predict(x.flip(3)), rtol=1e-4, atol=1e-4)


def test_crops_of_whole_boxes_change_nothing_and_equal_slicing_and_resizing_elsewhere():
    x = images(3).float()
    torch.testing.assert_close(views.crop(x, torch.tensor([[0, 0, 64, 64]] * 3)), x, rtol=1e-4, atol=1e-2)
    boxes = torch.tensor([[3, 10, 40, 31], [0, 0, 2, 64], [50, 20, 51, 22]])
    found = views.crop(x, boxes)
    for image, (top, left, bottom, right), result in zip(x, boxes.tolist(), found, strict=True):
        expected = F.interpolate(
            image[None, :, top:bottom, left:right], size=(64, 64), mode="bilinear", align_corners=True
        )[0]
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-2)


def test_a_map_of_zeros_keeps_the_whole_view():
    zeros = torch.zeros(2, 7, 7)
    assert views.boxes(zeros, torch.full((2,), 0.5), padding=0.1, size=64).tolist() == [[0, 0, 64, 64]] * 2
    assert torch.equal(views.drop(images(2), views.drop_map(zeros, torch.full((2,), 0.3))), images(2).float())
    boxes, maps = cal.plan(torch.zeros(2, 4, 7, 7), draws(2), 64)
    assert boxes.tolist() == [[0, 0, 64, 64]] * 2 and not maps.any()


def test_a_box_of_one_pixel_is_a_view_of_its_colour():
    single = torch.zeros(1, 64, 64)
    single[0, 5, 9] = 1
    boxes = views.boxes(single, torch.tensor([0.5]), padding=0.0, size=64)
    assert boxes.tolist() == [[5, 9, 6, 10]]
    x = images(1)
    assert torch.allclose(views.crop(x, boxes), x[:, :, 5:6, 9:10].float(), atol=1e-2)


def test_a_peak_that_upsampling_flattens_still_has_a_box():
    peak = torch.zeros(1, 13, 13)
    peak[0, 4, 6] = 1
    whole = views._upsample(peak, 16)
    assert whole.max() < 0.99
    top, left, bottom, right = views.boxes(peak, torch.tensor([0.999]), padding=0.0, size=16)[0].tolist()
    assert top <= whole[0].amax(1).argmax() < bottom and left <= whole[0].amax(0).argmax() < right


def test_one_image_of_a_batch_does_not_change_anothers_views():
    maps, u = attention(6, 4, 5, 5), draws(6)
    boxes, dropped = cal.plan(maps, u, 64)
    for i in range(6):
        box, drop = cal.plan(maps[i : i + 1], u[i : i + 1], 64)
        assert torch.equal(box[0], boxes[i]) and torch.equal(drop[0], dropped[i])


def test_maps_are_drawn_with_probability_proportional_to_the_root_of_their_sum():
    maps = torch.tensor([1.0, 4.0, 0.0, 9.0]).view(1, 4, 1, 1).expand(20_000, 4, 2, 2)
    chosen = cal.select(maps, torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0)))[:, :, 0, 0]
    for value, share in ((1, 1 / 6), (4, 2 / 6), (0, 0), (9, 3 / 6)):
        assert (chosen == value).float().mean(0).tolist() == pytest.approx([share] * 2, abs=0.02)
    ends = cal.select(maps[:2], torch.tensor([[0.0, 0.0], [1 - 1e-7, 1 - 1e-7]]))[:, 0, 0, 0]
    assert ends.tolist() == [1.0, 9.0]


def test_the_larger_the_threshold_the_smaller_the_crop_and_what_is_dropped():
    maps = attention(8, 5, 5)
    areas, hidden = [], []
    for t in (0.2, 0.5, 0.8):
        box = views.boxes(maps, torch.full((8,), t), padding=0.0, size=64)
        areas.append(((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])).sum().item())
        hidden.append(
            (views._upsample(views.drop_map(maps, torch.full((8,), t)).float(), 64) >= 1).sum().item()
        )
    assert (
        areas == sorted(areas, reverse=True)
        and hidden == sorted(hidden, reverse=True)
        and len({*areas}) == len({*hidden}) == 3
    )


def test_the_attention_of_an_image_is_drawn_alike_however_many_there_are_and_apart_from_its_crop():
    assert torch.equal(
        views.draw_attention(50, seed=4, epoch=1)[:7], views.draw_attention(7, seed=4, epoch=1)
    )
    assert not torch.equal(views.draw_attention(7, seed=4, epoch=1), views.draw_attention(7, seed=4, epoch=2))
    seen = views.sample_views(2000, seed=4, epoch=1, resize=100, crop=1)
    assert abs(np.corrcoef(views.draw_attention(2000, seed=4, epoch=1)[:, 0], seen.top)[0, 1]) < 0.1


def test_centres_move_towards_the_features_of_their_class_and_no_other():
    head = cal.Attention(3, 4, 2)
    features, labels = F.normalize(attention(5, 6), dim=1), torch.tensor([1, 1, 3, 3, 3])
    for _ in range(200):
        head.step(features, labels)
    near = F.cosine_similarity(head.centres[1], features[:2].mean(0), dim=0)
    assert near > 0.99 and not head.centres[[0, 2]].any() and "centres" in head.state_dict()
    assert torch.allclose(head.nearest(labels).norm(dim=1), torch.ones(5))


def test_the_counterfactual_is_random_in_training_and_plain_in_eval_mode():
    head, features = cal.Attention(6, 4, 3), attention(4, 6, 3, 3)
    torch.manual_seed(1)
    first, second = head(features), head(features)
    assert not torch.equal(first.effects, second.effects)
    torch.manual_seed(1)
    assert torch.equal(head(features).effects, first.effects)
    head.eval()
    assert torch.equal(head(features).effects, head(features).effects)


@pytest.mark.parametrize("n", [2, 7])
def test_a_cal_teacher_learns_and_goes_on_from_a_checkpoint_to_the_same_weights(tmp_path, monkeypatch, n):
    """n = 2: a data set, and batch, of as few images as batch normalisation takes."""
    pixels = np.random.default_rng(2).integers(0, 256, (n, 72, 72, 3), dtype=np.uint8)
    split = training.Images(
        Split(pixels, np.arange(n) % 5, ("",) * n), Sizes(resize=72, crop=64), torch.device("cpu")
    )

    def train(name, epochs=3):
        model = teacher()
        options = {"views_seed": 1, "seed": 2, "checkpoint": tmp_path / name, "title": "CAL"}
        return model, training.fit_images(
            model,
            split,
            training.attention(split.labels, 2),
            Recipe(epochs=epochs, batch_size=4, lr=0.01),
            **options,
        )

    whole, history = train("whole")
    assert set(history[0]) == {"epoch", "ce", "views", "effects", "centres", "train_accuracy"} and all(
        map(math.isfinite, history[-1].values())
    )
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", -1)
    write = checkpoint.write_bytes

    def killed(*given):
        write(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        train("broken")
    monkeypatch.undo()
    resumed, again = train("broken")
    assert again == history and all(
        torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items()
    )


def test_kd_of_both_views_is_their_mean():
    """What TGDA relies on: one batch of crops and drops gives the mean of the two losses."""
    a, b, c, d = (torch.randn(4, 6, generator=torch.Generator().manual_seed(s)) for s in range(4))
    both = losses.kd(torch.cat([a, b]), torch.cat([c, d]), 2)
    assert both.item() == pytest.approx((losses.kd(a, c, 2) + losses.kd(b, d, 2)).item() / 2, rel=1e-5)


def test_overlap_by_hand_and_a_centred_box_of_the_same_shape():
    boxes, truth = (
        torch.tensor([[0.0, 0, 2, 4], [0, 0, 2, 2], [1, 1, 3, 3]]),
        torch.tensor([[0.0, 2, 2, 6], [4, 4, 6, 6], [1, 1, 3, 3]]),
    )
    assert views.overlap(boxes, truth).tolist() == pytest.approx([4 / 12, 0, 1])
    assert views.centred(boxes, 8).tolist() == [[3, 2, 5, 6], [3, 3, 5, 5], [3, 3, 5, 5]]


def trunk(net, x):
    """A network's last feature map as timm gives it, (B, D, h, w)."""
    with torch.no_grad():
        found = net.forward_intermediates(x, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True)
    return found[0]


def shaken(net):
    """The network with other scales and shifts than 1 and 0 in its norms."""
    generator = torch.Generator().manual_seed(5)
    for weight in net.parameters():
        if weight.ndim == 1:
            weight.data += torch.rand(weight.shape, generator=generator)
    return net.eval()


def test_convnexts_map_has_passed_the_norm_that_its_head_applies_after_pooling():
    net = shaken(timm.create_model("test_convnext3", num_classes=5))
    norm, x = net.head.norm, images(2)
    before = trunk(net, classifier.Classifier(net).normalize(x))
    places = before.permute(0, 2, 3, 1).flatten(0, 2)
    expected = norm(places[:, :, None, None]).view(2, *before.shape[2:], -1).permute(0, 3, 1, 2)
    model = cal.CAL(net, 5, 4).eval()
    found = model.feature_map(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, before, rtol=0.1, atol=0.1)
    assert {"norm.weight", "norm.bias"} < set(model.state_dict())


@pytest.mark.parametrize(
    "name, options",
    [
        ("test_convnext3", {}),
        ("edgenext_xx_small", {}),
        ("mambaout_kobe", {}),
        ("poolformerv2_s12", {}),
        ("tiny_vit_5m_224", {}),
        ("test_vit_relpos", {"img_size": 64}),
        ("beit_base_patch16_224", {"img_size": 64, "depth": 1, "embed_dim": 48}),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1, "global_pool": "avg"}),
    ],
)
def test_each_place_is_normalised_where_a_networks_last_norm_follows_its_pooling(name, options):
    size = options.get("img_size", 64)
    with torch.no_grad():
        found = teacher(name, **options).feature_map(images(1, size))
    assert found.mean(1).abs().max() < 1e-3
    torch.testing.assert_close(found.var(1, correction=0), torch.ones_like(found[:, 0]), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    "name, options",
    [
        ("test_resnet", {}),
        ("resnetv2_18", {}),
        ("resnetv2_50x1_bit", {}),
        ("test_vit3", {"img_size": 64}),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1}),
        ("cait_xxs24_224", {"img_size": 64, "depth": 1}),
        (
            "swin_tiny_patch4_window7_224",
            {
                "img_size": 64,
                "window_size": 2,
                "embed_dim": 24,
                "num_heads": (2, 2, 2, 2),
                "depths": (1, 1, 1, 1),
            },
        ),
    ],
)
def test_a_map_stays_as_timm_gives_it_where_the_network_itself_ends_with_its_norm_or_has_none(name, options):
    """The norms in the heads of test_vit3 and CaiT belong to what attends there, not to the map."""
    net = shaken(timm.create_model(name, num_classes=5, **options))
    expected = trunk(net, classifier.Classifier(net).normalize(images(2)))
    torch.testing.assert_close(
        cal.CAL(net, 5, 4).eval().feature_map(images(2)), expected, rtol=1e-4, atol=1e-4
    )


def moved(features, labels, start):
    head = cal.Attention(3, len(start), 2)
    head.centres.copy_(start)
    head.step(features, labels)
    return head.centres


def test_centres_of_a_batch_without_repeated_labels_move_as_in_the_released_implementation():
    start, features = attention(5, 6, seed=1), F.normalize(attention(3, 6), dim=1)
    labels = torch.tensor([4, 0, 2])
    expected = start.clone()
    expected[labels] += 0.05 * (features - F.normalize(start[labels], dim=1))
    torch.testing.assert_close(moved(features, labels, start), expected)


def test_a_label_that_comes_twice_in_a_batch_counts_as_in_two_batches():
    start, features = F.normalize(attention(2, 6, seed=1), dim=1), F.normalize(attention(2, 6), dim=1)
    twice = torch.tensor([1, 1])
    found = moved(features, twice, start)
    after = moved(features[1:], twice[1:], moved(features[:1], twice[:1], start))
    torch.testing.assert_close(found, moved(features.flip(0), twice, start))
    alone = [moved(features[[i]], twice[:1], start) for i in (0, 1)]
    error = (found - after)[1].norm()
    assert error < 0.1 * min((one - after)[1].norm() for one in alone) and torch.equal(found[0], start[0])


def test_a_batch_of_one_class_moves_its_centre_no_farther_than_to_their_mean():
    """Twenty steps of 0.05 lead there; what was added up for sixty-four would lead three times as far."""
    start, features = F.normalize(attention(1, 6, seed=1), dim=1), F.normalize(attention(64, 6), dim=1)
    found, mean = moved(features, torch.zeros(64, dtype=torch.long), start), features.mean(0)
    torch.testing.assert_close(found[0], start[0] + (1 - 0.95**64) * (mean - start[0]))
