"""The published tables: what they print agrees with itself, and what follows from them alone."""

import numpy as np
import pandas as pd
import pytest

from fgkd import paper, stats
from fgkd.metrics import METRICS


@pytest.mark.parametrize("name", ["strength", "correlation_by_dataset", "lcnet035_tgda_accuracy", "cub_resnet18_tgda", "cal_teacher_accuracy"])
def test_a_published_table_is_the_reference(reference, name):
    pd.testing.assert_frame_equal(paper.published(name), pd.read_csv(reference / f"published_{name}.csv"))
    assert f"`{name}.csv`" in (paper.FOLDER / "README.md").read_text()


def test_a_table_that_was_not_published_is_refused_with_those_that_were():
    with pytest.raises(ValueError, match="no published table 'strenght': expected one of .*strength"):
        paper.published("strenght")


@pytest.mark.parametrize("name, digits", [("correlation_by_dataset", 3), ("lcnet035_tgda_accuracy", 1)])
def test_printed_averages_are_those_of_the_printed_rows(name, digits):
    table = paper.published(name).set_index("dataset")
    assert (table.drop("average").mean() - table.loc["average"]).abs().max() <= 0.5 * 10**-digits + 1e-9


def test_printed_shares_are_whole_numbers_of_128_and_of_24_groups_and_not_of_32():
    counts, shares = paper.strength_counts(), paper.published("strength")
    for metric in ("tac", "ssp", "ratio12"):
        found = counts[counts.scope != "others"]
        assert (100 * found[metric] / found.groups - shares[metric]).abs().max() <= 0.05 + 1e-9
        assert counts[counts.scope == "all"][metric].sum() == 128
    assert abs(58.3 * 32 / 100 - round(58.3 * 32 / 100)) > 0.3


def test_strong_groups_counted_and_expected_by_chance():
    found = paper.strength_counts().set_index(["scope", "strength"])
    assert found.loc[("all", "strong"), ["tac", "ssp", "ratio12"]].to_list() == [41, 56, 65]
    assert found.loc[("all", "strong"), "chance"] == pytest.approx(7.4, abs=0.05)
    assert found.loc[("all", "weak"), "chance"] == pytest.approx(102.8, abs=0.05)


def test_outside_cal_and_tgda_r12_and_ssp_have_as_many_strong_groups():
    others = paper.strength_counts().set_index("scope").loc["others"]
    assert others[["groups", "tac", "ssp", "ratio12"]].to_list() == [80, 30, 35, 35]


def test_what_the_published_data_sets_say_of_r12_against_tac_and_ssp():
    found = paper.comparisons().set_index(["quantity", "rival"])
    picks, sizes = found.loc["accuracy of the pick"], found.loc["mean abs_rho"]
    assert picks.loc["tac", ["better", "equal", "worse"]].to_list() == [8, 0, 0] and picks.loc["tac", "p"] == 2 / 2**8
    assert picks.loc["ssp", ["better", "equal", "worse"]].to_list() == [4, 4, 0] and picks.loc["ssp", "p"] == 2 * 2**4 / 2**8
    assert picks.difference.to_list() == pytest.approx([6.01, 2.08], abs=0.01)
    assert sizes.loc["ssp", ["better", "worse"]].to_list() == [5, 3] and (sizes.p > 0.05).all()


def test_the_published_group_has_its_printed_rho_once_the_tie_of_its_figure_is_broken_as_claimed():
    found = paper.cub_group().set_index("metric")
    assert found.loc["ratio12, untied", "rho"] == pytest.approx(-0.905, abs=5e-4)
    assert found.loc["ratio12, untied", "p"] == pytest.approx(0.0046, abs=1e-4)
    assert found.loc["ratio12", "rho"] == pytest.approx(-0.862, abs=5e-4)
    assert (found.low > -1).all() and (found.high < 0).all() and (found.n == 8).all()


