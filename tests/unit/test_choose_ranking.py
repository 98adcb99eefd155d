"""The rule that ranks, its order, and how stable that is."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from fgkd.choose import ranking
from fgkd.choose.ranking import Rule

TAC = Rule("tac", "of the test")
R12 = Rule("ratio12", "of the test")


def support(**rhos):
    """Rows of rules.csv, the best first."""
    rows = [{"metric": name, "rho": rho, "low": rho - 0.1, "high": rho + 0.1} for name, rho in rhos.items()]
    return pd.DataFrame(rows, columns=["metric", "rho", "low", "high"])


def test_the_rule_is_the_metric_of_the_largest_mean_rho_once_six_datasets_are_complete():
    rule = ranking.decide(support(tac=0.9, ratio12=-0.5).assign(datasets=6))
    assert rule.metric == "tac" and "on 6 sets of real photos" in rule.reason
    assert "that of the paper's R12 is -0.50 (-0.60 to -0.40)" in rule.reason
    assert ranking.decide(support(ratio12=0.9, tac=0.5).assign(datasets=6)).reason.startswith(
        "the paper's rule; on 6"
    )


def test_below_six_complete_datasets_the_rule_is_the_papers():
    rule = ranking.decide(support(tac=0.9, ratio12=-0.5).assign(datasets=5))
    assert rule.metric == "ratio12" and "5 data sets are complete" in rule.reason
    assert ranking.decide(support().assign(datasets=[])).metric == "ratio12"


def test_each_recipe_has_its_rule_and_without_the_study_it_is_the_papers(monkeypatch, tmp_path):
    for recipe in ("FZ", "FT", "CAL"):
        rule = ranking.rule(recipe)
        assert rule.direction in (1, -1) and "on 7 sets of real photos" in rule.reason
    monkeypatch.setattr(ranking, "RULES", tmp_path / "absent.csv")
    assert ranking.rule("FZ").metric == "ratio12" and "not beside this package" in ranking.rule("FZ").reason


def samples(**correct):
    """Values of single photos, of which `correct` matters."""
    values = {name: np.array(array, float) for name, array in correct.items()}
    return {name: {"correct": array, "ratio12": 1 + array} for name, array in values.items()}


def test_ranks_follow_the_claimed_direction_and_ties_the_names():
    assert list(ranking._ranks(pd.Series([0.3, 0.5, 0.3]), 1)) == [2, 1, 3]
    assert list(ranking._ranks(pd.Series([1.5, 1.2, np.nan]), -1)) == [2, 1, 3]


def test_how_often_a_candidate_is_the_first_agrees_with_the_binomial_distribution():
    """b differs from a in 5 photos of 40, right on 3, wrong on 2: how often is it the first of the two?"""
    a = np.repeat([1, 0], [20, 20])
    b = a.copy()
    b[:2] = 0
    b[-3:] = 1
    ranks = ranking._resample(samples(a=a, b=b), TAC)
    wins = sum(
        scipy.stats.multinomial.pmf([x, y, 40 - x - y], 40, [3 / 40, 2 / 40, 35 / 40])
        for x in range(41)
        for y in range(41 - x)
        if x >= y
    )
    assert (ranks.b == 1).mean() == pytest.approx(wins, abs=0.04)
    assert ((ranks.a == 1) & (ranks.b == 1)).any()  # equal ones share the better rank


def test_stability_does_not_depend_on_the_order_of_the_list():
    rng = np.random.default_rng(1)
    values = samples(**{name: rng.random(50) < share for name, share in zip("abc", (0.5, 0.6, 0.4))})
    forward = ranking._stability(ranking._resample(values, R12))
    backward = ranking._stability(ranking._resample(dict(reversed(values.items())), R12))
    pd.testing.assert_frame_equal(forward, backward.loc[["a", "b", "c"]])


def test_a_rule_that_is_no_function_of_the_logits_has_no_stability():
    ranks = ranking._resample(samples(a=[1, 0], b=[0, 0]), Rule("logme", ""))
    assert ranks.empty and ranking._stability(ranks).isna().all(axis=None)
    assert ranking.Ranking(pd.DataFrame(), ranks, TAC).stability().empty
