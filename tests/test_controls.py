"""Controls, figures of likeness, protocols in results, and the gate."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch

from commands import command
from kdrun import assembly, compare, evaluate, models, registry
from kdrun.contracts import HIDDEN, Batch, Outputs
from kdrun.errors import GateError, UsageError
from kdrun.gate import Gate
from kdrun.plan import plan
from kdrun.report import table
from kdrun.statistics import scores
from kdrun.store import Store
from support import checked, comparison, results, run, students

BASE = """
name: controls
dataset: {kind: digits, labels_per_class: 4, validation: 0.1}
seeds: [0, 1]
training: {epochs: 2, batch_size: 128}
teachers:
  a: {model: {kind: mlp, hidden: [24]}}
  b: {model: {kind: mlp, hidden: [16]}, seed: 1}
student: {model: {kind: mlp, hidden: [8]}}
controls: all
methods: [{use: kd, teacher: a}]
"""
ONE_TEACHER = BASE.replace("  b: {model: {kind: mlp, hidden: [16]}, seed: 1}\n", "")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("controls")
    run(BASE, root)
    return root


def row_of(root, method):
    rows = comparison(root, "controls")["rows"]
    return next(row for row in rows if row["method"] == method)


# -------------------------------------------------------------------------------------------- controls


def test_every_control_stands_in_the_table_with_the_methods_seeds(finished):
    rows = comparison(finished, "controls")["rows"]
    told = [
        (row["role"], row["method"], row["seeds"]) for row in rows if row["role"] in ("control", "student")
    ]
    names = ["alone", "label-smoothing", "shuffled-teacher", "matched-cost"]
    assert told == [*(("control", name, [0, 1]) for name in names), ("student", "kd", [0, 1])]


@pytest.mark.parametrize("control", ["label-smoothing", "shuffled-teacher", "matched-cost"])
def test_controls_begin_with_the_weights_of_the_methods(control):
    made, *_ = students(BASE)
    for name, weight in made["kd"].model.state_dict().items():
        assert made[control].model.state_dict()[name].equal(weight)


def test_controls_see_the_batches_of_the_methods_or_of_the_control_alone():
    made, *_ = students(BASE)
    assert made["shuffled-teacher"].draw == made["kd"].draw
    assert made["label-smoothing"].draw == made["matched-cost"].draw == made["alone"].draw


def shuffled_term(made):
    return made["shuffled-teacher"].objective.named["kd"]


def test_a_shuffled_teacher_says_what_it_says_of_other_samples(monkeypatch):
    made, teachers, dataset, _ = students(ONE_TEACHER)
    student = made["shuffled-teacher"]
    batch = next(dataset.batches(student.draw, 0))
    seen, plain = [], shuffled_term(made)._value
    monkeypatch.setattr(
        shuffled_term(made),
        "_value",
        lambda own, taught, *rest: seen.append(taught["a"]) or plain(own, taught, *rest),
    )
    said = teachers["a"](batch)
    for _ in range(2):
        student.begin_step()
        student.answer(batch, {"a": said})
    student.position += 1
    student.begin_step()
    student.answer(batch, {"a": said})
    first, again, later = (one.logits for one in seen)
    assert not first.equal(said.logits) and first.sort(dim=0).values.equal(said.logits.sort(dim=0).values)
    assert first.equal(again), "a function of the seed and the step"
    assert not first.equal(later), "anew in each step"


def test_several_shuffled_teachers_are_shuffled_alike(monkeypatch):
    made, _, dataset, _ = students(BASE)
    batch = next(dataset.batches(made["kd"].draw, 0))
    seen = []
    monkeypatch.setattr(
        shuffled_term(made), "_value", lambda own, taught, *_: seen.append(taught) or own.logits.sum()
    )
    marks = torch.arange(len(batch), dtype=torch.float32)[:, None].expand(-1, 10)
    made["shuffled-teacher"].begin_step()
    made["shuffled-teacher"].answer(batch, {"a": Outputs(marks), "b": Outputs(marks)})
    assert seen[0]["a"].logits.equal(seen[0]["b"].logits)


def test_matched_cost_trains_for_the_macs_of_the_dearest_method():
    config = checked(BASE)
    planned = plan(config, assembly.open_dataset(config))
    epochs = {run.method: run.training.epochs for run in planned.runs if run.role == "student"}
    student, a = (64 * width + width * 10 for width in (8, 24))
    dearest = 128 * (3 * student + a)  # of kd; not of the control that has both teachers
    assert epochs["matched-cost"] == -(-2 * dearest // (40 * 3 * student))
    assert {epochs[name] for name in ("alone", "label-smoothing", "shuffled-teacher", "kd")} == {2}


def test_matched_cost_counts_every_view():
    text = """
        dataset: {kind: synthetic, shape: [3, 8, 8], classes: 3, samples: 90, strong_view: strong}
        training: {epochs: 4, batch_size: 16}
        teacher: {model: {kind: mlp, hidden: [24]}}
        student: {model: {kind: mlp, hidden: [8]}}
        controls: [matched-cost]
        methods: [{use: mlkd, set: {mlkd.view: strong}}]
    """
    config = checked(text)
    planned = plan(config, assembly.open_dataset(config))
    epochs = {run.method: run.training.epochs for run in planned.runs if run.role == "student"}
    student, teacher = (192 * width + width * 3 for width in (8, 24))
    assert epochs["matched-cost"] == -(-4 * 2 * (3 * student + teacher) // (3 * student))


# -------------------------------------------------------------------------------------------- likeness


def test_likeness_is_that_of_the_stored_predictions(finished):
    teacher = results(finished)["teachers/a/seed-0"].predictions()["logits"]
    result = results(finished)["students/student/kd/seed-1"]
    stored, labels = result.predictions()["logits"], result.predictions()["labels"]
    figures = result.manifest["likeness"]["test"]
    alike, wrong = stored.argmax(1) == teacher.argmax(1), teacher.argmax(1) != labels
    assert figures["agreement"] == pytest.approx(alike.mean())
    assert figures["copied_errors"] == pytest.approx(alike[wrong].mean())
    assert figures["kl_to_teacher"] == pytest.approx(scores.divergence(stored, teacher), rel=1e-5)
    assert results(finished)["students/student/alone/seed-0"].manifest["likeness"] is None


def test_likeness_of_several_teachers_is_that_to_their_ensemble(finished):
    places = ("teachers/a/seed-0", "teachers/b/seed-1")
    members = [results(finished)[place].predictions()["logits"] for place in places]
    together = scores.ensemble(members)
    result = results(finished)["students/student/shuffled-teacher/seed-0"]
    stored = result.predictions()["logits"]
    figures = result.manifest["likeness"]["test"]
    assert figures["agreement"] == pytest.approx((stored.argmax(1) == together.argmax(1)).mean())
    assert figures["kl_to_teacher"] == pytest.approx(scores.divergence(stored, together), rel=1e-5)


def test_likeness_in_training_is_over_the_whole_training_split(finished):
    _, _, dataset, _ = students(BASE)
    figures = results(finished)["students/student/kd/seed-0"].manifest["likeness"]["train"]
    samples = len(dataset.labels("train"))
    assert figures["agreement"] * samples == pytest.approx(round(figures["agreement"] * samples))
    assert row_of(finished, "kd")["agreement_train"] is not None
    assert row_of(finished, "alone")["agreement_train"] is None


class Says:
    """A predictor that says the rows of a table."""

    def __init__(self, table):
        self.table, self.asked = torch.from_numpy(table), 0

    def __call__(self, batch):
        self.asked += 1
        return Outputs(self.table[batch.index])


def test_one_pass_serves_all_students():
    draw = np.random.default_rng(0)
    tables = [draw.normal(size=(20, 3)).astype(np.float32) for _ in range(3)]
    teacher, first, second = map(Says, tables)
    labels = torch.arange(20) % 3
    batches = [Batch({}, labels[rows], rows) for rows in torch.arange(20).split(6)]
    found = evaluate.likenesses([(first, [teacher]), (second, [teacher])], batches)
    assert (teacher.asked, first.asked) == (4, 4)
    for figures, own in zip(found, tables[1:], strict=True):
        assert figures["agreement"] == pytest.approx((own.argmax(1) == tables[0].argmax(1)).mean())


def test_what_has_no_label_is_no_error_of_the_teacher():
    labels = torch.tensor([0, 1, HIDDEN, HIDDEN])
    teacher = Says(np.eye(3, dtype=np.float32)[[0, 2, 1, 1]])
    student = Says(np.eye(3, dtype=np.float32)[[0, 2, 1, 0]])
    [figures] = evaluate.likenesses([(student, [teacher])], [Batch({}, labels, torch.arange(4))])
    assert (figures["agreement"], figures["copied_errors"]) == (0.75, 1.0)


def test_a_teacher_without_errors_has_none_to_copy():
    labels = torch.arange(6) % 3
    teacher = Says(np.eye(3, dtype=np.float32)[labels.numpy()])
    [figures] = evaluate.likenesses([(teacher, [teacher])], [Batch({}, labels, torch.arange(6))])
    assert figures == {"agreement": 1.0, "copied_errors": None, "kl_to_teacher": pytest.approx(0, abs=1e-9)}


# ----------------------------------------------------------------------------------------- calibration


def test_temperature_is_fitted_on_the_validation_share(finished):
    result = results(finished)["students/student/kd/seed-0"]
    _, _, dataset, planned = students(BASE)
    run_ = next(one for one in planned.runs if one.method == "kd" and one.seed == 0)
    network = assembly.finished_network(run_, dataset.spec, torch.device("cpu"))
    network.model.load_state_dict({name: torch.from_numpy(a) for name, a in result.weights().items()})
    frozen = models.Frozen(network.model, network.view, network.device)
    found = evaluate.predict(frozen, dataset.split("validation"))
    fitted = scores.fitted_temperature(found["logits"], found["labels"])
    assert result.manifest["scores"]["temperature"] == pytest.approx(fitted, rel=1e-4)
    assert row_of(finished, "kd")["ece_scaled"] is not None


def test_without_a_validation_share_nothing_is_scaled(tmp_path):
    run(ONE_TEACHER, tmp_path, "dataset.validation=0", "controls=none", "seeds=[0]")
    row = row_of(tmp_path, "kd")
    assert row["ece_scaled"] is None and row["ece"] is not None and row["brier"] is not None


# ------------------------------------------------------------------------------------------------ cost


def test_peak_memory_by_hand():
    """An MLP's input, and two neighbouring layers at a time, beside its weights."""
    made = registry.MODELS["mlp"].Config(kind="mlp", hidden=[100, 30])
    model = models.build(made, (50,), 10, 0).eval()
    x = torch.zeros(4, 50)
    weights = 4 * (50 * 100 + 100 + 100 * 30 + 30 + 30 * 10 + 10)
    found = evaluate.peak_bytes(lambda: model(x), model)
    first, relu = 4 * 4 * 100, 4 * 4 * 100
    assert weights + first + relu <= found <= weights + first + relu + 4 * 4 * 50
    assert found == evaluate.peak_bytes(lambda: model(x), model)


