"""From results to rows: arithmetic by hand on made-up results, scores against scikit-learn."""

import csv
import hashlib
import io
import math
import warnings

import numpy as np
import pytest
import scipy.special
import sklearn.metrics

from kdrun import compare
from kdrun.errors import StoreError
from kdrun.report import table
from kdrun.statistics import inference, scores, summary
from kdrun.store import Store, write_json

LABELS = np.arange(10) % 3
PROTOCOL = {
    "dataset": "made-up",
    "test_samples": 10,
    "test_sha256": "0123abcd" * 8,
    "input": [3, 8, 8],
    "labels_per_class": 5,
    "epochs": 7,
    "selection": "last",
    "precision": "fp32",
    "device": "cpu",
}


def fingerprint(*parts):
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def predicting(right):
    """Logits (10, 3) of a model that has so many of the ten samples right."""
    predicted = np.where(np.arange(10) < right, LABELS, (LABELS + 1) % 3)
    return np.eye(3, dtype=np.float32)[predicted] * 4


class Made:
    """An experiment whose results are made up."""

    def __init__(self, root, name="made", metric="accuracy", ensembles=(), fitted=False):
        self.store, self.fitted = Store(root), fitted
        self.resolved = {
            "name": name,
            "metric": metric,
            "config": {},
            "ensembles": list(ensembles),
            "runs": [],
        }

    def run(self, role, name, method, seed, logits=None, teachers=(), **manifest):
        """One run, finished where there are logits; ``teachers`` are runs."""
        place = f"teachers/{name}" if role == "teacher" else f"students/{name}/{method}"
        run = {
            "role": role,
            "name": name,
            "method": method,
            "seed": seed,
            "fingerprint": fingerprint(self.resolved["name"], place, seed),
            "folder": f"{self.resolved['name']}/{place}/seed-{seed}",
            "model": f"model of {name}",
            "teachers": {teacher["name"]: teacher["fingerprint"] for teacher in teachers},
            "fitted": self.fitted and role == "student",
        }
        self.resolved["runs"].append(run)
        if logits is not None:
            self.finish(run, logits, **manifest)
        return run

    def finish(self, run, logits, parameters=100, seconds=1.0, likeness=None, protocol=None):
        workplace, _ = self.store.workplace(run["folder"], run["fingerprint"], {"seed": run["seed"]})
        manifest = {
            "kind": run["role"],
            "seed": run["seed"],
            "scores": scores.all_scores(logits, LABELS),
            "likeness": likeness,
            "details": scores.details(logits, LABELS) | {"classes": ["0", "1", "2"]},
            "cost": {"parameters": parameters, "macs": 2 * parameters},
            "protocol": PROTOCOL | (protocol or {}),
            "train_seconds": seconds,
        }
        predictions = {"logits": logits, "labels": LABELS, "index": np.arange(10)}
        return workplace.finish(manifest, {"weight": np.zeros(parameters, np.float32)}, predictions, [])

    def rows(self):
        write_json(self.store.root / self.resolved["name"] / "resolved.json", self.resolved)
        return compare.comparison(compare.materials(self.store, [self.resolved["name"]]))["rows"]

    def row(self, method, model="student"):
        return next(row for row in self.rows() if (row["model"], row["method"]) == (model, method))


def experiment(root, alone=(5, 6, 7), kd=(8, 7, 9), teacher=9, **keys):
    """A teacher, a control and ``kd``: of each seed, how many of ten samples are right; None is unfinished."""
    made = Made(root, **keys)
    taught = made.run("teacher", "teacher", None, 0, predicting(teacher))
    for seed, (control, student) in enumerate(zip(alone, kd, strict=True)):
        made.run("student", "student", "alone", seed, None if control is None else predicting(control))
        logits = None if student is None else predicting(student)
        made.run("student", "student", "kd", seed, logits, [taught])
    return made


# ----------------------------------------------------------------------------------- scores over seeds


def test_mean_and_standard_deviation_over_seeds(tmp_path):
    row = experiment(tmp_path).row("kd")
    assert row["values"] == [0.8, 0.7, 0.9]
    assert row["seeds"] == [0, 1, 2]
    assert row["mean"] == pytest.approx(0.8)
    assert row["std"] == pytest.approx(0.1), "ddof 1"
    assert row["status"] == "finished"


def test_seeds_that_hardly_differ_prove_nothing_of_what_is_fitted_at_once(tmp_path):
    trained = experiment(tmp_path / "trained", alone=[6] * 5, kd=[9] * 5).row("kd")
    fitted = experiment(tmp_path / "fitted", alone=[6] * 5, kd=[9] * 5, fitted=True).row("kd")
    assert (trained["verdict"], trained["gain_covers"]) == ("better", "seeds")
    assert (fitted["verdict"], fitted["gain_covers"]) == ("not distinguishable", "seeds and test samples")
    assert trained["gain"] == fitted["gain"] == pytest.approx(0.3)
    single = inference.over_samples(np.arange(10) < 9, np.arange(10) < 6)
    assert fitted["p_value"] == pytest.approx(single.p_value, abs=0.04)
    assert fitted["p_value"] > 100 * trained["p_value"]
    low, high = fitted["gain_interval"]
    assert low <= 0 and high >= 0.5
    assert fitted["gain_seeds"] == 5
    assert fitted["seeds_needed"] is fitted["detectable"] is fitted["gap_interval"] is None


