"""Agents: from the returns of evaluation episodes to rows, verdicts, tables and a report; arithmetic by hand."""

import base64
import csv
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from commands import process
from kdrun import assembly, bookkeeping, compare, evidence, records
from kdrun.config.checks import cross_checks
from kdrun.errors import DamagedError, GateError, StoreError, TrainingError
from kdrun.gate import Gate
from kdrun.plan import plan
from kdrun.report import figures, table
from kdrun.report import rules as printed
from kdrun.report.scales import scale_of
from kdrun.statistics import inference, scores
from kdrun.statistics.resampling import ResampledEpisodes
from kdrun.statistics.returns import reward_step, scores_of_returns
from kdrun.store import Store
from kdrun.store.runs import EPISODE
from kdrun.tune import Search
from support import checked, problems
from test_compare import Made
from test_compare import experiment as of_samples

EPISODES = 40
PROTOCOL = {
    "dataset": "gym",
    "test_samples": EPISODES,
    "test_sha256": "89abcdef" * 8,
    "input": [4],
    "epochs": 7,
    "selection": "last",
    "precision": "fp32",
    "device": "cpu",
}
PLAIN = compare.Extras()
LIKE = {"agreement": 0.9, "kl_to_teacher": 0.1, "copied_errors": None}


def gif(colour=7):
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (6, 4), (colour, 80 * number, 200)) for number in range(3)]
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=40)
    return buffer.getvalue()


def around(mean, seed=0, spread=20.0, episodes=EPISODES):
    """Whole returns whose mean is, to the last digit, what is asked for."""
    drawn = np.random.default_rng(seed).normal(0, spread, episodes).round()
    drawn[0] -= drawn.sum()
    return drawn + mean


class Agents(Made):
    """An experiment of agents whose results are made up; each run was tested on other states, and on how many."""

    def __init__(self, root, **keys):
        super().__init__(root, **({"metric": "return"} | keys))

    def finish(self, run, returns, own=None, film=None, validation=None, limit=None, protocol=None):
        workplace, _ = self.store.workplace(run["folder"], run["fingerprint"], {"seed": run["seed"]})
        draw = np.random.default_rng(len(run["folder"]) + run["seed"])
        states = int(draw.integers(20, 60))
        logits = draw.normal(size=(states, 2)).astype(np.float32)
        labels = draw.integers(2, size=states)
        returns = np.asarray(returns, np.float64)
        episodes = {
            "returns": returns,
            "lengths": np.abs(returns).astype(np.int64),
            "truncated": np.zeros(len(returns), bool) if limit is None else returns >= limit,
        }
        manifest = {
            "kind": run["role"],
            "name": run["name"],
            "method": run["method"],
            "seed": run["seed"],
            "scores": scores_of_returns(**episodes) | scores.all_scores(logits, labels),
            "likeness": {"train": LIKE, "test": LIKE, "own": LIKE | {"agreement": own}} if own else None,
            "details": scores.details(logits, labels) | {"classes": ["left", "right"]},
            "cost": {"parameters": 9, "macs": 18},
            "protocol": PROTOCOL | {"test_samples": len(returns)} | (protocol or {}),
            "train_seconds": 1.0,
        }
        predictions = {"logits": logits, "labels": labels, "index": np.arange(states)} | episodes
        log = [
            {
                "epoch": epoch,
                "terms": {"ce": {"value": 1.0, "weight": 1.0, "gradient_share": None}},
                "validation": {"return": value, "length": 9.0, "truncated": 0.5},
            }
            for epoch, value in enumerate(validation or [])
        ]
        extras = {EPISODE: film} if film else {}
        return workplace.finish(manifest, {"weight": np.zeros(9, np.float32)}, predictions, log, extras)

    def compared(self, extras=PLAIN):
        self.rows()
        return compare.comparison(self.parts(), extras)

    def parts(self):
        return compare.materials(self.store, [self.resolved["name"]])


def agents(root, alone=(-120,), kd=(-90,), teacher=-80, film=None, **keys):
    """A teacher, a control and ``kd`` with these mean returns, seed by seed; None is unfinished."""
    made = Agents(root, **keys)
    taught = made.run("teacher", "teacher", None, 0, around(teacher, 1, spread=2), film=film)
    for seed, (control, student) in enumerate(zip(alone, kd, strict=True)):
        made.run("student", "student", "alone", seed, around(control, 10 + seed), film=film)
        logits = None if student is None else around(student, 20 + seed)
        made.run("student", "student", "kd", seed, logits, [taught], own=0.6 + seed / 10, film=film)
    return made


def row_of(compared, method, model="student"):
    return next(row for row in compared["rows"] if (row["model"], row["method"]) == (model, method))


# ------------------------------------------------------------------------------------------------ scores


