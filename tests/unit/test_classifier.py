"""Classifiers: names, weights that fit or are refused, and a head that is the network's own last layer."""

import copy
import json
import threading

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models._hub import save_config_for_hf
from torchvision.transforms.v2.functional import resize

from fgkd.models import cal, classifier
from fgkd.models.classifier import Head
from fgkd.study import Model, StudyError

PLUGIN = """
import timm
from timm.models import register_model

@register_model
def {name}(pretrained=False, **options):
    return timm.create_model("test_resnet", **options)
"""


def build(model="test_resnet", classes=4, *, crop=32, seed=0, **values):
    return classifier.build(Model(key="x", model=model, **values), classes, crop=crop, seed=seed)


def photos(n=3, size=32):
    return torch.randint(
        0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def weights(model):
    return {k: v.contiguous() for k, v in model.net.state_dict().items()}


@pytest.fixture
def trained(tmp_path):
    """A network of seven classes, and the file of its weights as another program would write it."""
    model = build(classes=7, seed=3).eval()
    save_file(weights(model), tmp_path / "seven.safetensors")
    return model, tmp_path / "seven.safetensors"


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet5O", "model 'resnet5O' is not known to timm .*did you mean .*resnet50.*plugins:"),
        ("zzzzzzzz", "see timm.list_models"),
        ("test_resnet.r160_in2k", "model 'test_resnet' has no tag 'r160_in2k': expected one of r160_in1k"),
        ("lcnet_035.x", "has no tag 'x': expected no tag"),
    ],
)
def test_a_name_that_timm_does_not_know_is_refused_with_close_ones(name, message):
    with pytest.raises(StudyError, match=message):
        build(name)


def test_a_name_and_its_tag_are_known():
    classifier.check_name("test_resnet"), classifier.check_name("test_resnet.r160_in1k")


def test_a_model_gives_logits_of_its_classes_from_raw_pixels():
    model = build(classes=5)
    assert model.training and model(photos()).shape == (3, 5)
    assert classifier.parameters(model) == sum(p.numel() for p in model.net.parameters())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit3.r160_in1k"])
def test_normalisation_inside_the_model_equals_normalising_by_hand(name):
    model, images = build(name).eval(), photos()
    config = model.net.pretrained_cfg
    mean, std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    by_hand = (images / 255 - mean) / std
    torch.testing.assert_close(model.normalize(images), by_hand, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(images), model.net(by_hand), rtol=1e-4, atol=1e-5)


def test_each_model_is_fed_its_own_mean():
    means = {tuple(build(name).mean.flatten().tolist()) for name in ("test_resnet", "lcnet_035")}
    assert len(means) == 2


def test_building_depends_on_the_seed_alone_and_leaves_global_randomness_alone():
    before = torch.get_rng_state()
    first, second, other = (weights(build(seed=s)) for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(10)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"]) and not torch.equal(
        first["conv1.0.weight"], other["conv1.0.weight"]
    )


@pytest.mark.parametrize(
    "name, crop, options",
    [
        ("test_vit3.r160_in1k", 32, {}),
        ("test_vit3.r160_in1k", 64, {}),
        ("test_vit3", 48, {"img_size": 48}),
        ("levit_128s", 64, {"distilled": False}),
    ],
)
def test_networks_of_a_fixed_size_are_built_for_the_crop(name, crop, options):
    model = build(name, crop=crop, options=options)
    assert model(photos(2, crop)).shape == (2, 4)


def test_an_option_that_a_network_does_not_have_is_refused():
    with pytest.raises(StudyError, match=r"model 'test_resnet' could not be built: .*no_such_option"):
        build(options={"no_such_option": 1})


HEADS = [
    ("test_resnet", {}),
    ("test_byobnet", {}),
    ("test_convnext3", {}),
    ("test_vit3", {}),
    ("lcnet_035", {}),
    ("resnetv2_18", {}),
    ("levit_128s", {"distilled": False}),
]


@pytest.mark.parametrize("name, options", HEADS, ids=[name for name, _ in HEADS])
def test_a_head_on_features_equals_the_whole_network(name, options):
    model = build(name, crop=64, options=options).eval()
    with torch.inference_mode():
        images = photos(2, 64)
        torch.testing.assert_close(model.features_and_logits(images)[1], model(images), rtol=1e-4, atol=1e-5)
    assert isinstance(model.head, torch.nn.Conv2d) == (name == "resnetv2_18")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit3"])