def test_a_verdict_on_what_is_fitted_says_what_it_allows_for(tmp_path):
    made = experiment(tmp_path, alone=[6] * 5, kd=[9] * 5, fitted=True)
    made.rows()
    told = compare.comparison(compare.materials(made.store, ["made"]))["remarks"]
    assert (
        "seeds of what is fitted at once may hardly differ: for a verdict a gain must exceed the noise of the test "
        "samples, too" in told
    )
    assert not any("would tell a difference" in line for line in told), "more seeds are no more test samples"


def test_one_seed_has_no_standard_deviation(tmp_path):
    row = experiment(tmp_path, alone=[5], kd=[8]).row("kd")
    assert (row["mean"], row["std"]) == (0.8, None)


def test_gain_and_share_of_the_gap(tmp_path):
    row = experiment(tmp_path).row("kd")
    assert row["gain"] == pytest.approx(0.2)
    assert row["gap_closed"] == pytest.approx(0.2 / 0.3)
    assert row["teacher"] == "teacher"


def test_gain_is_paired_over_the_seeds_that_both_have(tmp_path):
    row = experiment(tmp_path, alone=[5, 6, None, 7], kd=[None, 7, 1, 9]).row("kd")
    assert row["seeds"] == [1, 2, 3]
    assert row["gain"] == pytest.approx(((0.7 - 0.6) + (0.9 - 0.7)) / 2)
    assert row["gap_closed"] is None, "two seeds show no clear gap"


def test_no_seed_in_common_is_no_gain(tmp_path):
    row = experiment(tmp_path, alone=[5, None], kd=[None, 8]).row("kd")
    assert (row["gain"], row["gap_closed"]) == (None, None)


@pytest.mark.parametrize("teacher", [6, 5])
def test_there_is_no_gap_to_a_teacher_that_is_no_better_than_the_control(tmp_path, teacher):
    row = experiment(tmp_path, teacher=teacher).row("kd")
    assert row["gain"] == pytest.approx(0.2)
    assert row["gap_closed"] is None


def test_a_student_may_pass_its_teacher_or_fall_below_its_control(tmp_path):
    above = experiment(tmp_path / "a", alone=[5] * 3, kd=[9] * 3, teacher=7).row("kd")
    below = experiment(tmp_path / "b", alone=[5] * 3, kd=[4] * 3, teacher=7).row("kd")
    assert (above["gap_closed"], below["gap_closed"]) == (pytest.approx(2), pytest.approx(-0.5))
    assert above["gap_interval"][0] < 2 < above["gap_interval"][1]


def test_a_control_gains_nothing_and_has_no_teacher(tmp_path):
    row = experiment(tmp_path).row("alone")
    assert row["role"] == "control"
    assert row["mean"] == pytest.approx(0.6)
    assert (row["gain"], row["gap_closed"], row["teacher"]) == (None, None, None)


def test_a_method_without_a_teacher_has_a_gain(tmp_path):
    made = experiment(tmp_path)
    for seed in range(3):
        made.run("student", "student", "smooth", seed, predicting(7))
    row = made.row("smooth")
    assert row["teacher"] is None
    assert row["gain"] == pytest.approx(0.1)


def test_every_student_is_measured_against_its_own_control(tmp_path):
    made = experiment(tmp_path)
    teacher = made.resolved["runs"][0]
    made.run("student", "small", "alone", 0, predicting(2))
    made.run("student", "small", "kd", 0, predicting(3), [teacher])
    assert made.row("kd", "small")["gain"] == pytest.approx(0.1)
    assert made.row("kd", "student")["gain"] == pytest.approx(0.2)


@pytest.mark.parametrize("metric", sorted(scores.OF_CLASSES))
def test_the_metric_is_the_configs(tmp_path, metric):
    row = experiment(tmp_path, metric=metric).row("kd")
    assert row["metric"] == metric
    assert row["values"] == [scores.score(metric, predicting(n).argmax(1), LABELS) for n in (8, 7, 9)]


def test_costs_and_nll(tmp_path):
    made = Made(tmp_path)
    for seed, (right, seconds) in enumerate([(5, 1.0), (6, 2.0)]):
        made.run("student", "student", "alone", seed, predicting(right), parameters=50, seconds=seconds)
    row = made.row("alone")
    assert (row["parameters"], row["macs"], row["train_seconds"]) == (50, 100, 1.5)
    weights = tmp_path / "made/students/student/alone/seed-0/weights.safetensors"
    assert row["bytes"] == weights.stat().st_size
    expected = np.mean([scores.nll(predicting(n), LABELS) for n in (5, 6)])
    assert row["nll"] == pytest.approx(expected)
    assert row["protocol"] == PROTOCOL


def test_latency_is_the_models(tmp_path):
    made = experiment(tmp_path)
    times = {"p50": 0.5, "p95": 0.75}
    costs = {"latency_ms": times, "throughput": 10.0, "peak_memory_bytes": 99, "batch_size": 4}
    write_json(tmp_path / "made" / "costs.json", {"conditions": {}, "models": {"model of student": costs}})
    row = made.row("kd")
    assert (row["latency_ms"], row["throughput"], row["peak_memory_bytes"]) == (times, 10.0, 99)
    assert made.row(None, "teacher")["latency_ms"] is None