def test_scores_of_returns_are_means():
    found = scores_of_returns(
        np.array([-200.0, -80.0, -95.0]), np.array([200, 81, 96]), np.array([True, False, False])
    )
    assert found == {
        "return": -125.0,
        "length": pytest.approx(377 / 3),
        "truncated": pytest.approx(1 / 3),
    }


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_return_that_is_not_finite_is_no_score(value):
    with pytest.raises(ValueError, match="not finite"):
        scores_of_returns(np.array([1.0, value]), np.array([1, 1]), np.array([False, False]))


@pytest.mark.parametrize(
    ("runs", "step"),
    [
        ([[500, 480], [487, 500]], 7),
        ([[-200, -99, -98, -110]], 1),
        ([[0.25, 0.5], [2.75]], 0.25),
        ([[500.0] * 9, [500.0]], 1),
        ([[0.0, 0.0]], 1),
        ([[0.1 + 0.2, 0.3, 0.7]], 0.4),
    ],
)
def test_a_step_is_the_least_that_two_returns_differ_by(runs, step):
    assert reward_step([np.array(run, float) for run in runs]) == pytest.approx(step)


# ------------------------------------------------------------------------------------------- differences

few = st.lists(st.tuples(st.integers(-200, 0), st.integers(-200, 0)), min_size=2, max_size=12)


@given(few)
def test_one_pair_of_runs_is_judged_by_swapping_returns(both):
    first, second = np.array(both, float).T
    found = ResampledEpisodes(len(both)).difference([first], [second])
    oracle = scipy.stats.permutation_test(
        (first, second), lambda a, b: (a - b).mean(), permutation_type="samples", n_resamples=np.inf
    )
    assert found.mean == pytest.approx((first - second).mean())
    assert found.p_value == pytest.approx(oracle.pvalue, abs=0.06)
    assert found.interval[0] <= found.interval[1]
    assert (found.spread, found.seeds) == (None, 1)


@given(few, st.floats(0.01, 1000), st.floats(-1000, 1000))
def test_neither_the_side_nor_the_size_of_rewards_changes_what_is_found(both, scale, shift):
    first, second = np.array(both, float).T
    resamples = ResampledEpisodes(len(both))
    found, turned = resamples.difference([first], [second]), resamples.difference([second], [first])
    assert (turned.mean, turned.p_value) == (pytest.approx(-found.mean), found.p_value)
    other = resamples.difference([scale * first + shift], [scale * second + shift])
    assert other.mean == pytest.approx(scale * found.mean, abs=1e-6)
    assert other.p_value == found.p_value
    assert other.interval == pytest.approx([scale * end for end in found.interval], abs=1e-6)


@pytest.mark.parametrize(("episodes", "alone_it_would"), [(4, False), (6, True)])
def test_what_one_test_alone_would_find_is_said_by_its_p_value(tmp_path, episodes, alone_it_would):
    made = Agents(tmp_path)
    taught = made.run("teacher", "teacher", None, 0, np.full(episodes, 90.0))
    low = np.arange(episodes, dtype=float)
    made.run("student", "student", "alone", 0, low)
    for method in ("kd", "dkd"):
        made.run("student", "student", method, 0, low + 50, [taught])
    compared = made.compared()
    row = row_of(compared, "kd")
    assert row["verdict"] == "not distinguishable" and row["gain_interval"][0] > 0
    said = [
        line for line in compared["remarks"] if "it would be by itself, but not as one of 2 methods" in line
    ]
    assert bool(said) == alone_it_would, "of four episodes, swapped by chance, one in eight is as far apart"