def test_the_heads_prefix_names_the_last_layers_weights_and_no_others(name):
    model = build(name, classes=11)
    prefix = classifier.head_prefix(model)
    named = {k: v for k, v in model.state_dict().items() if k.startswith(prefix)}
    assert {v.shape[0] for v in named.values()} == {11}
    assert len(named) == len(model.head.state_dict())


def test_a_network_of_two_heads_is_refused_with_the_option():
    with pytest.raises(StudyError, match=r"2 heads.*distilled: false"):
        _ = build("levit_128s", crop=64).head


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_of_other_classes_load_with_the_same_features_and_a_new_head(trained, tmp_path, suffix):
    model, file = trained
    if suffix == "pth":
        torch.save({"state_dict": weights(model)}, file := tmp_path / "seven.pth")
    found = build(weights=str(file), classes=4).eval()
    with torch.inference_mode():
        assert torch.equal(found.features_and_logits(photos())[0], model.features_and_logits(photos())[0])
        assert found(photos()).shape == (3, 4)


def test_the_new_head_depends_on_the_seed_and_not_on_the_file(trained):
    first, second, other = (build(weights=str(trained[1]), seed=s).head.weight for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_weights_without_a_head_load(trained, tmp_path):
    model, _ = trained
    save_file(
        {k: v for k, v in weights(model).items() if not k.startswith("fc.")},
        file := tmp_path / "headless.safetensors",
    )
    with torch.inference_mode():
        assert torch.equal(
            build(weights=str(file)).eval().features_and_logits(photos())[0],
            model.features_and_logits(photos())[0],
        )


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda state: state.pop("conv1.0.weight"),
            "do not fit model 'test_resnet': .*Missing key.*conv1.0.weight",
        ),
        (
            lambda state: state.update(extra=torch.zeros(2)),
            "do not fit model 'test_resnet': .*Unexpected key.*extra",
        ),
        (
            lambda state: state.update({"conv1.0.weight": torch.zeros(2, 3, 3, 3)}),
            "do not fit model 'test_resnet': .*size mismatch.*conv1.0.weight",
        ),
    ],
)
def test_weights_with_a_missing_extra_or_misshapen_entry_are_refused(trained, tmp_path, spoil, message):
    spoil(state := weights(trained[0]))
    save_file(state, file := tmp_path / "spoilt.safetensors")
    with pytest.raises(StudyError, match=message):
        build(weights=str(file))


@pytest.mark.fault("absent weights")
def test_absent_weights_are_refused_before_anything_is_built(tmp_path):
    with pytest.raises(StudyError, match=r"weights '.*absent.pth' of '.*' do not exist: check the path"):
        build(weights=str(tmp_path / "absent.pth"))


def test_weights_of_another_architecture_are_refused(trained):
    with pytest.raises(
        StudyError,
        match=r"seven.safetensors' do not fit model 'test_efficientnet'.*Name the model that they were saved",
    ):
        build("test_efficientnet", weights=str(trained[1]))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("kept", [0, 40, 5000])
@pytest.mark.fault("weights cut short")
def test_a_file_that_is_cut_short_is_refused(trained, tmp_path, kept, suffix):
    model, source = trained
    if suffix == "pth":
        torch.save(weights(model), source := tmp_path / "seven.pth")
    (file := tmp_path / f"short.{suffix}").write_bytes(source.read_bytes()[:kept])
    with pytest.raises(
        StudyError, match=f"weights '.*short.{suffix}' cannot be read: .*Expected a safetensors file"
    ):
        build(weights=str(file))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save(Harm(), file := tmp_path / "harm.pth")
    with pytest.raises(
        StudyError, match="needs code is refused.* convert the weights to safetensors"
    ) as error:
        build(weights=str(file))
    assert not (tmp_path / "harm").exists() and "weights_only" not in str(error.value)


