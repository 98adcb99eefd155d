"""Content digests: a plugin's code of one network, whatever else its file holds, and files by their bytes."""

import os

import pytest

from fgkd.study import contents, plugins

PLUGIN = '''"""Two networks."""
import timm
from timm.models import generate_default_cfgs, register_model

WIDTH = 8
OTHER = 9


def build(width, **options):
    """Makes one."""
    return timm.create_model("test_resnet", **options)  # by timm


default_cfgs = generate_default_cfgs(
    {"first.a": {"mean": (0.5, 0.5, 0.5)}, "second.a": {"mean": (0.1, 0.1, 0.1)}}
)


@register_model
def first(pretrained=False, **options):
    return build(WIDTH, **options)


@register_model
def second(pretrained=False, **options):
    return build(OTHER, **options)
'''


def digest(tmp_path, text, model="first"):
    (tmp_path / "plugin.py").write_text(text)
    return contents.of_code((str(tmp_path / "plugin.py"),), plugins.NETWORK, model)


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
    assert contents.of_code((str(tmp_path / "absent.py"),), plugins.NETWORK, "first") is None


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


METRIC = (
    PLUGIN
    + """

from fgkd.metrics import margin, metric

POWER = 2


@metric(claimed="smaller")
def powered(logits):
    return margin(logits) ** POWER
"""
)


@pytest.mark.parametrize(
    "old, new, same",
    [
        ("POWER = 2", "POWER = 3", False),
        ('claimed="smaller"', 'claimed="larger"', False),
        ("WIDTH = 8", "WIDTH = 9", True),
        ("def second", "def third", True),
    ],
)
def test_the_digest_of_metrics_is_that_of_what_they_use(tmp_path, old, new, same):
    file = tmp_path / "plugin.py"
    file.write_text(METRIC)
    before = contents.of_code((str(file),), plugins.METRIC)
    network = contents.of_code((str(file),), plugins.NETWORK, "first")
    assert before and network == digest(tmp_path, PLUGIN)
    file.write_text(METRIC.replace(old, new))
    assert (contents.of_code((str(file),), plugins.METRIC) == before) == same


def test_plugins_without_a_metric_of_ours_have_no_digest_of_metrics_and_an_absent_one_an_unknown(tmp_path):
    file = tmp_path / "plugin.py"
    others = "from sklearn import metric\n\n\n@metric()\ndef mine(logits):\n    return logits\n"
    for text in (PLUGIN, others):
        file.write_text(text)
        assert contents.of_code((str(file),), plugins.METRIC) == ""
    file.unlink()
    assert (
        contents.of_code((str(file),), plugins.METRIC) is None and contents.of_code((), plugins.METRIC) == ""
    )


def test_a_metric_that_is_not_registered_by_a_decorator_counts_with_its_whole_file(tmp_path):
    file = tmp_path / "plugin.py"
    text = "from fgkd.metrics import metric\nmetric(claimed='larger')(lambda logits: logits[:, 0])\n"
    file.write_text(text)
    before = contents.of_code((str(file),), plugins.METRIC)
    file.write_text(text + "OTHER = 1\n")
    assert before and contents.of_code((str(file),), plugins.METRIC) != before
