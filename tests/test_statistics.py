"""Statistics against independent oracles: scipy, statsmodels' formulas by hand, torchmetrics, and simulations."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from kdrun.statistics import inference, scores
from kdrun.statistics.resampling import Resamples

SAMPLES = 10_000
STEP = 1 / SAMPLES


def drawn(seed, count, size=0.01, shift=0.0):
    return list(np.random.default_rng(seed).normal(shift, size, count))


# ------------------------------------------------------------------------------------------ over seeds


@pytest.mark.parametrize(("seed", "count"), product(range(3), [2, 3, 5, 10]))
def test_the_paired_t_test_is_scipys(seed, count):
    first, second = drawn(seed, count, shift=0.01), drawn(seed + 100, count)
    found = inference.over_seeds([a - b for a, b in zip(first, second, strict=True)], STEP)
    oracle = scipy.stats.ttest_rel(first, second)
    ends = oracle.confidence_interval(0.95)
    assert found.p_value == pytest.approx(oracle.pvalue, rel=1e-9)
    assert found.interval == pytest.approx((ends.low, ends.high), rel=1e-9)
    assert (found.seeds, found.mean) == (count, pytest.approx(np.mean(first) - np.mean(second)))


def test_equal_differences_prove_no_more_than_their_rounding_allows():
    """Three seeds that all differ by one sample of 540 are no proof; nor is none that differs at all."""
    one = inference.over_seeds([1 / 540] * 3, 1 / 540)
    assert 0.05 < one.p_value < 0.06 and one.interval[0] < 0 < one.interval[1]
    none = inference.over_seeds([0.0] * 3, 1 / 540)
    assert none.p_value == 1 and none.interval[0] < 0 < none.interval[1]


def test_rounding_spreads_a_difference_by_that_much():
    draw = np.random.default_rng(0)
    first, second = draw.uniform(0, 1, (2, 400_000))
    errors = (np.round(first * 50) - np.round(second * 50)) / 50 - (first - second)
    assert errors.std() == pytest.approx(inference.rounding(1 / 50), rel=0.01)


# ---------------------------------------------------------------------------------------- over samples


def right(ours, theirs, both, neither):
    """Which samples two models have right, from how many each alone, both, and neither has."""
    rows = (
        [(True, False)] * ours + [(False, True)] * theirs + [(True, True)] * both + [(False, False)] * neither
    )
    return np.array([a for a, _ in rows]), np.array([b for _, b in rows])


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_scipys_binomial_test(ours, theirs, both, neither):
    if not ours + theirs:
        return
    first, second = right(ours, theirs, both, neither)
    found = inference.over_samples(first, second)
    oracle = scipy.stats.binomtest(ours, ours + theirs, 0.5)
    assert found.p_value == pytest.approx(oracle.pvalue, abs=1e-12)
    assert found.mean == pytest.approx((ours - theirs) / len(first))
    assert found.spread is None and found.seeds == 1
    assert found.interval[0] <= found.mean <= found.interval[1]


@pytest.mark.parametrize(
    ("ours", "theirs", "right_both"),
    [(0.002, 0.076, 0.85), (0.0, 0.05, 0.9), (0.005, 0.03, 0.9), (0.05, 0.05, 0.8), (0.1, 0.02, 0.3)],
)
def test_the_interval_of_two_single_runs_covers_the_truth(ours, theirs, right_both):
    draw = np.random.default_rng(0)
    counts = draw.multinomial(540, [ours, theirs, right_both, 1 - ours - theirs - right_both], size=1500)
    covered = 0
    for a, b, both, neither in counts:
        low, high = inference.over_samples(*right(a, b, both, neither)).interval
        covered += low <= ours - theirs <= high
    assert 0.935 <= covered / 1500 <= 0.995


def test_two_models_that_never_differ_may_still_differ_elsewhere():
    found = inference.over_samples(*right(0, 0, 90, 10))
    assert found.p_value == 1
    assert -0.06 < found.interval[0] < 0 < found.interval[1] < 0.06


# ------------------------------------------------------------------------------------- several methods


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=9))
def test_holm_rejects_step_by_step(p_values):
    adjusted = inference.holm(p_values)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    rejecting = True
    for rank, place in enumerate(order):
        rejecting &= p_values[place] * (len(p_values) - rank) < inference.LEVEL
        assert (adjusted[place] < inference.LEVEL) == rejecting
        assert adjusted[place] >= p_values[place]
    assert [adjusted[place] for place in order] == sorted(adjusted)


def test_holm_by_hand():
    assert inference.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert inference.holm([]) == []


def test_verdicts():
    assert [inference.verdict(d, p) for d, p in [(1, 0.049), (-1, 0.049), (1, 0.05)]] == [
        "better",
        "worse",
        "not distinguishable",
    ]


# ------------------------------------------------------------------------------------------- how many


@pytest.mark.parametrize(("size", "seeds", "tests"), [(1.0, 5, 1), (2.1, 5, 1), (2.1, 10, 8), (0.3, 40, 3)])
def test_power_is_what_a_simulation_finds(size, seeds, tests):
    draws = np.random.default_rng(0).normal(size, 1, (100_000, seeds))
    found = scipy.stats.ttest_1samp(draws, 0, axis=1).pvalue < inference.LEVEL / tests
    assert inference.power(size, seeds, tests) == pytest.approx(found.mean(), abs=0.006)


def test_power_is_scipys_noncentral_t_also_far_out():
    for size, seeds, tests in product([0.05, 0.3, 1, 3, 8, 30], [2, 3, 5, 20, 100, 900], [1, 2, 8]):
        freedom, shift = seeds - 1, size * math.sqrt(seeds)
        bound = scipy.stats.t.isf(inference.LEVEL / tests / 2, freedom)
        oracle = scipy.stats.nct.sf(bound, freedom, shift)
        found = inference.power(size, seeds, tests)
        assert 0 <= found <= 1 and (np.isnan(oracle) or found == pytest.approx(oracle, abs=0.03)), (
            size,
            seeds,
        )


def test_a_little_more_difference_never_needs_more_seeds():
    needed = [inference.seeds_needed(size, 1.0, 2) for size in np.linspace(0.2, 6, 200)]
    assert needed == sorted(needed, reverse=True) and needed[-1] <= 4


@pytest.mark.parametrize(("difference", "tests"), [(0.5, 1), (-0.5, 4), (2, 1), (30, 1), (0.12, 2)])
def test_seeds_needed_are_the_fewest(difference, tests):
    seeds = inference.seeds_needed(difference, 1.0, tests)
    assert inference.power(difference, seeds, tests) >= inference.POWER
    assert seeds == 2 or inference.power(difference, seeds - 1, tests) < inference.POWER


def test_no_number_of_seeds_tells_what_is_not_there():
    assert inference.seeds_needed(0.0, 1.0) is None
    assert inference.seeds_needed(1e-3, 1.0) is None


@pytest.mark.parametrize(("seeds", "tests"), [(2, 1), (3, 8), (5, 1), (10, 3)])
def test_what_can_be_detected_is_found_as_often_as_said(seeds, tests):
    least = inference.detectable(0.5, seeds, tests)
    assert inference.power(least / 0.5, seeds, tests) == pytest.approx(inference.POWER, abs=1e-6)


# ---------------------------------------------------------------------------------------------- the gap


def test_a_share_of_the_gap_covers_the_truth_as_often_as_it_says():
    """Fieller's interval, and where it is given at all the gap is clearly positive."""
    draw, covered, given_ = np.random.default_rng(0), 0, 0
    for _ in range(4000):
        control, student = draw.normal(0.90, 0.002, 5), draw.normal(0.92, 0.002, 5)
        if interval := inference.share_of_gap(student - control, 0.94 - control, STEP):
            given_ += 1
            covered += interval[0] <= 0.5 <= interval[1]
    assert given_ > 3990 and covered / given_ == pytest.approx(0.95, abs=0.012)


