"""Drawings that explain show the numbers that they are given."""

import numpy as np
import pytest

from fgkd.report import plots


def test_a_softmax_is_drawn_at_each_temperature():
    logits = np.array([3.0, 1.0, 0.0])
    axes = plots.softmax_bars(logits, [1, 4], "abc").axes
    for axis, temperature in zip(axes, (1, 4)):
        expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        assert [bar.get_height() for bar in axis.patches] == pytest.approx(expected)
        assert axis.get_title() == f"T = {temperature}"
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["a", "b", "c"]


def test_a_softmax_of_huge_logits_is_drawn():
    heights = [bar.get_height() for bar in plots.softmax_bars([1e4, 0], [1], "ab").axes[0].patches]
    assert heights == [1, 0]


def test_the_picture_of_distillation_shows_both_answers_the_image_and_its_label():
    image = np.zeros((8, 8, 3), np.uint8)
    teacher, student = np.array([0.7, 0.2, 0.1]), np.array([0.4, 0.3, 0.3])
    figure = plots.distillation(image, teacher, student, ["tern", "gull", "wren"], label=0)
    drawing, picture, targets, answer = figure.axes
    assert picture.images[0].get_array().shape == image.shape
    for axis, expected in ((targets, teacher), (answer, student)):
        assert [bar.get_height() for bar in axis.patches] == pytest.approx(expected)
    words = " ".join(text.get_text() for text in drawing.texts)
    assert "label “tern”" in words and "teacher" in words and "student" in words
