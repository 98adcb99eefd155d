"""Figures: what is drawn is what the tables say, and names can be read."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fgkd import metrics, plots, stats

TEACHERS = ["vgg19_bn", "resnet101", "resnetv2_101", "van_b3", "convnext_base", "vit_base_patch16_224", "swin_base_patch4_window7_224", "resnetv2_101x3_bit"]


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        plots.set_style()
        yield


def points(strategies=("FT", "TGDA"), *, seed=0, teachers=TEACHERS):
    """Points as of `stats.joined`."""
    rng = np.random.default_rng(seed)
    frames = [pd.DataFrame({"dataset": "birds", "student": "small", "strategy": s, "loss": "kd", "teacher": teachers, "accuracy": rng.random(len(teachers))}) for s in strategies]
    table = pd.concat(frames, ignore_index=True)
    return table.assign(**{name: rng.normal(size=len(table)) for name in metrics.METRICS})


@pytest.mark.parametrize("seed", range(4))
def test_names_cover_neither_each_other_nor_a_point_and_stay_inside(seed):
    figure = plots.against(points(seed=seed), ["ratio12", "ssp", "tac"], TEACHERS)
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [t.get_window_extent() for t in axis.texts]
        spots = [axis.transData.transform(c.get_offsets()[0]) for c in axis.collections]
        assert [t.get_text() for t in axis.texts] == TEACHERS
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert not any(box.contains(*spot) for box in boxes for spot in spots)
        assert all(axis.bbox.contains(*box.min) and axis.bbox.contains(*box.max) for box in boxes)


def test_a_name_lies_beside_its_own_point_also_at_another_resolution(tmp_path):
    table = points(("FT",), teachers=TEACHERS[:3]).assign(accuracy=[0.1, 0.5, 0.9])
    figure = plots.against(table, ["ratio12"], TEACHERS)
    figure.set_dpi(150)
    figure.draw_without_rendering()
    axis = figure.axes[0]
    for text, spots in zip(axis.texts, axis.collections):
        spot, box = axis.transData.transform(spots.get_offsets()[0]), text.get_window_extent()
        nearest = np.clip(spot, box.min, box.max)
        assert np.hypot(*(nearest - spot)) < 15 * 150 / 72


def test_the_line_is_that_of_least_squares_and_rho_stands_above_it():
    table = points(("FT",))
    axis = plots.against(table, ["ratio12"], TEACHERS).axes[0]
    x, y = axis.lines[0].get_data()
    assert np.polyfit(x, y, 1) == pytest.approx(np.polyfit(table.ratio12, 100 * table.accuracy, 1))
    assert f"rho {stats.spearman(table.ratio12, table.accuracy):+.2f}" in axis.get_title() and "n = 8" in axis.get_title()


def test_a_teacher_without_the_metric_has_no_name_and_two_have_no_line():
    table = points(("FT",), teachers=TEACHERS[:3])
    table.loc[1, "leep"] = np.nan
    axis = plots.against(table, ["leep"], TEACHERS).axes[0]
    assert [t.get_text() for t in axis.texts] == [TEACHERS[0], TEACHERS[2]] and not axis.lines


def test_ranks_join_the_metrics_order_to_the_students():
    table = points(("FT",), teachers=["a", "b", "c"]).assign(accuracy=[0.9, 0.1, 0.5], ratio12=[2.0, 1.0, 3.0], tac=[0.9, 0.1, 0.5])
    left, right = plots.ranks(table, ["ratio12", "tac"], ["a", "b", "c"]).axes
    assert [tuple(line.get_ydata()) for line in left.lines] == [(2, 1), (1, 3), (3, 2)]
    assert [tuple(line.get_ydata()) for line in right.lines] == [(1, 1), (3, 3), (2, 2)]
    assert [t.get_position()[1] for t in left.texts] == [1, 3, 2] and left.get_ylim() == (3.5, 0.5)


def test_capacity_is_a_mean_over_groups():
    table = points(("FT", "TGDA"), teachers=["a", "b", "c"]).assign(parameters=[1e6, 2e6, 3e6] * 2, ratio12=[1.0, 2, 3, 3, 4, 5], accuracy=[0.1, 0.2, 0.3, 0.3, 0.2, 0.1])
    left, right = plots.capacity(table, "ratio12", ["a", "b", "c"]).axes
    assert np.vstack([c.get_offsets() for c in left.collections]).tolist() == [[1, 2], [2, 3], [3, 4]]
    assert np.vstack([c.get_offsets() for c in right.collections])[:, 1].tolist() == pytest.approx([20, 20, 20])
    assert "+1.00" in left.get_title() and "undefined" in right.get_title()


def test_regret_has_a_dot_a_group_and_their_mean():
    table = points(("FT", "TGDA", "CAL"))
    students = table.assign(seed=0)
    choices = stats.choices(table, students)
    axis = plots.regret(choices, ["R12", "random"]).axes[0]
    lost = 100 * choices[choices.rule == "R12"].regret
    assert sorted(axis.collections[0].get_offsets()[:, 0]) == pytest.approx(sorted(lost)) and len(lost) == 3
    assert axis.lines[0].get_xdata()[0] == pytest.approx(lost.mean())


def test_reliability_by_hand():
    logits, labels = np.log([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]), np.array([0, 0, 1, 0])
    axis = plots.reliability({"teacher": logits}, labels).axes[0]
    assert axis.lines[1].get_xydata() == pytest.approx(np.array([[0.6, 0.5], [0.9, 1.0]])) and "ECE 0.100" in axis.lines[1].get_label()


def test_the_most_confused_pair_is_on_top_whichever_was_taken_for_the_other():
    labels = np.array([0, 0, 1, 1, 2, 2])
    says = lambda *named: np.eye(3)[list(named)]  # noqa: E731
    axis = plots.confused({"teacher": says(1, 0, 0, 1, 2, 2), "student": says(1, 1, 1, 1, 1, 2)}, labels, ("gull", "tern", "skua"), pairs=2).axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["gull\ntern", "tern\nskua"]
    assert [np.asarray(c.get_offsets()).tolist() for c in axis.collections] == [[[50, 0], [0, 1]], [[50, 0], [25, 1]]]


@pytest.mark.parametrize("data_sets, panels", [(4, 2), (5, 4)])
def test_many_groups_become_a_panel_a_metric(data_sets, panels):
    """Four groups a data set: with 16 one heat map and its colour bar, with 20 three and theirs."""
    rows = [{"dataset": f"d{d}", "student": s, "strategy": strategy, "loss": "kd", "metric": m, "agrees": (d + len(s)) / 10}
            for d in range(data_sets) for s in ("a", "bcd") for strategy in ("FT", "TGDA") for m in ("ratio12", "ssp", "tac")]
    axes = plots.heat(pd.DataFrame(rows)).axes
    assert len(axes) == panels
    if panels == 4:
        assert [t.get_text() for t in axes[0].texts] == [f"{(d + 2) / 10:+.2f}" for d in range(5) for _ in range(2)]
        assert [a.get_title() for a in axes[:3]] == ["R12", "SSP", "TAC"]