def test_a_share_of_the_gap_is_where_the_ratio_is_not_refuted():
    """Its ends are the ratios ρ for which a t-test of gain − ρ·gap just says nothing."""
    gains, gaps = drawn(1, 6, shift=0.02), drawn(2, 6, shift=0.05)
    for end in inference.share_of_gap(gains, gaps, STEP):
        rest = [gain - end * gap for gain, gap in zip(gains, gaps, strict=True)]
        assert scipy.stats.ttest_1samp(rest, 0).pvalue == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, -0.05])
def test_no_share_of_a_gap_that_is_not_clear(shift):
    assert inference.share_of_gap(drawn(1, 5, shift=0.02), drawn(2, 5, shift=shift), STEP) is None


# --------------------------------------------------------------------------------------------- resamples


def predictions(seed, samples=200, classes=4):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, samples)
    wrong = draw.random((6, samples)) < 0.3
    return labels, np.where(wrong, draw.integers(0, classes, (6, samples)), labels)


@pytest.mark.parametrize("metric", scores.METRICS)
def test_a_resample_scores_what_its_samples_score(metric):
    labels, said = predictions(0)
    resamples = Resamples(labels, metric)
    for times, score in zip(resamples._times[:5], resamples.scores(said[0])[:5], strict=True):
        rows = np.repeat(np.arange(len(labels)), times)
        assert score == pytest.approx(scores.score(metric, said[0][rows], labels[rows]))


