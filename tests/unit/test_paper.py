"""The published tables: what they print agrees with itself, and what follows from them alone."""

import pandas as pd
import pytest

from fgkd import paper


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
