"""Metrics: the released implementation's values, cases by hand, and a stated behaviour at every edge."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fgkd import metrics

SHIFT_INVARIANT = ("ratio12_softmax", "margin", "entropy", "ssp")
SCALE_INVARIANT = ("ratio12", "ratio13", "ratio23")


def random(n=20, c=7, *, seed=0):
    """Positive logits (n, c)."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(1, 9, (n, c)))


@pytest.mark.parametrize("name", ["ratio12", "ratio13", "ratio23", "ratio12_softmax", "ssp", "entropy"])
@pytest.mark.parametrize("case", ["cub_like", "pets_like", "small"])
def test_a_metric_equals_the_released_implementation(reference, case, name):
    logits = np.load(reference / "golden.npz")[f"metrics/{case}/logits"]
    golden = json.loads((reference / "golden.json").read_text())[f"metrics/{case}"]
    assert metrics.summarize(logits)[name] == pytest.approx(golden[name], rel=1e-5)
    assert metrics.samples(logits)[name].mean().item() == pytest.approx(golden[name], rel=1e-5)


def test_metrics_by_hand():
    logits = [[1.0, 6.0, 0.0, 4.0]]
    q = np.exp([6.0, 4.0, 1.0, 0.0]) / np.exp([6.0, 4.0, 1.0, 0.0]).sum()
    found = {name: value.item() for name, value in metrics.samples(logits).items()}
    assert found == pytest.approx(
        {
            "ratio12": 1.5,
            "ratio12_centred": 2.6,
            "ratio13": 6,
            "ratio23": 4,
            "ratio12_softmax": math.exp(2),
            "margin": 2,
            "entropy": -(q * np.log(q)).sum(),
            "ssp": q[1:].std(ddof=1),
        },
        rel=1e-12,
    )


def test_ssp_is_the_unbiased_std_of_ranks_2_to_4_and_of_no_others():
    logits = random(c=9)
    q = np.sort(torch.softmax(logits, 1).numpy())[:, ::-1]
    assert metrics.secondary_std(logits).numpy() == pytest.approx(q[:, 1:4].std(1, ddof=1), rel=1e-12)
    assert metrics.secondary_std(logits, k=5).numpy() == pytest.approx(q[:, 1:6].std(1, ddof=1), rel=1e-12)
    for rival in (q[:, 1:4].std(1), q[:, :3].std(1, ddof=1), q[:, 1:].std(1, ddof=1)):
        assert metrics.secondary_std(logits).numpy() != pytest.approx(rival, rel=1e-3)


@pytest.mark.parametrize("name", [*SCALE_INVARIANT, *SHIFT_INVARIANT])
def test_raw_ratios_ignore_scale_and_see_a_shift_and_the_others_the_reverse(name):
    logits = random()
    plain, scaled, shifted = (metrics.samples(z)[name] for z in (logits, 3.7 * logits, logits + 5))
    same, other = (scaled, shifted) if name in SCALE_INVARIANT else (shifted, scaled)
    torch.testing.assert_close(same, plain, rtol=1e-9, atol=1e-12)
    assert not torch.isclose(other, plain, rtol=1e-3, atol=0).any()


@pytest.mark.parametrize("name", metrics.samples(random()))
def test_the_order_of_classes_does_not_matter(name):
    logits = random()
    torch.testing.assert_close(
        metrics.samples(logits.flip(1))[name], metrics.samples(logits)[name], rtol=1e-12, atol=1e-15
    )


def test_a_shift_alone_turns_the_order_of_two_teachers_by_r12():
    confident, unsure = torch.tensor([[9.0, 3.0, 0.0]]), torch.tensor([[4.0, 2.0, 0.0]])
    assert metrics.ratio12(confident) > metrics.ratio12(unsure)
    assert metrics.ratio12(confident + 100) > 1 and metrics.ratio12(confident + 100) < metrics.ratio12(unsure)
    assert metrics.margin(confident + 100) == metrics.margin(confident)


def test_a_tie_at_the_top_is_ratio_1_and_margin_0():
    found = metrics.samples([[3.0, 3.0, 1.0, 0.0], [-2.0, -2.0, -5.0, -6.0]])
    assert found["ratio12"].tolist() == found["ratio12_softmax"].tolist() == [1, 1]
    assert found["margin"].tolist() == [0, 0]


def test_equal_logits_have_entropy_log_c_and_no_secondary_spread():
    found = metrics.samples(torch.full((2, 6), 1.25))
    assert found["entropy"].tolist() == pytest.approx([math.log(6)] * 2)
    assert found["ssp"].tolist() == [0, 0]