def test_training_time_with_the_teachers_is_theirs_too(tmp_path):
    made = Made(tmp_path)
    big = made.run("teacher", "big", None, 0, predicting(9), seconds=10.0)
    other = made.run("teacher", "other", None, 1, predicting(9), seconds=3.0)
    assistant = made.run("teacher", "assistant", "kd", 0, predicting(8), [big], seconds=5.0)
    for seed in range(2):
        made.run("student", "student", "alone", seed, predicting(5), seconds=1.0)
        made.run("student", "student", "kd", seed, predicting(6), [assistant, big, other], seconds=2.0)
    row = made.row("kd")
    assert (row["train_seconds"], row["train_seconds_all"]) == (2.0, 20.0), "each teacher once"
    assert (made.row("alone")["train_seconds_all"], made.row("kd", "assistant")["train_seconds_all"]) == (
        1.0,
        15.0,
    )


# -------------------------------------------------------------------------------------------- verdicts


def family(root, seeds=3, **methods):
    """A control with five of ten right, and methods with their own numbers, for each seed."""
    made = Made(root)
    for seed in range(seeds):
        made.run("student", "student", "alone", seed, predicting(5))
        for name, right in methods.items():
            made.run("student", "student", name, seed, predicting(right[seed]))
    return made


def test_verdicts_allow_for_all_methods_of_a_student(tmp_path):
    made = family(tmp_path, good=(9, 10, 9), same=(5, 5, 6), bad=(1, 0, 1))
    differences = {
        name: inference.over_seeds([right / 10 - 0.5 for right in of], 0.1)
        for name, of in {"good": (9, 10, 9), "same": (5, 5, 6), "bad": (1, 0, 1)}.items()
    }
    adjusted = dict(
        zip(differences, inference.holm([one.p_value for one in differences.values()]), strict=True)
    )
    rows = {row["method"]: row for row in made.rows()}
    assert {name: rows[name]["verdict"] for name in differences} == {
        "good": "better",
        "same": "not distinguishable",
        "bad": "worse",
    }
    for name, difference in differences.items():
        row = rows[name]
        assert row["p_value"] == pytest.approx(adjusted[name])
        assert row["gain_interval"] == pytest.approx(difference.interval)
        assert row["gain_covers"] == "seeds"
    assert rows["same"]["seeds_needed"] > 3 and rows["good"]["seeds_needed"] is None
    assert (rows["alone"]["verdict"], rows["alone"]["p_value"], rows["alone"]["gain_interval"]) == (None,) * 3


def test_another_students_methods_change_no_verdict(tmp_path):
    alone = family(tmp_path / "one", good=(9, 10, 9)).row("good")
    made = family(tmp_path / "two", good=(9, 10, 9))
    for seed in range(3):
        for method, right in (("alone", 5), ("x", 6), ("y", 7)):
            made.run("student", "other", method, seed, predicting(right))
    assert made.row("good")["p_value"] == alone["p_value"]


def test_controls_have_gains_and_no_verdicts(tmp_path):
    made = family(tmp_path, **{"label-smoothing": (7, 8, 7), "kd": (9, 10, 9)})
    row = made.row("label-smoothing")
    assert row["role"] == "control"
    assert (row["verdict"], row["p_value"]) == (None, None)
    assert row["gain"] == pytest.approx(7 / 30) and row["gain_interval"] is not None
    assert made.row("kd")["p_value"] == pytest.approx(inference.over_seeds([0.4, 0.5, 0.4], 0.1).p_value), (
        "alone in its family"
    )
    assert [row["method"] for row in made.rows()] == ["alone", "label-smoothing", "kd"]


def test_one_seed_is_judged_by_the_test_samples(tmp_path):
    row = family(tmp_path, seeds=1, kd=(10,)).row("kd")
    exact = inference.over_samples(*(predicting(right).argmax(1) == LABELS for right in (10, 5)))
    assert row["gain_covers"] == "test samples"
    assert (row["p_value"], row["gain_interval"]) == (exact.p_value, pytest.approx(exact.interval))
    assert (row["verdict"], row["seeds_needed"]) == ("not distinguishable", None)


def test_one_seed_and_another_metric_is_judged_by_swapping(tmp_path):
    made = experiment(tmp_path, metric="macro-f1", alone=[2], kd=[10])
    row = made.row("kd")
    assert row["verdict"] == "better" and row["p_value"] < 0.05
    assert row["gain_interval"][0] > 0


def test_there_is_no_gap_with_one_seed_unless_the_test_samples_show_it(tmp_path):
    assert experiment(tmp_path / "a", alone=[5], kd=[6], teacher=7).row("kd")["gap_closed"] is None
    row = experiment(tmp_path / "b", alone=[1], kd=[5], teacher=9).row("kd")
    assert (row["gap_closed"], row["gap_interval"]) == (pytest.approx(0.5), None)