def test_agents_that_do_the_same_differ_by_nothing():
    same = np.full(30, 500.0)
    found = ResampledEpisodes(30).difference([same], [same])
    assert (found.mean, found.interval, found.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_one_episode_in_which_agents_differ_proves_nothing():
    first, second = np.full(100, 500.0), np.full(100, 500.0)
    second[7] = 9
    assert ResampledEpisodes(100).difference([first], [second]).p_value == 1.0


@pytest.mark.parametrize("episodes", [10, 100])
def test_equal_agents_are_seldom_told_apart(episodes):
    """Whose returns are as those of CartPole: many of the longest, and some of any length."""
    draw, alarms = np.random.default_rng(episodes), 0
    resamples = ResampledEpisodes(episodes)
    for _ in range(300):
        both = np.minimum(draw.exponential(600, (2, episodes)).round(), 500)
        alarms += resamples.difference([both[0]], [both[1]]).p_value < inference.LEVEL
    assert alarms <= 25, "15 of 300 are expected; more than 25 come in one case of 200"


def test_a_difference_that_is_there_is_found():
    draw, found = np.random.default_rng(0), 0
    for _ in range(50):
        first = draw.normal(-80, 10, 100)
        found += ResampledEpisodes(100).difference([first + 4], [draw.normal(-80, 10, 100)]).p_value < 0.05
    assert found >= 30, "four fifths are expected: two spreads and a half of the mean difference"


def test_the_interval_of_a_mean_is_scipys_bootstrap():
    returns, resamples = around(-80.0, 3), ResampledEpisodes(EPISODES)
    oracle = scipy.stats.bootstrap(
        (returns,), np.mean, n_resamples=20_000, method="percentile", random_state=0
    ).confidence_interval
    assert resamples.of_mean([resamples.scores(returns)]) == pytest.approx((oracle.low, oracle.high), abs=0.6)


# -------------------------------------------------------------------------------------------------- rows


def test_a_row_has_the_return_of_each_seed_and_its_interval_over_episodes(tmp_path):
    compared = agents(tmp_path, alone=(-120, -130), kd=(-90, -97)).compared()
    row, teacher = row_of(compared, "kd"), row_of(compared, None, "teacher")
    assert (row["metric"], row["values"], row["mean"]) == ("return", [-90, -97], -93.5)
    assert row["std"] == pytest.approx(math.sqrt(24.5))
    low, high = row["interval"]
    assert low < row["mean"] < high
    one = ResampledEpisodes(EPISODES)
    assert teacher["interval"] == list(one.of_mean([one.scores(around(-80, 1, spread=2))]))
    both = [one.scores(around(mean, 20 + seed)) for seed, mean in enumerate((-90, -97))]
    assert row["interval"] == list(one.of_mean(both))


def test_other_metrics_have_no_such_interval(tmp_path):
    assert {row["interval"] for row in of_samples(tmp_path).rows()} == {None}


@pytest.mark.parametrize(
    ("kd", "verdict"), [(-90, "better"), (-150, "worse"), (-119, "not distinguishable")], ids=str
)
def test_one_seed_is_judged_by_its_episodes(tmp_path, kd, verdict):
    made = agents(tmp_path, alone=(-120,), kd=(kd,))
    row = row_of(made.compared(), "kd")
    found = ResampledEpisodes(EPISODES).difference([around(kd, 20)], [around(-120, 10)])
    assert (row["verdict"], row["gain_covers"]) == (verdict, "evaluation episodes")
    assert (row["gain"], row["p_value"]) == (kd + 120, found.p_value)
    assert row["gain_interval"] == list(found.interval)
    assert row["seeds_needed"] is row["detectable"] is None


@pytest.mark.parametrize(
    ("kd", "verdict"),
    [
        ((-90, -97, -92), "better"),
        ((-150, -171, -160), "worse"),
        ((-119, -133, -120), "not distinguishable"),
    ],
    ids=str,
)
def test_several_seeds_are_judged_by_their_differences(tmp_path, kd, verdict):
    alone = (-120, -130, -125)
    made = agents(tmp_path, alone=alone, kd=kd)
    compared = made.compared()
    row, [part] = row_of(compared, "kd"), made.parts()
    assert part.step == pytest.approx(1 / EPISODES), "whole returns, which occur close to each other"
    found = inference.over_seeds([a - b for a, b in zip(kd, alone, strict=True)], part.step)
    assert row["verdict"] == verdict and row["gain_covers"] == "seeds"
    assert row["p_value"] == pytest.approx(found.p_value)
    assert row["gain_interval"] == pytest.approx(found.interval)
    assert row["detectable"] == pytest.approx(inference.detectable(found.spread, 3))
    if verdict == "not distinguishable":
        assert row["seeds_needed"] == inference.seeds_needed(found.mean, found.spread)


def test_seeds_that_all_reach_the_same_are_not_told_apart(tmp_path):
    made = Agents(tmp_path)
    taught = made.run("teacher", "teacher", None, 0, [500.0] * 10)
    for seed in range(3):
        made.run("student", "student", "alone", seed, [500.0] * 10)
        made.run("student", "student", "kd", seed, [500.0] * 10, [taught])
    row = row_of(made.compared(), "kd")
    assert (row["gain"], row["p_value"], row["verdict"]) == (0, 1, "not distinguishable")
    assert row["interval"] == [500, 500] and row["gap_closed"] is None
    assert row["gain_interval"][0] < 0 < row["gain_interval"][1]


def test_trees_have_to_exceed_the_noise_of_episodes_too(tmp_path):
    means = {"alone": [-100] * 5, "kd": [-98] * 5}
    trained = row_of(agents(tmp_path / "a", **means).compared(), "kd")
    fitted = row_of(agents(tmp_path / "b", **means, fitted=True).compared(), "kd")
    assert (trained["verdict"], trained["gain_covers"]) == ("better", "seeds")
    assert (fitted["verdict"], fitted["gain_covers"]) == (
        "not distinguishable",
        "seeds and evaluation episodes",
    )
    assert fitted["p_value"] > trained["p_value"] and fitted["gain"] == trained["gain"] == 2


def test_the_share_of_a_gap_between_negative_returns(tmp_path):
    one = row_of(agents(tmp_path / "a", alone=(-120,), kd=(-90,), teacher=-80).compared(), "kd")
    assert (one["gap_closed"], one["gap_interval"]) == (pytest.approx(0.75), None)
    made = agents(tmp_path / "b", alone=(-120, -124, -122), kd=(-90, -92, -93), teacher=-80)
    row = row_of(made.compared(), "kd")
    assert row["gap_closed"] == pytest.approx(91 / 126)
    assert row["gap_interval"][0] < 91 / 126 < row["gap_interval"][1] < 1
    above = row_of(agents(tmp_path / "c", alone=(-120,), kd=(-70,), teacher=-80).compared(), "kd")
    assert above["gap_closed"] == pytest.approx(1.25)
    none = row_of(agents(tmp_path / "d", alone=(-79,), kd=(-78,), teacher=-80).compared(), "kd")
    assert none["gain"] == 1 and none["gap_closed"] is None


def test_a_gap_of_trees_has_to_exceed_the_noise_of_episodes(tmp_path):
    """Seeds of what is fitted at once may all be alike: then any gap would look clear."""
    for teacher, closed in ((-99.5, False), (-50, True)):
        made = agents(tmp_path / str(teacher), alone=(-100,) * 3, kd=(-99,) * 3, teacher=teacher, fitted=True)
        assert (row_of(made.compared(), "kd")["gap_closed"] is not None) == closed


def test_several_teachers_have_no_return_together(tmp_path):
    made = Agents(tmp_path)
    taught = [made.run("teacher", name, None, 0, around(-80)) for name in "ab"]
    made.run("student", "student", "alone", 0, around(-120, 1))
    made.run("student", "student", "kd", 0, around(-90, 2), taught)
    row = row_of(made.compared(), "kd")
    assert row["gap_closed"] is None and row["verdict"] == "better" and row["teacher"] == "a+b"


def test_likeness_is_what_was_measured_on_the_states_of_both(tmp_path):
    compared = agents(tmp_path, alone=(-120, -120), kd=(-90, -90)).compared()
    row = row_of(compared, "kd")
    assert row["agreement"] == row["agreement_train"] == pytest.approx(0.9)
    assert row["agreement_own"] == pytest.approx(0.65)
    assert row["copied_errors"] is None
    alone = row_of(compared, "alone")
    assert alone["agreement"] is alone["agreement_own"] is None, "its test states are not the teacher's"
    assert row_of({"rows": of_samples(tmp_path / "other").rows()}, "kd")["agreement_own"] is None


def test_resampled_intervals_and_pairs(tmp_path):
    made = agents(tmp_path, alone=(-120, -130), kd=(-90, -97))
    for seed in range(2):
        made.run("student", "student", "other", seed, around(-81, 50 + seed))
    compared = made.compared(compare.Extras(bootstrap=True, pairs=True))
    row = row_of(compared, "kd")
    assert row["bootstrap_interval"][0] < row["gain"] < row["bootstrap_interval"][1]
    [pair] = compared["pairs"]
    assert (pair["first"], pair["second"], pair["metric"]) == ("kd", "other", "return")
    assert pair["difference"] == pytest.approx(12.5)
    head, [line] = table.pair_cells(compared["pairs"])
    assert line[head.index("difference")] == "+12.50"


def test_episodes_of_other_seeds_are_not_compared(tmp_path):
    made = agents(tmp_path, kd=(None,))
    run = next(run for run in made.resolved["runs"] if run["method"] == "kd")
    made.finish(run, around(-90), protocol={"test_sha256": "0" * 64})
    with pytest.raises(StoreError, match="other test samples"):
        made.compared()


# ------------------------------------------------------------------------------------------------ damage


def stored(tmp_path, **changes):
    """A run's predictions, some of them changed, as a result that was written so."""
    made = agents(tmp_path)
    result = made.store.find(made.resolved["runs"][0]["fingerprint"])
    arrays = result.predictions() | changes
    workplace, _ = made.store.workplace("made/teachers/other/seed-0", "0" * 64, {})
    return workplace.finish(
        result.manifest, {}, {name: of for name, of in arrays.items() if of is not None}, []
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"returns": np.zeros(EPISODES - 1)},
        {"returns": np.zeros((EPISODES, 1))},
        {"returns": np.zeros(EPISODES, np.float32)},
        {"returns": np.full(EPISODES, np.nan)},
        {"returns": np.full(EPISODES, -np.inf)},
        {"lengths": np.zeros(EPISODES)},
        {"truncated": np.zeros(EPISODES, np.int64)},
        {"truncated": None},
        {"labels": np.int64(3)},
    ],
    ids=str,
)
def test_episodes_that_are_none_are_not_believed(tmp_path, changes):
    assert stored(tmp_path / "right").predictions()["returns"].shape == (EPISODES,)
    with pytest.raises(DamagedError, match="is not what kdrun writes"):
        stored(tmp_path / "wrong", **changes).predictions()


