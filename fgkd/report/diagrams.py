"""Drawings that explain: distillation as a picture, and what a temperature does to a softmax.

They show ideas where `plots` shows results.  Every function returns a figure of a fixed size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from fgkd.report.plots import GREY, LIGHT_GREY, PALETTE

TEACHER, STUDENT = PALETTE[:2]


def distillation(image, teacher, student, classes: Sequence[str], label: int) -> Figure:
    """Teacher and student look at one image; the student learns from label and teacher.

    image: (H, W, 3); teacher, student: probabilities (C,) of the image; label: of its class.
    """
    figure = Figure(figsize=(9, 4.2))
    figure.set_layout_engine("none")  # the axes have their places
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 9), ylim=(0, 4.2))
    axis.axis("off")
    picture = figure.add_axes((0.03, 0.33, 0.16, 0.34))
    picture.imshow(image)
    picture.axis("off")
    axis.text(1.0, 1.2, f"a training image,\nlabel “{classes[label]}”", ha="center", va="top", fontsize=9)
    _box(axis, (2.4, 2.9), "teacher\nlarge, trained, fixed", TEACHER)
    _box(axis, (2.4, 0.5), "student\nsmall, learns", STUDENT)
    for start, end in (((1.75, 2.4), (2.35, 3.2)), ((1.75, 1.9), (2.35, 1.1))):
        _arrow(axis, start, end, GREY)
    for y in (3.3, 0.9):
        _arrow(axis, (4.25, y), (4.65, y), GREY)
    bounds = [(0.54, 0.62, 0.2, 0.28), (0.54, 0.1, 0.2, 0.28)]
    titles = ["soft targets", "student's prediction"]
    for place, values, colour, title in zip(
        bounds, (teacher, student), (TEACHER, STUDENT), titles, strict=True
    ):
        bars = figure.add_axes(place)
        bars.bar(range(len(values)), values, color=colour)
        bars.set(ylim=(0, 1), xticks=range(len(values)), yticks=(0, 1))
        bars.set_xticklabels(classes, rotation=35, ha="right")
        bars.set_title(title, fontsize=9)
        bars.tick_params(labelsize=7.5)
    _arrow(axis, (6.85, 3.1), (6.85, 1.2), TEACHER)
    axis.text(7.0, 2.2, "distillation loss (KL):\nanswer as the\nteacher does", va="center", fontsize=9)
    _arrow(axis, (7.75, 0.8), (6.85, 0.8), "black")
    axis.text(7.8, 0.8, "label loss (CE):\nbe right", va="center", fontsize=9)
    return figure


def softmax_bars(logits, temperatures: Sequence[float], classes: Sequence[str]) -> Figure:
    """The softmax of one sample's logits (C,) at several temperatures, a panel each."""
    logits = np.asarray(logits, float)
    figure = Figure(figsize=(2.9 * len(temperatures), 2.8))
    axes = figure.subplots(1, len(temperatures), squeeze=False, sharey=True)[0]
    rank = (-logits).argsort().argsort()
    colours = np.select([rank == 0, rank == 1], PALETTE[:2], LIGHT_GREY)
    for axis, temperature in zip(axes, temperatures, strict=True):
        powers = np.exp((logits - logits.max()) / temperature)
        bars = axis.bar(range(len(logits)), powers / powers.sum(), color=colours)
        axis.bar_label(bars, fmt="%.2f", fontsize=8)
        axis.set(title=f"T = {temperature:g}", ylim=(0, 1.08), xticks=range(len(logits)))
        axis.set_xticklabels(classes, rotation=30, ha="right", fontsize=8)
    axes[0].set_ylabel("probability")
    return figure


def _box(axis: Axes, corner: tuple[float, float], text: str, colour: str) -> None:
    style = "round,pad=0.05,rounding_size=0.12"
    axis.add_patch(
        FancyBboxPatch(corner, 1.75, 0.8, boxstyle=style, facecolor="white", edgecolor=colour, linewidth=2)
    )
    x, y = corner
    axis.text(x + 0.875, y + 0.4, text, ha="center", va="center", fontsize=10)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    look = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.8, "mutation_scale": 14}
    axis.annotate("", end, start, arrowprops=look)
