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


def study(gap, *, data_sets=8, seed=0):
    """Correlations and choices of a study in which the teachers of a smaller R12 teach better, up to noise, by `gap`."""
    rng, teachers = np.random.default_rng(seed), list("abcdefgh")
    students, metrics = [], []
    for dataset in map(str, range(data_sets)):
        students.append({"dataset": dataset, "student": "small", "strategy": "CE", "loss": "ce", "teacher": "none", "accuracy": -5.0})
        for strategy in ("CAL", "TGDA"):
            values = rng.normal(size=(len(METRICS), 8))
            metrics += [{"dataset": dataset, "teacher": t, "strategy": strategy, "seed": 0} | dict(zip(METRICS, v)) for t, v in zip(teachers, values.T)]
            reached = rng.normal(size=8) - gap * values[list(METRICS).index("ratio12")]
            students += [{"dataset": dataset, "student": "small", "strategy": strategy, "loss": "kd", "teacher": t, "accuracy": a} for t, a in zip(teachers, reached)]
    students, metrics = pd.DataFrame(students).assign(seed=0, agreement=0.5), pd.DataFrame(metrics)
    return stats.correlations(students, metrics), stats.choices(stats.joined(students, metrics), students)


def test_claims_hold_where_they_are_planted_and_fail_where_the_opposite_is():
    for gap, verdict in ((5, "holds"), (-5, "fails")):
        found = paper.claims(*study(gap)).set_index("claim")
        assert found.verdict["R12: mean signed rho"] == verdict and found.groups["R12: mean signed rho"] == 16
        assert found.verdict["R12 - TAC: mean signed rho"] == found.verdict["R12 - SSP: accuracy of the pick, TGDA"] == verdict
        assert found.verdict["R12 - TAC: mean |rho|"] == "holds"  # whatever the sign
        assert found.groups["R12 - SSP: accuracy of the pick, TGDA"] == found.groups["R12 - SSP: share of strong groups, CAL"] == 8


def test_one_data_set_cannot_tell_and_a_study_without_tgda_has_no_such_groups():
    correlations, choices = study(5, data_sets=1)
    assert set(paper.claims(correlations, choices).verdict) == {"cannot tell"}
    cut = paper.claims(correlations[correlations.strategy != "TGDA"], choices[choices.strategy != "TGDA"]).set_index("claim")
    assert cut.groups["R12 - TAC: accuracy of the pick, TGDA"] == 0 and cut.groups["R12: mean signed rho"] == 1


def test_what_is_printed_comes_from_the_tables():
    found = paper.claims(*study(0)).set_index("claim").published
    expected = {"R12 - SSP: mean |rho|": 0.07, "R12 - TAC: share of strong groups": 0.188, "R12 - SSP: share of strong groups, CAL": 0.208, "R12 - no teacher: accuracy of the pick, TGDA": 0.241}
    assert found[list(expected)].to_dict() == pytest.approx(expected)
    assert found["R12 - chance: mean |rho|"] == pytest.approx(0.629 - 0.31, abs=1e-3) and np.isnan(found["R12: mean signed rho"])