def test_a_run_without_returns_is_told(tmp_path):
    made = agents(tmp_path, kd=(None,))
    [part] = (made.compared(), made.parts())[1]
    first = next(iter(part.results.values()))
    samples = first.manifest["protocol"] | {"test_samples": len(first.predictions()["labels"])}
    arrays = {name: first.predictions()[name] for name in ("logits", "labels", "index")}
    manifest = first.manifest | {"protocol": samples}
    workplace, _ = made.store.workplace("made/teachers/other/seed-0", "0" * 64, {})
    part.results = {"x": workplace.finish(manifest, {}, arrays, [])}
    with pytest.raises(DamagedError, match="nothing returns"):
        part.outcomes("x")


def test_what_is_no_gif_is_not_shown(tmp_path):
    made = agents(tmp_path, film=b"<svg onload=alert(1)>")
    made.compared()
    result = made.store.find(made.resolved["runs"][0]["fingerprint"])
    with pytest.raises(DamagedError, match="no GIF"):
        result.episode()
    assert (
        agents(tmp_path / "none").store.result(tmp_path / "none/made/teachers/teacher/seed-0").episode()
        is None
    )


# ------------------------------------------------------------------------------------------------- tables


def shown(compared, method, every=False):
    [one] = table.tables(compared)
    head, lines = table.cells(one.rows, every)
    place = [row["method"] for row in one.rows].index(method)
    return dict(zip(head, lines[place], strict=True))


