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
from kdrun.statistics import scores, summary
from kdrun.store import Store, write_json

LABELS = np.arange(10) % 3
PROTOCOL = {"dataset": "made-up", "test_samples": 10, "epochs": 7, "labels_per_class": 5, "device": "cpu"}


def fingerprint(*parts):
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def predicting(right):
    """Logits (10, 3) of a model that has so many of the ten samples right."""
    predicted = np.where(np.arange(10) < right, LABELS, (LABELS + 1) % 3)
    return np.eye(3, dtype=np.float32)[predicted] * 4


class Made:
    """An experiment whose results are made up."""

    def __init__(self, root, name="made", metric="accuracy", ensembles=()):
        self.store = Store(root)
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
        }
        self.resolved["runs"].append(run)
        if logits is not None:
            self.finish(run, logits, **manifest)
        return run

    def finish(self, run, logits, parameters=100, seconds=1.0):
        workplace, _ = self.store.workplace(run["folder"], run["fingerprint"], {"seed": run["seed"]})
        manifest = {
            "kind": run["role"],
            "seed": run["seed"],
            "scores": scores.all_scores(logits, LABELS),
            "cost": {"parameters": parameters, "macs": 2 * parameters},
            "protocol": PROTOCOL,
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
    assert row["gap_closed"] == pytest.approx(0.15 / (0.9 - 0.65))


def test_no_seed_in_common_is_no_gain(tmp_path):
    row = experiment(tmp_path, alone=[5, None], kd=[None, 8]).row("kd")
    assert (row["gain"], row["gap_closed"]) == (None, None)


@pytest.mark.parametrize("teacher", [6, 5])
def test_there_is_no_gap_to_a_teacher_that_is_no_better_than_the_control(tmp_path, teacher):
    row = experiment(tmp_path, teacher=teacher).row("kd")
    assert row["gain"] == pytest.approx(0.2)
    assert row["gap_closed"] is None


def test_a_student_may_pass_its_teacher_or_fall_below_its_control(tmp_path):
    assert experiment(tmp_path / "a", alone=[5], kd=[9], teacher=7).row("kd")["gap_closed"] == pytest.approx(
        2
    )
    assert experiment(tmp_path / "b", alone=[5], kd=[4], teacher=7).row("kd")["gap_closed"] == pytest.approx(
        -0.5
    )


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


@pytest.mark.parametrize("metric", sorted(scores.METRICS))
def test_the_metric_is_the_configs(tmp_path, metric):
    row = experiment(tmp_path, metric=metric).row("kd")
    assert row["metric"] == metric
    assert row["values"] == [scores.METRICS[metric](predicting(n), LABELS) for n in (8, 7, 9)]


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
    write_json(tmp_path / "made" / "latency.json", {"models": {"model of student": times}})
    assert made.row("kd")["latency_ms"] == times
    assert made.row(None, "teacher")["latency_ms"] is None


# ------------------------------------------------------------------------------------------- agreement


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
    made.run("student", "student", "alone", 0, predicting(2))
    made.run("student", "student", "both", 0, predicting(3), teachers)
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
    assert row["agreement"] == np.mean(predicting(3).argmax(1) == 0)


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


def compared(root, *names):
    return compare.comparison(compare.materials(Store(root), names))


def test_the_control_stands_before_the_methods(tmp_path):
    roles = [row["role"] for row in two_teachers(tmp_path).rows()]
    assert roles == ["teacher", "teacher", "ensemble", "control", "student"]


def test_the_table_is_in_percent(tmp_path):
    made = experiment(tmp_path)
    head, lines = compare.cells(made.rows())
    student = dict(zip(head, lines[-1], strict=True))
    assert student["model"] == "student kd"
    assert student["n"] == "3"
    assert student["score %"] == "80.00 ± 10.00"
    assert student["gain"] == "+20.00"
    assert student["gap closed %"] == "67"
    assert student["agrees %"] == "90.0"
    assert student["params"] == "100"


def test_the_table_leaves_out_what_nobody_has(tmp_path):
    made = Made(tmp_path)
    made.run("student", "student", "alone", 0, predicting(5))
    head, _ = compare.cells(made.rows())
    assert not {"teacher", "gain", "gap closed %", "agrees %", "experiment"} & set(head)


def test_what_is_not_finished_says_so_in_the_table(tmp_path):
    head, lines = compare.cells(experiment(tmp_path, kd=[None] * 3).rows())
    assert dict(zip(head, lines[-1], strict=True))["score %"] == "unfinished"


def test_the_heading_says_the_protocol(tmp_path):
    experiment(tmp_path).rows()
    heading = compare.heading(compared(tmp_path, "made"))
    assert heading == (
        "made: accuracy on 10 test samples, 7 epochs, 5 labels a class for the students, made-up, cpu; "
        "mean ± std over n seeds"
    )


def test_several_experiments_can_be_told_apart(tmp_path):
    experiment(tmp_path, name="one").rows()
    experiment(tmp_path, name="two", metric="macro-f1", kd=[8, None, 9]).rows()
    both = compared(tmp_path, "one", "two")
    assert both["name"] == "one+two"
    assert [row["protocol"]["experiment"] for row in both["rows"]] == ["one"] * 3 + ["two"] * 3
    assert both["protocol"] == PROTOCOL, "what they share"
    assert compare.heading(both).startswith("one+two: accuracy or macro-f1 on 10 test samples")
    head, lines = compare.cells(both["rows"])
    assert [line[head.index("experiment")] for line in lines] == ["one"] * 3 + ["two"] * 3


def test_csv_has_full_precision(tmp_path):
    made = experiment(tmp_path, alone=[3], kd=[3])
    rows = made.rows()
    found = list(csv.DictReader(io.StringIO(compare.csv_text(compared(tmp_path, "made")))))
    assert [row["nll"] for row in found] == [str(row["nll"]) for row in rows]
    assert found[-1]["verdict"] == ""


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
    "macro-f1": lambda labels, said: sklearn.metrics.f1_score(labels, said, average="macro", zero_division=0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("metric", ORACLES)
def test_scores_are_those_of_scikit_learn(metric, case):
    logits, labels = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that are predicted and have no labels
        expected = ORACLES[metric](labels, logits.argmax(1))
    assert scores.METRICS[metric](logits, labels) == pytest.approx(expected)


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
    assert set(scores.all_scores(*drawn(6))) == {"accuracy", "balanced-accuracy", "macro-f1", "nll"}


def test_agreement_looks_at_predictions_only():
    logits, _ = drawn(7)
    assert scores.agreement(logits, logits * 9 + 3) == 1
    assert scores.agreement(logits, -logits) < 0.5


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