def test_pairs_are_on_request_and_of_methods_only(tmp_path):
    made = family(tmp_path, **{"label-smoothing": (7, 8, 7), "a": (9, 10, 9), "b": (2, 1, 2), "c": (9, 9, 9)})
    made.rows()
    parts = compare.materials(made.store, ["made"])
    assert "pairs" not in compare.comparison(parts)
    pairs = compare.comparison(parts, compare.Extras(pairs=True))["pairs"]
    assert [(pair["first"], pair["second"]) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pair["verdict"] for pair in pairs] == ["worse", "not distinguishable", "better"]
    adjusted = inference.holm(
        [
            inference.over_seeds(one, 0.1).p_value
            for one in ([-0.7, -0.9, -0.7], [0, -0.1, 0], [0.7, 0.8, 0.7])
        ]
    )
    assert [pair["p_value"] for pair in pairs] == pytest.approx(adjusted)


def test_resampled_intervals_are_on_request(tmp_path):
    made = family(tmp_path, kd=(9, 10, 9))
    made.rows()
    parts = compare.materials(made.store, ["made"])
    [_, row] = compare.comparison(parts, compare.Extras(bootstrap=True))["rows"]
    assert row["bootstrap_interval"][0] < row["gain"] < row["bootstrap_interval"][1]
    assert "resampled" in table.cells([row])[0]


def test_words(tmp_path):
    made = family(tmp_path, good=(9, 10, 9), same=(5, 5, 6), bad=(1, 0, 1), fine=(9, 9, 9))
    made.rows()
    said = compared(tmp_path, "made")["remarks"]
    assert said[0].startswith("good is better than alone: +43.33 points [+") and said[0].endswith(
        "], 3 seeds"
    )
    assert "same is not distinguishable from alone: +3.33 points" in said[2]
    assert said[2].endswith(f"; {made.row('same')['seeds_needed']} would tell a difference of this size")
    assert said[3].startswith("bad is worse than alone: -43.33 points")
    assert said[4] == "good and fine are not distinguishable"
    assert any(sentence.startswith("with 3 seeds and 4 methods only gains of ") for sentence in said)


def test_words_on_one_seed_and_on_one_teacher(tmp_path):
    experiment(tmp_path, alone=[1], kd=[9]).rows()
    said = compared(tmp_path, "made")["remarks"]
    assert any("noise of the test samples only" in sentence for sentence in said)
    experiment(tmp_path, name="more", alone=[1, 1], kd=[9, 9]).rows()
    said = compared(tmp_path, "more")["remarks"]
    assert any("one training of teacher" in sentence for sentence in said)


# ------------------------------------------------------------------------------------------- protocols


def test_rows_of_different_protocols_stand_in_tables_of_their_own(tmp_path):
    experiment(tmp_path, name="one").rows()
    other = Made(tmp_path, name="two")
    for seed in range(3):
        for method in ("alone", "kd"):
            logits = predicting(6)
            other.run("student", "student", method, seed, logits, protocol={"epochs": 9})
    other.rows()
    both = compared(tmp_path, "one", "two")
    first, second = table.tables(both)
    assert "7 epochs" in first.heading and "9 epochs" in second.heading
    assert {row["experiment"] for row in first.rows} == {"one"}
    assert {row["experiment"] for row in second.rows} == {"two"}
    [mixed] = table.tables(both, mixed=True)
    assert "epochs" not in mixed.heading
    head, lines = table.cells(mixed.rows)
    assert [line[head.index("protocol")] for line in lines] == [""] + ["7 epochs"] * 2 + ["9 epochs"] * 2


def test_a_control_of_matched_cost_stands_beside_the_methods_and_says_how_long_it_took(tmp_path):
    made = experiment(tmp_path)
    for seed in range(3):
        made.run("student", "student", "matched-cost", seed, predicting(6), protocol={"epochs": 21})
    made.rows()
    [one] = table.tables(compared(tmp_path, "made"))
    head, lines = table.cells(one.rows)
    told = {line[head.index("model")]: line[head.index("protocol")] for line in lines}
    assert told == {"teacher": "", "student alone": "", "student matched-cost": "21 epochs", "student kd": ""}


def test_what_is_not_finished_stands_with_its_kin(tmp_path):
    made = experiment(tmp_path, kd=[None] * 3)
    made.rows()
    [one] = table.tables(compared(tmp_path, "made"))
    assert [row["status"] for row in one.rows] == ["finished", "finished", "unfinished"]


# ------------------------------------------------------------------------------------ classes left out


