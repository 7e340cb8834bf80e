"""Classes that nobody saw in training, and what embeddings find among their samples."""

import json

import numpy as np
import pytest
import torch

from commands import command, process
from kdrun import assembly, evaluate, registry
from kdrun.console import Console
from kdrun.contracts import Draw
from kdrun.errors import ConfigError, DamagedError, DataError
from kdrun.plan import plan
from kdrun.statistics import resampling, retrieval, scores
from kdrun.store import Store, read_json, write_json
from support import checked, comparison, experiment, outcome, problems, results, run

CPU = torch.device("cpu")
UNSEEN = {"unseen": [1, 3], "metric": "recall@1"}
TEXT = """\
name: metric
dataset: {kind: synthetic, shape: [8], classes: 5, samples: 60, test_samples: 50, unseen: [1, 3], metric: recall@1}
device: cpu
seeds: [0, 1]
training: {epochs: 2, batch_size: 16}
teacher: {model: {kind: mlp, hidden: [8]}}
student: {model: {kind: mlp, hidden: [4]}}
controls: none
methods: [kd, relative]
"""
TEACHER = "teacher: {model: {kind: mlp, hidden: [8]}}\n"


def loaded(kind="synthetic", **options):
    written = (
        {"shape": [3, 6, 6], "classes": 5, "samples": 60, "test_samples": 50} if kind == "synthetic" else {}
    )
    component = registry.DATASETS[kind]
    dataset = component(component.Config.model_validate({"kind": kind} | written | options))
    dataset.load(CPU)
    return dataset


def inputs(dataset, split, given=False):
    return torch.cat([batch.views["input"] for batch in dataset.split(split, given=given)])


# ----------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("labels", [None, 3])
def test_nobody_sees_a_sample_of_an_unseen_class_but_to_be_tested(labels):
    dataset = loaded(**UNSEEN, validation=0.2, labels_per_class=labels)
    full = loaded(validation=0.2)
    kept = {name: ~np.isin(full.labels(name), [1, 3]) for name in ("train", "validation", "test")}
    kept["test"] = ~kept["test"]
    number = np.array([0, 3, 1, 4, 2])
    train = inputs(full, "train")[torch.from_numpy(kept["train"])]
    centre, spread = (of((0, 2, 3), keepdim=True) for of in (train.mean, train.std))
    own = inputs(dataset, "train").std((0, 2, 3), keepdim=True)
    for name, rows in kept.items():
        expected = (inputs(full, name)[torch.from_numpy(rows)] - centre) / spread
        for given in (False, True):  # they are normalised by what is seen
            assert torch.allclose(inputs(dataset, name, given) / own, expected, atol=1e-4), name
        assert dataset.labels(name).tolist() == number[full.labels(name)[rows]].tolist()
    for draw in (Draw(3, 8), Draw(3, 8, labels="all", purpose="teacher"), Draw(3, 8, labelled_only=True)):
        batches = [batch for epoch in range(5) for batch in dataset.batches(draw, epoch)]
        assert len(batches) == 5 * full.steps(draw) and {len(batch) for batch in batches} == {8}
        assert {label for batch in batches for label in batch.labels.tolist()} - {-1} == {0, 1, 2}
        assert {index for batch in batches for index in batch.index.tolist()} <= set(
            range(len(dataset.places()))
        )


def test_unseen_classes_keep_their_names_and_have_no_output():
    for dataset, names in (
        (loaded(**UNSEEN), ["0", "2", "4", "1", "3"]),
        (loaded("wine", metric="recall@1"), ["class_0", "class_1", "class_2"]),
        (loaded("digits", unseen=["0", 9], metric="recall@1"), [*"12345678", "0", "9"]),
    ):
        assert dataset.class_names == names
        unseen = len(dataset.config.unseen or [])
        assert dataset.spec.classes == len(names) - unseen
        tested = {dataset.class_names[label] for label in dataset.labels("test")}
        assert tested == set(dataset.config.unseen or names)


