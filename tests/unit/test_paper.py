"""The published tables: what they print agrees with itself, and what follows from them alone."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
from scenes import rhos

from fgkd.analysis import blocks, correlation, groups, paper, selection
from fgkd.metrics import METRICS


@pytest.mark.parametrize(
    "name",
    [
        "strength",
        "correlation_by_dataset",
        "lcnet035_tgda_accuracy",
        "cub_resnet18_tgda",
        "cal_teacher_accuracy",
    ],
)
def test_a_published_table_is_the_reference(reference, name):
    pd.testing.assert_frame_equal(paper.published(name), pd.read_csv(reference / f"published_{name}.csv"))
    assert f"`{name}.csv`" in (paper.FOLDER / "README.md").read_text()


def test_a_table_that_was_not_published_is_refused_with_those_that_were():
    with pytest.raises(ValueError, match=r"no published table 'strenght': expected one of .*strength"):
        paper.published("strenght")


@pytest.mark.parametrize("name, digits", [("correlation_by_dataset", 3), ("lcnet035_tgda_accuracy", 1)])
def test_printed_averages_are_those_of_the_printed_rows(name, digits):
    table = paper.published(name).set_index("dataset")
    assert (table.drop("average").mean() - table.loc["average"]).abs().max() <= 0.5 * 10**-digits + 1e-9


def test_printed_shares_are_whole_numbers_of_128_and_of_24_groups_and_not_of_32():
    shares = paper.published("strength")
    groups_of = shares.scope.map({"all": 128, "CAL": 24, "TGDA": 24})
    for metric in ("tac", "ssp", "ratio12"):
        counts = (shares[metric] * groups_of / 100).round()
        assert (100 * counts / groups_of - shares[metric]).abs().max() <= 0.05 + 1e-9
        assert counts[shares.scope == "all"].sum() == 128
    assert abs(58.3 * 32 / 100 - round(58.3 * 32 / 100)) > 0.3


LCNET = {"small": "lcnet_035"}


def study(gap, *, data_sets=8, students=LCNET):
    """Correlations, choices, students and points of a study in which teachers of a smaller R12 teach
    better, up to noise, by `gap`: one number, or one for each (student, loss)."""
    gaps = gap if isinstance(gap, dict) else {(student, "kd"): gap for student in students}
    return tuple(frame.copy() for frame in made(tuple(gaps.items()), data_sets, tuple(students.items())))


@functools.cache
def made(gaps, data_sets, students):
    """The frames of `study`, which several tests ask for."""
    rng, teachers = np.random.default_rng(0), list("abcdefgh")
    gaps, students = dict(gaps), dict(students)
    taught, metrics = [], []
    for dataset in map(str, range(data_sets)):
        taught += [(dataset, student, "CE", "ce", "none", -5.0) for student in students]
        for strategy in ("CAL", "TGDA"):
            values = rng.normal(size=(len(METRICS), 8))
            names = [{"dataset": dataset, "teacher": t, "strategy": strategy, "seed": 0} for t in teachers]
            metrics += [
                row | dict(zip(METRICS, v, strict=True)) for row, v in zip(names, values.T, strict=False)
            ]
            for (student, loss), size in gaps.items():
                reached = rng.normal(size=8) - size * values[list(METRICS).index("ratio12")]
                taught += [
                    (dataset, student, strategy, loss, *pair) for pair in zip(teachers, reached, strict=True)
                ]
    columns = [*groups.GROUP, "teacher", "accuracy"]
    table, metrics = (
        pd.DataFrame(taught, columns=columns).assign(seed=0, agreement=0.5),
        pd.DataFrame(metrics),
    )
    table["model"] = table.student.map(students)
    points = groups.join_students_with_metrics(table, metrics).assign(family="")
    return (
        groups.correlations(table, metrics),
        selection.selection_outcomes(points, table),
        table,
        points,
    )


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
    assert registered.p_holm.to_list() == blocks.holm(registered.p).tolist() and set(registered.p) == {
        2 / 2**8
    }
    assert ((found.p <= 0.05) == ((found.low > 0) | (found.high < 0))).all()


@pytest.mark.parametrize("data_sets, verdicts", [(5, {"cannot tell"}), (6, {"cannot tell"}), (7, {"holds"})])
def test_three_registered_claims_take_seven_data_sets(data_sets, verdicts):
    found = paper.claims(*study(5, data_sets=data_sets))
    assert set(found[found.family == "registered"].verdict) == verdicts
    assert found.p.isna().all() == found.low.isna().all() == (data_sets < 6)


def null_study(rng):
    """Correlations, choices, students and points of 8 datasets in which nothing is correlated.

    Neither metrics nor picks nor sizes have to do with accuracy.
    """
    keys = list(itertools.product(map(str, range(8)), ["small"], ["FZ", "FT", "CAL", "TGDA"], ["kd"]))
    accuracies = rng.normal(size=(len(keys), 8))
    size = rng.normal(size=8)
    points = pd.DataFrame(np.repeat(keys, 8, axis=0), columns=groups.GROUP).assign(
        teacher=list("abcdefgh") * len(keys),
        accuracy=accuracies.ravel(),
        parameters=np.tile(size, len(keys)),
        family=["", *"xxxxyyy"] * len(keys),
        ratio12=rng.normal(size=8 * len(keys)),
    )
    direction = {"ratio12": -1, "ssp": 1, "tac": 1, "parameters": 1}
    metrics = np.concatenate([rng.normal(size=(len(keys), 3, 8)), np.tile(size, (len(keys), 1, 1))], axis=1)
    table = pd.DataFrame(np.repeat(keys, 4, axis=0), columns=groups.GROUP).assign(
        metric=list(direction) * len(keys), n=8, rho=rhos(metrics, accuracies[:, None]).ravel()
    )
    table = table.assign(
        abs_rho=table.rho.abs(),
        strength=table.rho.map(correlation.strength),
        agrees=table.rho * table.metric.map(direction),
    )
    choices = pd.DataFrame(np.repeat(keys, 4, axis=0), columns=groups.GROUP).assign(
        rule=["R12", "SSP", "TAC", "no teacher"] * len(keys), accuracy=accuracies[:, :4].ravel()
    )
    return table, choices, pd.DataFrame([{"student": "small", "model": "lcnet_035"}]), points


def test_one_null_study_in_twenty_decides_a_claim_where_uncorrected_intervals_would_in_half():
    rng, decided, uncorrected = np.random.default_rng(0), [], []
    for _ in range(150):
        found = paper.claims(*null_study(rng))
        decided.append(found.verdict.isin(["holds", "fails"]).any())
        uncorrected.append((found.verdict != "cannot tell").any())
    assert np.mean(decided) < 0.09 and np.mean(uncorrected) > 0.4  # two standard errors above 5 %


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
    one = study(5, data_sets=1)
    assert set(paper.claims(*one).verdict) == {"cannot tell"}
    cut = (frame[frame.strategy != "TGDA"] for frame in one)
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
    assert found["R12 - chance: mean |rho|"] == pytest.approx(0.629 - 0.31, abs=1e-3) and np.isnan(
        found["R12: mean signed rho"]
    )


def test_fewer_data_sets_than_a_verdict_needs_are_said_with_their_number():
    for data_sets, registered, exploratory in ((1, 7, 6), (6, 7, np.nan), (7, np.nan, np.nan)):
        found = paper.claims(*study(0, data_sets=data_sets)).set_index("claim")
        assert found.needed["R12 - TAC: mean signed rho"] == pytest.approx(registered, nan_ok=True)
        assert found.needed["R12 - TAC: mean |rho|"] == pytest.approx(exploratory, nan_ok=True)


def test_what_could_have_been_seen_stands_beside_each_registered_claim_that_cannot_be_told_and_nowhere_else():
    found = paper.claims(*study(0, data_sets=7)).set_index("claim")
    unseen = (found.family == "registered") & (found.verdict == "cannot tell")
    assert unseen.any() and (found.detectable.notna() == unseen).all()
    correlations = study(0, data_sets=7)[0]
    rhos = correlations[correlations.metric == "ratio12"].groupby("dataset").agrees.mean()
    assert found.detectable["R12: mean signed rho"] == pytest.approx(
        blocks.detectable(rhos.std(), 7, level=0.05 / 3)
    )
    assert paper.claims(*study(5, data_sets=7)).detectable.isna().all()  # all three hold
    assert paper.claims(*study(0, data_sets=6)).detectable.isna().all()  # no difference is large enough


def test_four_of_five_studies_hold_a_claim_that_is_as_large_as_they_can_see():
    """All three claims at once: differences of data sets as large as `power` says for one of them."""
    rng, held = np.random.default_rng(0), []
    size = blocks.detectable(0.2, 7, level=0.05 / 3)
    for _ in range(300):
        differences = rng.normal(size, 0.2, 7)
        p = blocks.swap_p(differences, range(7))
        held.append(blocks.holm([p, 1, 1])[0] <= 0.05 and differences.mean() > 0)
    assert 0.73 < np.mean(held) < 0.87


def test_more_data_sets_and_more_teachers_see_smaller_differences():
    table = paper.power(study(0, data_sets=8)[0])
    assert set(table.claim) == set(paper.REGISTERED) and set(table.source) == {"this study"}
    assert set(table.teachers) == {8, 16}
    for _, rows in table.groupby(["claim", "teachers"]):
        assert rows.detectable.is_monotonic_decreasing
    few, many = (table[table.teachers == n].detectable.to_numpy() for n in (8, 16))
    assert many == pytest.approx(few * np.sqrt(7 / 15))


def test_a_study_of_one_data_set_takes_the_spread_of_unrelated_teachers_and_one_of_two_has_none():
    found = paper.power(study(0, data_sets=1)[0]).set_index(["claim", "datasets", "teachers"])
    assert set(found.source) == {"chance"}
    assert found.spread["R12: mean signed rho", 7, 8] == pytest.approx(1 / np.sqrt(7))
    assert found.spread["R12 - TAC: mean signed rho", 7, 8] == pytest.approx(np.sqrt(2 / 7))
    three = paper.power(study(0, data_sets=1)[0].assign(n=3)).set_index(["claim", "datasets", "teachers"])
    beyond = three.detectable["R12: mean signed rho", 7, 3]  # 1.86 / sqrt(2), and no rho exceeds 1
    assert np.isnan(beyond) and three.detectable["R12 - TAC: mean signed rho", 7, 3] == pytest.approx(
        1.86, abs=0.05
    )
    correlations = study(0, data_sets=1)[0].assign(n=2, rho=np.nan, agrees=np.nan)
    assert paper.power(correlations).empty


def test_that_smaller_teachers_teach_better_is_a_claim_of_all_teachers_and_inside_families():
    """Of two families the larger teaches better, and in each of them the smaller one."""
    correlations, choices, students, points = study(0, data_sets=6)
    size = dict(zip("abcdefgh", [1, 2, 3, 9, 11, 12, 13, 99], strict=True))
    reached = dict(zip("abcdefgh", [3, 2, 1, 0, 13, 12, 11, 99], strict=True))
    points = points.assign(
        parameters=points.teacher.map(size),
        accuracy=points.teacher.map(reached),
        ratio12=points.teacher.map(size),
        family=points.teacher.map(dict(zip("abcdefgh", ["x", "x", "x", "", "y", "y", "y", ""], strict=True))),
    )
    found = paper.claims(correlations, choices, students, points).set_index("claim")
    inside, ratio = (
        found.loc[f"smaller of a family: {what}"]
        for what in ("rho with student accuracy", "rho of size and R12")
    )
    assert (inside.ours, inside.verdict, inside.groups) == (1, "suggests so", 12)
    assert (ratio.ours, ratio.groups, ratio.datasets) == (1, 6, 6)  # CAL and TGDA students have one teacher
    assert found.ours["smaller teachers: rho of size and R12"] == 1
    signed = correlations[correlations.metric == "parameters"].agrees.mean()
    assert found.ours["smaller teachers: rho with student accuracy"] == pytest.approx(-signed)


def test_families_that_the_study_does_not_say_have_no_groups():
    found = paper.claims(*study(0)).set_index("claim")
    row = found.loc["smaller of a family: rho with student accuracy"]
    assert (row.groups, row.needed, row.verdict) == (0, 6, "cannot tell")


def test_r12s_edge_under_attention_is_that_of_kd_students_less_that_of_the_other_strategies():
    keys = [
        (str(d), "small", s, loss)
        for d in range(6)
        for s, loss in (("FZ", "kd"), ("FT", "kd"), ("FT", "dkd"), ("CAL", "kd"), ("TGDA", "kd"))
    ]
    edge = {"FZ": 0.1, "FT": 0.3, "CAL": 0.5, "TGDA": 0.9}
    rows = [
        (*key, m, 8, value)
        for key in keys
        for m, value in (
            ("ratio12", 1 if key[-1] == "dkd" else edge[key[2]]),
            ("ssp", 0.0),
            ("tac", 0.0),
            ("parameters", 0.0),
        )
    ]
    table = pd.DataFrame(rows, columns=[*groups.GROUP, "metric", "n", "agrees"])
    table = table.assign(rho=table.agrees, abs_rho=table.agrees.abs(), strength="weak")
    _, choices, students, points = null_study(np.random.default_rng(0))
    found = paper.claims(table, choices, students, points).set_index("claim")
    assert found.ours["R12 - SSP: mean signed rho, CAL and TGDA"] == pytest.approx(0.7)
    less = found.loc["R12 - SSP: signed rho, CAL, TGDA less FZ, FT"]
    assert less.ours == pytest.approx(0.5) and (less.groups, less.datasets) == (6, 6)


def test_what_choosing_gains_is_asked_of_all_groups_too():
    found = paper.claims(*study(5)).set_index("claim")
    for rule in ("SSP", "TAC", "no teacher"):
        row = found.loc[f"R12 - {rule}: accuracy of the pick"]
        assert row.groups == 16 and row.ours > 0 and np.isnan(row.published)