def test_each_row_says_how_well_the_classes_left_out_are_recognised(tmp_path):
    """Of the ten labels four are 0 and three each 1 and 2; a model of n right has the first n right."""
    made = experiment(tmp_path, alone=(0, 3), kd=(6, 7), ensembles=[["teacher", "other"]])
    made.run("teacher", "other", None, 0, predicting(2))
    assert {row["left_out_recall"] for row in made.rows()} == {None}
    assert "left out %" not in table.cells(made.rows())[0]
    made.resolved["left_out"] = ["1", "2"]
    for run in made.resolved["runs"]:
        if run["role"] == "student":
            made.finish(
                run,
                made.store.find(run["fingerprint"]).predictions()["logits"],
                protocol={"left_out": "1, 2"},
            )
    recalls = {(row["model"], row["method"]): row["left_out_recall"] for row in made.rows()}
    assert recalls == {
        ("teacher", None): pytest.approx(6 / 6),
        ("other", None): pytest.approx(1 / 6),
        ("teacher+other", None): pytest.approx(recalls["teacher+other", None]),
        ("student", "alone"): pytest.approx((0 + 2 / 6) / 2),
        ("student", "kd"): pytest.approx((4 / 6 + 4 / 6) / 2),
    }
    assert recalls["teacher+other", None] is not None
    assert (
        compared(tmp_path, "made")["remarks"].count(
            "of the test samples of what was left out (1, 2) recognise: kd 66.7 % and alone 16.7 %"
        )
        == 1
    )
    head, lines = table.cells(made.rows())
    assert [line[head.index("left out %")] for line in lines] == [
        "100.0",
        "16.7",
        lines[2][head.index("left out %")],
        "16.7",
        "66.7",
    ]


# ------------------------------------------------------------------------------------------- agreement


def test_figures_of_likeness_are_those_that_were_stored(tmp_path):
    made = experiment(tmp_path, kd=[None] * 3)
    for seed, run in enumerate(run for run in made.resolved["runs"] if run["method"] == "kd"):
        figures = {"agreement": 0.5 + seed / 10, "copied_errors": 0.1 if seed else None, "kl_to_teacher": 0.2}
        train = figures | {"agreement": 0.9}
        made.finish(run, predicting(8), likeness={"test": figures, "train": train})
    row = made.row("kd")
    assert row["agreement"] == pytest.approx(0.6) and row["agreement_train"] == pytest.approx(0.9)
    assert row["copied_errors"] == pytest.approx(0.1), "of the seeds whose teacher errs"
    assert row["kl_to_teacher"] == pytest.approx(0.2)


def test_agreement_is_the_share_of_equal_predictions(tmp_path):
    """The first ``n`` samples are right: two models differ where one is right and the other is not."""
    made = experiment(tmp_path, alone=[5], kd=[7], teacher=9)
    assert made.row("kd")["agreement"] == pytest.approx(0.8)
    assert made.row("alone")["agreement"] == pytest.approx(0.6), "a control: with the only teacher there is"


def test_agreement_is_a_mean_over_seeds(tmp_path):
    assert experiment(tmp_path).row("kd")["agreement"] == pytest.approx((0.9 + 0.8 + 1.0) / 3)


def test_a_control_beside_several_teachers_agrees_with_none_of_them(tmp_path):
    made = experiment(tmp_path)
    made.run("teacher", "other", None, 0, predicting(4))
    assert made.row("alone")["agreement"] is None


def test_every_seed_agrees_with_the_teacher_of_its_seed(tmp_path):
    made = Made(tmp_path)
    for seed, right in enumerate([9, 3]):
        teacher = made.run("teacher", "teacher", None, seed, predicting(right))
        made.run("student", "student", "alone", seed, predicting(5))
        made.run("student", "student", "kd", seed, predicting(right), [teacher])
    assert made.row("kd")["agreement"] == 1.0
    teacher = made.row(None, "teacher")
    assert (teacher["seeds"], teacher["values"]) == ([0, 1], [0.9, 0.3])
    assert teacher["std"] == pytest.approx(math.sqrt(0.18))


# ------------------------------------------------------------------------------------- several teachers

ONE = np.log(np.array([[0.9, 0.09, 0.01]] * 10, np.float32))
OTHER = np.log(np.array([[0.02, 0.5, 0.48]] * 10, np.float32))
"""Together: (0.46, 0.295, 0.245) by the mean of probabilities, but class 1 by the mean of logits."""


def two_teachers(root, *, combined=True):
    made = Made(root, ensembles=[["a", "b"]] if combined else [])
    teachers = [
        made.run("teacher", "b", None, 0, OTHER, parameters=30),
        made.run("teacher", "a", None, 0, ONE, parameters=70),
    ]
    for seed in range(3):
        made.run("student", "student", "alone", seed, predicting(2))
        made.run("student", "student", "both", seed, predicting(3), teachers)
    return made


def test_an_ensemble_is_the_mean_of_probabilities(tmp_path):
    row = two_teachers(tmp_path).row(None, "a+b")
    assert row["role"] == "ensemble"
    assert row["values"] == [np.mean(LABELS == 0)], "class 0 for every sample"
    probabilities = np.array([0.46, 0.295, 0.245])
    assert row["nll"] == pytest.approx(-np.log(probabilities[LABELS]).mean(), rel=1e-5)
    assert (row["parameters"], row["macs"]) == (100, 200)
    sizes = [(tmp_path / f"made/teachers/{n}/seed-0/weights.safetensors").stat().st_size for n in "ab"]
    assert row["bytes"] == sum(sizes)
    assert row["status"] == "finished"


@pytest.mark.parametrize("combined", [True, False], ids=["row", "no-row"])
def test_a_student_of_several_teachers_is_measured_against_them_together(tmp_path, combined):
    """Whether or not the table has a row for the ensemble."""
    row = two_teachers(tmp_path, combined=combined).row("both")
    assert row["teacher"] == "a+b"
    assert row["gap_closed"] == pytest.approx((0.3 - 0.2) / (0.4 - 0.2))
    assert row["agreement"] == pytest.approx(np.mean(predicting(3).argmax(1) == 0))


