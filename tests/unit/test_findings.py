"""What a study says beside ranking: gains over no teacher, T and beta, teachers' progress, mixes of them."""

import math

import numpy as np
import pandas as pd
import pytest

from fgkd.analysis import blocks, findings
from fgkd.metrics import METRICS
from fgkd.report import verdicts


def taught(accuracies, *, dataset="d0", strategy="FT", loss="kd", seed=0, **columns):
    """Points as of `records.points`, of students of these accuracies; columns: a value a teacher."""
    keys = {"dataset": dataset, "student": "small", "strategy": strategy, "loss": loss}
    table = pd.DataFrame({"teacher": list("abcdefgh"[: len(accuracies)]), "accuracy": accuracies})
    values = dict.fromkeys(METRICS, 1.0) | {"accuracy_sd": math.nan, "seeds": 1, "ratio12_nonpositive": 0.0}
    return table.assign(**keys, **values | columns)


def alone(accuracy, datasets=("d0",), seeds=(0,)):
    """Students without a teacher: one accuracy, or one a seed."""
    accuracies = np.broadcast_to(accuracy, len(seeds))
    return pd.DataFrame(
        [
            {
                "dataset": d,
                "student": "small",
                "strategy": "CE",
                "loss": "ce",
                "teacher": "none",
                "accuracy": a,
                "seed": s,
            }
            for d in datasets
            for s, a in zip(seeds, accuracies, strict=True)
        ]
    )


def data(datasets=("d0",), test=400):
    return pd.DataFrame({"dataset": list(datasets), "classes": 4, "test": test})


def test_what_distillation_pays_by_hand():
    points = taught([0.5, 0.3, 0.4], ratio12=[3, 1, 2])
    found = findings.distillation_gains(points, alone(0.36), data()).set_index("by")
    row = found.loc["all"]
    assert list(found.index) == ["all", "strategy", "loss", "dataset", "student"] and (
        row.groups,
        row.over,
    ) == (1, "test images")
    assert row[["alone", "gain", "r12", "best"]].to_list() == pytest.approx([0.36, 0.04, -0.06, 0.14])
    errors = [1.959964 * math.sqrt((p * (1 - p) + 0.36 * 0.64) / 400) for p in (0.5, 0.3, 0.4)]
    assert row.best_high - row.best == pytest.approx(errors[0]) and row.r12 - row.r12_low == pytest.approx(
        errors[1]
    )
    assert row.gain_high - row.gain == pytest.approx(np.mean(errors))


def test_groups_of_one_data_set_share_their_images_and_so_their_errors():
    one = taught([0.5, 0.3], strategy="FZ")
    twice = pd.concat([one, taught([0.5, 0.3], strategy="FT")])
    apart = pd.concat([one, taught([0.5, 0.3], dataset="d1")])
    first, same, other = (
        findings.distillation_gains(points, alone(0.4, ("d0", "d1")), data(("d0", "d1"))).iloc[0]
        for points in (one, twice, apart)
    )
    reach = first.gain_high - first.gain
    assert same.gain_high - same.gain == pytest.approx(reach)
    assert other.gain_high - other.gain == pytest.approx(reach / math.sqrt(2))


def test_luck_of_seeds_widens_what_few_images_leave():
    points = taught([0.5, 0.5, 0.5])
    sure = findings.distillation_gains(points, alone(0.4), data(test=10**9)).iloc[0]
    lucky = findings.distillation_gains(
        points.assign(accuracy_sd=0.02, seeds=4), alone([0.39, 0.41], seeds=(0, 1)), data(test=10**9)
    ).iloc[0]
    assert sure.gain_high - sure.gain < 1e-4
    assert lucky.gain_high - lucky.gain == pytest.approx(
        1.959964 * math.sqrt(0.02**2 / 4 + 0.0002 / 2), rel=1e-3
    )


def test_six_data_sets_have_the_interval_of_their_own_gains():
    names = [f"d{i}" for i in range(6)]
    gains = np.array([0.01, 0.03, 0.02, 0.05, -0.01, 0.04])
    points = pd.concat([taught([0.4 + g, 0.4 + g], dataset=d) for d, g in zip(names, gains, strict=True)])
    row = findings.distillation_gains(points, alone(0.4, names), data(names)).iloc[0]
    assert row.over == "data sets"
    assert (row.gain_low, row.gain_high) == pytest.approx(blocks.mean_interval(gains, names))


