"""How fast students learn that act by themselves: interquartile means, steps until a target, and learning curves."""

import numpy as np
import pytest
import scipy.stats

from kdrun.report import figures
from kdrun.report import learning as told
from kdrun.report.learning import Track, steps_to_target, steps_told
from kdrun.statistics import learning


@pytest.mark.parametrize("seeds", [1, 2, 3, 4, 5, 8, 11])
def test_the_interquartile_mean_is_scipys(seeds):
    values = np.random.default_rng(seeds).normal(size=(seeds, 3))
    assert learning.interquartile_mean(values) == pytest.approx(scipy.stats.trim_mean(values, 0.25, axis=0))


def test_a_curve_lies_in_its_interval():
    values = np.random.default_rng(0).normal(size=(10, 4))
    found = learning.curve(values)
    assert (found.low < found.middle).all() and (found.middle < found.high).all()
    alike = learning.curve(np.ones((5, 2)))
    assert (alike.low == 1).all() and (alike.high == 1).all()


def test_an_interval_has_the_mean_as_often_as_it_says():
    """Of 20 seeds, of normal noise: about 95 of 100, a few less, as the method's authors found."""
    draw = np.random.default_rng(1)
    curves = learning.curve(draw.normal(size=(20, 400)))
    covered = ((curves.low <= 0) & (curves.high >= 0)).mean()
    assert 0.87 < covered < 0.98


def track(*returns, step=100):
    return Track(step * np.arange(1.0, len(returns) + 1), np.array(returns, float))


def test_steps_to_a_target_by_hand():
    own = {0: track(10, 50, 40, 60), 1: track(50, 50, 50, 50), 2: track(60, 0, 0, 0)}
    control = {0: track(0, 0, 0, 50), 1: track(0, 0, 50, 0), 2: track(0, 0, 0, 0)}
    found = steps_to_target(50, own, control)
    assert (found["reached"], found["seeds"], found["horizon"]) == (3, 3, 400)
    assert found["mean"] == pytest.approx((200 + 100 + 100) / 3) and found["median"] == 100
    assert found["saved"] == pytest.approx(((400 - 200) + (300 - 100) + (400 - 100)) / 3)
    low, high = found["saved_interval"]
    assert 200 <= low < found["saved"] < high <= 300
    alone = steps_to_target(50, control, None)
    assert (alone["reached"], alone["mean"], alone["median"]) == (2, pytest.approx(1100 / 3), 400)
    assert alone["saved"] is None and alone["saved_interval"] is None
    assert steps_told("alone", alone).startswith(
        "alone reached 50 in 2 of 3 seeds, after 367 steps in the mean, the"
    )


def test_seeds_that_never_reach_it_are_not_dropped():
    """Without them two of three would look faster than the one that always does."""
    never, soon = track(0, 0, 0, 0), track(50, 0, 0, 0)
    found = steps_to_target(
        50, {0: never, 1: never, 2: soon}, {seed: track(0, 50, 0, 0) for seed in range(3)}
    )
    assert found["mean"] == pytest.approx((400 + 400 + 100) / 3) and found["median"] is None
    assert found["saved"] == pytest.approx((-200 - 200 + 100) / 3)
    assert "more than alone" in steps_told("own", found)
    nobody = steps_to_target(50, {0: never, 1: never}, {0: never, 1: never})
    assert nobody["saved"] is None and nobody["reached"] == 0
    assert steps_told("own", nobody) == "own reached 50 in 0 of 2 seeds"


def test_what_was_watched_for_longer_is_compared_as_far_as_both_were():
    own, control = {0: track(0, 0, 0, 0, 0, 50)}, {0: track(0, 0, 0)}
    assert steps_to_target(50, own, control)["saved"] is None
    found = steps_to_target(50, {0: track(50, 0, 0, 0, 0, 0)}, control)
    assert found["saved"] == 200 and found["saved_interval"] is None and found["saved_seeds"] == 1
    assert steps_to_target(50, {}, control) is None


def test_learning_curves_are_drawn_by_steps():
    found = {"alone": {0: track(1, 2, 3), 1: track(2, 2, 2)}, "kick": {0: track(3, 3)}, "none": {}}
    look = figures.looks([{"role": "student", "method": name} for name in found])
    with figures.own_style():
        [plot] = told.curves("", found, 2.5, "learning", look)
        [axes] = plot.figure.axes
        assert axes.lines[0].get_xdata().tolist() == [100, 200, 300]
        assert axes.lines[0].get_ydata().tolist() == [1.5, 2, 2.5]
        target = axes.lines[-1]
        assert list(target.get_ydata()) == [2.5, 2.5]
        assert axes.yaxis.get_zorder() < target.get_zorder() < axes.lines[0].get_zorder(), (
            "the grid would hide it"
        )
        assert [*told.curves("", {"alone": {0: track(1)}}, None, "learning", look)] == []
    assert "dotted the target" in plot.caption and "of 1 seeds that is the mean" in plot.caption


def test_a_log_without_steps_is_no_track():
    line = {"epoch": 0, "validation": {"return": 4.0}}
    assert told.track([line], "return") is None
    assert told.track([line | {"environment_steps": 40, "validation": None}], "return") is None
    assert told.track([line | {"environment_steps": 40}], "return").returns.tolist() == [4]