def study(gap, *, data_sets=8, seed=0, students={"small": "lcnet_035"}):
    """Correlations, choices and students of a study in which teachers of a smaller R12 teach better, up to
    noise, by `gap`: one number, or one for each (student, loss)."""
    rng, teachers = np.random.default_rng(seed), list("abcdefgh")
    gaps = gap if isinstance(gap, dict) else {(student, "kd"): gap for student in students}
    taught, metrics = [], []
    for dataset in map(str, range(data_sets)):
        taught += [(dataset, student, "CE", "ce", "none", -5.0) for student in students]
        for strategy in ("CAL", "TGDA"):
            values = rng.normal(size=(len(METRICS), 8))
            names = [{"dataset": dataset, "teacher": t, "strategy": strategy, "seed": 0} for t in teachers]
            metrics += [row | dict(zip(METRICS, v)) for row, v in zip(names, values.T)]
            for (student, loss), size in gaps.items():
                reached = rng.normal(size=8) - size * values[list(METRICS).index("ratio12")]
                taught += [(dataset, student, strategy, loss, *pair) for pair in zip(teachers, reached)]
    columns = [*stats.GROUP, "teacher", "accuracy"]
    table, metrics = (
        pd.DataFrame(taught, columns=columns).assign(seed=0, agreement=0.5),
        pd.DataFrame(metrics),
    )
    table["model"] = table.student.map(students)
    return stats.correlations(table, metrics), stats.choices(stats.joined(table, metrics), table), table


def test_claims_hold_where_they_are_planted_and_fail_where_the_opposite_is():
    for gap, verdict, exploratory in ((5, "holds", "suggests so"), (-5, "fails", "suggests not")):
        found = paper.claims(*study(gap)).set_index("claim")
        registered = found[found.family == "registered"]
        assert set(registered.index) == {
            "R12: mean signed rho",
            "R12 - TAC: mean signed rho",
            "R12 - SSP: mean signed rho",
        }
        assert set(registered.verdict) == {verdict} and set(registered.groups) == {16}
        assert found.verdict["R12 - SSP: accuracy of the pick, TGDA"] == exploratory
        assert found.verdict["R12 - TAC: mean |rho|"] == "suggests so"  # whatever the sign
        for claim in ("R12 - SSP: accuracy of the pick, TGDA", "R12 - SSP: share of strong groups, CAL"):
            assert found.groups[claim] == 8 and np.isnan(found.p_holm[claim])


def test_a_registered_claim_is_corrected_for_three_and_an_exploratory_one_is_not():
    found = paper.claims(*study(5))
    registered = found[found.family == "registered"]
    assert registered.p_holm.to_list() == stats.holm(registered.p).tolist() and set(registered.p) == {
        2 / 2**8
    }
    assert ((found.p <= 0.05) == ((found.low > 0) | (found.high < 0))).all()


@pytest.mark.parametrize("data_sets, verdicts", [(5, {"cannot tell"}), (6, {"cannot tell"}), (7, {"holds"})])
def test_three_registered_claims_take_seven_data_sets(data_sets, verdicts):
    found = paper.claims(*study(5, data_sets=data_sets))
    assert set(found[found.family == "registered"].verdict) == verdicts
    assert found.p.isna().all() == found.low.isna().all() == (data_sets < 6)


def null_study(rng):
    """Correlations, choices and students of 8 data sets in which neither metrics nor picks have to do with
    accuracy."""
    keys = [(str(d), "small", strategy, "kd") for d in range(8) for strategy in ("FZ", "FT", "CAL", "TGDA")]
    accuracies = rng.normal(size=(len(keys), 8))
    direction = {"ratio12": -1, "ssp": 1, "tac": 1}
    rows = [
        (*key, metric, 8, stats.spearman(rng.normal(size=8), reached))
        for key, reached in zip(keys, accuracies)
        for metric in direction
    ]
    table = pd.DataFrame(rows, columns=[*stats.GROUP, "metric", "n", "rho"])
    table = table.assign(
        abs_rho=table.rho.abs(),
        strength=table.rho.map(stats.strength),
        agrees=table.rho * table.metric.map(direction),
    )
    choices = [
        (*key, rule, reached)
        for key, row in zip(keys, accuracies)
        for rule, reached in zip(("R12", "SSP", "TAC", "no teacher"), row)
    ]
    choices = pd.DataFrame(choices, columns=[*stats.GROUP, "rule", "accuracy"])
    return table, choices, pd.DataFrame([{"student": "small", "model": "lcnet_035"}])