def test_an_ensemble_waits_for_all_of_its_members(tmp_path):
    made = Made(tmp_path, ensembles=[["a", "b"]])
    made.run("teacher", "a", None, 0, ONE)
    made.run("teacher", "b", None, 0)
    row = made.row(None, "a+b")
    assert (row["status"], row["values"], row["mean"]) == ("unfinished", [], None)


def test_an_ensemble_of_seeds_takes_a_single_teacher_for_every_seed(tmp_path):
    made = Made(tmp_path, ensembles=[["each", "single"]])
    for seed, right in [(3, 10), (4, 0)]:
        made.run("teacher", "each", None, seed, predicting(right) * 10)
    made.run("teacher", "single", None, 0, predicting(5))
    row = made.row(None, "each+single")
    assert (row["seeds"], row["values"]) == ([3, 4], [1.0, 0.0])


def test_a_distilled_teacher_names_its_teacher(tmp_path):
    made = Made(tmp_path)
    big = made.run("teacher", "big", None, 0, predicting(9))
    made.run("teacher", "assistant", "kd", 0, predicting(8), [big])
    assert made.row("kd", "assistant")["teacher"] == "big"
    assert made.row(None, "big")["teacher"] is None


# ----------------------------------------------------------------------------------------------- status


def test_what_is_not_finished_has_no_numbers(tmp_path):
    row = experiment(tmp_path, kd=[None, None, None]).row("kd")
    assert row["status"] == "unfinished"
    assert (row["values"], row["mean"], row["gain"], row["parameters"]) == ([], None, None, None)


def test_a_part_of_the_seeds_is_unfinished(tmp_path):
    row = experiment(tmp_path, kd=[8, None, 9]).row("kd")
    assert (row["status"], row["seeds"], row["mean"]) == ("unfinished", [0, 2], pytest.approx(0.85))


def fail(made, run, folder=None):
    place = made.store.root / (folder or run["folder"])
    write_json(place / "begun.json", {"fingerprint": run["fingerprint"], "inputs": {}, "total_steps": 1})
    write_json(place / "failure.json", {"epoch": 0, "step": 1, "what": "ce"})


def last_kd(made):
    return [run for run in made.resolved["runs"] if run["method"] == "kd"][-1]


def test_a_seed_that_stopped_is_a_failure(tmp_path):
    made = experiment(tmp_path, kd=[8, 7, None])
    fail(made, last_kd(made))
    assert made.row("kd")["status"] == "failed"
    assert made.row("alone")["status"] == "finished"


def test_a_seed_that_stopped_beside_another_run_is_a_failure(tmp_path):
    made = experiment(tmp_path, kd=[8, 7, None])
    run = last_kd(made)
    fail(made, run, f"{run['folder']}-{run['fingerprint'][:8]}")
    assert made.row("kd")["status"] == "failed"


def test_the_failure_of_another_run_in_the_folder_is_none(tmp_path):
    made = experiment(tmp_path, kd=[8, 7, None])
    fail(made, last_kd(made) | {"fingerprint": "0" * 64}, last_kd(made)["folder"])
    assert made.row("kd")["status"] == "unfinished"


def test_predictions_that_were_changed_are_no_numbers(tmp_path):
    made = experiment(tmp_path)
    path = tmp_path / last_kd(made)["folder"] / "predictions.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="its bytes are not those that were written"):
        made.rows()


# ----------------------------------------------------------------------------------------------- tables


def heading(compared_):
    [one] = table.tables(compared_)
    return one.heading


def compared(root, *names):
    return compare.comparison(compare.materials(Store(root), names))


def test_the_control_stands_before_the_methods(tmp_path):
    roles = [row["role"] for row in two_teachers(tmp_path).rows()]
    assert roles == ["teacher", "teacher", "ensemble", "control", "student"]


def test_the_table_is_in_percent(tmp_path):
    made = experiment(tmp_path)
    head, lines = table.cells(made.rows())
    student = dict(zip(head, lines[-1], strict=True))
    assert student["model"] == "student kd"
    assert student["n"] == "3"
    assert student["score %"] == "80.00 ± 10.00"
    assert student["gain"] == "+20.00"
    low, high = made.row("kd")["gap_interval"]
    assert student["gap closed %"] == f"67 [{100 * low:.0f}, {100 * high:.0f}]"
    assert student["agrees %"] == "90.0"
    assert student["params"] == "100"


def test_the_table_leaves_out_what_nobody_has(tmp_path):
    made = Made(tmp_path)
    made.run("student", "student", "alone", 0, predicting(5))
    head, _ = table.cells(made.rows())
    assert not {"teacher", "gain", "gap closed %", "agrees %", "experiment"} & set(head)


def test_what_is_not_finished_says_so_in_the_table(tmp_path):
    head, lines = table.cells(experiment(tmp_path, kd=[None] * 3).rows())
    assert dict(zip(head, lines[-1], strict=True))["score %"] == "unfinished"


def test_the_heading_says_the_protocol(tmp_path):
    experiment(tmp_path).rows()
    assert heading(compared(tmp_path, "made")) == (
        "made: accuracy on 10 test samples, made-up, test data 0123abcd, input 3×8×8, 5 labels a class, 7 epochs, "
        "last weights, fp32; mean ± std over n seeds"
    )