def test_the_table_is_in_plain_numbers(tmp_path):
    compared = agents(tmp_path, alone=(-120, -124, -122), kd=(-90, -92, -93)).compared()
    [one] = table.tables(compared)
    assert one.heading.startswith(
        "made: mean return on 40 evaluation episodes, gym, test data 89abcdef, input 4"
    )
    kd, teacher = shown(compared, "kd"), shown(compared, None)
    row = row_of(compared, "kd")
    assert kd["return"] == "-91.67 ± 1.53" and kd["gain"] == "+30.33"
    assert kd["return, 95%"] == "[{:.2f}, {:.2f}]".format(*row["interval"])
    assert kd["gain, 95%"] == "[{:+.2f}, {:+.2f}]".format(*row["gain_interval"])
    assert kd["gap closed %"].startswith("72 [")
    assert (kd["agrees %"], kd["agrees in own states %"]) == ("90.0", "70.0")
    assert teacher["return"] == "-80.00" and teacher["return, 95%"].startswith("[-80.")
    assert "score %" not in kd
    wide = shown(compared, "kd", every=True)
    assert wide["ECE %"] and wide["NLL"]
    assert "100.00" not in json.dumps(wide) and "-9167" not in json.dumps(wide)


def test_what_is_not_finished_says_so(tmp_path):
    compared = agents(tmp_path, alone=(-120, -124), kd=(-90, None)).compared()
    assert shown(compared, "kd")["return"] == "-90.00 (unfinished)"
    compared = agents(tmp_path / "none", kd=(None,)).compared()
    assert shown(compared, "kd")["return"] == "unfinished"
    assert row_of(compared, "kd")["interval"] is None


def test_all_formats_hold_plain_numbers(tmp_path):
    compared = agents(tmp_path, alone=(470,), kd=(490,), teacher=500).compared()
    assert "| 490.00 |" in table.markdown(compared) and "| +20.00 |" in table.markdown(compared)
    assert " & 490.00 & " in table.latex(compared)
    lines = list(csv.DictReader(io.StringIO(table.csv_text(compared))))
    assert [float(line["mean"]) for line in lines] == [500, 470, 490]
    ends = [float(end) for end in lines[-1]["interval"].split()]
    assert ends == row_of(compared, "kd")["interval"]
    assert json.loads(json.dumps(compared, allow_nan=False))["rows"][-1]["gain"] == 20