def test_resampling_test_samples_is_scipys_bootstrap():
    labels, said = predictions(1)
    resamples = Resamples(labels, "accuracy")
    found = resamples.interval([resamples.scores(said[0])], [resamples.scores(said[1])])
    difference = (said[0] == labels).astype(float) - (said[1] == labels)
    oracle = scipy.stats.bootstrap(
        (difference,), np.mean, n_resamples=20_000, method="percentile", random_state=0
    ).confidence_interval
    assert found == pytest.approx((oracle.low, oracle.high), abs=0.01)


def test_resampling_seeds_too_is_wider_where_seeds_differ():
    labels, said = predictions(2)
    resamples = Resamples(labels, "accuracy")
    runs = [resamples.scores(one) for one in said]
    worse = [run - size for run, size in zip(runs[3:], (0.0, 0.2, 0.4), strict=True)]
    (low, high), (low_one, high_one) = (
        resamples.interval(runs[:3], worse),
        resamples.interval(runs[:1], worse[:1]),
    )
    assert low < 0.2 < high and high - low > high_one - low_one
    assert (low, high) == resamples.interval(runs[:3], worse), "drawn once"


def test_swapping_predictions_is_mcnemars_test_for_accuracy():
    labels, said = predictions(3)
    found = Resamples(labels, "accuracy").difference([said[0]], [said[1]])
    exact = inference.over_samples(said[0] == labels, said[1] == labels)
    assert found.mean == pytest.approx(exact.mean)
    assert found.p_value == pytest.approx(exact.p_value, abs=0.04)


@pytest.mark.parametrize("metric", scores.METRICS)
def test_swapped_predictions_score_what_they_say(metric, monkeypatch):
    labels, said = predictions(4, samples=60)
    swaps = []

    class Noted:
        def __init__(self, draw):
            self.draw = draw

        def __getattr__(self, name):
            return getattr(self.draw, name)

        def integers(self, *arguments, **options):
            swaps.append(self.draw.integers(*arguments, **options))
            return swaps[-1]

    resamples, original = Resamples(labels, metric), np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Noted(original(seed)))
    differences = resamples._swapped([said[0]], [said[1]])
    differs = said[0] != said[1]
    for swap, difference in zip(swaps[0][:20], differences[:20], strict=True):
        swapped = np.zeros(len(labels), bool)
        swapped[differs] = swap
        both = np.where(swapped, said[1], said[0]), np.where(swapped, said[0], said[1])
        one, other = (scores.score(metric, predicted, labels) for predicted in both)
        assert difference == pytest.approx(one - other)
    assert not swaps[0][0].any() and swaps[0][1:].any()


