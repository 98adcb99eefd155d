"""Who could teach, for `fgkd choose`: networks found by their files, and those that are left out."""

import json

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from pydantic import TypeAdapter

from fgkd.choose import candidates
from fgkd.study import StudyError
from fgkd.study.config import Name

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """The hub cannot be reached, whatever this machine's network is."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def save(file, model, classes=10, metadata=None):
    """A network with random weights as a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    net = timm.create_model(model, num_classes=classes)
    state = {name: weight.contiguous() for name, weight in net.state_dict().items()}
    safetensors.torch.save_file(state, file, metadata)


def find(folder=None, names=(), plugins=()):
    return candidates.find(list(names), folder, tuple(map(str, plugins)), CPU)


def test_a_files_network_is_named_by_its_stem_its_metadata_a_config_or_a_plugin(tmp_path):
    folder = tmp_path / "weights"
    save(folder / "test_byobnet.safetensors", "test_byobnet", 1000)
    named = {"architecture": "test_resnet", "license": "mit"}
    save(folder / "mine.safetensors", "test_resnet", 964, named)
    save(folder / "handed/model.safetensors", "test_efficientnet")
    (folder / "handed/config.json").write_text(json.dumps({"architecture": "test_efficientnet"}))
    save(folder / "theirs.safetensors", "test_efficientnet_gn")
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from collections import namedtuple\nWeights = namedtuple('Weights', 'model file')\n"
        "WEIGHTS = {'x': Weights('test_efficientnet_gn', 'weights/theirs.safetensors')}\n"
    )
    found = find(folder, plugins=[plugin])
    assert {c.name: c.model for c in found.candidates} == {
        "handed": "test_efficientnet",
        "mine": "test_resnet",
        "test_byobnet": "test_byobnet",
        "theirs": "test_efficientnet_gn",
    }
    by_name = {c.name: c for c in found.candidates}
    assert by_name["mine"].licence == "mit" and by_name["mine"].pretraining == "964 classes"
    assert by_name["test_byobnet"].licence == "unknown" and by_name["test_byobnet"].pretraining == "in1k"
    assert all(c.resolution == 160 and c.megabytes > 0 and c.parameters > 0 for c in found.candidates)
    assert [c.name for c in find(plugins=[plugin]).candidates] == ["x"]


def test_each_file_has_a_name_of_its_own_that_a_study_takes(tmp_path):
    named = {"architecture": "test_resnet"}
    stems = (
        "r\u00e9seau",
        "_x",
        ".x",
        "x",
        "a b",
        "a_b",
        "none",
        "n" * 240,
        "\u6a21\u578b",
        "=1+1",
        "-rf",
    )
    save(tmp_path / "x.safetensors", "test_resnet", metadata=named)
    for stem in stems:
        if stem != "x":
            (tmp_path / f"{stem}.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes())
    save(tmp_path / "x/model.safetensors", "test_resnet", metadata=named)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "x.pth")
    (tmp_path / "x.pth").rename(tmp_path / "test_resnet.pth")
    found = find(tmp_path)
    names = [candidate.name for candidate in found.candidates]
    assert not found.left_out and len(names) == len(stems) + 2
    assert len({name.casefold() for name in names}) == len(names)
    assert {"x", "a_b", "a_b-2", "reseau", "1_1", "rf", "weights", "none-2", "x-2"} <= set(names)
    TypeAdapter(dict[Name, int]).validate_python(dict.fromkeys(names, 0))
    assert [candidate.name for candidate in find(tmp_path, ["r\u00e9seau"]).candidates] == ["reseau"]


def test_a_snapshot_of_links_is_read_by_the_config_beside_the_links(tmp_path):
    save(tmp_path / "blob", "test_resnet")
    config = {"architecture": "test_resnet", "pretrained_cfg": {"input_size": [3, 96, 96], "license": "mit"}}
    (tmp_path / "other").write_text(json.dumps(config))
    for folder in (tmp_path / "snapshots/1a", tmp_path / "farm/mine"):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").symlink_to(tmp_path / "blob")
        (folder / "config.json").symlink_to(tmp_path / "other")
    for folder, name in ((tmp_path / "snapshots/1a", "model"), (tmp_path / "farm", "mine")):
        (candidate,) = find(folder).candidates
        assert (candidate.name, candidate.model, candidate.licence) == (name, "test_resnet", "mit")
        assert candidate.resolution == 96 and candidate.weights.endswith("model.safetensors")