def test_what_is_tested_says_which_classes_are_unseen():
    hashes = [loaded(metric="recall@1", unseen=unseen).test_hash() for unseen in (None, [1, 3], [1, 2])]
    assert len(set(hashes)) == 3
    assert loaded(metric="recall@1", unseen=["3", 1, "1"]).test_hash() == hashes[1]
    assert "unseen" not in loaded().identity()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unseen": ["5", "1"]}, r"dataset\.unseen: the data set has no class '5'.* 0, 1, 2, 3, 4"),
        ({"unseen": ["0", "1", "2", "3"]}, r"dataset\.unseen: 1 of 5 classes would be left"),
        (
            {"unseen": [0, 1], "test_samples": 2, "samples": 60, "validation": 0.02},
            "the validation split has [01]",
        ),
        ({"unseen": [3, 4], "test_samples": 4}, "the test split has 1"),
    ],
)
def test_wrong_unseen_classes_are_told(options, words):
    with pytest.raises(DataError, match=words):
        loaded(metric="recall@1", **options)


def test_a_config_is_told_where_classes_or_metric_do_not_fit():
    said = problems(TEXT, "dataset.metric=macro-f1")
    assert "dataset: macro-f1 is of classes that models tell apart" in said and "^^^^^^" in said
    assert "write `metric: recall@1`" in said
    assert "of one class every neighbour would be right" in problems(TEXT, "dataset.unseen=[1]")
    assert "dataset: what nobody sees of some classes" in problems(TEXT, "dataset.leave_out=[1]")
    assert "dataset: nobody knows the classes of" in problems(TEXT, "dataset.transfer_set={path: a.npz}")
    assert "model: 'forest' has no embedding" in problems(TEXT, "teacher.model={kind: forest}")
    assert "model: 'tree' has no embedding" in problems(TEXT, "student.model={kind: tree}")
    both = (
        "teachers={a: {model: mlp}, b: {model: mlp, seed: 1}, both: {model: {kind: ensemble}, from: [a, b]}}"
    )
    several = TEXT.replace(TEACHER, "").replace("methods: [kd, relative]", "methods: [{use: kd, teacher: a}]")
    assert "model: 'ensemble' has no embedding" in problems(several, both)
    with pytest.raises(ConfigError, match=r"dataset\.unseen: the data set has no class 'tulip'"):
        config = checked(TEXT, "dataset={kind: digits, unseen: [tulip, 1], metric: recall@1}")
        dataset = assembly.open_dataset(config)
        assembly.load(plan(config, dataset), dataset, CPU, None, Console(quiet=True))


# ------------------------------------------------------------------------------------------------ score


def by_two_loops(embeddings, labels):
    found = []
    for i, one in enumerate(embeddings):
        cosines = [
            -np.inf if i == j else one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            for j, other in enumerate(embeddings)
        ]
        found.append(labels[int(np.argmax(cosines))])
    return np.array(found)


def test_what_is_retrieved_is_the_class_of_the_nearest_other_sample(monkeypatch):
    draw = np.random.default_rng(0)
    embeddings, labels = draw.normal(size=(41, 6)).astype(np.float32), draw.integers(4, size=41)
    expected = by_two_loops(embeddings.astype(float), labels)
    assert 0 < (expected == labels).mean() < 1
    for block in (retrieval.BLOCK, 41 * 3, 1):
        monkeypatch.setattr(retrieval, "BLOCK", block)
        assert retrieval.retrieved(embeddings, labels).tolist() == expected.tolist()
    for scale in (1e-30, 1e30):
        assert retrieval.retrieved(scale * embeddings, labels).tolist() == expected.tolist()
    lengths = draw.uniform(0.1, 9, size=(41, 1)).astype(np.float32)
    assert retrieval.retrieved(lengths * embeddings, labels).tolist() == expected.tolist(), "a cosine"


def test_embeddings_that_say_nothing_find_no_more_than_chance():
    labels = np.arange(100) % 5
    for value in (0.0, 1.0):
        found = retrieval.retrieved(np.full((100, 3), value, np.float32), labels)
        assert scores.score("recall@1", found, labels) == pytest.approx(0.2, abs=0.02)


def test_recall_is_the_accuracy_of_what_is_retrieved():
    draw = np.random.default_rng(0)
    labels, found, other = (draw.integers(5, 8, size=60) for _ in range(3))
    assert scores.score("recall@1", found, labels) == (found == labels).mean()
    assert scores.all_scores(np.zeros((60, 5), np.float32), labels, retrieved=found) == {
        "recall@1": (found == labels).mean()
    }
    known = scores.all_scores(np.eye(8, dtype=np.float32)[labels], labels, retrieved=found)
    assert known["accuracy"] == 1 and known["recall@1"] == (found == labels).mean()
    one, two = (resampling.Resamples(labels, metric) for metric in ("accuracy", "recall@1"))
    assert one.difference([found], [other]) == two.difference([found], [other])