def test_two_runs_that_say_the_same_differ_by_nothing():
    labels, said = predictions(5)
    found = Resamples(labels, "macro-f1").difference([said[0]], [said[0]])
    assert (found.mean, found.interval, found.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_swapping_predictions_raises_as_many_false_alarms_as_it_says():
    alarms = 0
    for seed in range(30):
        labels, said = predictions(100 + seed, samples=80)
        alarms += Resamples(labels, "macro-f1").difference([said[0]], [said[1]]).p_value < inference.LEVEL
    assert alarms <= 5, "1.5 of 30 are expected; more than 5 come in one case of 200"


# ------------------------------------------------------------------------------------------- calibration


def logits_of(seed, samples=500, classes=5, sharp=2.0):
    draw = np.random.default_rng(seed)
    return draw.normal(0, sharp, (samples, classes)).astype(np.float32), draw.integers(0, classes, samples)


ALL_RIGHT = np.eye(3, dtype=np.float32)[np.arange(60) % 3]
CALIBRATION = {
    "drawn": logits_of(0),
    "sharp": logits_of(1, sharp=20),
    "flat": logits_of(2, sharp=0.01),
    "all right": (ALL_RIGHT * 2, np.arange(60) % 3),
    "all right and sure": (ALL_RIGHT * 1000, np.arange(60) % 3),
    "all wrong and sure": (ALL_RIGHT * 1000, (np.arange(60) + 1) % 3),
    "ties": (np.zeros((60, 3), np.float32), np.arange(60) % 3),
    "one class missing": (logits_of(3, classes=3)[0], logits_of(3, classes=2)[1]),
    "fewer samples than bins": logits_of(4, samples=4),
}


@pytest.mark.parametrize("case", CALIBRATION)
def test_calibration_in_bins_of_equal_width_is_that_of_torchmetrics(case):
    logits, labels = CALIBRATION[case]
    probabilities = torch.from_numpy(logits).double().softmax(dim=1)
    oracle = multiclass_calibration_error(probabilities, torch.from_numpy(labels), logits.shape[1], n_bins=15)
    assert scores.calibration_error(logits, labels, "width") == pytest.approx(float(oracle), abs=1e-6)


@pytest.mark.parametrize("case", CALIBRATION)
def test_calibration_in_bins_of_equal_mass_by_hand(case):
    logits, labels = CALIBRATION[case]
    probabilities = scipy.special.softmax(logits.astype(float), axis=1)
    rows = sorted(range(len(labels)), key=lambda row: probabilities[row].max())
    right_ = logits.argmax(1) == labels
    total = 0.0
    for part in np.array_split(np.array(rows), 15):
        if len(part):
            sure = probabilities[part].max(axis=1)
            alike = [probabilities.max(axis=1).round(12) == one.round(12) for one in sure]
            found = np.mean([right_[ties].mean() for ties in alike])
            total += len(part) / len(rows) * abs(sure.mean() - found)
    assert scores.calibration_error(logits, labels) == pytest.approx(total, abs=1e-9)


def test_calibration_does_not_depend_on_the_order_of_samples():
    labels = np.repeat(np.arange(10), 54)
    logits = np.tile(np.float32([2, *[0] * 9]), (540, 1))
    mixed = np.random.default_rng(0).permutation(540)
    assert scores.calibration_error(logits, labels) == pytest.approx(
        scores.calibration_error(logits, labels[mixed])
    )


@pytest.mark.parametrize("case", CALIBRATION)
def test_brier_is_the_squared_distance_from_the_labels(case):
    logits, labels = CALIBRATION[case]
    p, hot = scipy.special.softmax(logits.astype(float), axis=1), np.eye(logits.shape[1])[labels]
    assert scores.brier(logits, labels) == pytest.approx(((p - hot) ** 2).sum(axis=1).mean(), abs=1e-9)


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_a_fitted_temperature_is_the_one_that_was_put_in(truth):
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 2, (40_000, 4))
    p = scipy.special.softmax(logits, axis=1)
    labels = (p.cumsum(axis=1) < draw.random((len(p), 1))).sum(axis=1)
    assert scores.fitted_temperature(logits * truth, labels) == pytest.approx(truth, rel=0.03)