def test_one_null_study_in_twenty_decides_a_claim_where_uncorrected_intervals_would_in_five():
    rng, decided, uncorrected = np.random.default_rng(0), [], []
    for _ in range(150):
        found = paper.claims(*null_study(rng))
        decided.append(found.verdict.isin(["holds", "fails"]).any())
        uncorrected.append((found.verdict != "cannot tell").any())
    assert np.mean(decided) < 0.09 and np.mean(uncorrected) > 0.15  # two standard errors above 5 %


def test_shares_of_cal_and_tgda_are_of_students_taught_by_kd_alone():
    """A further loss that reverses the order leaves them as they are, and counts among all groups."""
    claims = [
        f"R12 - {rival}: share of strong groups, {scope}"
        for rival in ("SSP", "TAC")
        for scope in ("CAL", "TGDA")
    ]
    alone, both = (
        paper.claims(*study({("small", loss): gap for loss, gap in gaps.items()})).set_index("claim")
        for gaps in ({"kd": 5}, {"kd": 5, "dkd": 0})
    )
    assert (alone.groups[claims] == 8).all() and (both.groups[claims] == 8).all()
    assert both.groups["R12 - SSP: share of strong groups"] == 32


def test_picks_are_those_of_lcnet_035_with_kd_whatever_the_study_calls_it():
    claims = [f"R12 - {rule}: accuracy of the pick, TGDA" for rule in ("SSP", "TAC", "no teacher")]
    gaps = {("mine", "kd"): 5, ("mine", "dkd"): -5, ("other", "kd"): -5}
    found = (
        paper.claims(*study(gaps, students={"mine": "lcnet_035.tag", "other": "resnet18"}))
        .set_index("claim")
        .loc[claims]
    )
    assert (found.groups == 8).all() and (found.ours > 0).all()


def test_a_study_without_lcnet_035_is_asked_about_all_its_students():
    gaps = {("mine", "kd"): 5, ("mine", "dkd"): -5, ("other", "kd"): 5}
    found = paper.claims(*study(gaps, students={"mine": "lcnet_050", "other": "resnet18"})).set_index("claim")
    assert (
        found.groups["R12 - SSP: accuracy of the pick, TGDA"] == 16
        and found.ours["R12 - SSP: accuracy of the pick, TGDA"] > 0
    )


def test_one_data_set_cannot_tell_and_a_study_without_tgda_has_no_such_groups():
    correlations, choices, students = study(5, data_sets=1)
    assert set(paper.claims(correlations, choices, students).verdict) == {"cannot tell"}
    cut = (frame[frame.strategy != "TGDA"] for frame in (correlations, choices, students))
    found = paper.claims(*cut).set_index("claim")
    assert (
        found.groups["R12 - TAC: accuracy of the pick, TGDA"] == 0
        and found.groups["R12: mean signed rho"] == 1
    )


def test_what_is_printed_comes_from_the_tables():
    found = paper.claims(*study(0)).set_index("claim").published
    expected = {
        "R12 - SSP: mean |rho|": 0.07,
        "R12 - TAC: share of strong groups": 0.188,
        "R12 - SSP: share of strong groups, CAL": 0.208,
        "R12 - no teacher: accuracy of the pick, TGDA": 0.241,
    }
    assert found[list(expected)].to_dict() == pytest.approx(expected)
    assert found["R12 - chance: mean |rho|"] == pytest.approx(0.629 - 0.31, abs=1e-3) and np.isnan(found["R12: mean signed rho"])
