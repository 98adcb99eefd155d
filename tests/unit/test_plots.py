"""Figures: what is drawn is what the tables say, and names can be read."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba

from fgkd import metrics
from fgkd.analysis import blocks, correlation, groups, selection
from fgkd.report import plots

TEACHERS = [
    "vgg19_bn",
    "resnet101",
    "resnetv2_101",
    "van_b3",
    "convnext_base",
    "vit_base_patch16_224",
    "swin_base_patch4_window7_224",
    "resnetv2_101x3_bit",
]


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        plots.set_style()
        yield


def points(strategies=("FT", "TGDA"), *, seed=0, teachers=TEACHERS):
    """Points as of `groups.join_students_with_metrics`."""
    rng = np.random.default_rng(seed)
    frames = [
        pd.DataFrame(
            {
                "dataset": "birds",
                "student": "small",
                "strategy": s,
                "loss": "kd",
                "teacher": teachers,
                "accuracy": rng.random(len(teachers)),
            }
        )
        for s in strategies
    ]
    table = pd.concat(frames, ignore_index=True)
    return table.assign(
        ratio12_nonpositive=0.0,
        pilot_cost=0.1,
        **{name: rng.normal(size=len(table)) for name in metrics.METRICS},
    )


@pytest.mark.parametrize("seed", range(4))
def test_names_cover_neither_each_other_nor_a_point_and_stay_inside(seed):
    figure = plots.metric_scatter(points(seed=seed), ["ratio12", "ssp", "tac"], TEACHERS)
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [t.get_window_extent() for t in axis.texts]
        spots = axis.transData.transform(axis.collections[0].get_offsets())
        assert [t.get_text() for t in axis.texts] == TEACHERS
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert not any(box.contains(*spot) for box in boxes for spot in spots)
        assert all(axis.bbox.contains(*box.min) and axis.bbox.contains(*box.max) for box in boxes)


def test_a_name_lies_beside_its_own_point_also_at_another_resolution(tmp_path):
    table = points(("FT",), teachers=TEACHERS[:3]).assign(accuracy=[0.1, 0.5, 0.9])
    figure = plots.metric_scatter(table, ["ratio12"], TEACHERS)
    figure.set_dpi(150)
    figure.draw_without_rendering()
    axis = figure.axes[0]
    spots = axis.transData.transform(axis.collections[0].get_offsets())
    for text, spot in zip(axis.texts, spots, strict=True):
        box = text.get_window_extent()
        nearest = np.clip(spot, box.min, box.max)
        assert np.hypot(*(nearest - spot)) < 15 * 150 / 72


def test_the_line_is_that_of_least_squares_and_rho_stands_above_it():
    table = points(("FT",))
    axis = plots.metric_scatter(table, ["ratio12"], TEACHERS).axes[0]
    x, y = axis.lines[0].get_data()
    assert np.polyfit(x, y, 1) == pytest.approx(np.polyfit(table.ratio12, 100 * table.accuracy, 1))
    assert (
        f"rho {correlation.spearman(table.ratio12, table.accuracy):+.2f}" in axis.get_title()
        and "n = 8" in axis.get_title()
    )


def test_a_teacher_without_the_metric_has_no_name_and_two_have_no_line():
    table = points(("FT",), teachers=TEACHERS[:3])
    table.loc[1, "leep"] = np.nan
    axis = plots.metric_scatter(table, ["leep"], TEACHERS).axes[0]
    assert [t.get_text() for t in axis.texts] == [TEACHERS[0], TEACHERS[2]] and not axis.lines


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.5, 1e300])
@pytest.mark.parametrize("number", [1, 2, 8])
def test_a_metric_that_is_no_number_or_the_same_for_all_has_its_figures(value, number):
    same = dict.fromkeys(metrics.METRICS, value) | {"parameters": 9}
    table = points(teachers=TEACHERS[:number]).assign(**same)
    first, other = plots.metric_scatter(table, ["ssp", "ratio12"], TEACHERS).axes[:2]
    said = [axis.texts[0].get_text() for axis in (first, other)]
    if np.isfinite(value):
        assert len(first.collections[-1].get_offsets()) == number and said[0] == TEACHERS[0]
    else:
        assert said == ["SSP needs four classes", "R12 is not a finite number for any teacher"]
    assert "rho undefined" in first.get_title()
    trained = table.rename(columns={"strategy": "recipe"}).assign(train_accuracy=value)
    correlations = groups.correlations(
        table.assign(seed=0), table.drop(columns=["loss", "student", "accuracy"]).assign(seed=0)
    )
    drawn = [
        plots.ranks(table, ["ssp", "ratio12"], TEACHERS),
        plots.capacity(table, "ratio12", TEACHERS),
        plots.training_progress(trained, TEACHERS),
        plots.rho_heatmap(correlations),
        plots.agreements(correlations, ["ratio12", "ssp"]),
        plots.strengths(correlations, ["ratio12", "ssp"], None),
    ]
    for figure in drawn:
        figure.draw_without_rendering()


def test_ranks_join_the_metrics_order_to_the_students():
    table = points(("FT",), teachers=["a", "b", "c"]).assign(
        accuracy=[0.9, 0.1, 0.5], ratio12=[2.0, 1.0, 3.0], tac=[0.9, 0.1, 0.5]
    )
    left, right = plots.ranks(table, ["ratio12", "tac"], ["a", "b", "c"]).axes
    assert [tuple(line.get_ydata()) for line in left.lines] == [(2, 1), (1, 3), (3, 2)]
    assert [tuple(line.get_ydata()) for line in right.lines] == [(1, 1), (3, 3), (2, 2)]
    assert [t.get_position()[1] for t in left.texts] == [1, 3, 2] and left.get_ylim() == (3.5, 0.5)


def test_capacity_is_a_mean_over_groups():
    table = points(("FT", "TGDA"), teachers=["a", "b", "c"]).assign(
        parameters=[1e6, 2e6, 3e6] * 2, ratio12=[1.0, 2, 3, 3, 4, 5], accuracy=[0.1, 0.2, 0.3, 0.3, 0.2, 0.1]
    )
    left, right = plots.capacity(table, "ratio12", ["a", "b", "c"]).axes
    assert np.vstack([c.get_offsets() for c in left.collections]).tolist() == [[1, 2], [2, 3], [3, 4]]
    assert np.vstack([c.get_offsets() for c in right.collections])[:, 1].tolist() == pytest.approx(
        [20, 20, 20]
    )
    assert "+1.00" in left.get_title() and "undefined" in right.get_title()


def test_regret_has_a_dot_a_group_and_their_mean():
    table = points(("FT", "TGDA", "CAL"))
    students = table.assign(seed=0)
    choices = selection.selection_outcomes(table, students)
    axis = plots.regret(choices, ["R12", "random"]).axes[0]
    lost = 100 * choices[choices.rule == "R12"].regret
    assert sorted(axis.collections[0].get_offsets()[:, 0]) == pytest.approx(sorted(lost)) and len(lost) == 3
    assert axis.lines[0].get_xdata()[0] == pytest.approx(lost.mean())


def test_progress_has_a_mark_a_teacher_and_data_set_and_the_mean_rho_above():
    rows = [
        {
            "dataset": d,
            "recipe": r,
            "teacher": t,
            "ratio12": v,
            "train_accuracy": v / 10 if d == "d0" else -v,
            "ratio12_nonpositive": 0.02 * (t == "c"),
        }
        for d in ("d0", "d1")
        for r in ("FT", "CAL")
        for t, v in zip("abc", (1.0, 2.0, 4.0), strict=True)
    ]
    figure = plots.training_progress(pd.DataFrame(rows), list("abc"))
    for axis in figure.axes:
        assert np.vstack([c.get_offsets() for c in axis.collections]).tolist()[:3] == [
            [10, 1],
            [20, 2],
            [40, 4],
        ]
        assert hollow(axis) == [False, False, True] * 2
        assert axis.get_title().endswith("mean rho +0.00 (2 data sets)")
    assert [t.get_text() for t in figure.axes[-1].get_legend().get_texts()] == ["a", "b", "c"]
    one = plots.training_progress(pd.DataFrame(rows).query("dataset == 'd0'"), list("abc")).axes[0]
    assert one.get_title() == "FT: mean rho +1.00 (1 data set)"
    lone = plots.training_progress(pd.DataFrame(rows).query("teacher != 'c'"), list("ab")).axes[0]
    assert lone.get_title() == "FT: rho undefined"


def test_a_rule_that_sees_students_says_how_much_of_their_training_it_takes():
    table = points(("FT", "TGDA"))
    students = table.assign(seed=0)
    outcomes = selection.selection_outcomes(table, students)
    bars = plots.selection_chart(selection.selection_summary(outcomes)).axes[0]
    dots = plots.regret(outcomes, ["R12", "pilot", "random"]).axes[0]
    marked = "pilot, after 10% of all trainings"
    assert [t.get_text() for t in dots.get_yticklabels()] == ["R12", marked, "random"]
    rules = [t.get_text() for t in bars.get_yticklabels()]
    colours = {rule: bar.get_facecolor() for rule, bar in zip(rules, bars.patches, strict=True)}
    assert len({colours[name] for name in ("R12", marked, "random")}) == 3
    assert {"best, after 100% of all trainings", "TAC"} <= set(colours)


def test_the_best_rule_takes_most_of_the_width():
    table = points(("FT", "TGDA"))
    outcomes = selection.selection_outcomes(table, table.assign(seed=0))
    bars = plots.selection_chart(selection.selection_summary(outcomes)).axes[0]
    left, right = bars.get_xlim()
    longest = max(bar.get_width() for bar in bars.patches)
    assert left == 0 and longest == pytest.approx(100 * table.groupby("strategy").accuracy.max().mean())
    assert 0.5 * right < longest < right


def test_reliability_by_hand():
    logits, labels = np.log([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]), np.array([0, 0, 1, 0])
    axis = plots.reliability({"teacher": logits}, labels).axes[0]
    assert (
        axis.lines[1].get_xydata() == pytest.approx(np.array([[0.6, 0.5], [0.9, 1.0]]))
        and "ECE 0.100" in axis.lines[1].get_label()
    )


def test_a_class_is_written_as_it_is_named():
    classes = ("$\\frac$", "a $1 or $2", "_^")
    figure = plots.confused_pairs({"$\\x$": np.eye(3)}, np.array([1, 2, 0]), classes)
    figure.draw_without_rendering()
    assert figure.axes[0].get_yticklabels()[0].get_text() == "$\\frac$\na $1 or $2"


def test_the_most_confused_pair_is_on_top_whichever_was_taken_for_the_other():
    labels = np.array([0, 0, 1, 1, 2, 2])
    says = lambda *named: np.eye(3)[list(named)]  # noqa: E731
    axis = plots.confused_pairs(
        {"teacher": says(1, 0, 0, 1, 2, 2), "student": says(1, 1, 1, 1, 1, 2)},
        labels,
        ("gull", "tern", "skua"),
        pairs=2,
    ).axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["gull\ntern", "tern\nskua"]
    marks = [c for c in axis.collections if isinstance(c, PathCollection)]
    assert [np.asarray(c.get_offsets()).tolist() for c in marks] == [
        [[50, 0], [0, 1]],
        [[50, 0], [25, 1]],
    ]


@pytest.mark.parametrize("data_sets, panels", [(4, 2), (5, 4)])
def test_many_groups_become_a_panel_a_metric(data_sets, panels):
    """Four groups a data set: with 16 one heat map and its colour bar, with 20 three and theirs."""
    rows = [
        {
            "dataset": f"d{d}",
            "student": s,
            "strategy": strategy,
            "loss": "kd",
            "metric": m,
            "agrees": (d + len(s)) / 10,
        }
        for d in range(data_sets)
        for s in ("a", "bcd")
        for strategy in ("FT", "TGDA")
        for m in ("ratio12", "ssp", "tac")
    ]
    axes = plots.rho_heatmap(pd.DataFrame(rows)).axes
    assert len(axes) == panels
    if panels == 4:
        assert [t.get_text() for t in axes[0].texts] == [
            f"{(d + 2) / 10:+.2f}" for d in range(5) for _ in range(2)
        ]
        assert [a.get_title() for a in axes[:3]] == ["R12", "SSP", "TAC"]


@pytest.mark.parametrize(
    "ssp",
    [
        (0.0003032, 0.0002769, 0.0003042, 0.0002869),
        (0.0130136, 0.0126395, 0.0248329, 0.0263555),
        (0.0024729, 0.0035389, 0.0032107, 0.0033944),
    ],
)
def test_numbers_below_an_axis_do_not_touch(ssp):
    axis = plots.metric_scatter(
        points(("FT",), teachers=TEACHERS[:4]).assign(ssp=ssp), ["ratio12", "ssp", "tac"], TEACHERS[:4]
    ).axes[1]
    axis.figure.draw_without_rendering()
    low, high = axis.get_xlim()
    boxes = [t.label1.get_window_extent() for t in axis.xaxis.get_major_ticks() if low <= t.get_loc() <= high]
    assert len(boxes) > 1
    assert all(left.x1 + 4 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize("number", [4, 5])
def test_four_teachers_are_never_called_strong(number):
    table = points(("FT",), teachers=TEACHERS[:number]).assign(
        ratio12=range(number), accuracy=np.arange(number) / 10
    )
    title = plots.metric_scatter(table, ["ratio12"], TEACHERS).axes[0].get_title()
    assert ("strong" in title) == (number > 4) and f"(n = {number})" in title


@pytest.mark.parametrize("datasets", ["abcde", "abcdef"])
def test_the_agreement_of_a_metric_has_a_mark_per_dataset_and_an_interval_over_six(datasets):
    rows = [
        {"dataset": dataset, "metric": metric, "loss": loss, "agrees": i / 10 + (loss == "kd") / 5}
        for i, dataset in enumerate(datasets)
        for metric in ("ratio12", "tac")
        for loss in ("kd", "tuned")
    ]
    (axis,) = plots.agreements(pd.DataFrame(rows), ["tac", "ratio12"]).axes
    marks = np.concatenate([marks.get_offsets() for marks in axis.collections])
    assert sorted(marks[:, 0]) == pytest.approx(sorted(2 * [i / 10 + 0.1 for i in range(len(datasets))]))
    assert [label.get_text() for label in axis.get_yticklabels()] == ["TAC", "R12"]
    bars = [line.get_xdata() for line in axis.lines if len(set(line.get_ydata())) == 1]
    assert len(bars) == 2 and np.isnan(bars).all() == (len(datasets) < 6)


@pytest.mark.parametrize("number, warned", [(4, True), (5, False)])
def test_the_shares_of_strong_groups_say_where_no_order_is_significant(number, warned):
    rows = [
        {
            "dataset": d,
            "student": "small",
            "strategy": "FT",
            "loss": "kd",
            "metric": "ratio12",
            "n": number,
            "rho": 0.8,
            "strength": "strong",
        }
        for d in "ab"
    ]
    title = plots.strengths(pd.DataFrame(rows), ["ratio12"], None).axes[0].get_title()
    assert title == (f"of {number} teachers no order is significant, however strong" if warned else "")


def hollow(axis):
    """Which points of an axis are not filled."""
    return (axis.collections[0].get_facecolors()[:, 3] == 0).tolist()


def test_a_teacher_whose_r12_has_no_meaning_is_hollow_there_and_filled_elsewhere():
    table = points(("FT", "TGDA"), teachers=["a", "b", "c"]).assign(
        ratio12_nonpositive=[0, 0.011, 0.01, 0, 0, 0], parameters=[1e6, 2e6, 3e6] * 2
    )
    figure = plots.metric_scatter(table, ["ratio12", "ssp"], ["a", "b", "c"])
    assert [hollow(axis) for axis in figure.axes] == [[False, True, False]] + [[False] * 3] * 3
    order = plots.ranks(table, ["ratio12", "ssp"], ["a", "b", "c"])
    assert [[line.get_markerfacecolor() == "white" for line in axis.lines] for axis in order.axes] == [
        [False, True, False]
    ] + [[False] * 3] * 3
    size = plots.capacity(table, "ratio12", ["a", "b", "c"])
    assert [hollow(axis) for axis in size.axes] == [[False, True, False], [False] * 3]
    for drawn in (figure, order, size):
        assert "more than 1% of this teacher's samples" in drawn.get_supxlabel()
    assert not plots.metric_scatter(table, ["ssp"], ["a", "b", "c"]).get_supxlabel()


@pytest.mark.parametrize("number", [3, 8, 12])
@pytest.mark.parametrize("strategies", [("FT",), ("FT", "TGDA")])
def test_the_marks_of_accuracies_lie_whole_inside_their_axis(number, strategies):
    teachers = [f"{TEACHERS[-1]}_{i}" for i in range(number)]
    axis = plots.accuracies(points(strategies, teachers=teachers).assign(seed=0), teachers).axes[0]
    axis.figure.draw_without_rendering()
    marks = [line for line in axis.lines if line.get_marker() in plots.SHAPES]
    spots = axis.transData.transform(np.vstack([line.get_xydata() for line in marks]))
    radius = marks[0].get_markersize() / 2 * axis.figure.dpi / 72
    assert (spots[:, 0] - radius >= axis.bbox.x0).all() and (spots[:, 0] + radius <= axis.bbox.x1).all()
    assert len(spots) == number * len(strategies)
    assert axis.bbox.width > 0.8 * len(strategies) * axis.figure.dpi


def test_an_accuracy_is_a_mean_with_its_range_over_seeds():
    table = points(("FT",), teachers=["a", "b"]).assign(seed=0, accuracy=[0.2, 0.5])
    again = table.assign(seed=1, accuracy=[0.4, 0.5])
    axis = plots.accuracies(pd.concat([table, again]), ["a", "b"]).axes[0]
    heights = [line.get_ydata() for line in axis.lines if len(line.get_ydata())]
    assert [list(h) for h in heights if len(h) == 1] == [[pytest.approx(30)], [50]]
    assert [list(h) for h in heights if len(h) == 2] == [pytest.approx([20, 40]), [50, 50]]


def test_a_teacher_has_its_colour_in_every_figure():
    logits = {"b": np.eye(3) + 1, "student": np.eye(3) + 2}
    colour = to_rgba(plots.PALETTE[1])
    labels = np.arange(3)
    lines = plots.reliability(logits, labels, ["a", "b"]).axes[0].lines
    assert to_rgba(lines[1].get_color()) == colour and to_rgba(lines[2].get_color()) != colour
    marks = plots.confused_pairs(logits, labels, "xyz", teachers=["a", "b"]).axes[0].collections[1:]
    assert tuple(marks[0].get_facecolor()[0]) == colour and tuple(marks[1].get_facecolor()[0]) != colour
    boxes = plots.ratio_boxplot(logits, ["a", "b"]).axes[0].patches
    assert boxes[0].get_facecolor() == colour and boxes[1].get_facecolor() != colour
    history = pd.DataFrame({"run": ["b"], "epoch": 0, "ce": 1.0, "train_accuracy": 0.5})
    assert (
        to_rgba(plots.curves(history, title="", teachers=["a", "b"]).axes[0].lines[0].get_color()) == colour
    )
    table = points(("FT",), teachers=["b"]).assign(seed=0)
    assert (
        tuple(plots.metric_scatter(table, ["tac"], ["a", "b"]).axes[0].collections[0].get_facecolor()[0])
        == colour
    )


def test_a_running_mean_has_its_band():
    epochs = pd.DataFrame({"epoch": range(3), "ratio12": [1.0, 2.0, 3.0], "teacher": "a", "recipe": "FT"})
    axis = plots.stability(epochs, ["ratio12"], ["a"]).axes[0]
    assert axis.lines[0].get_ydata().tolist() == [1, 1.5, 2]
    bounds = axis.collections[0].get_paths()[0].vertices
    at_two = bounds[bounds[:, 0] == 2, 1]
    assert sorted(set(at_two)) == pytest.approx([0.5, 2.5])  # two views 1 apart: a standard error of 0.5


def test_the_mean_regret_has_an_interval_over_six_data_sets():
    values = {"rule": "R12", "cost": 0.0, "regret": np.arange(6) / 100, "dataset": list("abcdef")}
    axis = plots.regret(pd.DataFrame(values), ["R12"]).axes[0]
    expected = blocks.mean_interval(np.arange(6.0), list("abcdef"))
    assert axis.lines[1].get_xdata() == pytest.approx(expected)


def test_a_rule_without_a_value_keeps_its_row():
    values = {"rule": ["R12", "no teacher"], "cost": 0.0, "regret": [0.1, np.nan], "dataset": "a"}
    axis = plots.regret(pd.DataFrame(values), ["R12", "no teacher"]).axes[0]
    assert max(axis.get_ylim()) >= 1


def test_the_student_without_a_teacher_is_a_dashed_line_in_every_panel():
    figure = plots.metric_scatter(points(("FT",)), ["ratio12", "tac"], TEACHERS, alone=0.25)
    for axis in figure.axes:
        (line,) = [line for line in axis.lines if line.get_linestyle() == "--"]
        assert set(line.get_ydata()) == {25}
        assert "no teacher" in [text.get_text() for text in axis.texts]


def test_each_metric_has_its_panel_of_running_means():
    epochs = pd.DataFrame(
        {
            "epoch": range(2),
            "ratio12": [1.0, 2.0],
            "ratio12_median": [5.0, 7.0],
            "teacher": "a",
            "recipe": "FT",
        }
    )
    axes = plots.stability(epochs, ["ratio12", "ratio12_median"], ["a"]).axes
    assert [axis.lines[0].get_ydata()[-1] for axis in axes] == [1.5, 6]


def test_gains_stand_beside_the_student_alone_in_the_teachers_colour():
    table = pd.DataFrame(
        {
            "name": ["no teacher", "kd", "b"],
            "kind": ["alone", "taught", "teacher"],
            "accuracy": [0.2, 0.4, 0.6],
            "low": [0.1, 0.3, 0.5],
            "high": [0.3, 0.5, 0.7],
        }
    )
    axis = plots.gains(table, "b", ["a", "b"]).axes[0]
    (dashed,) = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert set(dashed.get_xdata()) == {20}
    marks = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in marks] == pytest.approx([20, 40, 60])
    assert to_rgba(marks[2].get_color()) == to_rgba(plots.PALETTE[1]) != to_rgba(marks[1].get_color())


def test_a_reliability_diagram_of_one_name_counts_the_samples_of_each_bin():
    logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    axis = plots.reliability({"a": logits}, np.array([0, 1, 1]), ["a"]).axes[0]
    assert [text.get_text() for text in axis.texts] == ["1", "2"]
    assert not plots.reliability({"a": logits, "b": logits}, np.array([0, 1, 1])).axes[0].texts