@pytest.fixture
def described(tmp_path):
    """(changes of its pretrained_cfg, model_args) -> a network and its file beside timm's config.json."""

    def make(changes=None, model="test_resnet", **arguments):
        net = timm.create_model(model, num_classes=7, **arguments)
        own = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)} | (changes or {})
        net.pretrained_cfg = dict(net.pretrained_cfg) | own
        config = {"pretrained_cfg": {"architecture": model}}
        save_config_for_hf(net, str(tmp_path / "config.json"), model_config=config, model_args=arguments)
        state = {name: weight.contiguous() for name, weight in net.state_dict().items()}
        save_file(state, tmp_path / "model.safetensors")
        return classifier.Classifier(net).eval(), tmp_path / "model.safetensors"

    return make


@pytest.mark.parametrize(
    "model, arguments",
    [("test_resnet", {"act_layer": "silu"}), ("test_vit3", {"img_size": 32, "global_pool": "max"})],
)
def test_config_json_beside_weights_says_the_mean_the_std_and_the_arguments(described, model, arguments):
    theirs, file = described(model=model, **arguments)
    same = build(model, classes=None, weights=str(file)).eval()
    torch.testing.assert_close(same(photos()), theirs(photos()))
    spec = Model(key="x", model=model, weights=str(file))
    bare = classifier.build(spec, 7, crop=32, seed=0, start=False).eval()
    bare.net.load_state_dict(theirs.net.state_dict())
    torch.testing.assert_close(bare(photos()), theirs(photos()))


def test_a_studys_own_options_and_size_go_over_those_of_config_json(described):
    _, file = described(model="test_vit3", img_size=32, global_pool="max")
    own = build("test_vit3", weights=str(file), options={"global_pool": "avg"}, crop=48)
    assert own.net.global_pool == "avg" and own.net.patch_embed.img_size == (48, 48)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c | {"architecture": "test_vit"}, "are of 'test_vit', as config.json beside them says"),
        (lambda c: c["pretrained_cfg"].update(mean=[0.5]) or c, r"mean \[0.5\]: expected a list of three"),
        (lambda c: c["pretrained_cfg"].update(std=[1, 1, 0]) or c, r"std \[1, 1, 0\]: expected"),
        (lambda c: c["pretrained_cfg"].update(mean="x") or c, "mean 'x': expected a list of three numbers"),
        (lambda c: c["pretrained_cfg"].update(input_size=[1, 32, 32]) or c, "other than 3 channels"),
        (lambda c: c | {"model_args": {"in_chans": 1}}, "other than 3 channels"),
        (lambda c: c | {"model_args": [1]}, "is none of timm's"),
        (lambda c: c | {"model_args": {"no_such": 1}}, "no_such"),
        (lambda c: "{", "beside weights cannot be read"),
    ],
)
def test_a_config_json_that_cannot_be_followed_is_refused(described, change, message):
    _, file = described()
    config = change(json.loads((file.parent / "config.json").read_text()))
    text = config if isinstance(config, str) else json.dumps(config)
    (file.parent / "config.json").write_text(text)
    with pytest.raises(StudyError, match=message):
        build(weights=str(file))


@pytest.mark.parametrize("text", ['{"architectures": ["ViT"]}', "[]", "5", '{"architecture": 3}'])
def test_a_config_json_of_another_library_says_nothing(trained, text):
    model, file = trained
    (file.parent / "config.json").write_text(text)
    assert torch.equal(build(classes=None, weights=str(file)).eval()(photos()), model(photos()))


def test_metadata_of_another_network_are_refused(trained, tmp_path):
    model, _ = trained
    save_file(weights(model), file := tmp_path / "a.safetensors", {"architecture": "test_resnet.r160_in1k"})
    build(weights=str(file))
    save_file(weights(model), file, {"architecture": "resnet18"})
    with pytest.raises(StudyError, match="are of 'resnet18', as their metadata say"):
        build(weights=str(file))


def test_weights_behind_a_link_of_another_name_load_with_the_config_beside_the_link(described, tmp_path):
    theirs = described()[0]
    snapshot = tmp_path / "snapshots" / "1a"
    snapshot.mkdir(parents=True)
    for name, blob in (("model.safetensors", "ab12"), ("config.json", "cd34")):
        (snapshot / name).symlink_to((tmp_path / name).rename(tmp_path / blob))
    same = build(classes=None, weights=str(snapshot / "model.safetensors")).eval()
    torch.testing.assert_close(same(photos()), theirs(photos()))