@pytest.mark.parametrize("classes, undefined", [(2, {"ratio13", "ratio23", "ssp"}), (3, {"ssp"}), (4, set())])
def test_what_needs_more_classes_than_there_are_is_nan(classes, undefined):
    summary = metrics.summarize(random(c=classes))
    assert {name for name, value in summary.items() if math.isnan(value)} == undefined


def test_a_second_logit_of_zero_gives_infinity_whatever_its_sign_and_a_tie_there_nan():
    found = metrics.ratio12([[2.0, 0.0], [2.0, -0.0], [0.0, 0.0]]).tolist()
    assert found[:2] == [math.inf, math.inf] and math.isnan(found[2])


def test_samples_with_a_second_logit_of_zero_or_below_are_counted():
    summary = metrics.summarize([[2.0, 1.0], [2.0, 0.0], [2.0, -1.0], [-1.0, -2.0]])
    assert summary["ratio12_nonpositive"] == 0.75
    assert summary["ratio12"] == math.inf
    assert summary["ratio12_median"] == pytest.approx((0.5 + 2) / 2)
    assert metrics.ratio12([[2.0, -1.0]]).item() == -2


def test_summary_is_the_mean_over_samples_and_not_a_mean_of_batch_means():
    logits = random(n=10)
    whole, parts = (
        metrics.summarize(logits),
        [metrics.summarize(b)["ratio12"] for b in (logits[:9], logits[9:])],
    )
    assert whole["ratio12"] == pytest.approx((9 * parts[0] + parts[1]) / 10, rel=1e-12)
    assert whole["ratio12"] != pytest.approx(np.mean(parts), rel=1e-3)
    assert whole == pytest.approx(metrics.summarize(logits.flip(0)), rel=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused_by_sample(value):
    logits = random(n=5)
    logits[2, 1] = logits[4, 0] = value
    with pytest.raises(ValueError, match=r"2 of 5 samples.*first: sample 2.*diverge"):
        metrics.summarize(logits)


@pytest.mark.parametrize(
    "logits, message",
    [
        (torch.zeros(0, 5), r"\(0, 5\): expected \(N, C\)"),
        (torch.zeros(4), r"\(4,\): expected \(N, C\)"),
        (torch.zeros(2, 3, 4), r"\(2, 3, 4\)"),
        (torch.zeros(3, 1), "1 class: .* at least 2 classes"),
    ],
)
@pytest.mark.parametrize(
    "function", [metrics.ratio12, metrics.margin, metrics.entropy, metrics.secondary_std, metrics.summarize]
)
def test_empty_batches_single_classes_and_other_shapes_are_refused(function, logits, message):
    with pytest.raises(ValueError, match=message):
        function(logits)


def test_a_spread_of_fewer_than_two_probabilities_is_refused():
    with pytest.raises(ValueError, match=r"k is 1.*at least 2"):
        metrics.secondary_std(random(), k=1)


def test_inputs_of_any_kind_give_fp64_without_gradient():
    logits = random().float().requires_grad_()
    for given in (logits, logits.detach().numpy(), logits.tolist()):
        found = metrics.ratio12(given)
        assert found.dtype == torch.float64 and not found.requires_grad
        assert torch.equal(found, metrics.ratio12(logits.detach().double()))


def test_probabilities_too_small_for_fp32_still_count():
    logits = torch.tensor([[200.0, 50.0, 0.0]])
    naive = torch.softmax(logits, 1)
    assert naive[0, 1] == 0
    assert metrics.samples(logits)["ratio12_softmax"].item() == pytest.approx(math.exp(150))
    assert 0 < metrics.entropy(logits).item() < 1e-60


@pytest.mark.parametrize("margin", [1.0, 20.0, 40.0, 300.0])
def test_entropy_and_nll_keep_their_digits_where_a_teacher_is_almost_certain(margin):
    rest = math.exp(-margin)
    entropy = math.log1p(rest) + margin * rest / (1 + rest)
    assert metrics.entropy([[margin, 0.0]]).item() == pytest.approx(entropy, rel=1e-12, abs=0)
    nll = metrics.labelled_samples([[margin, 0.0]], [0])["nll"].item()
    assert nll == pytest.approx(math.log1p(rest), rel=1e-12, abs=0)


def many():
    """More samples (600, 555) than are looked at together, with ties, and their labels."""
    logits = torch.from_numpy(np.random.default_rng(3).normal(scale=3, size=(600, 555)).round(1)).float()
    return logits, torch.arange(600) % 555


def test_a_sample_has_the_same_values_alone_and_among_many():
    logits, labels = many()
    together = metrics.all_samples(logits, labels)
    assert 1 < (metrics.margin(logits) == 0).sum() < 100
    for i in (0, 235, 236, 237, 471, 599):
        for name, value in metrics.all_samples(logits[i : i + 1], labels[i : i + 1]).items():
            torch.testing.assert_close(together[name][i : i + 1], value, rtol=1e-12, atol=0)


def test_one_pass_says_what_the_single_metrics_say():
    logits, labels = many()
    found = metrics.all_samples(logits, labels)
    assert torch.equal(found.pop("nonpositive"), logits.topk(2).values[:, 1] <= 0)
    falling = logits.double().sort(dim=1, descending=True).values
    single = {"ratio13": falling[:, 0] / falling[:, 2], "ratio23": falling[:, 1] / falling[:, 2]}
    for function in (metrics.ratio12, metrics.ratio12_centred, metrics.margin, metrics.entropy):
        single[function.__name__] = function(logits)
    single |= {"ssp": metrics.secondary_std(logits), "ratio12_softmax": metrics.margin(logits).exp()}
    single |= {"nll": torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")}
    single |= {"confidence": logits.double().softmax(1).amax(1)}
    single |= {"correct": (logits.argmax(1) == labels).double()}
    assert set(found) == set(single)
    for name, value in single.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0)
    assert found["correct"].mean().item() == metrics.accuracy(logits, labels)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_logits_of_any_precision_have_the_metrics_of_their_fp64_values(kind):
    logits, labels = many()
    given = logits.to(kind)
    exact = metrics.all_samples(given.double(), labels)
    for name, value in metrics.all_samples(given, labels).items():
        assert torch.equal(value.nan_to_num(), exact[name].nan_to_num()), name


def test_classes_too_close_for_softmax_to_tell_apart_are_still_told_apart():
    logits, labels = torch.tensor([[1e-30, 2e-30]]), [1]
    assert metrics.labelled_samples(logits, labels)["correct"].item() == metrics.accuracy(logits, labels) == 1


def test_of_equal_logits_the_first_class_is_named():
    logits = torch.zeros(40, 600)
    logits[:, 300:] = 1
    found = metrics.labelled_samples(logits, torch.full((40,), 300))["correct"]
    assert found.tolist() == [1] * 40 and metrics.accuracy(logits, torch.full((40,), 301)) == 0


def test_finite_logits_whose_sum_is_not_finite_are_taken():
    logits = torch.tensor([[1.6e308, 0.8e308, 0.4e308], [4.0, 2.0, 0.0]], dtype=torch.float64)
    assert metrics.ratio12(logits).tolist() == [2, 2]


def test_a_sample_that_is_not_finite_is_found_among_many():
    logits, labels = many()
    logits[500, 554] = math.nan
    for function in (metrics.samples, metrics.ratio12, lambda z: metrics.all_samples(z, labels)):
        with pytest.raises(ValueError, match=r"1 of 600 samples.*first: sample 500"):
            function(logits)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_metrics_take_less_than_half_of_the_inputs_memory_beside_it(in_child):
    logits, labels = torch.ones(50_000, 555), torch.zeros(50_000, dtype=torch.int64)

    def peak():
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024

    def measure():
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        metrics.samples(logits)
        metrics.labelled_samples(logits, labels)
        assert peak() - before < logits.nbytes / 2

    assert in_child(measure) == 0


def test_accuracy_by_hand_and_in_the_summary():
    logits = [[2.0, 1.0], [0.0, 1.0], [5.0, 4.0], [0.0, 3.0]]
    assert (
        metrics.accuracy(logits, [0, 1, 1, 1]) == metrics.summarize(logits, [0, 1, 1, 1])["accuracy"] == 0.75
    )
    assert "accuracy" not in metrics.summarize(logits)


@pytest.mark.parametrize("labels", [[0], [0, 1, 1], [[0], [1]]])
def test_labels_of_another_shape_are_refused_and_not_broadcast(labels):
    with pytest.raises(ValueError, match=r"labels have shape .*expected \(2,\)"):
        metrics.accuracy([[2.0, 1.0], [0.0, 1.0]], labels)


def test_a_claimed_metric_comes_from_logits_labels_the_teacher_its_pretraining_or_the_student():
    ours = set(metrics.summarize(random())) | set(
        metrics.summarize_labelled(metrics.labelled_samples(random(), torch.arange(20) % 7))
    )
    assert set(metrics.METRICS) - ours == {"tac", "parameters", "logme", "leep", "nce", "pilot", "agreement"}
    assert [name for name, claim in metrics.METRICS.items() if claim.begun] == ["pilot"]
    assert [name for name, claim in metrics.METRICS.items() if claim.afterwards] == ["agreement"]
    assert {claim.direction for claim in metrics.METRICS.values()} == {-1, 1}


def test_centred_r12_ignores_scale_and_shift():
    logits = random()
    plain = metrics.ratio12_centred(logits)
    torch.testing.assert_close(metrics.ratio12_centred(-7 + 3.7 * logits), plain, rtol=1e-9, atol=0)
    assert not torch.isclose(plain, metrics.ratio12(logits), rtol=1e-3, atol=0).any()


def test_centred_r12_by_hand_and_where_one_class_outweighs_the_mean():
    assert metrics.ratio12_centred([[5.0, 3.0, 2.0, -2.0]]).item() == 3
    assert metrics.ratio12_centred([[10.0, 0.0, 0.0, 0.0]]).item() == -3
    assert metrics.ratio12_centred([[4.0, 2.0, 0.0]]).item() == math.inf


def test_nll_is_torchs_cross_entropy_a_sample():
    logits, labels = random(), torch.arange(20) % 7
    torch.testing.assert_close(
        metrics.labelled_samples(logits, labels)["nll"],
        torch.nn.functional.cross_entropy(logits, labels, reduction="none"),
    )


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_a_loop_over_bins(bins):
    rng = np.random.default_rng(0)
    confidence = np.append(rng.uniform(0.1, 1, 500), [1.0, 0.2, 0.6])
    correct = rng.random(503) < confidence**2
    expected = 0
    for low, high in zip(np.arange(bins) / bins, np.arange(1, bins + 1) / bins, strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert metrics.calibration_error(confidence, correct, bins=bins) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_hand():
    assert metrics.calibration_error([0.75] * 4, [1, 1, 1, 0]) == 0
    assert metrics.calibration_error([1.0, 1.0], [0, 0]) == 1
    assert metrics.calibration_error([0.55, 0.95], [1, 0]) == pytest.approx((0.45 + 0.95) / 2)
    assert metrics.calibration_error([0.55, 0.95], [1, 0], bins=1) == pytest.approx(0.25)


def test_rivals_of_joined_batches_are_those_of_the_whole():
    logits, labels = random(n=30), torch.arange(30) % 7
    whole = metrics.labelled_samples(logits, labels)
    parts = [metrics.labelled_samples(logits[s], labels[s]) for s in (slice(0, 7), slice(7, 30))]
    found = metrics.summarize_labelled(whole)
    assert found == metrics.summarize_labelled({name: torch.cat([p[name] for p in parts]) for name in whole})
    assert found["train_accuracy"] == metrics.accuracy(logits, labels)
    assert set(found) <= set(metrics.METRICS)


@pytest.mark.parametrize("labels", [[0, 2], [-1, 0]])
@pytest.mark.parametrize("function", [metrics.accuracy, metrics.labelled_samples])
def test_labels_of_no_class_are_refused(function, labels):
    with pytest.raises(ValueError, match=r"labels run from .*expected 0 to 1"):
        function([[2.0, 1.0], [0.0, 1.0]], labels)


def test_a_ratio_of_zero_to_zero_is_left_out_of_the_summary_and_counted():
    found = metrics.summarize([[6.0, 3.0, 0.0], [0.0, 0.0, 0.0], [4.0, 1.0, 0.0]])
    assert (found["ratio12"], found["ratio12_median"]) == (3, 3) and found[
        "ratio12_nonpositive"
    ] == pytest.approx(1 / 3)
    assert math.isnan(metrics.summarize([[0.0, 0.0, 0.0]])["ratio12"])


@pytest.mark.parametrize("label", [1.5, 2.9, float("nan"), float("inf"), -0.5])
def test_a_label_that_is_no_whole_number_is_refused(label):
    with pytest.raises(ValueError, match=f"labels hold {label:g}: expected whole numbers"):
        metrics.accuracy([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [1.0, label])
    assert metrics.accuracy([[1.0, 0.0], [0.0, 1.0]], [0.0, 1.0]) == 1
