"""Figures of the study: one style, and one palette in which a teacher keeps its colour and marker everywhere.

The last two show ideas, what distillation and a temperature are; the others show results.  Every function
returns a figure of a fixed size and changes no data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from IPython import get_ipython
from matplotlib import style as mpl_style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import LogLocator
from matplotlib_inline.backend_inline import set_matplotlib_formats

import fgkd.metrics
from fgkd.analysis import correlation
from fgkd.analysis.blocks import mean_interval
from fgkd.analysis.groups import GROUP
from fgkd.metrics.claims import METRICS, UNDEFINED

# Okabe and Ito's palette, told apart by colour-blind readers; the shapes tell apart what grey print does not.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#4D4D4D")
SHAPES = "osD^vPX*"
STUDENTS = ("#333333", "#8C6D31", "#843C39", "#637939", "#7B4173", "#9E9E9E")  # of what is no teacher
GREY, LIGHT_GREY = "#8A8A8A", "#C8C8C8"
# Ratios of raw logits, which have no meaning where the second is not positive: figures then say so.
RATIOS = ("ratio12", "ratio12_median", "ratio13", "ratio23")
HOLLOW = f"hollow: second logit zero or negative in more than {UNDEFINED:.0%} of this teacher's samples"
NEEDS = {
    "ssp": "needs four classes",
    "ratio13": "needs three classes",
    "ratio23": "needs three classes",
}
SIDES = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)])
OUTSIDE = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "title": None}
STYLE: dict[str, Any] = {
    "figure.dpi": 96,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.07,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "image.interpolation": "nearest",
    "text.parse_math": False,  # a class may be named $\frac$
    "svg.hashsalt": "fgkd",
}


def set_style() -> None:
    """Set matplotlib's options for all figures of the study; in a notebook, show figures as PNG."""
    if get_ipython() is not None:
        set_matplotlib_formats("png")
    mpl_style.use(STYLE)