def test_a_gain_of_nothing_is_found_to_pay_in_one_study_of_twenty():
    rng, names, decided = np.random.default_rng(3), [f"d{i}" for i in range(7)], []
    for _ in range(200):
        points = pd.concat([taught(rng.normal(0.4, 0.02, 3) + rng.normal(0, 0.03), dataset=d) for d in names])
        decided.append(
            not verdicts.describe_gains(
                findings.distillation_gains(points, alone(0.4, names), data(names))
            ).startswith("Whether")
        )
    assert 0.01 < np.mean(decided) < 0.1


@pytest.mark.parametrize(
    "without, words",
    [
        (0.1, "Distillation paid: "),
        (0.9, "Distillation did harm: "),
        (0.4, "Whether distillation paid these data cannot tell: "),
    ],
)
def test_whether_it_paid_is_said_with_gains_and_what_the_intervals_are_over(without, words):
    said = verdicts.describe_gains(
        findings.distillation_gains(taught([0.5, 0.3, 0.4], ratio12=[3, 1, 2]), alone(without), data())
    )
    assert said.startswith(words) and f"{100 * (0.3 - without):+.1f} points from R12's pick" in said
    assert said.endswith("with 95 % intervals over test images.")


def test_without_a_baseline_there_is_no_row_and_the_sentence_says_what_lacks():
    table = findings.distillation_gains(taught([0.5, 0.3]), alone(0.4).iloc[:0], data())
    assert table.empty and "`baseline: true`" in verdicts.describe_gains(table)


def test_a_metric_that_is_undefined_leaves_the_other_gains():
    row = findings.distillation_gains(taught([0.5, 0.3], ratio12=[math.nan] * 2), alone(0.4), data()).iloc[0]
    assert math.isnan(row.r12) and math.isnan(row.r12_low) and row.best == pytest.approx(0.1)
    assert "R12's pick" not in verdicts.describe_gains(
        findings.distillation_gains(taught([0.5, 0.3], ratio12=[math.nan] * 2), alone(0.4), data())
    )


def correlated(values, metric="ratio12", student="small"):
    """Rows as of `groups.correlations`: {(data set, strategy, loss): rho in the claimed direction}."""
    return pd.DataFrame(
        [
            {"dataset": d, "student": student, "strategy": s, "loss": loss, "metric": metric, "agrees": v}
            for (d, s, loss), v in values.items()
        ]
    )


@pytest.fixture
def tuned(make_study):
    return make_study({"losses": {"soft": {"loss": "kd", "temperature": 4, "beta": 1}, "dkd": {}}})


def test_a_loss_that_is_kd_is_paired_with_kd_in_the_groups_that_have_both(tuned):
    values = {
        ("d0", "FT", "kd"): 0.2,
        ("d0", "FT", "soft"): 0.8,
        ("d0", "FZ", "kd"): 0.4,
        ("d0", "FZ", "soft"): 0.6,
        ("d1", "FT", "kd"): -0.9,
        ("d0", "FT", "dkd"): 0.9,
    }
    found = findings.temperatures(correlated(values), tuned)
    assert found.metric.to_list() == ["ratio12", "tac", "ssp"] and set(found.loss) == {"soft"}
    row = found.iloc[0]
    assert row[["temperature", "beta", "groups", "datasets"]].to_list() == [4, 1, 2, 1]
    assert row[["kd", "own", "difference"]].to_list() == pytest.approx([0.3, 0.7, 0.4]) and math.isnan(
        row.low
    )
    said = verdicts.describe_temperatures(found, tuned)
    assert (
        said.startswith("Cannot tell whether the answer depends")
        and "+0.30 at T 2, beta 10 and by +0.70 at T 4, beta 1" in said
    )


