"""Figures of the study: one style, and one palette in which a teacher keeps its colour everywhere.

Every function returns a matplotlib Figure of a fixed size and changes no data.  seaborn is imported where it draws, since each
notebook of a batch would pay a second for it.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython import get_ipython
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator
from matplotlib.transforms import Bbox
from matplotlib_inline.backend_inline import set_matplotlib_formats

from fgkd.analysis.correlation import MIN_SIGNIFICANT, STRENGTHS, describe_rho, spearman, strength
from fgkd.metrics import METRICS, calibration_error, labelled_samples

# Okabe and Ito's palette, told apart by colour-blind readers; the shapes tell apart what print in grey does not.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#4D4D4D")
SHAPES = "osD^vPX*"
# A ratio of raw logits has no meaning where the second is not positive: above this share figures say so.
RATIOS, UNDEFINED = ("ratio12", "ratio12_median", "ratio13", "ratio23"), 0.01
HOLLOW = f"hollow: second logit zero or negative in more than {UNDEFINED:.0%} of this teacher's samples"


def set_style() -> None:
    """matplotlib's settings for all figures of the study; in a notebook, figures as PNG."""
    if get_ipython() is not None:
        set_matplotlib_formats("png")
    plt.rcParams.update(
        {
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
            "svg.hashsalt": "fgkd",
        }
    )


