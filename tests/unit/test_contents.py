"""Content digests: what a plugin says of one network, whatever else its file holds, and files by their bytes."""

import os

import pytest

from fgkd.study import contents

PLUGIN = '''"""Two networks."""
import timm
from timm.models import generate_default_cfgs, register_model

WIDTH = 8
OTHER = 9


def build(width, **options):
    """Makes one."""
    return timm.create_model("test_resnet", **options)  # by timm


default_cfgs = generate_default_cfgs({"first.a": {"mean": (0.5, 0.5, 0.5)}, "second.a": {"mean": (0.1, 0.1, 0.1)}})


@register_model
def first(pretrained=False, **options):
    return build(WIDTH, **options)


@register_model
def second(pretrained=False, **options):
    return build(OTHER, **options)
'''


def digest(tmp_path, text, model="first"):
    (tmp_path / "plugin.py").write_text(text)
    return contents.of_network(model, (str(tmp_path / "plugin.py"),))


@pytest.mark.parametrize(
    "old, new",
    [
        ("# by timm", ""),
        ('"""Makes one."""', '"""Makes two."""'),
        ("OTHER = 9", "OTHER = 10"),
        ("(0.1, 0.1, 0.1)", "(0.2, 0.2, 0.2)"),
        ('"first.a": {', '"first.a":   {'),
        (
            "def second",
            "@register_model\ndef third(pretrained=False): return 3\n\n@register_model\ndef second",
        ),
    ],
)
def test_what_a_network_does_not_use_is_no_part_of_its_digest(tmp_path, old, new):
    assert old in PLUGIN
    assert digest(tmp_path, PLUGIN) == digest(tmp_path, PLUGIN.replace(old, new, 1))


@pytest.mark.parametrize(
    "old, new",
    [
        ("WIDTH = 8", "WIDTH = 10"),
        ('"test_resnet"', '"test_vit3"'),
        ("(0.5, 0.5, 0.5)", "(0.4, 0.5, 0.5)"),
        ("build(WIDTH", "build(2 * WIDTH"),
        ("import timm\n", "import torch as timm\n"),
        ("def build(", "print('loaded')\n\n\ndef build("),
    ],
)
def test_what_a_network_uses_by_any_number_of_steps_is_part_of_its_digest(tmp_path, old, new):
    assert old in PLUGIN
    assert digest(tmp_path, PLUGIN) != digest(tmp_path, PLUGIN.replace(old, new, 1))


def test_a_network_of_timms_own_has_no_digest_and_one_of_an_absent_plugin_an_unknown_one(tmp_path):
    assert digest(tmp_path, PLUGIN, "resnet18") == "" and digest(tmp_path, PLUGIN, "first.a") == digest(
        tmp_path, PLUGIN
    )
    assert contents.of_network("first", (str(tmp_path / "absent.py"),)) is None


@pytest.mark.parametrize(
    "registering",
    [
        "for f in (one, two): register_model(f)",
        "register = register_model",
        "@keep(register_model)\ndef f(): ...",
    ],
)
def test_a_plugin_that_registers_by_another_way_is_taken_whole(tmp_path, registering):
    assert digest(tmp_path, registering) != digest(tmp_path, f"{registering}\nx = 1") != ""


def test_a_file_is_the_same_by_its_bytes_not_by_its_name_or_time(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"abc")
    two.write_bytes(b"abc")
    os.utime(two, (1, 1))
    before = contents.of_file(one)
    assert before == contents.of_file(two) and contents.of_file(tmp_path / "absent") is None
    two.write_bytes(b"abd")
    assert contents.of_file(two) != before