def test_costs_are_measured_for_every_architecture_once(finished):
    costs = json.loads((finished / "controls/costs.json").read_text())
    assert costs["conditions"]["threads"] == evaluate.THREADS
    assert len(costs["models"]) == 3, "two teachers, and one student for all methods"
    for one in costs["models"].values():
        assert 0 < one["latency_ms"]["p50"] <= one["latency_ms"]["p95"]
        assert one["throughput"] > 0 and 1 <= one["batch_size"] <= 256
    row = row_of(finished, "kd")
    assert row["peak_memory_bytes"] > 4 * row["parameters"]


def test_models_are_timed_in_turn():
    calls = []
    runners = [lambda name=name: calls.append(name) or 3 for name in "abc"]
    found = evaluate.throughputs(runners, torch.device("cpu"))
    assert len(found) == 3 and min(found) > 0
    assert calls == list("abc") * (len(calls) // 3)


def test_models_are_timed_on_as_many_threads_whatever_the_training_is_given():
    before, threads = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        evaluate.latencies([lambda: threads.append(torch.get_num_threads())], torch.device("cpu"))
        assert set(threads) == {evaluate.THREADS}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ gate

ROWS = {
    "rows": [
        {"role": "teacher", "model": "t", "method": None, "metric": "accuracy", "mean": 0.1, "verdict": None},
        {"role": "control", "model": "s", "method": "alone", "metric": "accuracy", "mean": 0.8, "verdict": None},
        {
            "role": "student", "model": "s", "method": "kd", "metric": "accuracy", "mean": 0.9, "gain": 0.1,
            "verdict": "better",
        },
        {
            "role": "student", "model": "s", "method": "at", "metric": "accuracy", "mean": 0.7, "gain": -0.1,
            "verdict": "worse",
        },
    ]
}  # fmt: skip


@pytest.mark.parametrize(
    ("least", "worse_fails", "told"),
    [
        ([], False, None),
        (["kd=0.9", "alone=0.8"], False, None),
        (["kd=0.91"], False, "s kd: accuracy 0.9000 is under 0.91"),
        ([], True, "s at is worse than alone: -10.00 points"),
        (["kd=1", "at=1"], False, "s kd: accuracy 0.9000 is under 1.0\ns at: accuracy 0.7000 is under 1.0"),
    ],
)
def test_a_gate_says_every_reason(least, worse_fails, told):
    gate = Gate.read(least, worse_fails)
    if told is None:
        gate.demand(ROWS)
        return
    with pytest.raises(GateError) as caught:
        gate.demand(ROWS)
    assert str(caught.value) == told and caught.value.exit_code == 3


@pytest.mark.parametrize("written", ["kd", "kd=", "=0.9", "kd=much", "kd=inf", "kd=nan"])
def test_a_gate_that_is_written_wrong(written):
    with pytest.raises(UsageError, match="write METHOD=SCORE"):
        Gate.read([written], False)


@pytest.mark.parametrize("written", ["kd=92", "kd=-1"])
def test_a_gate_that_no_share_comes_to(written):
    gate = Gate.read([written], False)
    for metrics in ({"accuracy"}, {"macro-f1", "recall@1"}):
        with pytest.raises(UsageError, match="write METHOD=SCORE, the score between 0 and 1"):
            gate.require({"s"}, {"kd"}, metrics)
    gate.require({"s"}, {"kd"}, {"accuracy", "return"})


def test_a_gate_on_the_command_line(finished, tmp_path):
    config = tmp_path / "controls.yaml"
    config.write_text(BASE)
    options = ["--no-train", "--out", finished, "--quiet"]
    assert command("compare", config, *options, "--fail-under", "kd=0", folder=tmp_path).code == 0
    told = command("compare", config, *options, "--fail-under", "kd=1", folder=tmp_path)
    assert told.code == 3 and "is under 1.0" in told.err and told.out.startswith("controls: accuracy")


def test_a_gate_for_no_method_is_told_before_anything_is_trained(tmp_path):
    config = tmp_path / "controls.yaml"
    config.write_text(BASE)
    told = command("compare", config, "--fail-under", "kdd=0.9", folder=tmp_path)
    assert told.code == 2 and "did you mean 'kd'?" in told.err and not (tmp_path / "runs").exists()


# --------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("format_", ["text", "md", "csv", "json", "latex"])
def test_every_format_is_all_that_is_on_stdout(finished, tmp_path, format_):
    config = tmp_path / "controls.yaml"
    config.write_text(BASE)
    options = ["--format", format_, *["--pairs"] * (format_ != "csv"), "--bootstrap"]
    told = command("compare", config, "--no-train", "--out", finished, *options, folder=tmp_path)
    assert told.code == 0, told.err
    assert "matched-cost" in told.out and ("kd" in told.out)
    if format_ == "json":
        assert json.loads(told.out)["rows"][-1]["bootstrap_interval"]
    if format_ == "latex":
        lines = told.out.splitlines()
        widths = {line.count(" & ") for line in lines if line.endswith(r"\\")}
        assert len(widths) == 1 and r"\%" in told.out and "_" not in told.out.replace(r"\_", "")
        ends = [line.partition("}")[0] for line in lines if line.startswith((r"\begin", r"\end"))]
        assert ends == [r"\begin{tabular", r"\end{tabular"]


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX here")
def test_the_latex_compiles(finished, tmp_path):
    [part] = compare.materials(Store(finished), ["controls"])
    compared = compare.comparison([part])
    compared["rows"][-1]["method"] = "a_b & 50% #1 ~^\\{}"
    text = f"\\documentclass{{article}}\\begin{{document}}{table.latex(compared)}\\end{{document}}"
    (tmp_path / "it.tex").write_text(text)
    told = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "it.tex"]
    done = subprocess.run(told, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_two_formats_at_once_are_an_error(finished, tmp_path):
    config = tmp_path / "controls.yaml"
    config.write_text(BASE)
    told = command("compare", config, "--no-train", "--json", "--format", "md", folder=tmp_path)
    assert told.code == 2 and "exclude each other" in told.err