def test_a_loss_without_a_group_beside_kd_is_named(tuned):
    found = findings.temperatures(correlated({("d0", "FT", "soft"): 0.2, ("d0", "FZ", "kd"): 0.4}), tuned)
    assert (
        verdicts.describe_temperatures(found, tuned) == "Of soft no group has a rho of R12 beside one of kd."
    )


@pytest.mark.parametrize("shift, words", [(0.5, "The answer depends"), (0.0, "Cannot tell")])
def test_six_data_sets_tell_whether_the_answer_depends_on_t_and_beta(tuned, shift, words):
    rng = np.random.default_rng(0)
    values = {
        (f"d{i}", "FT", loss): own + rng.normal(0, 0.1)
        for i in range(6)
        for loss, own in (("kd", 0), ("soft", shift))
    }
    assert verdicts.describe_temperatures(findings.temperatures(correlated(values), tuned), tuned).startswith(
        words
    )


def test_a_study_of_one_temperature_says_that_it_cannot_say(tiny):
    found = findings.temperatures(correlated({("d0", "FT", "kd"): 0.2}), tiny)
    assert found.empty and "no loss is KD with its own ones" in verdicts.describe_temperatures(found, tiny)


def banks(**columns):
    """Metrics as of `records.with_tac`, of teachers a, b, c."""
    table = pd.DataFrame(
        {"dataset": "d0", "teacher": list("abc"), "strategy": "FT", "seed": 0, "ratio12_nonpositive": 0.0}
    )
    return table.assign(**dict.fromkeys(METRICS, 1.0) | columns)


def test_r12_that_follows_training_is_shown_by_recipe():
    rising = banks(
        ratio12=[1, 2, 3], ratio12_median=[1, 3, 2], train_accuracy=[0.1, 0.5, 0.9], tac=[0.3, 0.2, 0.1]
    )
    cal = [rising.assign(strategy=s, train_accuracy=[0.9, 0.5, 0.1]) for s in ("CAL", "TGDA")]
    found = findings.training_progress(pd.concat([rising, *cal])).set_index(["recipe", "against"])
    assert found.rho.to_dict() == {
        ("FT", "train_accuracy"): 1,
        ("FT", "tac"): -1,
        ("CAL", "train_accuracy"): -1,
        ("CAL", "tac"): -1,
    }
    assert (
        found["median"]["FT", "train_accuracy"] == 0.5
        and set(found.datasets) == {1}
        and set(found.teachers) == {3}
    )
    assert found.low.isna().all()


def test_a_teachers_progress_is_the_mean_over_seeds_and_one_row_for_cal_and_tgda():
    both = pd.concat([banks(strategy=s, seed=k, tac=[k, 1, 2]) for s in ("CAL", "TGDA") for k in (0, 1)])
    found = findings.teacher_means(both)
    assert found.recipe.to_list() == ["CAL"] * 3 and found.tac.to_list() == [0.5, 1, 2]


def test_two_teachers_have_no_rho_of_progress():
    assert findings.training_progress(banks(ratio12=[1, 2, 3]).iloc[:2]).rho.isna().all()


def test_parts_of_the_teachers_are_correlated_by_themselves():
    points = taught(
        [0.1, 0.2, 0.3, 0.6, 0.7, 0.8],
        ratio12=[7, 8, 9, 1, 2, 3],
        parameters=[1e6] * 3 + [3e6] * 3,
        norm=["BatchNorm"] * 3 + ["LayerNorm"] * 2 + ["none"],
        architecture=["c"] * 3 + ["t"] * 3,
        family="",
    )
    found = findings.mixes(points, ["norm", "architecture", "family"]).set_index(["trait", "value"])
    assert found.teachers.to_dict() == {
        ("all", "all"): 6,
        ("norm", "BatchNorm"): 3,
        ("norm", "LayerNorm"): 2,
        ("norm", "none"): 1,
        ("norm", "without BatchNorm"): 3,
        ("architecture", "c"): 3,
        ("architecture", "t"): 3,
    }
    assert (
        found.ratio12["all", "all"] > 0.5
        and found.ratio12["norm", "BatchNorm"] == -1 == found.ratio12["architecture", "t"]
    )
    assert math.isnan(found.ratio12["norm", "LayerNorm"]) and found.parameters["architecture", "t"] == 3