def test_details_are_of_what_is_retrieved_and_of_no_class_without_a_logit():
    labels, found = np.array([3, 3, 4, 4]), np.array([3, 4, 4, 4])
    told = scores.details(np.zeros((4, 3), np.float32), labels, 5, found)
    assert told == {"by_class": [None, None, None, 0.5, 1.0], "reliability": []}


# ----------------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a config and its finished runs."""
    folder = tmp_path_factory.mktemp("metric")
    (folder / "metric.yaml").write_text(TEXT)
    told = command("compare", "metric.yaml", "--quiet", "--json", folder=folder)
    assert told.code == 0, told.err
    return folder, json.loads(told.out)


def test_a_run_is_scored_by_the_embeddings_of_its_network(trained):
    folder, _ = trained
    config = checked(TEXT)
    dataset = assembly.open_dataset(config)
    dataset.load(CPU)
    store = Store(folder / "runs")
    for one in plan(config, dataset).runs:
        result = store.find(one.fingerprint)
        network = assembly.frozen(one, result, dataset.spec, CPU)
        network.tap([network.model.pooled])
        embeddings = [network(batch).features[network.model.pooled] for batch in dataset.split("test")]
        expected = by_two_loops(torch.cat(embeddings).double().numpy(), dataset.labels("test"))
        kept = result.predictions()
        assert kept["retrieved"].tolist() == expected.tolist()
        assert kept["logits"].shape == (20, 3)
        assert result.manifest["scores"] == {"recall@1": (expected == kept["labels"]).mean()}
        assert result.manifest["details"]["classes"] == ["0", "2", "4", "1", "3"]


def test_the_table_has_recall_alone_and_nothing_that_is_untrue_of_it(trained):
    _, compared = trained
    for row in compared["rows"]:
        assert row["metric"] == "recall@1" and 0 <= row["mean"] <= 1
        assert row["protocol"]["unseen"] == "1, 3" and row["protocol"]["test_samples"] == 20
        nothing = ("nll", "brier", "ece", "ece_scaled", "agreement", "copied_errors", "kl_to_teacher")
        assert {row[key] for key in (*nothing, "left_out_recall")} == {None}
        if row["role"] == "student":
            assert row["verdict"] and row["gain_interval"]
            assert 0 <= row["agreement_train"] <= 1, "of classes that both tell apart"


def test_everything_is_compared_without_torch(trained):
    folder, compared = trained
    code = "import sys; from kdrun.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    options = ("--no-train", "--json", "--bootstrap", "--pairs")
    told = process("compare", "metric.yaml", *options, folder=folder, code=code)
    assert told.code == 0, told.err
    again = json.loads(told.out)
    for row, before in zip(again["rows"], compared["rows"], strict=True):
        assert (row.get("bootstrap_interval") is not None) == (row["role"] == "student")
        assert {key: row[key] for key in before} == before
    page = (folder / "runs" / "metric" / "report.html").read_text()
    assert "recall@1 on 20 test samples" in page and "unseen in training: 1, 3" in page
    assert (
        "nearest other" in page
        and "Gain over alone in points in each class" in page
        and "Reliability" not in page
    )


def test_without_unseen_classes_all_other_scores_stay(tmp_path):
    seen = ["dataset.unseen=null", "dataset.validation=0.2"]
    run(TEXT, tmp_path, *seen)
    rows = comparison(tmp_path, "metric")["rows"]
    assert all(row[key] is not None for row in rows for key in ("mean", "nll", "ece", "ece_scaled"))
    alone = next(row for row in rows if row["method"] == "alone")
    found = {place: one.predictions()["logits"].argmax(axis=1) for place, one in results(tmp_path).items()}
    teacher = found["teachers/teacher/seed-0"]
    expected = [(found[f"students/student/alone/seed-{seed}"] == teacher).mean() for seed in (0, 1)]
    assert alone["agreement"] == pytest.approx(np.mean(expected)), "of classes and not of neighbours"
    line = results(tmp_path)["students/student/kd/seed-0"].metrics()[0]
    assert 0 <= line["validation"]["recall@1"] <= 1