def test_what_save_wrote_restores_to_the_same_logits(tmp_path):
    model, other = build(seed=1).eval(), build(seed=2).eval()
    classifier.save(model, tmp_path / "m.safetensors")
    classifier.restore(other, tmp_path / "m.safetensors")
    with torch.inference_mode():
        assert torch.equal(model(photos()), other(photos()))
    assert [f.name for f in tmp_path.iterdir()] == ["m.safetensors"]


def test_restoring_all_but_the_head_keeps_the_new_head(tmp_path):
    source, model = build(classes=7, seed=1).eval(), build(classes=4, seed=2).eval()
    head = model.head.weight.clone()
    classifier.save(source, tmp_path / "m.safetensors")
    with pytest.raises(StudyError, match=r"net.fc.weight: .*\(\[7, .*\(\[4, .*Delete the file"):
        classifier.restore(model, tmp_path / "m.safetensors")
    classifier.restore(model, tmp_path / "m.safetensors", skip=classifier.head_prefix(model))
    assert torch.equal(model.head.weight, head) and torch.equal(
        model.features_and_logits(photos())[0], source.features_and_logits(photos())[0]
    )


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda state: state.pop("net.conv1.0.weight"), ".*Missing .*net.conv1.0.weight"),
        (lambda state: state.update(x=torch.zeros(1)), '.*Unexpected .*"x"'),
    ],
)
def test_restoring_is_strict(tmp_path, spoil, message):
    classifier.save(build(), file := tmp_path / "m.safetensors")
    spoil(state := load_file(file))
    save_file(state, file)
    with pytest.raises(StudyError, match=f"m.safetensors' do not fit the model: {message}"):
        classifier.restore(build(), file)


@pytest.mark.fault("a trained model cut short")
def test_restoring_a_file_that_is_cut_short_names_it_and_the_remedy(tmp_path):
    classifier.save(build(), file := tmp_path / "m.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(StudyError, match=r"m.safetensors' cannot be read.*Delete the file"):
        classifier.restore(build(), file)


def test_a_plugin_registers_a_model_with_timm(tmp_path):
    (file := tmp_path / "mine.py").write_text(PLUGIN.format(name="fgkd_plugin_net"))
    with pytest.raises(StudyError, match="A model of your own goes into 'plugins:'"):
        classifier.check_name("fgkd_plugin_net")
    classifier.load_plugins((str(file),))
    classifier.load_plugins((str(file),))
    assert build("fgkd_plugin_net", classes=6)(photos()).shape == (3, 6)


@pytest.mark.parametrize(
    "source, message",
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit", "SystemExit"),
        ("import sys; sys.exit('no')", "SystemExit: no"),
        ("raise BaseException('odd')", "BaseException: odd"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("def f(): f()\nf()", "RecursionError"),
        ("x = '\0'", "(SyntaxError|ValueError): source code (string )?cannot contain null bytes"),
    ],
)
@pytest.mark.fault("a plugin that fails")
def test_a_plugin_that_fails_is_named_with_its_error_each_time(tmp_path, source, message):
    (file := tmp_path / "bad.py").write_text(source)
    for _ in range(2):
        with pytest.raises(StudyError, match=f"plugin '.*bad.py' failed to import: {message}"):
            classifier.load_plugins((str(file),))


def test_a_plugin_that_is_no_file_is_refused_and_a_slow_one_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "zero.py").symlink_to("/dev/zero")
    for name in ("folder.py", "zero.py"):
        with pytest.raises(StudyError, match=f"{name}' is a folder, a device or a pipe"):
            classifier.load_plugins((str(tmp_path / name),))
    (file := tmp_path / "slow.py").write_text("import threading; [t.join() for t in threading._TIMERS]")
    timers = []
    monkeypatch.setattr(threading, "_TIMERS", timers, raising=False)
    start = threading.Timer.start
    monkeypatch.setattr(threading.Timer, "start", lambda timer: timers.append(timer) or start(timer))
    monkeypatch.setattr(classifier, "SLOW_IMPORT", 0)
    classifier.load_plugins((str(file),))
    assert "slow.py' is still being imported after 0 seconds" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, kind",
    [
        ("resnet10t", "BatchNorm"),
        ("test_efficientnet_gn", "GroupNorm"),
        ("test_vit3", "LayerNorm"),
        ("test_nfnet", "none"),
    ],
)
def test_the_kind_of_normalisation_is_that_of_most_layers(name, kind):
    assert classifier.norm(timm.create_model(name)) == kind