def teacher_styles(teachers) -> dict[str, dict]:
    """Colour and marker of each teacher, by its place in the study: name -> {'color', 'marker'}."""
    return {
        t: {"color": PALETTE[i % len(PALETTE)], "marker": SHAPES[(i + i // len(PALETTE)) % len(SHAPES)]}
        for i, t in enumerate(teachers)
    }


def save(figure: Figure, folder: Path, name: str) -> Figure:
    """Write the figure as PNG and SVG into `folder` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png")
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return figure


def contact_sheet(rows: list[np.ndarray], titles: list[str], *, picture: float = 0.85) -> Figure:
    """Pictures (k, H, W, 3) uint8 in rows, each row with its title; `picture`: side of one in inches."""
    columns = max(len(r) for r in rows)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(columns * picture + 2.2, len(rows) * picture), squeeze=False
    )
    for line, pictures, title in zip(axes, rows, titles):
        for axis in line:
            axis.axis("off")
        for axis, image in zip(line, pictures):
            axis.imshow(image)
        line[0].text(-0.15, 0.5, title, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    return _closed(figure)


def logit_bars(logits, titles: list[str]) -> Figure:
    """The logits of a few samples (k, C) as bars, the two largest marked, R12 in the title."""
    logits = np.asarray(logits, float)
    figure, axes = plt.subplots(1, len(logits), figsize=(3.1 * len(logits), 2.8), sharey=True, squeeze=False)
    for axis, values, title in zip(axes[0], logits, titles):
        order = np.argsort(-values)
        colours = np.full(len(values), "#C8C8C8", dtype=object)
        colours[order[0]], colours[order[1]] = PALETTE[0], PALETTE[1]
        axis.bar(np.arange(len(values)), values, color=colours)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(
            title=f"{title}\nR12 = {values[order[0]] / values[order[1]]:.2f}",
            xlabel="class",
            xticks=np.arange(len(values)),
        )
    axes[0][0].set_ylabel("raw logit")
    return _closed(figure)


def top_two(logits, *, title: str) -> Figure:
    """Each sample's second largest logit against its largest, over lines of equal R12; and how R12 is spread."""
    top = np.sort(np.asarray(logits, float), axis=1)[:, :-3:-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    left.scatter(top[:, 0], top[:, 1], s=8, alpha=0.4, color=PALETTE[0], linewidths=0)
    reach = np.array([0, top[:, 0].max() * 1.05])
    for ratio in (1, 1.5, 2, 4):
        left.plot(reach, reach / ratio, color="#8A8A8A", linewidth=0.8)
        left.annotate(f"R12 = {ratio:g}", (reach[1], reach[1] / ratio), fontsize=8, color="#5A5A5A")
    left.axhline(0, color="black", linewidth=0.8)
    left.set(xlabel="largest logit $P_1$", ylabel="second largest logit $P_2$", title=title)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = top[:, 0] / top[:, 1]
    ratio = ratio[~np.isnan(ratio)]
    shown = ratio[(ratio > 0) & (ratio < 6)]
    right.hist(shown, bins=40, color=PALETTE[0])
    right.axvline(np.median(ratio), color=PALETTE[1], label=f"median {np.median(ratio):.2f}")
    right.set(
        xlabel="R12 of a sample",
        ylabel="samples",
        title=f"{len(shown)} of {len(ratio)} samples lie in this range",
    )
    right.legend()
    return _closed(figure)


def curves(history: pd.DataFrame, *, by: str | None = None, title: str) -> Figure:
    """Loss and training accuracy of each epoch; `by`: a column whose values become lines."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.9))
    for i, (name, rows) in enumerate(history.groupby(by, sort=False) if by else [("", history)]):
        total = rows.drop(columns=["epoch", "train_accuracy", "student", "loss", "run"], errors="ignore").sum(
            axis=1
        )
        style = {
            "color": PALETTE[i % len(PALETTE)],
            "label": name,
            "marker": SHAPES[i % len(SHAPES)],
            "markersize": 3,
        }
        left.plot(rows.epoch + 1, total, **style)
        right.plot(rows.epoch + 1, 100 * rows.train_accuracy, **style)
    left.set(xlabel="epoch", ylabel="training loss", title=title)
    right.set(xlabel="epoch", ylabel="accuracy on training views, %", ylim=(0, 100))
    if by:
        right.legend()
    return _closed(figure)


def attention(pictures, maps, boxes, crops, drops) -> Figure:
    """What attention makes of a few images: pictures with their boxes (k, 4), maps (k, h, w), crops and drops; all pictures (k, 3, S, S), 0 to 255."""
    pictures, crops, drops = (
        np.asarray(p).transpose(0, 2, 3, 1).astype(np.uint8) for p in (pictures, crops, drops)
    )
    size, rows = pictures.shape[1], ("image and box", "attention", "crop", "drop")
    figure, axes = plt.subplots(
        len(rows), len(pictures), figsize=(1.15 * len(pictures) + 1.2, 1.2 * len(rows)), squeeze=False
    )
    for column, (picture, seen, box, crop, drop) in enumerate(zip(pictures, maps, boxes, crops, drops)):
        for axis, image in zip(axes[:, column], (picture, seen, crop, drop)):
            axis.imshow(image, extent=(0, size, size, 0), cmap="viridis")
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
        top, left, bottom, right = box
        axes[0, column].add_patch(
            plt.Rectangle((left, top), right - left, bottom - top, fill=False, color=PALETTE[1], linewidth=2)
        )
    for axis, name in zip(axes[:, 0], rows):
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    return _closed(figure)


def ratio_boxplot(logits: dict[str, np.ndarray]) -> Figure:
    """How R12 is spread over samples, a box a name: logits (N, C) of each; the box holds half of them, the whiskers 90 %."""
    names = list(logits)
    figure, axis = plt.subplots(figsize=(7, 0.42 * len(names) + 0.9))
    for i, name in enumerate(names):
        top = np.sort(np.asarray(logits[name], float), axis=1)[:, :-3:-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = top[:, 0] / top[:, 1]
        axis.boxplot(
            ratio[np.isfinite(ratio)],
            positions=[i],
            orientation="horizontal",
            widths=0.6,
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": PALETTE[5]},
            medianprops={"color": "black"},
        )
    axis.axvline(1, color="#8A8A8A", linewidth=0.8)
    axis.set(
        yticks=range(len(names)),
        yticklabels=names,
        xlabel="R12 of a test image (1: the two best classes tie)",
    )
    axis.invert_yaxis()
    return _closed(figure)


def accuracies(students: pd.DataFrame, teachers) -> Figure:
    """Accuracy of every student, a column a strategy and loss, a mark a teacher; the dashed line is the student without a teacher."""
    look = teacher_styles(teachers)
    taught = students[students.strategy != "CE"]
    groups = list(dict.fromkeys(zip(taught.strategy, taught.loss)))
    legend = 0.7 + 0.08 * max(map(len, ["no teacher", *look]))
    figure, axis = plt.subplots(figsize=(0.8 + max(1.2, 0.85 * len(groups)) + legend, 3.4))
    for x, (strategy, loss) in enumerate(groups):
        rows = taught[(taught.strategy == strategy) & (taught.loss == loss)]
        for place, (teacher, mean) in enumerate(rows.groupby("teacher", sort=False).accuracy.mean().items()):
            beside = min(0.1, 0.8 / len(look)) * (place - (len(look) - 1) / 2)
            axis.plot(
                x + beside, 100 * mean, linestyle="", label=teacher if x == 0 else None, **look[teacher]
            )
    if len(alone := students[students.strategy == "CE"]):
        axis.axhline(100 * alone.accuracy.mean(), color="black", linestyle="--", label="no teacher")
    labels = [s if loss == "kd" else f"{s}\n+ {loss}" for s, loss in groups]
    axis.set(
        xticks=range(len(groups)),
        xticklabels=labels,
        xlim=(-0.55, len(groups) - 0.45),
        ylabel="student accuracy, %",
    )
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _closed(figure)


def stability(epochs: pd.DataFrame, metric: str, teachers) -> Figure:
    """A metric's mean over the first v views of every image, v = 1, 2, ..., one line a teacher; one panel a recipe."""
    look, recipes = teacher_styles(teachers), list(dict.fromkeys(epochs.recipe))
    figure, axes = plt.subplots(1, len(recipes), figsize=(4.6 * len(recipes), 3.2), squeeze=False)
    for axis, recipe in zip(axes[0], recipes):
        for teacher, rows in epochs[epochs.recipe == recipe].groupby("teacher", sort=False):
            running = rows.sort_values("epoch")[metric].expanding().mean()
            axis.plot(np.arange(1, len(running) + 1), running, label=teacher, markersize=3, **look[teacher])
        axis.set(xlabel="views of each image", ylabel=f"{METRICS[metric].label}, mean so far", title=recipe)
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _closed(figure)


def metric_scatter(table: pd.DataFrame, names: list[str], teachers) -> Figure:
    """Student accuracy against each metric, a panel a strategy and metric: teachers by name, their line of
    least squares, and Spearman's rho in the title, called strong or weak from 5 teachers on.

    table: points as of `stats.joined`.  A teacher is hollow where R12 has no meaning in more than 1 % of its
    samples.
    """
    look, strategies = teacher_styles(teachers), list(dict.fromkeys(table.strategy))
    figure, axes = plt.subplots(
        len(strategies), len(names), figsize=(3.9 * len(names), 2.9 * len(strategies)), squeeze=False
    )
    for line, strategy in zip(axes, strategies):
        rows = table[table.strategy == strategy]
        for axis, name in zip(line, names):
            hollow = _hollow(rows, name)
            for row in rows.itertuples():
                filled = {"facecolors": "none"} if row.teacher in hollow else {}
                axis.scatter(
                    getattr(row, name), 100 * row.accuracy, s=45, zorder=3, **look[row.teacher] | filled
                )
            _fit(axis, rows[name].to_numpy(), 100 * rows.accuracy.to_numpy())
            axis.set(
                title=f"{strategy}: rho {describe_rho(spearman(rows[name], rows.accuracy), len(rows))}",
                xlabel=f"{METRICS[name].label}  ({'smaller' if METRICS[name].direction < 0 else 'larger'} is claimed better)",
            )
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.margins(0.2)
        line[0].set_ylabel("student accuracy, %")
    _explain(figure, any(_hollow(table, name) for name in names))
    return _closed(
        _named(
            figure,
            {axis: table[table.strategy == s].teacher for line, s in zip(axes, strategies) for axis in line},
        )
    )


def ranks(table: pd.DataFrame, names: list[str], teachers) -> Figure:
    """Each metric's order of the teachers (left, the best in the claimed direction on top) and that of their
    students (right), a panel a strategy and metric; hollow: as in `against`."""
    look, strategies = teacher_styles(teachers), list(dict.fromkeys(table.strategy))
    size = (3.9 * len(names), (0.7 + 0.27 * len(look)) * len(strategies) + 0.4)
    figure, axes = plt.subplots(len(strategies), len(names), figsize=size, squeeze=False)
    for line, strategy in zip(axes, strategies):
        rows = table[table.strategy == strategy]
        reached = rows.accuracy.rank(ascending=False, method="first")
        for axis, name in zip(line, names):
            order = (METRICS[name].direction * rows[name]).rank(
                ascending=False, method="first", na_option="bottom"
            )
            hollow = _hollow(rows, name)
            for teacher, left, right in zip(rows.teacher, order, reached):
                filled = {"markerfacecolor": "white"} if teacher in hollow else {}
                axis.plot((0, 1), (left, right), **look[teacher] | filled)
                axis.text(1.08, right, teacher, fontsize=9, va="center")
            axis.set(
                title=f"{strategy}: {METRICS[name].label}",
                xlim=(-0.15, 2.1),
                ylim=(len(rows) + 0.5, 0.5),
                yticks=range(1, len(rows) + 1),
                xticks=(0, 1),
                xticklabels=("metric", "students"),
            )
        line[0].set_ylabel("rank")
    _explain(figure, any(_hollow(table, name) for name in names))
    return _closed(figure)


def capacity(points: pd.DataFrame, metric: str, teachers) -> Figure:
    """A metric and student accuracy against the teacher's size, means over groups.

    points: as of `stats.joined`.  In the metric's panel a teacher is hollow where it is so in `against` for
    any group.
    """
    hollow = _hollow(points, metric)
    means = points.groupby("teacher", sort=False)[[metric, "parameters", "accuracy"]].mean()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for axis, values, text in zip(
        axes, (means[metric], 100 * means.accuracy), (METRICS[metric].label, "student accuracy, %")
    ):
        for teacher, value in values.items():
            filled = {"facecolors": "none"} if teacher in hollow and axis is axes[0] else {}
            axis.scatter(
                means.parameters[teacher] / 1e6,
                value,
                s=45,
                zorder=3,
                **teacher_styles(teachers)[teacher] | filled,
            )
        rho = spearman(means.parameters, values)
        axis.set_xscale("log", subs=())
        axis.xaxis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if np.ptp(np.log10(means.parameters)) > 0.5 else range(1, 10))
        )
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set(
            xlabel="million weights of the teacher",
            ylabel=text,
            title=f"rho {rho:+.2f} (n = {len(means)})" if strength(rho) else "rho undefined",
        )
        axis.margins(0.2)
    _explain(figure, bool(hollow))
    return _closed(_named(figure, {axis: means.index for axis in axes}))


def progress(trained: pd.DataFrame, teachers) -> Figure:
    """R12 against the teacher's accuracy on the views that students see, a panel a recipe, a mark a data set.

    trained: as of `findings.teacher_means`.  The title has the mean over data sets of Spearman's rho; a teacher is
    hollow where R12 has no meaning in more than 1 % of its samples.
    """
    look, recipes = teacher_styles(teachers), list(dict.fromkeys(trained.recipe))
    figure, axes = plt.subplots(1, len(recipes), figsize=(3.9 * len(recipes) + 1.4, 3.3), squeeze=False)
    for axis, recipe in zip(axes[0], recipes):
        rows = trained[trained.recipe == recipe]
        for row in rows.itertuples():
            filled = {"facecolors": "none"} if row.ratio12_nonpositive > UNDEFINED else {}
            axis.scatter(100 * row.train_accuracy, row.ratio12, s=40, **look[row.teacher] | filled)
        rhos = [spearman(t.ratio12, t.train_accuracy) for _, t in rows.groupby("dataset")]
        known = [rho for rho in rhos if np.isfinite(rho)]
        sets = f"{len(known)} data set{'s' * (len(known) > 1)}"
        said = f"mean rho {np.mean(known):+.2f} ({sets})" if known else "rho undefined"
        axis.set(xlabel="teacher's accuracy on the students' views, %", title=f"{recipe}: {said}")
        axis.margins(0.12)
    axes[0][0].set_ylabel("R12")
    marks = [
        Line2D([], [], linestyle="", label=teacher, **look[teacher])
        for teacher in dict.fromkeys(trained.teacher)
    ]
    axes[0][-1].legend(handles=marks, loc="center left", bbox_to_anchor=(1, 0.5))
    _explain(figure, bool((trained.ratio12_nonpositive > UNDEFINED).any()))
    return _closed(figure)


def reliability(logits: dict[str, np.ndarray], labels: np.ndarray) -> Figure:
    """Accuracy against confidence in 15 bins of equal width, a line a name: logits (N, C) of each, labels (N,); the expected calibration error in the legend."""
    figure, axis = plt.subplots(figsize=(5.6, 4))
    axis.plot((0, 1), (0, 1), color="#8A8A8A", linestyle="--", label="calibrated")
    for (name, values), style in zip(logits.items(), teacher_styles(logits).values()):
        found = {k: v.numpy() for k, v in labelled_samples(values, labels).items()}
        ece = calibration_error(found["confidence"], found["correct"])
        bins = (
            pd.DataFrame(found)
            .groupby(np.ceil(15 * found["confidence"]).astype(int))[["confidence", "correct"]]
            .mean()
        )
        axis.plot(bins.confidence, bins.correct, label=f"{name}, ECE {ece:.3f}", **style)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence: the largest probability", ylabel="accuracy")
    axis.legend()
    return _closed(figure)


def confused_pairs(
    logits: dict[str, np.ndarray], labels: np.ndarray, classes: tuple[str, ...], *, pairs: int = 8
) -> Figure:
    """The pairs of classes that are taken for each other most often, a mark a name: share of the pair's images, of logits (N, C) each, labels (N,)."""
    counts = np.bincount(labels, minlength=len(classes))
    shares = {}
    for name, values in logits.items():
        taken = np.zeros((len(classes), len(classes)))
        np.add.at(taken, (labels, values.argmax(1)), 1)
        shares[name] = np.triu(taken + taken.T, 1) / np.maximum(counts[:, None] + counts, 1)
    worst = np.argsort(-sum(shares.values()), axis=None)[:pairs]
    figure, axis = plt.subplots(figsize=(8, 0.55 * len(worst) + 0.9))
    places = [divmod(int(place), len(classes)) for place in worst]
    for y, (a, b) in enumerate(places):
        axis.plot([100 * s[a, b] for s in shares.values()], [y] * len(shares), color="#B0B0B0", zorder=1)
    for (name, share), style in zip(shares.items(), teacher_styles(shares).values()):
        axis.scatter(
            [100 * share[place] for place in places], range(len(places)), label=name, zorder=2, **style
        )
    axis.set(
        yticks=range(len(places)),
        yticklabels=[f"{classes[a]}\n{classes[b]}" for a, b in places],
        xlabel="images of the pair that are taken for the other, %",
    )
    axis.invert_yaxis()
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _closed(figure)


def rho_heatmap(correlations: pd.DataFrame, names: tuple[str, ...] = ("ratio12", "ssp", "tac")) -> Figure:
    """Spearman's rho times the claimed direction, blue where it agrees with the claim: a row a metric, a column a group; of more than 16 groups a panel each
    of `names`, a row a data set, a column a strategy, means over students and further losses."""
    import seaborn

    columns = ["dataset", "student", "strategy", "loss"]
    look = {"annot": True, "fmt": "+.2f", "vmin": -1, "vmax": 1, "cmap": "RdBu", "linewidths": 0.5}
    if correlations.groupby(columns).ngroups > 16:
        figure, axes = plt.subplots(
            1,
            len(names),
            figsize=(3.4 * len(names), 1.2 + 0.34 * correlations.dataset.nunique()),
            sharey=True,
        )
        for axis, name in zip(axes, names):
            table = correlations[correlations.metric == name].pivot_table(
                index="dataset", columns="strategy", values="agrees", sort=False, dropna=False
            )
            seaborn.heatmap(table, ax=axis, cbar=name == names[-1], **look)
            axis.set(xlabel="", ylabel="", title=METRICS[name].label)
        axes[0].tick_params(axis="y", rotation=0)
        return _closed(figure)
    varying = [c for c in columns if correlations[c].nunique() > 1] or ["strategy"]
    table = correlations.assign(group=correlations[varying].agg(", ".join, axis=1)).pivot_table(
        index="metric", columns="group", values="agrees", sort=False, dropna=False
    )
    table.index = [METRICS[m].label for m in table.index]
    figure, axis = plt.subplots(figsize=(3.2 + 0.9 * table.shape[1], 0.9 + 0.36 * len(table)))
    seaborn.heatmap(table, ax=axis, cbar_kws={"label": "rho in the claimed direction"}, **look)
    axis.set(xlabel="", ylabel="", title="Does the metric point where it is claimed to?")
    axis.tick_params(axis="x", rotation=30)
    return _closed(figure)


def strengths(correlations: pd.DataFrame, names: list[str], null: float | None) -> Figure:
    """Share of groups by strength of abs(rho), a bar a metric; the dashed line is the share of strong ones by
    chance.

    The title says so where groups have so few teachers that no order of them is significant.
    """
    figure, axis = plt.subplots(figsize=(7, 3))
    counts = (
        correlations[correlations.rho.notna()]
        .groupby("metric")
        .strength.value_counts(normalize=True)
        .unstack(fill_value=0)
    )
    left = np.zeros(len(names))
    for name, colour in zip(STRENGTHS[::-1], (PALETTE[0], PALETTE[5], "#D0D0D0")):
        share = np.array([100 * counts.get(name, pd.Series(dtype=float)).get(m, 0) for m in names])
        axis.barh([METRICS[m].label for m in names], share, left=left, color=colour, label=name)
        left += share
    if null is not None:
        axis.axvline(100 * null, color="black", linestyle="--", label="strong by chance")
    axis.invert_yaxis()
    axis.set(
        xlabel=f"groups, % (of {correlations.groupby(['dataset', 'student', 'strategy', 'loss']).ngroups})",
        xlim=(0, 100),
    )
    if (most := correlations.n.max()) < MIN_SIGNIFICANT:
        axis.set_title(f"of {most} teachers no order is significant, however strong")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _closed(figure)


def selection_chart(table: pd.DataFrame) -> Figure:
    """Mean student accuracy by the rule that chose the teacher: table as of `stats.picks`.

    A rule that has to see students is of another colour, and says how much of their training it takes.
    """
    figure, axis = plt.subplots(figsize=(7, 0.42 * len(table) + 0.9))
    metric = table.rule.isin([claim.label for claim in METRICS.values()])
    colours = np.where(metric, np.where(table.cost > 0, PALETTE[1], PALETTE[0]), "#8A8A8A")
    names = [
        f"{row.rule}, after {row.cost:.0%} of all trainings" if row.cost > 0 else row.rule
        for row in table.itertuples()
    ]
    axis.barh(names, 100 * table.accuracy, color=colours)
    for i, value in enumerate(table.accuracy):
        axis.text(100 * value, i, f" {100 * value:.1f}", va="center", fontsize=9)
    axis.margins(y=0.01)
    axis.invert_yaxis()
    axis.set(xlabel="student accuracy, %, mean over groups", xlim=(0, 110 * table.accuracy.max()))
    return _closed(figure)


def regret(choices: pd.DataFrame, rules: list[str]) -> Figure:
    """What each rule's pick loses against the group's best teacher, a dot a group, the line their mean.

    choices: as of `stats.choices`; a rule that has to see students is marked as in `picks`.
    """
    figure, axis = plt.subplots(figsize=(7, 0.42 * len(rules) + 0.9))
    costs = choices.groupby("rule").cost.mean()
    for y, rule in enumerate(rules):
        lost = 100 * choices[choices.rule == rule].regret.sort_values().to_numpy()
        colour = "#8A8A8A" if rule in ("random", "no teacher") else PALETTE[int(costs[rule] > 0)]
        height = y + 0.3 * (np.arange(len(lost)) % 5 / 4 - 0.5)
        axis.scatter(lost, height, s=18, alpha=0.6, linewidths=0, color=colour)
        axis.plot([lost.mean()] * 2, (y - 0.35, y + 0.35), color="black", linewidth=2)
    names = [
        f"{rule}, after {costs[rule]:.0%} of all trainings" if costs[rule] > 0 else rule for rule in rules
    ]
    axis.set(
        yticks=range(len(rules)),
        yticklabels=names,
        xlabel="points of student accuracy below the best teacher of the group",
    )
    axis.invert_yaxis()
    return _closed(figure)


def _closed(figure: Figure) -> Figure:
    """The figure, no longer shown by pyplot: a notebook shows it once, as a cell's value."""
    plt.close(figure)
    return figure


def _hollow(rows: pd.DataFrame, metric: str) -> set[str]:
    """The teachers of whose samples too large a share has no ratio of raw logits, where the metric is one."""
    return set(rows.teacher[rows.ratio12_nonpositive > UNDEFINED]) if metric in RATIOS else set()


def _explain(figure: Figure, hollow: bool) -> None:
    """Say below the panels what a hollow mark is, where there is one."""
    if hollow:
        figure.supxlabel(HOLLOW, fontsize=8.5)


def _fit(axis, x, y) -> None:
    """The line of least squares through at least 3 finite points."""
    there = np.isfinite(x) & np.isfinite(y)
    if there.sum() > 2 and np.ptp(x[there]) > 0:
        reach = np.array([x[there].min(), x[there].max()])
        axis.plot(
            reach,
            np.polyval(np.polyfit(x[there], y[there], 1), reach),
            color="#B0B0B0",
            linewidth=1,
            zorder=1,
        )


def _named(figure: Figure, names: dict) -> Figure:
    """A name beside each point of every axis of `names`, at the nearest place where it covers neither a point nor another name."""
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    for axis, texts in names.items():
        spots = [np.ma.filled(c.get_offsets(), np.nan)[0] for c in axis.collections]
        found = [
            (text, spot, axis.transData.transform(spot))
            for text, spot in zip(texts, spots)
            if np.isfinite(spot).all()
        ]
        taken = [Bbox.from_extents(*(at - 4 * scale), *(at + 4 * scale)) for _, _, at in found]
        for text, spot, at in found:
            label = axis.annotate(
                text,
                spot,
                (0, 0),
                textcoords="offset points",
                fontsize=8,
                va="center",
                ha="center",
                in_layout=False,
            )
            size = np.array(label.get_window_extent().size)
            offsets = [
                np.array(side) * (size / 2 + (4 + reach) * scale)
                for reach in (0, 7, 14, 24)
                for side in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
            ]
            boxes = [Bbox.from_bounds(*(at + offset - size / 2), *size) for offset in offsets]
            costs = [
                sum(box.overlaps(other) for other in taken)
                + 9 * (not all(axis.bbox.contains(*corner) for corner in (box.min, box.max)))
                for box in boxes
            ]
            best = int(np.argmin(costs))
            label.xyann = offsets[best] / scale
            taken.append(boxes[best])
    return figure