def test_the_best_epoch_is_that_of_the_best_recall_on_validation(tmp_path):
    options = [
        "dataset.validation=0.4",
        "training.selection=best-on-validation",
        "training.epochs=4",
        "seeds=[0]",
    ]
    run(TEXT, tmp_path, *options)
    config = checked(TEXT, *options)
    dataset = assembly.open_dataset(config)
    dataset.load(CPU)
    for one in plan(config, dataset).runs:
        result = Store(tmp_path).find(one.fingerprint)
        network = assembly.frozen(one, result, dataset.spec, CPU)
        own = evaluate.score(network, dataset.split("validation"), "recall@1")["recall@1"]
        assert own == max(line["validation"]["recall@1"] for line in result.metrics())


def test_a_student_that_predicts_by_parts_of_a_loss_is_scored_by_what_these_give(tmp_path):
    options = [
        "dataset.shape=[1, 8, 8]",
        "teacher.model={kind: cnn, width: 2, hidden: 6}",
        "student.model={kind: resnet8}",
        "teacher.model={kind: resnet8}",
        "methods=[simkd]",
        "seeds=[0]",
    ]
    run(TEXT, tmp_path, *options)
    found = results(tmp_path)["students/student/simkd/seed-0"]
    assert found.predictions()["retrieved"].shape == (20,)


def test_several_teachers_have_no_embedding_together(tmp_path):
    text = TEXT.replace(TEACHER, "teachers: {a: {model: mlp}, b: {model: mlp, seed: 1}}\n")
    run(text, tmp_path, "methods=[{use: kd, teacher: [a, b]}]")
    rows = comparison(tmp_path, "metric")["rows"]
    assert [row["role"] for row in rows] == ["teacher", "teacher", "control", "student"]
    assert rows[-1]["gap_closed"] is None and rows[-1]["verdict"]


def test_what_was_retrieved_is_looked_at_before_it_is_believed(trained, tmp_path):
    run(TEXT, tmp_path, "seeds=[0]", "methods=[kd]")
    for result in results(tmp_path).values():
        result.manifest["details"]["unseen"] = 1
        with pytest.raises(DamagedError, match="logits"):
            result.predictions()


def test_results_without_the_metric_are_none_of_kdrun_s(tmp_path):
    run(TEXT, tmp_path, "seeds=[0]", "methods=[kd]")
    path = tmp_path / "metric" / "resolved.json"
    write_json(path, read_json(path) | {"metric": "accuracy"})
    with pytest.raises(DamagedError, match="no accuracy"):
        comparison(tmp_path, "metric")


def test_a_teacher_that_learnt_what_is_unseen_here_is_refused(trained):
    folder, _ = trained
    place = folder / "runs" / "metric" / "teachers" / "teacher" / "seed-0"
    again = TEXT.replace(TEACHER, f"teacher: {{run: {place}}}\n")
    finished = experiment(again, folder / "runs", "name=again")
    finished.run()
    rows = comparison(folder / "runs", "again")["rows"]
    assert rows[0]["mean"] == comparison(folder / "runs", "metric")["rows"][0]["mean"]
    with pytest.raises(ConfigError, match=r"other test samples .* write `unseen: "):
        experiment(again, folder / "runs", "name=other", "dataset.unseen=[0, 3]").run()
    with pytest.raises(ConfigError, match="tells 3 classes apart, and the data set has 5"):
        experiment(again, folder / "runs", "name=all", "dataset.unseen=null")


def test_a_trial_is_scored_by_recall_on_validation(tmp_path):
    pytest.importorskip("optuna")
    from kdrun.tune import tune

    told = tune(experiment(TEXT, tmp_path, "dataset.validation=0.3", "methods=[kd]"), 2)
    assert told["metric"] == "recall@1"
    assert all(0 <= one["score"] <= 1 for one in told["runs"])


def test_equal_configs_come_to_equal_results(trained, tmp_path):
    folder, _ = trained
    run(TEXT, tmp_path)
    mine = {place: files for place, files in outcome(folder / "runs").items() if place in outcome(tmp_path)}
    hashes = [
        {place: one["files"]["predictions.npz"]["sha256"] for place, one in found.items()}
        for found in (mine, outcome(tmp_path))
    ]
    assert hashes[0] == hashes[1]
