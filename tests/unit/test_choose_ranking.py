"""The rule that ranks, its order, and how stable that is."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from fgkd.choose import ranking
from fgkd.choose.ranking import Rule
from fgkd.metrics import all_samples


@pytest.fixture
def rules(monkeypatch, tmp_path):
    """(metrics and their rhos, the best first) -> the rule, where that is the committed table."""

    def decide(**rhos):
        rows = [{"recipe": "FZ", "metric": name, "rho": rho, "datasets": 6} for name, rho in rhos.items()]
        frame = pd.DataFrame(rows)
        frame.assign(low=frame.rho - 0.1, high=frame.rho + 0.1).to_csv(tmp_path / "rules.csv")
        monkeypatch.setattr(ranking, "RULES", tmp_path / "rules.csv")
        return ranking.rule("FZ")

    return decide


def test_the_rule_is_the_metric_of_the_largest_mean_rho(rules):
    rule = rules(tac=0.9, ratio12=-0.5)
    assert rule.metric == "tac" and rule.reason.startswith("on 6 sets of real photos")
    assert "that of the paper's R12 is -0.50 (-0.60 to -0.40)" in rule.reason
    assert rules(ratio12=0.9, tac=0.5).reason.startswith("the paper's rule; on 6")


@pytest.mark.parametrize("recipe", ["FZ", "FT", "CAL"])
def test_each_recipe_has_its_rule_of_seven_datasets_whose_order_can_be_resampled(recipe):
    rule = ranking.rule(recipe)
    assert "on 7 sets of real photos" in rule.reason
    assert rule.metric in all_samples(torch.rand(3, 5), torch.arange(3))


def samples(**correct):
    """Values of single photos, of which `correct` matters."""
    values = {name: torch.as_tensor(array).double() for name, array in correct.items()}
    return {name: {"correct": array, "ratio12": 1 + array} for name, array in values.items()}


def test_ranks_follow_the_claimed_direction_and_ties_the_names():
    assert list(ranking._ranks(pd.Series([0.3, 0.5, 0.3]), "tac")) == [2, 1, 3]
    assert list(ranking._ranks(pd.Series([1.5, 1.2, np.nan]), "ratio12")) == [2, 1, 3]


def test_how_often_a_candidate_is_the_first_agrees_with_the_binomial_distribution():
    """b differs from a in 5 photos of 40, right on 3, wrong on 2: how often is it the first of the two?"""
    a = np.repeat([1, 0], [20, 20])
    b = a.copy()
    b[:2] = 0
    b[-3:] = 1
    ranks = ranking._resample(samples(a=a, b=b), "tac")
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
    forward = ranking._stability(ranking._resample(values, "ratio12"))
    backward = ranking._stability(ranking._resample(dict(reversed(values.items())), "ratio12"))
    pd.testing.assert_frame_equal(forward, backward.loc[["a", "b", "c"]])


def test_a_rule_that_is_no_function_of_the_logits_has_no_stability():
    ranks = ranking._resample(samples(a=[1, 0], b=[0, 0]), "logme")
    assert ranks.empty and ranking._stability(ranks).isna().all(axis=None)
    assert ranking.Ranking(pd.DataFrame(), ranks, Rule("logme", "")).stability().empty