@pytest.mark.parametrize(("first", "second"), [(6, 4), (3, 5), (10, 0), (19, 1)])
def test_the_weights_of_a_mixture_are_those_of_the_closed_form(first, second):
    """Of two models that give 0.9 to the labels that they know, and 0.1 to those that the other knows."""
    knows = np.array([0.9, 0.1]).repeat([first, second])
    expected = np.clip((0.9 * first - 0.1 * second) / (0.8 * (first + second)), 0, 1)
    found = scores.mixture(np.log([knows, 1 - knows]))
    assert found == pytest.approx([expected, 1 - expected], abs=1e-4)


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 40))
def test_no_other_mixture_explains_the_labels_better(seed, models, samples):
    draw = np.random.default_rng(seed)
    log_p = -4 * draw.exponential(size=(models, samples))

    def explained(weights):
        return np.log(weights @ np.exp(log_p)).mean()

    found = scores.mixture(log_p)
    assert found.sum() == pytest.approx(1) and found.min() >= 0
    others = [*np.eye(models), np.full(models, 1 / models), *draw.dirichlet(np.ones(models), 20)]
    assert all(explained(other) <= explained(found) + 1e-6 for other in others)


def test_models_that_rule_a_label_out_are_no_trouble_to_a_mixture():
    assert scores.mixture(np.array([[-2000.0, -1900.0], [-1999.0, -3000.0]])).sum() == pytest.approx(1)


def test_a_fitted_temperature_is_a_minimum():
    logits, _ = logits_of(0)
    labels = np.where(np.arange(500) % 3, logits.argmax(axis=1), np.arange(500) % 5)
    fitted = scores.fitted_temperature(logits, labels)
    near = [scores.nll(logits / (fitted * factor), labels) for factor in (0.99, 1, 1.01)]
    assert near[1] == min(near)
    found = scores.all_scores(logits, labels, fitted)
    assert found["nll_scaled"] == pytest.approx(near[1]) and found["nll_scaled"] < found["nll"]
    assert found["ece_scaled"] == pytest.approx(scores.calibration_error(logits / fitted, labels), abs=1e-6)


def test_a_temperature_of_what_is_always_right_stays_in_bounds():
    assert 0.01 <= scores.fitted_temperature(ALL_RIGHT, np.arange(60) % 3) < 0.1
    assert 99 < scores.fitted_temperature(ALL_RIGHT, (np.arange(60) + 1) % 3) <= 100, "all wrong"