@pytest.mark.parametrize(
    "name, weights, found",
    [
        ("convnext_base.fb_in22k", "timm", "in21k"),
        ("resnet101.a1h_in1k", "timm", "in1k"),
        ("resnetv2_101x3_bit.goog_in21k", "a.safetensors", "in21k"),
        ("van_b3", "a.pth", "in1k"),
        ("test_vit3.r160_in1k", "pretext", "pretext"),
        ("test_vit3", "none", "none"),
        ("mobilenetv1_050", "a.pth", "unknown"),
        ("lcnet_035", "a.pth", "unknown"),
    ],
)
def test_pretraining_is_the_end_of_the_tag(name, weights, found):
    assert classifier.pretraining(Model(key="teacher", model=name, weights=weights)) == found


def test_a_file_keeps_its_own_head_where_no_number_of_classes_is_given(trained):
    model, file = trained
    kept = build(classes=None, weights=str(file)).eval()
    assert torch.equal(kept(photos()), model(photos()))


def rounded(model, images):
    """A model's logits where bf16 is on, as on a GPU."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        return model(images)


@pytest.mark.parametrize("name, options", HEADS, ids=[name for name, _ in HEADS])
def test_the_last_layer_is_exact_where_all_before_it_is_rounded(name, options):
    model, seen = build(name, classes=40, crop=64, options=options).eval(), []
    model.head.register_forward_hook(lambda layer, given, result: seen.append((given[0], result)))
    logits = rounded(model, photos(2, 64))
    ((features, result),) = seen
    assert result.dtype == torch.float32
    with torch.inference_mode():
        expected = Head(model.head)(features.float().flatten(1))
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(logits, model(photos(2, 64)))
    assert not torch.equal(logits, logits.bfloat16().float())


def test_what_a_network_does_after_its_last_layer_is_done_still():
    net = timm.create_model("test_resnet", num_classes=4).eval()
    plain = net.forward
    net.forward = lambda x: 3 * plain(x).softmax(1)
    model = classifier.Classifier(net).eval()
    with torch.inference_mode():
        expected = 3 * plain(model.normalize(photos())).softmax(1)
        assert torch.equal(model(photos()), expected)
    torch.testing.assert_close(rounded(model, photos()), expected, rtol=0.05, atol=0.01)


def test_a_copy_of_a_model_has_a_last_layer_of_its_own():
    model = build().eval()
    other = copy.deepcopy(model)
    with torch.inference_mode():
        before = model(photos())
        other.head.weight.zero_()
        other.head.bias.zero_()
        assert torch.equal(model(photos()), before) and not other(photos()).any()


def test_a_network_that_does_not_name_its_last_layer_is_refused():
    with pytest.raises(StudyError, match=r"'Linear' has no get_classifier\(\): expected timm's method"):
        classifier.Classifier(torch.nn.Linear(2, 2))


def test_a_network_resizes_its_views_to_its_own_resolution():
    own = build("test_vit", resolution=48).eval()
    images = photos()
    resized = resize(images.float(), [48, 48], antialias=True)
    assert own.net.patch_embed.img_size == (48, 48)
    assert torch.equal(own(images), build("test_vit", crop=48).eval()(resized))
    assert torch.equal(own(resized), own(images))


def test_attention_crops_are_of_views_and_resized_too():
    net = build("test_resnet", resolution=64).net
    torch.manual_seed(0)
    teacher = cal.CAL(net, 4, 8, resolution=64).eval()
    images = photos()
    maps = teacher.attend(images).maps
    assert maps.shape[-2:] == cal.CAL(build("test_resnet").net, 4, 8).attend(photos(size=64)).maps.shape[-2:]
    assert teacher.predict(images).shape == (3, 4)