def teacher_styles(teachers: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Palette and markers of the teachers by their place in the study, as seaborn takes them."""
    names = list(dict.fromkeys(teachers))
    palette = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    markers = {name: SHAPES[(i + i // len(PALETTE)) % len(SHAPES)] for i, name in enumerate(names)}
    return palette, markers


def _styles(names: Iterable[str], teachers: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """`teacher_styles`, with other colours for names that are no teacher's, if there are any."""
    palette, markers = teacher_styles(teachers)
    others = [name for name in dict.fromkeys(names) if name not in palette]
    if not palette:
        return teacher_styles(others)
    for i, name in enumerate(others):
        palette[name] = STUDENTS[i % len(STUDENTS)]
        markers[name] = SHAPES[i % len(SHAPES)]
    return palette, markers


def save(figure: Figure, folder: Path, name: str) -> Figure:
    """Write the figure as PNG and SVG into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png")
    figure.set_layout_engine("none")  # that of the PNG, which took as long as to draw it
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return figure


def contact_sheet(rows: Sequence, titles: Sequence[str], *, side: float = 0.85) -> Figure:
    """Rows of images (k, H, W, 3) or maps (k, H, W) with titles; `side` in inches."""
    columns = max(map(len, rows))
    figure, axes = _panels(columns, columns * side + 2.2, len(rows) * side, rows=len(rows))
    for axis in axes:
        axis.axis("off")
    for i, (images, title) in enumerate(zip(rows, titles, strict=True)):
        line = axes[i * columns :]
        line[0].text(-0.15, 0.5, title, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image)
    return figure


def attention(images, maps, boxes, crops, drops) -> Figure:
    """A CAL teacher's attention on a few images, with the crops and drops that follow from it.

    images, crops, drops: (k, 3, S, S), 0 to 255; maps: (k, h, w); boxes: (k, 4), top, left, bottom, right.
    """
    images, crops, drops = (np.moveaxis(np.asarray(x), 1, 3).astype(np.uint8) for x in (images, crops, drops))
    titles = ["image and box", "attention", "crop", "drop"]
    figure = contact_sheet([images, maps, crops, drops], titles, side=1.15)
    for axis, (top, left, bottom, right) in zip(figure.axes, boxes, strict=False):
        size = (right - left, bottom - top)
        axis.add_patch(Rectangle((left, top), *size, fill=False, color=PALETTE[1], linewidth=2))
    return figure


def logit_bars(logits, titles: Sequence[str]) -> Figure:
    """Bars of a few samples' logits (k, C), the two largest in colour, R12 in the title."""
    logits = np.asarray(logits, float)
    figure, axes = _panels(len(logits), 3.1 * len(logits), 2.8, sharey=True)
    for axis, values, title in zip(axes, logits, titles, strict=True):
        axis.bar(range(len(values)), values, color=_largest_coloured(values))
        axis.axhline(0, color="black", linewidth=0.8)
        second, largest = np.sort(values)[-2:]
        ratio = largest / second
        axis.set(title=f"{title}\nR12 = {ratio:.2f}", xlabel="class", xticks=range(len(values)))
    axes[0].set_ylabel("raw logit")
    return figure


def top_two(logits, *, title: str, color: str = PALETTE[0]) -> Figure:
    """Second largest logit of samples (N, C) against the largest, and a histogram of R12."""
    largest, second = -np.sort(-np.asarray(logits, float), axis=1)[:, :2].T
    figure, (left, right) = _panels(2, 9, 3.4)
    left.scatter(largest, second, s=8, alpha=0.4, color=color, linewidths=0)
    end = largest.max() * 1.05
    for ratio in (1, 1.5, 2, 4):
        left.plot((0, end), (0, end / ratio), color=GREY, linewidth=0.8)
        left.annotate(f"R12 = {ratio:g}", (end, end / ratio), fontsize=8, color="#5A5A5A")
    left.axhline(0, color="black", linewidth=0.8)
    left.set(xlabel="largest logit P\u2081", ylabel="second largest logit P\u2082", title=title)
    ratios = pd.Series(fgkd.metrics.ratio12(logits).numpy()).dropna()
    shown = ratios[(ratios > 0) & (ratios < 6)]
    seaborn.histplot(shown, bins=40, color=color, alpha=1, linewidth=0, ax=right)
    right.axvline(ratios.median(), color="black", label=f"median {ratios.median():.2f}")
    share = f"{len(shown)} of {len(ratios)} samples lie in this range"
    right.set(xlabel="R12 of a sample", ylabel="samples", title=share)
    right.legend()
    return figure


def curves(history: pd.DataFrame, *, title: str, teachers: Iterable[str] = ()) -> Figure:
    """Loss and training accuracy by epoch, one line per run, teachers in their colours.

    history: one row per `run` and `epoch`, with `train_accuracy` and the terms of the loss.
    """
    others = ["run", "epoch", "train_accuracy", "student", "loss"]
    total = history.drop(columns=others, errors="ignore").sum(axis=1)
    table = history.assign(total=total, percent=100 * history.train_accuracy, epoch=history.epoch + 1)
    look = _look("run", table.run, teachers) | {"dashes": False, "errorbar": None, "markersize": 4}
    figure, (left, right) = _panels(2, 9, 2.9)
    seaborn.lineplot(table, x="epoch", y="total", legend=False, ax=left, **look)
    seaborn.lineplot(table, x="epoch", y="percent", ax=right, **look)
    left.set(ylabel="training loss", title=title)
    right.set(ylabel="accuracy on training views, %", ylim=(0, 100))
    for axis in (left, right):
        axis.locator_params(axis="x", integer=True)
    seaborn.move_legend(right, **OUTSIDE)
    return figure


def ratio_boxplot(
    logits: dict[str, np.ndarray], teachers: Iterable[str] = (), *, of: str = "test image"
) -> Figure:
    """Box plot of R12 over samples, one box per name; the whiskers hold 90 %.

    matplotlib draws it, since seaborn's boxes call it in a way that it deprecates.

    logits: (N, C) of each name, in its colour where it is one of `teachers`.
    of: what the samples are.
    """
    ratios = [fgkd.metrics.ratio12(values).numpy() for values in logits.values()]
    finite = [values[np.isfinite(values)] for values in ratios]
    figure, (axis,) = _panels(1, 7, 0.42 * len(logits) + 0.9)
    look = {
        "orientation": "horizontal",
        "widths": 0.6,
        "medianprops": {"color": "black"},
        "patch_artist": True,
    }
    boxes = axis.boxplot(finite, tick_labels=list(logits), whis=(5, 95), showfliers=False, **look)["boxes"]
    palette, _ = _styles(logits, teachers)
    for name, box in zip(logits, boxes, strict=True):
        box.set_facecolor(palette[name] if name in teachers or not teachers else LIGHT_GREY)
    axis.axvline(1, color=GREY, linewidth=0.8)
    axis.set_xlabel(f"R12 of a {of} (1: the two best classes tie)")
    axis.invert_yaxis()
    return figure


def accuracies(students: pd.DataFrame, teachers: Iterable[str]) -> Figure:
    """Mean accuracy of each teacher's students by strategy and loss, with its range over seeds.

    The dashed line is the mean of the students without a teacher.
    """
    alone = students[students.strategy == "CE"]
    taught = students[students.strategy != "CE"]
    group = taught.strategy + ("\n+ " + taught.loss).where(taught.loss != "kd", "")
    means = 100 * taught.groupby([group.rename("group"), "teacher", "seed"], sort=False).accuracy.mean()
    palette, markers = teacher_styles(teachers)
    legend = 0.7 + 0.08 * max(map(len, ["no teacher", *palette]))
    figure, (axis,) = _panels(1, 0.8 + max(1.2, 0.85 * group.nunique()) + legend, 3.4)
    if len(alone):
        axis.axhline(100 * alone.accuracy.mean(), color="black", linestyle="--", label="no teacher")
    hue = {"hue": "teacher", "hue_order": palette, "palette": palette, "markers": list(markers.values())}
    look = {"linestyle": "none", "errorbar": ("pi", 100), "dodge": min(0.1 * (len(palette) - 1), 0.8)}
    seaborn.pointplot(means.reset_index(), x="group", y="accuracy", ax=axis, **hue, **look)
    axis.set(xlabel="", ylabel="student accuracy, %", xlim=(-0.55, group.nunique() - 0.45))
    seaborn.move_legend(axis, **OUTSIDE)
    return figure


def gains(table: pd.DataFrame, teacher: str, teachers: Iterable[str] = ()) -> Figure:
    """Accuracies with 95 % intervals: without a teacher, taught by it, the teacher's own.

    table: `name`, `kind` (alone, taught or teacher), `accuracy`, `low` and `high`, a row a mark.
    """
    palette, _ = teacher_styles([*teachers, teacher])
    colours = {"alone": "black", "taught": STUDENTS[1], "teacher": palette[teacher]}
    figure, axis = _rows(table.name, width=7.4)
    for y, row in enumerate(table.itertuples()):
        axis.plot((100 * row.low, 100 * row.high), (y, y), color=colours[row.kind], linewidth=2)
        axis.plot(100 * row.accuracy, y, "o", color=colours[row.kind])
    alone = table[table.kind == "alone"]
    if len(alone):
        axis.axvline(100 * alone.accuracy.mean(), color="black", linestyle="--", linewidth=1, zorder=0)
    axis.set_xlabel("accuracy on test images, %, with its 95 % interval")
    return figure


def stability(epochs: pd.DataFrame, metrics: Sequence[str], teachers: Iterable[str]) -> Figure:
    """Metrics' means over the first v views, two standard errors around them.

    A panel per recipe and metric.
    """
    palette, markers = teacher_styles(teachers)
    panels = list(itertools.product(epochs.recipe.unique(), metrics))
    figure, axes = _panels(len(panels), 4.6 * len(panels), 3.2)
    for axis, (recipe, metric) in zip(axes, panels, strict=True):
        for teacher, rows in epochs[epochs.recipe == recipe].groupby("teacher", sort=False):
            values = rows.sort_values("epoch")[metric].expanding()
            mean, error = values.mean(), 2 * values.sem()
            views = np.arange(1, len(rows) + 1)
            look = {"label": teacher, "marker": markers[teacher], "markersize": 3}
            axis.plot(views, mean, color=palette[teacher], **look)
            axis.fill_between(views, mean - error, mean + error, color=palette[teacher], alpha=0.15)
        axis.locator_params(axis="x", integer=True)
        axis.set(xlabel="views of each image", ylabel=f"{METRICS[metric].label}, mean so far", title=recipe)
    axes[-1].legend(**OUTSIDE)
    return figure


def metric_scatter(
    points: pd.DataFrame, metrics: Sequence[str], teachers: Iterable[str], *, alone: float | None = None
) -> Figure:
    """Student accuracy against each metric, one panel per strategy and metric, teachers by name.

    The title has Spearman's rho with its 95 % interval, the line is that of least squares.  A teacher is
    hollow where R12 has no meaning in more than 1 % of its samples.

    points: as returned by `groups.join_students_with_metrics`, of one dataset, student and loss.
    alone: accuracy of that student without a teacher, a dashed line.
    """
    figure, panels = _facets(points, metrics, 2.6 + 0.08 * points.teacher.nunique())
    for axis, strategy, metric, rows in panels:
        table = rows.assign(percent=100 * rows.accuracy, hollow=_hollow(rows, metric))
        _scatter(axis, table, metric, "percent", teachers)
        finite = np.isfinite(rows[metric])
        if finite.sum() > 2 and rows[metric][finite].nunique() > 1:
            look = {
                "scatter": False,
                "ci": None,
                "color": "#B0B0B0",
                "line_kws": {"linewidth": 1, "zorder": 1},
            }
            seaborn.regplot(table[finite], x=metric, y="percent", ax=axis, **look)
        if alone is not None:
            axis.axhline(100 * alone, color="black", linestyle="--", linewidth=1, zorder=1)
            where = {"xycoords": axis.get_yaxis_transform(), "textcoords": "offset points"}
            axis.annotate("no teacher", (1, 100 * alone), (-2, 3), ha="right", fontsize=8, **where)
        better = "smaller" if METRICS[metric].direction < 0 else "larger"
        axis.set(xlabel=f"{METRICS[metric].label}  ({better} is claimed better)", ylabel="")
        axis.set_title(f"{strategy}: {_rho(rows[metric], rows.accuracy)}")
        axis.locator_params(axis="x", nbins=5)
        if metric == metrics[0]:
            axis.set_ylabel("student accuracy, %")
    _explain_hollow(figure, any(_hollow(points, metric).any() for metric in metrics))
    figure.draw_without_rendering()
    for axis, _, metric, rows in panels:
        _name_points(axis, rows[metric], 100 * rows.accuracy, rows.teacher)
    return figure


def ranks(points: pd.DataFrame, metrics: Sequence[str], teachers: Iterable[str]) -> Figure:
    """Ranks of teachers by a metric (left) and by their students (right), per strategy.

    The best in the claimed direction is on top; points and hollow marks as in `metric_scatter`.
    """
    palette, markers = teacher_styles(teachers)
    figure, panels = _facets(points, metrics, 0.8 + 0.27 * points.teacher.nunique())
    for axis, strategy, metric, rows in panels:
        scores = METRICS[metric].direction * rows[metric]
        table = rows.assign(
            left=scores.rank(ascending=False, method="first", na_option="bottom"),
            right=rows.accuracy.rank(ascending=False, method="first"),
            face=np.where(_hollow(rows, metric), "white", rows.teacher.map(palette)),
        )
        for row in table.itertuples():
            look = {"marker": markers[row.teacher], "markerfacecolor": row.face}
            axis.plot((0, 1), (row.left, row.right), color=palette[row.teacher], **look)
            axis.text(1.08, row.right, row.teacher, fontsize=9, va="center")
        axis.set(title=f"{strategy}: {METRICS[metric].label}", ylabel="rank" if metric == metrics[0] else "")
        axis.set(xlim=(-0.15, 2.1), xticks=(0, 1), xticklabels=("metric", "students"))
        axis.set(ylim=(len(rows) + 0.5, 0.5), yticks=range(1, len(rows) + 1))
    _explain_hollow(figure, any(_hollow(points, metric).any() for metric in metrics))
    return figure


def capacity(points: pd.DataFrame, metric: str, teachers: Iterable[str]) -> Figure:
    """A metric and student accuracy against the teacher's size, means over groups.

    A teacher is hollow in the metric's panel where it is so in `metric_scatter` for any group.

    points: as returned by `groups.join_students_with_metrics`.
    """
    hollow = points.teacher[_hollow(points, metric)]
    means = points.groupby("teacher", sort=False)[[metric, "parameters", "accuracy"]].mean().reset_index()
    means = means.assign(millions=means.parameters / 1e6, percent=100 * means.accuracy)
    figure, axes = _panels(2, 9, 3.6)
    steps = (1, 2, 5) if np.ptp(np.log10(means.parameters)) > 0.5 else range(1, 10)
    for axis, values in zip(axes, (metric, "percent"), strict=True):
        table = means.assign(hollow=means.teacher.isin(hollow) & (values == metric))
        _scatter(axis, table, "millions", values, teachers)
        axis.set_xscale("log", subs=())
        axis.xaxis.set_major_locator(LogLocator(subs=steps))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set(xlabel="million weights of the teacher", title=_rho(means.parameters, means[values]))
    axes[0].set_ylabel(METRICS[metric].label)
    axes[1].set_ylabel("student accuracy, %")
    _explain_hollow(figure, len(hollow) > 0)
    figure.draw_without_rendering()
    for axis, values in zip(axes, (metric, "percent"), strict=True):
        _name_points(axis, means.millions, means[values], means.teacher)
    return figure


def training_progress(trained: pd.DataFrame, teachers: Iterable[str]) -> Figure:
    """R12 against the teacher's accuracy on the students' views, one panel per recipe.

    The title has the mean over datasets of Spearman's rho; hollow marks as in `metric_scatter`.

    trained: as returned by `findings.teacher_means`.
    """
    table = trained.assign(percent=100 * trained.train_accuracy, hollow=_hollow(trained, "ratio12"))
    recipes = trained.recipe.unique()
    figure, axes = _panels(len(recipes), 3.9 * len(recipes) + 1.4, 3.3)
    for axis, recipe in zip(axes, recipes, strict=True):
        rows = table[table.recipe == recipe]
        _scatter(axis, rows, "percent", "ratio12", teachers, legend="full" if axis is axes[-1] else False)
        datasets = rows.groupby("dataset")[["ratio12", "percent"]]
        rhos = datasets.apply(lambda values: correlation.spearman(values.ratio12, values.percent)).dropna()
        number = f"{len(rhos)} data set{'s' * (len(rhos) > 1)}"
        mean = f"mean rho {rhos.mean():+.2f} ({number})" if len(rhos) else "rho undefined"
        axis.set(xlabel="teacher's accuracy on the students' views, %", ylabel="", title=f"{recipe}: {mean}")
    axes[0].set_ylabel("R12")
    if axes[-1].get_legend():
        seaborn.move_legend(axes[-1], **OUTSIDE)
    _explain_hollow(figure, table.hollow.any())
    return figure


def reliability(logits: dict[str, np.ndarray], labels: np.ndarray, teachers: Iterable[str] = ()) -> Figure:
    """Accuracy against confidence in 15 equal bins, with the expected calibration error.

    Of one name the number of samples stands at each bin.

    logits: (N, C) of each name, in its colour where it is one of `teachers`; labels: (N,).
    """
    palette, markers = _styles(logits, teachers)
    figure, (axis,) = _panels(1, 5.6, 4)
    axis.plot((0, 1), (0, 1), color=GREY, linestyle="--", label="calibrated")
    for name, values in logits.items():
        samples = fgkd.metrics.labelled_samples(values, labels)
        error = fgkd.metrics.calibration_error(samples["confidence"], samples["correct"])
        table = pd.DataFrame({key: samples[key].numpy() for key in ("confidence", "correct")})
        grouped = table.groupby(np.ceil(15 * table.confidence))
        bins = grouped.mean()
        if len(logits) == 1:
            for n, (x, y) in zip(grouped.size(), bins.to_numpy(), strict=True):
                axis.annotate(str(n), (x, y), (4, -9), textcoords="offset points", fontsize=7.5)
        look = {"label": f"{name}, ECE {error:.3f}", "color": palette[name], "marker": markers[name]}
        axis.plot(bins.confidence, bins.correct, **look)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence: the largest probability", ylabel="accuracy")
    axis.legend()
    return figure


def confused_pairs(
    logits: dict[str, np.ndarray],
    labels: np.ndarray,
    classes,
    *,
    pairs: int = 8,
    teachers: Iterable[str] = (),
) -> Figure:
    """The pairs of classes most often confused: the share of their images, a mark per name.

    logits: (N, C) of each name, in its colour where it is one of `teachers`; labels: (N,); classes: C names.
    """
    n = len(classes)
    images = np.bincount(labels, minlength=n)
    shares = {}
    for name, values in logits.items():
        confusion = np.bincount(labels * n + values.argmax(1), minlength=n * n).reshape(n, n)
        both = np.triu(confusion + confusion.T, 1) / np.maximum(images[:, None] + images, 1)
        shares[name] = 100 * both.ravel()
    table = pd.DataFrame(shares, [f"{a}\n{b}" for a, b in itertools.product(classes, classes)])
    worst = table.iloc[np.argsort(-table.sum(axis=1).to_numpy())[:pairs]]
    palette, markers = _styles(logits, teachers)
    figure, axis = _rows(worst.index, width=8, each=0.55)
    axis.hlines(range(len(worst)), worst.min(axis=1), worst.max(axis=1), color=LIGHT_GREY)
    for name, share in worst.items():
        look = {"label": name, "color": palette[name], "marker": markers[name]}
        axis.scatter(share, range(len(worst)), zorder=2, **look)
    axis.set_xlabel("images of the pair that are taken for the other, %")
    axis.legend(**OUTSIDE)
    return figure


def rho_heatmap(correlations: pd.DataFrame, metrics: Sequence[str] = ("ratio12", "ssp", "tac")) -> Figure:
    """Spearman's rho times the claimed direction, a row per metric, a column per group.

    Of more than 16 groups one panel per metric of `metrics`, datasets by strategies, means over students and
    further losses.
    """
    varying = [column for column in GROUP if correlations[column].nunique() > 1] or ["strategy"]
    table = correlations.assign(
        label=correlations.metric.map(lambda metric: METRICS[metric].label),
        group=correlations[varying].agg(", ".join, axis=1),
    )
    cells = {"values": "agrees", "sort": False, "dropna": False}
    tables = {"": table.pivot_table(index="label", columns="group", **cells)}
    if table.group.nunique() > 16:
        labels = [METRICS[metric].label for metric in metrics]
        by_metric = dict(list(table.groupby("label")))
        cells |= {"index": "dataset", "columns": "strategy"}
        tables = {label: by_metric[label].pivot_table(**cells) for label in labels}
    rows, columns = next(iter(tables.values())).shape
    figure, axes = _panels(len(tables), 2.8 + 0.75 * columns * len(tables), 1.2 + 0.36 * rows, sharey=True)
    look = {"annot": True, "fmt": "+.2f", "vmin": -1, "vmax": 1, "cmap": "RdBu", "linewidths": 0.5}
    look["cbar_kws"] = {"label": "rho in the claimed direction"}
    for axis, (label, values) in zip(axes, tables.items(), strict=True):
        seaborn.heatmap(values, ax=axis, cbar=axis is axes[-1], **look)
        axis.set(xlabel="", ylabel="", title=label)
        axis.tick_params(axis="y", rotation=0)
        axis.tick_params(axis="x", rotation=0 if label else 30)
    return figure


def agreements(correlations: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """Rho of each metric in the claimed direction: a mark per dataset, black the mean.

    The mean has its 95 % interval over datasets where there are six.
    """
    figure, axis = _rows([METRICS[metric].label for metric in metrics], each=0.36, more=1.2)
    defined = correlations[correlations.agrees.notna() & correlations.metric.isin(metrics)]
    places = {metric: place for place, metric in enumerate(metrics)}
    means = defined.groupby(["dataset", "metric"], sort=False).agrees.mean().reset_index()
    if len(means):
        look = _look("dataset", dict.fromkeys(correlations.dataset))
        marks = means.assign(place=means.metric.map(places))
        seaborn.scatterplot(marks, x="agrees", y="place", s=45, zorder=3, ax=axis, **look)
        axis.legend(**OUTSIDE)
    for metric, rows in defined.groupby("metric"):
        _draw_mean(axis, places[metric], rows.agrees, rows.dataset, 0.3)
    axis.set_yticks(range(len(metrics)))  # a metric without a value keeps its row
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(xlabel="rho with student accuracy, in the claimed direction", ylabel="", xlim=(-1.03, 1.03))
    return figure


def strengths(correlations: pd.DataFrame, metrics: Sequence[str], null: float | None) -> Figure:
    """Share of groups by strength of abs(rho), a bar per metric; dashed: under the null.

    The title says so where groups have so few teachers that no ranking of them is significant.
    """
    defined = correlations[correlations.rho.notna()]
    shares = 100 * pd.crosstab(defined.metric, defined.strength, normalize="index")
    shares = shares.reindex(index=metrics, columns=correlation.STRENGTHS[::-1], fill_value=0)
    shares.index = [METRICS[metric].label for metric in metrics]
    figure, (axis,) = _panels(1, 7, 3)
    shares.plot.barh(stacked=True, width=0.8, color=[PALETTE[0], PALETTE[5], LIGHT_GREY], ax=axis)
    if null is not None:
        axis.axvline(100 * null, color="black", linestyle="--", label="strong under the null")
    axis.invert_yaxis()
    groups = correlations.groupby(GROUP).ngroups
    axis.set(xlabel=f"groups, % (of {groups})", ylabel="", xlim=(0, 100))
    most = correlations.n.max()
    if most < correlation.MIN_SIGNIFICANT:
        axis.set_title(f"of {most} teachers no order is significant, however strong")
    axis.legend(**OUTSIDE)
    return figure


def selection_chart(rules: pd.DataFrame) -> Figure:
    """Mean student accuracy by the rule that chose the teacher.

    A rule that sees students has another colour, and says how much of their training it takes.  Black: the
    95 % interval of what is above a random teacher's student, where there are six datasets.

    rules: as returned by `selection.selection_summary`.
    """
    labels, colours = _rule_styles(rules)
    figure, axis = _rows(labels)
    bars = axis.barh(range(len(rules)), 100 * rules.accuracy, color=colours)
    axis.bar_label(bars, fmt="%.1f ", fontsize=9, color="white", label_type="center")
    for y, row in enumerate(rules.itertuples()):
        random = row.accuracy - row.gain_random
        ends = [100 * (random + row.gain_random_low), 100 * (random + row.gain_random_high)]
        axis.plot(ends, (y, y), color="black", linewidth=2)
    axis.margins(y=0.01)
    axis.set_xlim(left=0)
    axis.set_xlabel(f"student accuracy, %, mean over {rules.groups.max()} groups")
    return figure


def regret(outcomes: pd.DataFrame, rules: Sequence[str]) -> Figure:
    """What each rule's pick loses against the best teacher: a dot per group, black the mean.

    The mean has its 95 % interval over datasets where there are six.  Dots are spread by a fixed pattern, as
    seaborn's strips draw unseeded random numbers; colours as in `selection_chart`.

    outcomes: as returned by `selection.selection_outcomes`.
    """
    labels, colours = _rule_styles(outcomes.groupby("rule").cost.mean().loc[list(rules)].reset_index())
    figure, axis = _rows(labels)
    for y, (rule, colour) in enumerate(zip(rules, colours, strict=True)):
        rows = outcomes[outcomes.rule == rule].sort_values("regret")
        lost = 100 * rows.regret.to_numpy()
        height = y + 0.3 * (np.arange(len(lost)) % 5 / 4 - 0.5)
        axis.scatter(lost, height, s=18, alpha=0.6, linewidths=0, color=colour)
        _draw_mean(axis, y, lost, rows.dataset, 0.35)
    axis.set_yticks(range(len(rules)))  # a rule without a value keeps its row
    axis.set_xlabel("points of student accuracy below the best teacher of the group")
    return figure


def places(shares: pd.DataFrame) -> Figure:
    """How often each candidate has which of the first places, as stacked bars.

    shares: one row per `teacher`, the first at the top, and a column per place with its share.
    """
    figure, axis = _rows(shares.teacher, each=0.34, more=1.1)
    start = np.zeros(len(shares))
    colours = seaborn.color_palette("Blues_r", shares.shape[1])
    for place, colour in zip(shares.columns[1:], colours, strict=False):
        width = 100 * shares[place].to_numpy()
        axis.barh(range(len(shares)), width, left=start, color=colour, label=f"place {place}")
        start += width
    axis.set(xlabel="% of bootstrap samples of the held-out photos", xlim=(0, 100))
    axis.legend(**OUTSIDE)
    return figure


def pilots(table: pd.DataFrame, teachers: Sequence[str]) -> Figure:
    """Accuracy of begun students on held-out photos by epochs, without a teacher in grey.

    table: one row per pilot: epochs, teacher, accuracy.
    teachers: all candidates, by which a teacher has its colour.
    """
    figure, (axis,) = _panels(1, 7, 3.4)
    palette, markers = teacher_styles(teachers)
    for name, rows in table.groupby("teacher", sort=False):
        options = {"color": palette.get(name, GREY), "marker": markers.get(name, "x"), "label": name}
        axis.plot(rows.epochs, 100 * rows.accuracy, linestyle="-" if name in palette else "--", **options)
    axis.set(xlabel="epochs of the student", ylabel="accuracy on held-out photos, %")
    axis.set_xticks(sorted(table.epochs.unique()))
    axis.legend(**OUTSIDE)
    return figure


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
    _box(axis, (2.4, 2.9), "teacher\nlarge, trained, fixed", PALETTE[0])
    _box(axis, (2.4, 0.5), "student\nsmall, learns", PALETTE[1])
    for start, end in (((1.75, 2.4), (2.35, 3.2)), ((1.75, 1.9), (2.35, 1.1))):
        _arrow(axis, start, end, GREY)
    for y in (3.3, 0.9):
        _arrow(axis, (4.25, y), (4.65, y), GREY)
    bounds = [(0.54, 0.62, 0.2, 0.28), (0.54, 0.1, 0.2, 0.28)]
    titles = ["soft targets", "student's prediction"]
    for place, values, colour, title in zip(bounds, (teacher, student), PALETTE[:2], titles, strict=True):
        bars = figure.add_axes(place)
        bars.bar(range(len(values)), values, color=colour)
        bars.set(ylim=(0, 1), xticks=range(len(values)), yticks=(0, 1))
        bars.set_xticklabels(classes, rotation=35, ha="right")
        bars.set_title(title, fontsize=9)
        bars.tick_params(labelsize=7.5)
    _arrow(axis, (6.85, 3.1), (6.85, 1.2), PALETTE[0])
    axis.text(7.0, 2.2, "distillation loss (KL):\nanswer as the\nteacher does", va="center", fontsize=9)
    _arrow(axis, (7.75, 0.8), (6.85, 0.8), "black")
    axis.text(7.8, 0.8, "label loss (CE):\nbe right", va="center", fontsize=9)
    return figure


def softmax_bars(logits, temperatures: Sequence[float], classes: Sequence[str]) -> Figure:
    """The softmax of one sample's logits (C,) at several temperatures, a panel each."""
    logits = np.asarray(logits, float)
    figure, axes = _panels(len(temperatures), 2.9 * len(temperatures), 2.8, sharey=True)
    for axis, temperature in zip(axes, temperatures, strict=True):
        powers = np.exp((logits - logits.max()) / temperature)
        bars = axis.bar(range(len(logits)), powers / powers.sum(), color=_largest_coloured(logits))
        axis.bar_label(bars, fmt="%.2f", fontsize=8)
        axis.set(title=f"T = {temperature:g}", ylim=(0, 1.08), xticks=range(len(logits)))
        axis.set_xticklabels(classes, rotation=30, ha="right", fontsize=8)
    axes[0].set_ylabel("probability")
    return figure


def _panels(columns: int, width: float, height: float, *, rows: int = 1, sharey: bool = False):
    """A figure in inches, unknown to pyplot so that a notebook shows it once, and its axes row by row."""
    figure = Figure(figsize=(width, height))
    return figure, list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)


def _rows(labels: Sequence[str], *, width: float = 7, each: float = 0.42, more: float = 0.9):
    """A figure whose axis has a row of `each` inches per label, the first on top."""
    figure, (axis,) = _panels(1, width, each * len(labels) + more)
    axis.set(yticks=range(len(labels)), yticklabels=labels)
    axis.invert_yaxis()
    return figure, axis


def _draw_mean(axis: Axes, y: float, values, datasets, half: float) -> None:
    """The mean of a row's values as a black line of half its height, with its 95 % interval over datasets."""
    axis.plot([np.mean(values)] * 2, (y - half, y + half), color="black", linewidth=2)
    axis.plot(mean_interval(values, datasets), (y, y), color="black", linewidth=2)


def _largest_coloured(values: np.ndarray) -> np.ndarray:
    """A colour for each value: those of the two largest stand out."""
    rank = (-values).argsort().argsort()
    return np.select([rank == 0, rank == 1], PALETTE[:2], LIGHT_GREY)


def _facets(points: pd.DataFrame, metrics: Sequence[str], height: float):
    """A figure with one panel per strategy and metric; the (axis, strategy, metric, points) of each."""
    strategies = dict(list(points.groupby("strategy", sort=False)))
    size = (3.9 * len(metrics), height * len(strategies))
    figure, axes = _panels(len(metrics), *size, rows=len(strategies))
    grid = itertools.product(strategies.items(), metrics)
    panels = [(axis, name, metric, rows) for axis, ((name, rows), metric) in zip(axes, grid, strict=True)]
    return figure, panels


def _look(column: str, names: Iterable[str], teachers: Iterable[str] = ()) -> dict:
    """seaborn's options for the colours and markers of the names in `column`."""
    palette, markers = _styles(names, teachers)
    return {"hue": column, "style": column, "palette": palette, "markers": markers}


def _scatter(axis: Axes, rows: pd.DataFrame, x: str, y: str, teachers: Iterable[str], legend=False) -> None:
    """Scatter rows (`teacher`, x, y) in the teachers' colours and markers, unfilled where `hollow`.

    An axis without a point says why.
    """
    rows = rows[np.isfinite(rows[[x, y]]).all(axis=1)]
    if rows.empty:
        metric = x if x in METRICS else y
        name = METRICS[metric].label if metric in METRICS else metric
        reason = NEEDS.get(metric, "is not a finite number for any teacher")
        axis.text(0.5, 0.5, f"{name} {reason}", ha="center", va="center", transform=axis.transAxes)
        return
    seaborn.scatterplot(rows, x=x, y=y, s=45, zorder=3, legend=legend, ax=axis, **_look("teacher", teachers))
    marks = axis.collections[-1]
    colours = marks.get_facecolor()
    faces = np.where(rows.hollow.to_numpy()[:, None], 0, colours)
    marks.set(edgecolor=colours, facecolor=faces, linewidth=1.2)
    axis.margins(0.2)


def _rho(x: pd.Series, y: pd.Series) -> str:
    """Spearman's rho in words, with its 95 % interval where it is defined."""
    rho = correlation.spearman(x, y)
    low, high = correlation.interval(rho, len(x))
    bounds = "" if np.isnan(rho) else f"\n95 %: {low:+.2f} to {high:+.2f}"
    return f"rho {correlation.describe_rho(rho, len(x))}{bounds}"


def _hollow(rows: pd.DataFrame, metric: str) -> pd.Series:
    """Which rows have no ratio of raw logits in too large a share of samples, where the metric is one."""
    return (rows.ratio12_nonpositive > UNDEFINED) & (metric in RATIOS)


def _explain_hollow(figure: Figure, hollow: bool) -> None:
    """Say below the panels what a hollow mark is, where there is one."""
    if hollow:
        figure.supxlabel(HOLLOW, fontsize=8.5)


def _rule_styles(rules: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """Labels and colours of rules: metrics, those that see students (with their cost), and others in grey."""
    after = [f", after {cost:.0%} of all trainings" if cost > 0 else "" for cost in rules.cost]
    metric = rules.rule.isin([claim.label for claim in METRICS.values()])
    colours = np.where(metric, np.where(rules.cost > 0, PALETTE[1], PALETTE[0]), GREY)
    return list(rules.rule + after), colours


def _name_points(axis: Axes, x: pd.Series, y: pd.Series, names: pd.Series) -> None:
    """Name each point where the name covers neither a point nor another name, as near as possible.

    adjustText takes three times as long, and leaves 4 % of 8 names on a point and 7 % outside the panel.
    """
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        return
    spots = np.column_stack([x[known], y[known]])
    look: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "ha": "center", "va": "center"}
    labels = [
        axis.annotate(name, spot, (0, 0), in_layout=False, **look)
        for name, spot in zip(names[known], spots, strict=True)
    ]
    scale = 72 / axis.figure.dpi  # from pixels to points
    spots = scale * axis.transData.transform(spots)
    half = scale * np.array([label.get_window_extent().size for label in labels])[:, None] / 2
    places = np.hstack([spots[:, None] + SIDES * (half + gap) for gap in (7, 13, 20, 28)])
    low, high = scale * axis.bbox.get_points()
    outside = (places - half < low) | (places + half > high)
    on_points = np.abs(places[:, :, None] - spots) < half[:, None] + 5
    costs = 9 * outside.any(-1) + on_points.all(-1).sum(-1)
    chosen = np.full_like(spots, np.nan)
    for i in 3 * list(range(len(labels))):  # three rounds: a name may be in the way of one placed later
        chosen[i] = np.nan
        on_names = np.abs(places[i, :, None] - chosen) < half[i] + half[:, 0]
        chosen[i] = places[i, np.argmin(costs[i] + on_names.all(-1).sum(-1))]
        labels[i].xyann = tuple(chosen[i] - spots[i])


def _box(axis: Axes, corner: tuple[float, float], text: str, colour: str) -> None:
    look: dict[str, Any] = {"facecolor": "white", "linewidth": 2}
    style = "round,pad=0.05,rounding_size=0.12"
    axis.add_patch(FancyBboxPatch(corner, 1.75, 0.8, boxstyle=style, edgecolor=colour, **look))
    axis.text(corner[0] + 0.875, corner[1] + 0.4, text, ha="center", va="center", fontsize=10)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    look = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.8, "mutation_scale": 14}
    axis.annotate("", end, start, arrowprops=look)