def test_an_accuracy_beside_a_return_stands_in_a_table_of_its_own(tmp_path):
    agents(tmp_path, name="agents").compared()
    of_samples(tmp_path, name="samples").rows()
    both = compare.comparison(compare.materials(Store(tmp_path), ["samples", "agents"]))
    headings = [one.heading for one in table.tables(both)]
    assert [told.split(", ")[0].split(": ")[1] for told in headings] == [
        "accuracy on 10 test samples",
        "mean return on 40 evaluation episodes",
    ]
    [mixed] = table.tables(both, mixed=True)
    head, lines = table.cells(mixed.rows)
    told = [(line[head.index("score %")], line[head.index("return")]) for line in lines]
    assert told[0] == ("90.00", "") and told[-1] == ("", "-90.00")
    assert all(bool(score) != bool(returned) for score, returned in told)


# -------------------------------------------------------------------------------------------------- words


def test_sentences_are_in_plain_numbers(tmp_path):
    said = agents(tmp_path, alone=(-120, -124, -122), kd=(-90, -92, -93)).compared()["remarks"]
    assert re.match(r"kd is better than alone: \+30\.33 \[\+2\d\.\d\d, \+3\d\.\d\d\], 3 seeds$", said[0])
    assert any(
        re.match(r"with 3 seeds and 1 method only gains of \d\.\d\d and more are found", one) for one in said
    )
    assert not any("points" in one or "test samples" in one for one in said)
    one = agents(tmp_path / "one").compared()["remarks"]
    assert (
        "one seed: intervals and p-values cover the noise of the evaluation episodes only, not that of training"
        in one
    )


def test_no_gain_is_impossible_where_returns_have_no_end(tmp_path):
    said = agents(tmp_path, alone=(-120, -20), kd=(-90, -190)).compared()["remarks"]
    assert not any("no gain that is possible" in one for one in said)


def test_a_tree_says_what_it_returns(tmp_path):
    made = agents(tmp_path)
    made.compared()
    run = next(run for run in made.resolved["runs"] if run["method"] == "kd")
    manifest = made.store.find(run["fingerprint"]).manifest
    rules = {
        "classes": ["left", "right"],
        "rules": [{"if": [], "then": "left"}],
        "features": [],
        "samples": 3,
    }
    told = printed.sentence(printed.about(None, manifest, rules))
    assert told == (
        "student kd, seed 0: mean return -90.00 on 40 evaluation episodes, agrees with its teacher on 90.0 % of the "
        "test states, 1 rule of 0.0 conditions in the mean, and it never says right"
    )


@given(st.sampled_from(["accuracy", "macro-f1", "recall@1", "return"]), st.floats(-1e6, 1e6))
def test_a_value_is_shown_on_its_scale(metric, value):
    scale = scale_of(metric)
    told = scale.shown(value)
    assert float(told) == pytest.approx(value if metric == "return" else 100 * value, abs=0.0051)
    assert told != "-0.00" and scale.shown(value, "+")[0] in "+-"
    assert (scale.column == "return") == (scale.bounds == (-math.inf, math.inf)) == (metric == "return")


# ----------------------------------------------------------------------------------------- what is demanded


def test_a_gate_on_a_negative_return(tmp_path):
    compared = agents(tmp_path, kd=(-150,)).compared()
    Gate.read(["kd=-151"], worse_fails=False).demand(compared)
    with pytest.raises(GateError, match=r"student kd: return -150\.0000 is under -149\.5"):
        Gate.read(["kd=-149.5"], worse_fails=False).demand(compared)
    with pytest.raises(GateError, match=r"student kd is worse than alone: -30\.00$"):
        Gate.read([], worse_fails=True).demand(compared)


TEXT = """
name: agents
dataset: {kind: synthetic, shape: [6], classes: 3, samples: 48, test_samples: 24}
teachers: {a: {model: mlp, expect: 0.5}, b: {model: mlp, seed: 1}}
student: {model: {kind: mlp, hidden: [4]}}
methods: [{use: kd, teacher: a}]
"""


def planned(config):
    return plan(config, assembly.open_dataset(config))


def scored_by_returns(monkeypatch):
    """A config whose data set is scored by returns; which data sets are, they say themselves."""
    config = checked(TEXT)
    monkeypatch.setitem(config.experiment.dataset.__dict__, "metric", "return")
    return config


def test_a_teacher_may_be_expected_to_return_anything(monkeypatch):
    config = scored_by_returns(monkeypatch)
    teacher = config.experiment.teachers["a"]
    for value, metric, wrong in [
        (475.0, "return", 0),
        (-100.0, "return", 0),
        (475.0, "accuracy", 1),
        (-0.1, "macro-f1", 1),
        (1.0, "accuracy", 0),
        (0.0, "recall@1", 0),
    ]:
        monkeypatch.setitem(teacher.__dict__, "expect", value)
        monkeypatch.setitem(config.experiment.dataset.__dict__, "metric", metric)
        found = [one for one in cross_checks(config.experiment) if one.path == ("teachers", "a", "expect")]
        assert len(found) == wrong, (value, metric)
    assert "-1 is out of range; write a number that is at least 0.0" in problems(TEXT.replace("0.5", "-1"))
    assert "nan" in problems(TEXT.replace("0.5", ".nan"))