def test_several_experiments_can_be_told_apart(tmp_path):
    experiment(tmp_path, name="one").rows()
    experiment(tmp_path, name="two", metric="macro-f1", kd=[8, None, 9]).rows()
    both = compared(tmp_path, "one", "two")
    assert both["name"] == "one+two"
    assert [row["experiment"] for row in both["rows"]] == ["one"] * 3 + ["two"] * 3
    assert both["protocol"] == PROTOCOL, "what they share"
    headings = [one.heading for one in table.tables(both)]
    assert [told.split(" on ")[0] for told in headings] == ["one+two: accuracy", "one+two: macro-f1"]
    head, lines = table.cells(both["rows"])
    assert [line[head.index("experiment")] for line in lines] == ["one"] * 3 + ["two"] * 3


def test_csv_has_full_precision(tmp_path):
    made = experiment(tmp_path, alone=[3], kd=[3])
    rows = made.rows()
    found = list(csv.DictReader(io.StringIO(table.csv_text(compared(tmp_path, "made")))))
    assert [row["nll"] for row in found] == [str(row["nll"]) for row in rows]
    assert [float(row["mean"]) for row in found] == [row["mean"] for row in rows]
    assert (found[0]["verdict"], found[-1]["verdict"]) == ("", "not distinguishable")


# ----------------------------------------------------------------------------------------------- scores


def drawn(seed, samples=60, classes=4, missing=None):
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 2, (samples, classes)).astype(np.float32)
    labels = draw.integers(0, classes, samples)
    if missing is not None:
        labels[labels == missing] = (missing + 1) % classes
    return logits, labels