def test_weights_of_a_plugin_without_a_model_or_a_file_are_refused(tmp_path):
    (plugin := tmp_path / "plugin.py").write_text("WEIGHTS = {'x': 'weights/theirs.safetensors'}\n")
    with pytest.raises(StudyError, match=r"as WEIGHTS\['x'\]: expected a value with the texts model and"):
        find(plugins=[plugin])


def test_files_without_a_network_or_of_another_one_are_left_out_with_the_reason(tmp_path):
    save(tmp_path / "test_byobnet.safetensors", "test_byobnet")
    save(tmp_path / "unknown.safetensors", "test_byobnet")
    save(tmp_path / "test_resnet.safetensors", "test_byobnet")
    (tmp_path / "test_vit.safetensors").write_bytes(b"cut short")
    found = find(tmp_path)
    assert [c.name for c in found.candidates] == ["test_byobnet"]
    assert "has no network: name it after a timm model" in found.left_out["unknown"]
    assert "do not fit model 'test_resnet'" in found.left_out["test_resnet"]
    assert "cannot be read" in found.left_out["test_vit"]


def test_names_limit_the_candidates_in_any_order_and_one_that_does_not_load_is_refused(tmp_path):
    for name in ("test_byobnet", "test_efficientnet"):
        save(tmp_path / f"{name}.safetensors", name)
    save(tmp_path / "unknown.safetensors", "test_byobnet")
    forward = find(tmp_path, ["test_efficientnet", "test_byobnet"])
    assert forward == find(tmp_path, ["test_byobnet", "test_efficientnet"])
    assert [c.name for c in find(tmp_path, ["test_byobnet"]).candidates] == ["test_byobnet"]
    with pytest.raises(StudyError, match="has no network"):
        find(tmp_path, ["unknown"])
    with pytest.raises(StudyError, match="expected each once"):
        find(tmp_path, ["test_byobnet", "test_byobnet"])


def test_a_name_that_is_nowhere_is_refused_with_the_closest(tmp_path):
    save(tmp_path / "test_byobnet.safetensors", "test_byobnet")
    with pytest.raises(StudyError, match=r"'test_byobnett' is not in .*did you mean 'test_byobnet'"):
        find(tmp_path, ["test_byobnett"])


def test_without_the_hub_a_pretrained_name_and_no_name_are_refused_in_one_sentence():
    with pytest.raises(StudyError, match="'resnet18' has no weights here: timm's hub does not answer"):
        find(names=["resnet18"])
    with pytest.raises(StudyError, match="no network to choose from: .* neither --weights DIR"):
        find()


def test_folders_that_hold_no_weights_or_none_that_load_are_refused(tmp_path):
    with pytest.raises(StudyError, match="expected a folder with weights files"):
        find(tmp_path / "absent")
    with pytest.raises(StudyError, match="holds no .safetensors"):
        find(tmp_path)
    save(tmp_path / "unknown.safetensors", "test_byobnet")
    with pytest.raises(StudyError, match="no network is left that could teach:\n  unknown: "):
        find(tmp_path)


def test_the_probe_of_the_hub_does_not_hang(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert candidates.is_reachable() is False


def test_the_hubs_networks_are_ones_that_timm_has_pretrained():
    assert {*candidates.SMALL, *candidates.LARGE} <= set(timm.list_pretrained())


def test_the_students_own_pretrained_network_is_found_by_its_model(tmp_path):
    save(tmp_path / "mine.safetensors", "test_byobnet", 1000, {"architecture": "test_byobnet"})
    own = candidates.pretrained("test_byobnet", tmp_path, ())
    assert own.name == "mine" and own.weights == str(tmp_path / "mine.safetensors")
    assert candidates.pretrained("test_resnet", tmp_path, ()) is None
    assert candidates.pretrained("lcnet_035", None, ()) is None


def test_the_drawn_birds_have_candidates_of_their_own_which_names_limit():
    assert [candidate.name for candidate in candidates.demo(("resnet",)).candidates] == ["resnet"]
    assert len(candidates.demo().candidates) == 4
    with pytest.raises(StudyError, match="teacher 'resnt' is none of the drawn birds'.*expected one of byo"):
        candidates.demo(("resnt",))