def test_a_teacher_that_returns_too_little_is_told(tmp_path, monkeypatch):
    config, made = scored_by_returns(monkeypatch), agents(tmp_path, teacher=-103)
    result = made.store.find(made.resolved["runs"][0]["fingerprint"])
    run = next(run for run in planned(config).runs if run.name == "a")
    for least in (-103.0, -500.0):
        bookkeeping.expect(replace(run, expect=least), result, config)
    with pytest.raises(TrainingError) as caught:
        bookkeeping.expect(replace(run, expect=-102.5), result, config)
    assert "'a' has mean return -103.0000 on the evaluation episodes, under its expect: -102.5" in str(
        caught.value
    )


def test_agents_that_were_not_asked_together_are_no_ensemble(monkeypatch):
    assert records.ensembles(planned(checked(TEXT))) == [["a", "b"]]
    assert records.ensembles(planned(scored_by_returns(monkeypatch))) == []


def test_a_trial_that_stopped_is_worse_than_any_return():
    search = Search("student", checked(TEXT).experiment.methods[0], {"kd.temperature": [1, 2, 4]})
    search.ask(0).score = -150.0
    for number, score in enumerate([-200.0, None, -90.0], start=1):
        search.ask(number).score = score
    search.learn()
    told = [trial.value for trial in search._study.trials]
    assert told[0] == -200 and told[2] == -90 and told[1] < -200
    assert search.best.score == -90
    for number in range(4, 24):  # what is drawn from then on is drawn by what was learnt
        search.ask(number).score = None if number % 3 else -100.0 - number
        search.learn()


def test_the_table_of_a_tuning_is_on_the_scale_of_its_metric():
    told = {"name": "x", "metric": "return", "trials": 5, "seed": 2}
    assert table.tuning_heading(told) == "x: 5 trials each, by seed 2; mean return on the validation share"
    assert "; accuracy in % on" in table.tuning_heading(told | {"metric": "accuracy"})
    best = {"model": "s", "method": "kd", "trial": 3, "values": {}, "as_configured": None, "score": -0.5}
    assert table.tuning_cells([best], "return")[1][0][2:4] == ["stopped", "-0.50"]
    assert table.tuning_cells([best | {"score": 0.0}], "accuracy")[1][0][2:4] == ["stopped", "0.00"]