def test_divergence_is_torchs():
    (ours, _), (theirs, _) = logits_of(0), logits_of(1)
    log_q, log_p = (torch.from_numpy(z).double().log_softmax(dim=1) for z in (ours, theirs))
    oracle = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    assert scores.divergence(ours, theirs) == pytest.approx(float(oracle), abs=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_have_no_score(value):
    logits, labels = logits_of(0)
    logits[3, 1] = value
    with pytest.raises(ValueError, match="not finite"):
        scores.all_scores(logits, labels)


# ------------------------------------------------------------------------------------------ false alarms
#
# Runs as on CIFAR-100: a run's score spreads by 0.3 points over seeds, most of which is the luck of a
# finite test set. Each sample has a probability of its own of being right, the same for all runs of identical
# methods; a run is right on it or not, by chance.

TRUTH = np.random.default_rng(9).beta(0.5, 0.16, SAMPLES)
SPREAD = 0.003


def compared(draw, seeds, methods, gaps=(0.0,)):
    """The verdicts of a simulated comparison; ``gaps`` are what the methods are truly better by, in spreads."""
    noise = math.sqrt((TRUTH * (1 - TRUTH)).sum()) / SAMPLES
    of_training = math.sqrt(max(SPREAD**2 - noise**2, 0))
    true = np.array([0.0, *(list(gaps) * methods)[:methods]]) * SPREAD
    means = TRUTH.mean() + true[:, None] + draw.normal(0, of_training, (methods + 1, seeds))
    found = np.round((means + draw.normal(0, noise, means.shape)) * SAMPLES) / SAMPLES
    differences = [inference.over_seeds(list(row - found[0]), STEP) for row in found[1:]]
    adjusted = inference.holm([one.p_value for one in differences])
    return [inference.verdict(one.mean, p) for one, p in zip(differences, adjusted, strict=True)]


@pytest.mark.parametrize(("seeds", "methods"), product([3, 5, 10], [1, 8]))
def test_identical_methods_raise_few_false_alarms(seeds, methods):
    draw = np.random.default_rng(seeds * 10 + methods)
    alarms = sum(set(compared(draw, seeds, methods)) != {"not distinguishable"} for _ in range(1000))
    assert alarms <= 70


@pytest.mark.parametrize("samples", [100, 540])
def test_nor_do_small_test_sets(samples):
    """Where scores are coarse, and differences often equal by chance."""
    draw, alarms = np.random.default_rng(samples), 0
    for _ in range(1000):
        found = draw.binomial(samples, 0.95, (2, 3)) / samples
        difference = inference.over_seeds(list(found[1] - found[0]), 1 / samples)
        alarms += difference.p_value < inference.LEVEL
    assert alarms <= 70


@pytest.mark.parametrize(("seeds", "methods"), [(5, 1), (10, 8)])
def test_a_gap_of_three_spreads_is_found(seeds, methods):
    draw = np.random.default_rng(seeds)
    verdicts = [verdict for _ in range(1000) for verdict in compared(draw, seeds, methods, (3.0,))]
    assert verdicts.count("better") >= 0.9 * len(verdicts)
    assert "worse" not in verdicts


# ------------------------------------------------------------------------------------------- both noises


def test_both_noises_leave_the_larger_p_value_and_the_wider_interval():
    seeds = inference.Difference(0.2, (0.1, 0.3), 0.01, 0.05, 5)
    samples = inference.Difference(0.2, (-0.05, 0.25), 0.2, None, 1)
    assert inference.over_both(seeds, samples) == inference.Difference(0.2, (-0.05, 0.3), 0.2, 0.05, 5)
    narrow = inference.Difference(0.2, (0.19, 0.21), 1e-6, None, 1)
    assert inference.over_both(seeds, narrow) == seeds


def test_equal_seeds_are_one_run_to_the_noise_of_samples():
    draw = np.random.default_rng(0)
    labels, (ours, theirs) = draw.integers(3, size=80), draw.integers(3, size=(2, 80))
    for metric in ("accuracy", "macro-f1"):
        resamples = Resamples(labels, metric)
        single = resamples.difference([ours], [theirs])
        assert resamples.difference([ours] * 4, [theirs] * 4) == single


def test_no_seed_is_preferred_where_samples_are_the_noise():
    draw = np.random.default_rng(1)
    labels, said = draw.integers(2, size=60), draw.integers(2, size=(6, 60))
    resamples = Resamples(labels, "accuracy")
    ours, theirs = [*said[:3]], [*said[3:]]
    found = resamples.difference(ours, theirs)
    again = resamples.difference(ours[::-1], theirs[::-1])
    assert found.mean == pytest.approx(again.mean) and found.p_value == again.p_value
    right = (said == labels).mean(axis=1)
    assert found.mean == pytest.approx(right[:3].mean() - right[3:].mean())


def test_methods_that_do_not_differ_are_seldom_told_apart_by_samples():
    draw, alarms, trials = np.random.default_rng(2), 0, 200
    for _ in range(trials):
        labels = draw.integers(2, size=50)
        said = [np.where(draw.random(50) < 0.8, labels, 1 - labels) for _ in range(4)]
        alarms += Resamples(labels, "accuracy").difference(said[:2], said[2:]).p_value < inference.LEVEL
    assert alarms <= 0.08 * trials