CASES = {
    "drawn": drawn(0),
    "two classes": drawn(1, classes=2),
    "a class without labels": drawn(2, missing=0),
    "the last class without labels": drawn(3, missing=3),
    "one sample": drawn(4, samples=1),
    "never predicted": (np.tile(np.float32([1, 0, 0]), (9, 1)), np.arange(9) % 3),
    "ties": (np.zeros((9, 3), np.float32), np.arange(9) % 3),
    "a tie of the last two": (np.tile(np.float32([0, 1, 1]), (9, 1)), np.arange(9) % 3),
}
ORACLES = {
    "accuracy": sklearn.metrics.accuracy_score,
    "balanced-accuracy": sklearn.metrics.balanced_accuracy_score,
    "recall@1": sklearn.metrics.accuracy_score,  # of what is retrieved; that, two loops tell in test_retrieval.py
    "macro-f1": lambda labels, said: sklearn.metrics.f1_score(labels, said, average="macro", zero_division=0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("metric", ORACLES)
def test_scores_are_those_of_scikit_learn(metric, case):
    logits, labels = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that are predicted and have no labels
        expected = ORACLES[metric](labels, logits.argmax(1))
    assert scores.score(metric, logits.argmax(1), labels) == pytest.approx(expected)


def test_there_is_no_metric_without_an_oracle():
    assert set(scores.METRICS) == set(ORACLES)


@pytest.mark.parametrize("case", CASES)
def test_nll_is_that_of_scikit_learn(case):
    logits, labels = CASES[case]
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    expected = sklearn.metrics.log_loss(labels, probabilities, labels=range(logits.shape[1]))
    assert scores.nll(logits, labels) == pytest.approx(expected)


def test_extreme_logits_have_the_nll_that_they_have():
    logits = np.float32([[1e4, 0], [0, 1e4], [3e38, -3e38]])
    assert scores.nll(logits[:2], np.array([1, 1])) == pytest.approx(5e3)
    assert scores.nll(logits[2:], np.array([0])) == 0
    assert scores.nll(logits[2:], np.array([1])) == pytest.approx(6e38)


def test_nll_of_a_sure_and_right_model_keeps_its_digits():
    assert scores.nll(np.float32([[20, 0]]), np.array([0])) == pytest.approx(
        math.log1p(math.exp(-20)), rel=1e-6
    )


def test_top5():
    logits, labels = drawn(5, samples=300, classes=100)
    expected = sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(100))
    assert scores.top5(logits, labels) == pytest.approx(expected)
    assert scores.all_scores(logits, labels)["top5"] == pytest.approx(expected)


def test_top5_is_given_from_a_hundred_classes():
    assert "top5" not in scores.all_scores(*drawn(6, classes=99))
    alike = {"nll", "brier", "ece", "ece_equal_width"}
    assert set(scores.all_scores(*drawn(6))) == {"accuracy", "balanced-accuracy", "macro-f1", *alike}


@pytest.mark.parametrize("scale", [1, 100])
def test_an_ensembles_logits_are_log_mean_probabilities(scale):
    members = [drawn(seed)[0] * scale for seed in (8, 9, 10)]
    expected = np.mean([scipy.special.softmax(m.astype(np.float64), axis=1) for m in members], axis=0)
    assert np.exp(scores.ensemble(members)) == pytest.approx(expected)


# -------------------------------------------------------------------------------------------- summaries


def test_summaries_of_nothing_and_of_one():
    assert summary.mean([]) is None
    assert (summary.mean([0.25]), summary.std([0.25])) == (0.25, None)


@pytest.mark.parametrize("values", [[0.5, 0.5, 0.5], [0.97, 0.98, 0.975], [1e9 + 1, 1e9 + 2, 1e9 + 4]])
def test_summaries_are_those_of_numpy(values):
    assert summary.mean(values) == pytest.approx(np.mean(values), rel=1e-12)
    assert summary.std(values) == pytest.approx(np.std(values, ddof=1), rel=1e-9)


# --------------------------------------------------------------------------------------- what is missing


def test_a_control_with_one_seed_is_no_crash_and_the_words_say_so(tmp_path):
    made = experiment(tmp_path, alone=[5, None, None, None], kd=[8, 7, 9, 8])
    made.rows()
    said = compared(tmp_path, "made")["remarks"]
    assert any(sentence.endswith("1 seed") for sentence in said)
    assert any("noise of the test samples only" in sentence for sentence in said)


def test_a_method_with_one_of_several_seeds_gets_no_verdict(tmp_path):
    made = experiment(tmp_path, alone=[5, 6, 5], kd=[8, 9, 8])
    teacher = made.resolved["runs"][0]
    for seed, right in enumerate([10, None, None]):
        logits = None if right is None else predicting(right)
        made.run("student", "student", "dkd", seed, logits, [teacher])
    row = made.row("dkd")
    assert (row["verdict"], row["p_value"], row["gain_seeds"]) == (None, None, 1)
    assert made.row("kd")["p_value"] == pytest.approx(inference.over_seeds([0.3] * 3, 0.1).p_value)
    said = compared(tmp_path, "made")["remarks"]
    assert any("one seed beside alone is no verdict" in sentence for sentence in said)
    head, lines = table.cells(made.rows())
    assert lines[-1][head.index("score %")] == "100.00 (unfinished)"


def test_what_was_never_compared_is_not_said_to_be_better(tmp_path):
    made = Made(tmp_path)
    for seed in range(6):
        made.run("student", "student", "alone", seed, predicting(5))
        for method, own in (("kd", range(3)), ("dkd", range(3, 6))):
            made.run("student", "student", method, seed, predicting(9) if seed in own else None)
    made.rows()
    said = compared(tmp_path, "made")["remarks"]
    assert not any("better than dkd" in sentence or "better than kd" in sentence for sentence in said)


def test_methods_are_set_beside_every_control(tmp_path):
    made = family(tmp_path, **{"matched-cost": (9, 9, 9), "good": (9, 10, 9), "weak": (6, 7, 6)})
    told = made.row("weak")["against"]["matched-cost"]
    adjusted = inference.holm(
        [inference.over_seeds(one, 0.1).p_value for one in ([0, 0.1, 0], [-0.3, -0.2, -0.3])]
    )
    assert (told["verdict"], told["p_value"]) == ("worse", pytest.approx(adjusted[1]))
    sentence = "beside matched-cost, worse: weak; not distinguishable: good"
    assert sentence in compared(tmp_path, "made")["remarks"]


def test_many_methods_that_gain_nothing_are_one_sentence(tmp_path):
    made = family(tmp_path, **{f"m{n}": (5, 6, 5) if n % 2 else (5, 4, 5) for n in range(9)})
    made.rows()
    said = compared(tmp_path, "made")["remarks"]
    assert said[0].startswith("9 of 9 methods are not distinguishable from alone: gains from -3.33 to +3.33")
    assert len(said) < 6


def test_a_gain_that_cannot_be_found_at_all_is_said(tmp_path):
    made = family(tmp_path, seeds=2, **{f"m{n}": (9, 3) for n in range(4)})
    made.rows()
    assert any("no gain that is possible here" in one for one in compared(tmp_path, "made")["remarks"])


def test_a_teacher_of_the_students_name_is_no_kin_of_its_rows(tmp_path):
    made = Made(tmp_path)
    made.run("teacher", "net", None, 0, predicting(9), protocol={"epochs": 99})
    for seed in range(3):
        for method in ("alone", "matched-cost", "kd"):
            epochs = {"epochs": 30} if method == "matched-cost" else {}
            logits = None if method == "kd" else predicting(6)
            made.run("student", "net", method, seed, logits, protocol=epochs)
    made.rows()
    assert len(table.tables(compared(tmp_path, "made"))) == 1


def test_mixed_metrics_are_named(tmp_path):
    experiment(tmp_path, name="one").rows()
    experiment(tmp_path, name="two", metric="macro-f1").rows()
    [mixed] = table.tables(compared(tmp_path, "one", "two"), mixed=True)
    head, lines = table.cells(mixed.rows)
    told = [line[head.index("protocol")] for line in lines if line[0] != "teacher"]
    assert told == ["accuracy"] * 2 + ["macro-f1"] * 2


def test_one_sample_of_a_rare_class_is_a_large_step(tmp_path):
    made = experiment(tmp_path, metric="balanced-accuracy")
    made.rows()
    [part] = compare.materials(made.store, ["made"])
    assert part.step == pytest.approx(1 / (3 * 3)), "three classes, the rarest with three samples"
    assert experiment(tmp_path / "other").row("kd")["p_value"] > 0