# ------------------------------------------------------------------------------------------------- report


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The folder of an experiment of three methods and two seeds, with a recorded episode of every run."""
    folder = tmp_path_factory.mktemp("agents")
    made = agents(folder / "runs", alone=(-120, -124), kd=(-90, -92), film=gif())
    teacher = made.resolved["runs"][0]
    for seed in range(2):
        returns = np.minimum(around(-79, 40 + seed, 3), -75)
        logged = {"validation": [-200.0, -100.0, -80.0 + seed], "film": gif(40 + seed), "limit": -76}
        made.run("student", "student", "dagger", seed, returns, [teacher], own=0.97, **logged)
    made.compared()
    (folder / "made.yaml").write_text("name: made\ndataset: digits\n")
    (folder / "runs/made/config.yaml").write_text("name: made\ndataset: digits\n")
    return folder


def material(told):
    return compare.materials(Store(told / "runs"), ["made"])


@pytest.fixture(scope="module")
def html(told):
    parts = material(told)
    evidence.write_report(told / "out", compare.comparison(parts), parts, mixed=False, to=told / "plots")
    return (told / "out/report.html").read_text()


def test_the_page_is_in_plain_numbers(told, html):
    compared = compare.comparison(material(told))
    assert "mean return on 40 evaluation episodes" in html
    for row in compared["rows"]:
        assert f">{row['mean']:.2f}" in html
        if row["verdict"]:
            assert f">{row['gain']:+.2f}</td>" in html
    for value in (row["mean"] for row in compared["rows"]):
        assert f"{100 * value:.2f}" not in html
    assert "evaluation episodes" in html and "McNemar" not in html and "accuracy" not in html


def test_what_is_drawn_of_agents(told, html):
    files = {path.name for path in (told / "plots").iterdir()}
    names = {"gains", "score-against-macs", "returns", "loss", "validation"}
    assert files == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    assert "return of an episode" in html and "validation return" in html and "gain over alone" in html
    assert "in points" not in html and "Reliability" not in html and "Share of the test samples" not in html


def test_curves_of_the_validation_return_are_those_of_the_log(told):
    [seen] = evidence.evidence(material(told)).students
    [curve] = seen.curves
    assert curve.validation.tolist() == [[-200, -100, -80], [-200, -100, -79]]
    drawn = next(plot for plot in plots_of(told) if plot.name == "validation")
    [line] = drawn.figure.axes[0].lines
    assert line.get_ydata().tolist() == [-200, -100, -79.5]


def plots_of(told):
    parts = material(told)
    return list(evidence.plots(compare.comparison(parts), evidence.evidence(parts).students))


def test_returns_are_drawn_of_all_seeds_teachers_first(told):
    [seen] = evidence.evidence(material(told)).students
    assert [one.label for one in seen.returns] == ["teacher", "alone", "kd", "dagger"]
    dagger = seen.returns[-1]
    both = [np.minimum(around(-79, 40 + seed, 3), -75) for seed in range(2)]
    assert dagger.returns.tolist() == np.concatenate(both).tolist()
    assert (
        dagger.truncated == pytest.approx((np.concatenate(both) >= -76).mean()) and 0 < dagger.truncated < 1
    )
    plot = next(plot for plot in plots_of(told) if plot.name == "returns")
    [axes] = plot.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dagger", "kd", "alone", "teacher"]
    assert axes.texts[0].get_text() == f"{dagger.truncated:.0%} cut off"
    assert sorted(axes.collections[0].get_offsets()[:, 0].tolist()) == sorted(dagger.returns)
    assert "cut off by the time limit" in plot.caption


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=300))
def test_dots_are_returns_that_occur(found):
    one = figures.Returned("kd", np.array(found, float), 0.25)
    [plot] = figures.returns("", [one], "returns", {"kd": figures.Look("#0072b2", "o", "-")})
    [dots] = plot.figure.axes[0].collections
    at = dots.get_offsets()[:, 0].tolist()
    assert len(at) == min(len(found), figures.MOST_DOTS) and set(at) <= set(found)
    assert {min(found), max(found)} <= set(at) or len(found) == 1
    heights = dots.get_offsets()[:, 1]
    assert np.abs(heights).max() < 0.5, "within its own line"


def test_episodes_are_in_the_page_and_move(told, html):
    shown = re.findall(r'<img alt="([^"]+)" src="data:image/gif;base64,([^"]+)">', html)
    assert [alt for alt, _ in shown] == [
        "A recording of teacher, seed 0, whose mean return is -80.00",
        "A recording of student alone, seed 0, whose mean return is -120.00",
        "A recording of student kd, seed 0, whose mean return is -90.00",
        f"A recording of student dagger, seed 0, whose mean return is {mean_of(told, 'dagger'):.2f}",
    ]
    assert [base64.b64decode(data) for _, data in shown] == [gif(), gif(), gif(), gif(40)]
    assert Image.open(io.BytesIO(base64.b64decode(shown[0][1]))).n_frames == 3
    addresses = set(re.findall(r'https?://[^"<> ]+', html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, "names, not addresses"
    assert not re.search(r'<script|@import|src="(?!data:image/gif)', html)


def mean_of(told, method):
    return row_of(compare.comparison(material(told)), method)["values"][0]


def test_a_page_has_room_for_some_episodes_only(tmp_path, monkeypatch):
    made = agents(tmp_path, film=gif())
    for number in range(20):
        made.run("student", "student", f"m{number}", 0, around(-90, number), film=gif())
    made.compared()
    films = evidence.evidence(made.parts()).films
    assert len(films) == evidence.MOST_FILMS and films[0].caption.startswith("teacher, seed 0")
    monkeypatch.setattr(evidence, "MOST_FILMED", 2 * len(gif()) + 1)
    assert len(evidence.evidence(made.parts()).films) == 2


def test_without_an_episode_there_is_no_section_of_them(tmp_path):
    made = agents(tmp_path)
    compared = made.compared()
    evidence.write_report(tmp_path / "out", compared, made.parts(), mixed=False)
    assert "<img" not in (tmp_path / "out/report.html").read_text()


def test_agents_are_compared_without_torch(told):
    code = "import sys; from kdrun.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    options = ("--no-train", "--bootstrap", "--pairs", "--fail-under", "kd=-95")
    done = process("compare", "made.yaml", *options, folder=told, code=code)
    assert done.code == 0, done.err
    assert done.out.startswith("made: mean return on 40 evaluation episodes")
    assert re.search(
        r"student kd +teacher +2 +-91\.00 ± 1\.41 +\[-\d\d\.\d\d, -\d\d\.\d\d\] +\+31\.00", done.out
    )
    folder = told / "runs/made"
    assert '<img alt="A recording of teacher' in (folder / "report.html").read_text()
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    assert [row["mean"] for row in rows][:3] == [-80, -122, -91]
    failed = process("compare", "made.yaml", "--no-train", "--fail-under", "kd=-90", folder=told)
    assert failed.code == 3 and "return -91.0000 is under -90.0" in failed.err
