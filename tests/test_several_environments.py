"""One student for several environments: a head for each, its own teacher in each, and how it is scored."""

import io
import os
import re
import signal
import textwrap

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image

from kdrun import assembly, bookkeeping, compare, models, registry
from kdrun.contracts import LEFT_OUT, Draw, Outputs
from kdrun.data.gym import Gym
from kdrun.data.gyms import Gyms
from kdrun.errors import ConfigError, DataError, Interrupted
from kdrun.evaluate import predict
from kdrun.evidence import write_report
from kdrun.models import heads_for, macs, parameters
from kdrun.report import table
from kdrun.statistics.returns import reward_step
from kdrun.store import Store
from support import checked, experiment, outcome, problems, results, run

gymnasium = pytest.importorskip("gymnasium")

CPU = torch.device("cpu")
POLE, CAR = [[0.0] * 4, [0.1, 0.3, 1.0, 1.0]], [[0.0, -1.0], [0.0, 0.0], [0.0, 1.0]]
"""Linear policies: the pole is pushed where it falls, and the car where it goes."""
ENVIRONMENTS = "{pole: {env: CartPole-v1, options: {max_episode_steps: 40}}, car: {env: MountainCar-v0}}"
TEXT = """
    name: several
    device: cpu
    dataset:
      kind: gyms
      environments: ENVIRONMENTS
      states: 120
      episodes: 3
    seeds: [0]
    training: {epochs: 2, batch_size: 30, optimizer: {kind: adam, lr: 0.01}}
    teachers:
      pole-teacher: {model: {kind: mlp, hidden: []}, weights: POLE, environment: pole}
      car-teacher: {model: {kind: mlp, hidden: []}, weights: CAR, environment: car}
      teachers: {model: specialists, from: [car-teacher, pole-teacher]}
    students:
      both: {model: {kind: mlp, hidden: [8]}, view: scaled}
      pole: {model: {kind: mlp, hidden: [8]}, view: scaled, environment: pole}
    controls: none
    methods: [{name: copy, losses: [{kind: hard}]}]
"""
ONE = """
    name: one
    device: cpu
    dataset: {kind: gym, env: CartPole-v1, options: {max_episode_steps: 40}, states: 120, episodes: 3}
    seeds: [0]
    training: {epochs: 2, batch_size: 30, optimizer: {kind: adam, lr: 0.01}}
    teacher: {model: {kind: mlp, hidden: []}, weights: POLE}
    student: {model: {kind: mlp, hidden: [8]}, view: scaled}
    controls: none
    methods: [{name: copy, losses: [{kind: hard}]}]
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Puts the teachers' weights, and the environments, into a config's text."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, weight in (("POLE", POLE), ("CAR", CAR)):
        state = {"classifier.weight": torch.tensor(weight), "classifier.bias": torch.zeros(len(weight))}
        safetensors.torch.save_file(state, folder / f"{name}.safetensors")

    def write(text):
        text = text.replace("ENVIRONMENTS", ENVIRONMENTS)
        return re.sub("weights: (POLE|CAR)", rf"weights: {folder}/\1.safetensors", text)

    return write


@pytest.fixture(scope="module")
def finished(written, tmp_path_factory):
    """The results of the experiment, by their place."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gyms, "film", lambda *_: None)
        patch.setattr(Gym, "film", lambda *_: None)
        run(written(TEXT), root)
    return results(root)


@pytest.fixture
def unfilmed(monkeypatch):
    """Films take as long as all else together."""
    monkeypatch.setattr(Gyms, "film", lambda *_: None)
    monkeypatch.setattr(Gym, "film", lambda *_: None)


@pytest.fixture
def shown(written):
    """The data set as the teachers show it, and the teachers as one."""
    one = experiment(written(TEXT), "runs")
    one.dataset.load(CPU)
    teachers = _specialists(one)
    return one.dataset.shown_by("teachers", lambda: teachers), teachers


def _specialists(one):
    """The teachers of an experiment, as one."""
    runs = {run_.name: run_ for run_ in one.plan.runs if run_.role == "teacher"}
    members = {
        run_: assembly.from_file(run_, one.dataset.spec, CPU) for run_ in runs["teachers"].teachers.values()
    }
    return assembly.Frozen(
        assembly.of_members(runs["teachers"], [*members.values()], one.dataset.spec), "observation", CPU
    )


def _gyms(**options):
    written = {"pole": {"env": "CartPole-v1"}, "car": {"env": "MountainCar-v0"}}
    return Gyms(Gyms.Config(kind="gyms", environments=written, **options))


# ----------------------------------------------------------------------------------------- inputs and heads


def test_a_view_is_those_of_all_environments_and_then_which_one_it_is():
    spec = _gyms().spec
    pole, car = (part.random_batch(2, seed) for seed, part in enumerate(spec.parts.values()))
    joined = spec.joined({"pole": pole, "car": car})
    assert spec.shapes == {"observation": (8,), "scaled": (8,)}
    assert spec.classes == 3, "as many as there are actions where there are most"
    for view in spec.shapes:
        x = joined.views[view]
        assert torch.equal(x[:2, :4], pole.views[view])
        assert torch.equal(x[2:, 4:6], car.views[view])
        assert x[:, 6:].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
        assert not x[:2, 4:6].any() and not x[2:, :4].any()
    assert joined.labels.tolist() == [*pole.labels.tolist(), *car.labels.tolist()]
    assert joined.parts == (("pole", 2, 2), ("car", 2, 3))


def test_the_names_of_the_numbers_tell_the_environment():
    dataset = _gyms()
    units = dataset.units("scaled")
    assert units.names[0] == "pole: cart position (m)" and units.names[4] == "car: position"
    assert units.names[6:] == ("is pole", "is car")
    assert units.seen(units.raw(np.ones(1), 6), 6) == 1
    assert dataset.class_names == ["push left", "push right / coast", "push right"]


@pytest.fixture
def network():
    """A network with heads for both environments, and their form."""
    spec = _gyms().spec
    config = registry.MODELS["mlp"].Config(kind="mlp", hidden=[5])
    return models.build(config, (8,), spec.classes, 0, heads=heads_for(spec, CPU)), spec


def test_a_sample_is_answered_by_the_head_of_its_environment_to_the_bit(network):
    model, spec = network
    x = spec.random_batch(6).views["observation"]
    every = model.classifier(model.body(x))
    said = model(x)
    assert every.shape == (6, 6) and said.shape == (6, 3)
    assert torch.equal(said[:3, :2], every[:3, :2])
    assert torch.equal(said[3:], every[3:, 3:])
    assert (said[:3, 2] == torch.tensor(LEFT_OUT)).all(), "the pole is not pushed in a third way"


def test_no_environment_teaches_the_head_of_another(network):
    model, spec = network
    pole = spec.joined({"pole": spec.parts["pole"].random_batch(4)})
    model(pole.views["observation"])[:, :2].square().sum().backward()
    gradient = model.classifier.weight.grad
    assert gradient[:2].any(dim=1).all() and not gradient[2:].any()
    assert model.body[0][0].weight.grad.any(), "and the body learns from all"


def test_a_copy_of_a_network_has_the_same_heads(network):
    model, spec = network
    x = spec.random_batch(5).views["observation"]
    copied = models.Network(model, "observation", CPU).copied(model, model.state_dict())
    assert torch.equal(copied.look(x).logits, model(x))


def test_what_heads_cost_is_the_classifier_s_outputs(network):
    model, _ = network
    assert parameters(model) == (8 + 1) * 5 + (5 + 1) * 6
    assert macs(model, (8,)) == 8 * 5 + 5 * 6


# ------------------------------------------------------------------------------------------ the teachers


def test_specialists_say_what_the_teacher_of_each_environment_says(shown):
    dataset, teachers = shown
    batch = dataset.spec.random_batch(6)
    said, x = teachers(batch).logits, batch.views["observation"]
    pole, car = torch.tensor(POLE), torch.tensor(CAR)
    assert torch.allclose(said[:3, :2], x[:3, :4] @ pole.T)
    assert torch.allclose(said[3:], x[3:, 4:6] @ car.T)
    assert (said[:3, 2] == torch.tensor(LEFT_OUT)).all()
    assert macs(teachers.model, (8,)) == 4 * 2 + 2 * 3
    assert parameters(teachers.model) == 5 * 2 + 3 * 3


def test_specialists_of_other_views_are_no_teacher(written):
    with pytest.raises(ConfigError, match="its members see several views: observation, scaled"):
        experiment(written(TEXT), "runs", "teachers.car-teacher.view=scaled").run()


# --------------------------------------------------------------------------------------- what is learnt from


def test_a_batch_has_as_many_states_of_each_environment_and_what_its_teacher_does_there(shown):
    dataset, teachers = shown
    draw = Draw(seed=3, batch_size=31)
    batches = [*dataset.batches(draw, 1)]
    assert len(batches) == dataset.steps(draw) == 120 // 16
    labels = torch.from_numpy(dataset.labels("train"))
    for batch in batches:
        assert [(part.environment, part.samples) for part in batch.parts] == [("pole", 16), ("car", 15)]
        assert torch.equal(batch.labels, labels[batch.index]), "the index is the place among all"
        assert torch.equal(batch.labels, teachers(batch).logits.argmax(dim=1))
    assert len({int(place) for batch in batches for place in batch.index}) == 31 * 7, (
        "no state twice an epoch"
    )


def test_batches_go_on_where_they_were_left(shown):
    dataset, _ = shown
    draw = Draw(seed=3, batch_size=20)
    whole, rest = [*dataset.batches(draw, 2)], [*dataset.batches(draw, 2, first=9)]
    assert len(rest) == 3
    for one, other in zip(whole[9:], rest, strict=True):
        assert torch.equal(one.views["scaled"], other.views["scaled"]) and torch.equal(one.index, other.index)


def test_each_environment_is_as_it_is_alone(shown):
    dataset, _ = shown
    for name, part in dataset.parts.items():
        alone = Gym(Gym.Config(kind="gym", **dict(dataset.config.environments[name]), states=120, episodes=3))
        alone.load(CPU)
        alone = alone.shown_by("teacher", lambda part=part: part.demonstrator)
        assert np.array_equal(alone.labels("train"), part.labels("train"))
        assert torch.equal(
            next(alone.split("test")).views["scaled"], next(part.split("test")).views["scaled"]
        )
        assert alone.test_hash() == part.test_hash()


@pytest.mark.parametrize(
    "losses",
    [
        "[{kind: ce, label_smoothing: 0.3}]",
        "[{kind: hard}]",
        "[{kind: kd, temperature: 2}]",
        "[{kind: kd, logit_standardization: true}]",
        "[{kind: logit-mse}]",
        "[{kind: hard, mask: {kind: teacher-confident, confidence: 0.5}}]",
    ],
)
def test_a_term_is_the_mean_over_environments_of_what_it_is_there(written, shown, losses):
    """And nothing of it comes from actions that an environment does not have."""
    dataset, teachers = shown
    one = experiment(written(TEXT), "runs", f"methods=[{{name: x, losses: {losses}}}]")
    [run_] = [r for r in one.plan.runs if (r.name, r.method) == ("both", "x")]
    student = assembly.make_student(run_, {"teachers": teachers}, dataset, CPU)
    batch = next(dataset.batches(Draw(seed=0, batch_size=32), 0))
    said, taught = student.network(batch), teachers(batch)
    [value] = student.objective(said, {"teachers": taught}, batch).values()
    [term] = student.objective.named.values()
    each = []
    for rows, actions in ((slice(0, 16), 2), (slice(16, 32), 3)):
        own = batch.rows(rows)
        assert not own.parts
        heard = {"teachers": Outputs(taught.logits[rows, :actions])}
        each.append(term(Outputs(said.logits[rows, :actions]), heard, own))
    assert torch.isclose(value, torch.stack(each).mean()) and 0 < value < 100


def test_nothing_is_shuffled_over_environments(written, shown):
    dataset, teachers = shown
    one = experiment(written(TEXT), "runs", "controls=[shuffled-teacher]")
    [run_] = [r for r in one.plan.runs if (r.name, r.method) == ("both", "shuffled-teacher")]
    student = assembly.make_student(run_, {"teachers": teachers}, dataset, CPU)
    batch = next(dataset.batches(Draw(seed=0, batch_size=32), 0))
    values = student.objective(student.network(batch), {"teachers": teachers(batch)}, batch)
    assert all(0 < value.item() < 100 for value in values.values()), "of what is left out it would be endless"


def test_states_are_gathered_in_each_environment(written, tmp_path, unfilmed):
    rollouts = "training.rollouts={source: student, states: 20, start: 50}"
    one = experiment(written(TEXT), tmp_path, rollouts)
    one.dataset.load(CPU)
    teachers = _specialists(one)
    dataset = one.dataset.shown_by("teachers", lambda: teachers)
    [run_] = [r for r in one.plan.runs if (r.name, r.method) == ("both", "copy")]
    student = assembly.make_student(run_, {"teachers": teachers}, dataset, CPU)
    for epoch, there in ((0, 50), (1, 70), (2, 90)):
        dataset.refresh(epoch, [student])
        sizes = {name: len(student.gathered[f"{name}/labels"]) for name in ("pole", "car")}
        assert sizes == {"pole": there, "car": there}
        batch = next(dataset.batches(student.draw, epoch))
        assert torch.equal(batch.labels, teachers(batch).logits.argmax(dim=1))
    assert student.gathered["pole/observations"].shape == (90, 4)
    assert student.gathered["car/observations"].shape == (90, 2)


# ------------------------------------------------------------------------------------------------- scores


def test_the_score_is_the_mean_over_environments_of_the_normalised_return(finished):
    result = finished["students/both/copy/seed-0"]
    found, protocol = result.predictions(), result.manifest["protocol"]
    scores, each = result.manifest["scores"], []
    for name in ("pole", "car"):
        rows = found["environment"] == name
        random, best = protocol["random_return"][name], protocol["demonstrator_return"][name]
        assert random < best
        assert rows.sum() == 3
        assert np.allclose(found["normalised"][rows], (found["returns"][rows] - random) / (best - random))
        assert scores[f"return in {name}"] == pytest.approx(found["returns"][rows].mean())
        each.append(found["normalised"][rows].mean())
    assert scores["normalised-return"] == pytest.approx(np.mean(each))
    assert "return" not in scores, "of a sum of other rewards in each environment nothing can be said"
    assert protocol["test_samples"] == 6


def test_the_teachers_score_one_and_get_what_each_gets_alone(finished):
    scores = finished["teachers/teachers/seed-0"].manifest["scores"]
    assert scores["normalised-return"] == pytest.approx(1)
    for name in ("pole", "car"):
        alone = finished[f"teachers/{name}-teacher/seed-0"].manifest["scores"]
        assert scores[f"return in {name}"] == alone["return"]


def test_random_actions_are_the_same_every_time():
    pole = Gym(Gym.Config(kind="gym", env="CartPole-v1", episodes=4))
    assert np.array_equal(pole.at_random("test"), pole.at_random("test"))
    assert not np.array_equal(pole.at_random("test"), pole.at_random("validation"))
    assert len({*pole.at_random("test")}) > 1, "each episode has its own"
    many = Gym(Gym.Config(kind="gym", env="CartPole-v1", episodes=100)).at_random("test")
    assert 15 < many.mean() < 35, "about 22, as is known of CartPole"


def test_a_teacher_that_is_no_better_than_chance_measures_nothing():
    dataset = _gyms(states=10, episodes=2)
    dataset.load(CPU)
    shown = dataset.shown_by("zero", lambda: lambda batch: Outputs(torch.zeros(len(batch), 3)))
    with pytest.raises(DataError, match=r"environments\.pole: its teacher gets .* take a better"):
        shown.measures("test")


def test_agreement_is_told_of_each_environment(finished):
    manifest = finished["students/both/copy/seed-0"].manifest
    for split in ("train", "test", "own"):
        figures = manifest["likeness"][split]
        assert figures["within"].keys() == {"pole", "car"}
        assert min(of["agreement"] for of in figures["within"].values()) <= figures["agreement"]
        assert figures["agreement"] <= max(of["agreement"] for of in figures["within"].values())
    assert "within" not in finished["students/pole/copy/seed-0"].manifest["likeness"]["test"]


def test_the_best_on_validation_episodes_is_kept(written, tmp_path, unfilmed):
    run(written(TEXT), tmp_path, "dataset.validation=0.2", "training.selection=best-on-validation")
    lines = results(tmp_path)["students/both/copy/seed-0"].metrics()
    assert all({"normalised-return", "return in car"} <= line["validation"].keys() for line in lines)


def test_a_film_is_of_all_environments():
    dataset = _gyms()
    dataset.load(CPU)
    film = dataset.film(lambda batch: Outputs(torch.zeros(len(batch), 3)))
    picture = Image.open(io.BytesIO(film))
    assert picture.n_frames > 100, "the car alone has 100"


# -------------------------------------------------------------------------- beside students of one environment


def test_who_is_for_one_environment_is_the_run_that_it_is_in_a_config_of_that_one(
    written, tmp_path, unfilmed
):
    """Fingerprints are those of ``gym``, so nothing is trained twice."""
    run(written(ONE), tmp_path)
    one = experiment(written(TEXT), tmp_path)
    alike = {
        (run_.role, run_.name, run_.method): one.finished(run_) is not None
        for run_ in one.plan.runs
        if run_.environment == "pole"
    }
    assert alike == {
        ("teacher", "pole-teacher", None): True,
        ("student", "pole", "alone"): True,
        ("student", "pole", "copy"): True,
    }


def test_each_student_learns_from_the_teacher_of_its_environment(written):
    planned = experiment(written(TEXT), "runs", "students.car={model: mlp, environment: car}").plan
    taught = {run_.name: [*run_.teachers] for run_ in planned.runs if run_.method == "copy"}
    assert taught == {"both": ["teachers"], "pole": ["pole-teacher"], "car": ["car-teacher"]}
    shown = {run_.name: run_.demonstrator.name for run_ in planned.runs if run_.role == "student"}
    assert shown == {"both": "teachers", "pole": "pole-teacher", "car": "car-teacher"}


def test_teachers_of_two_environments_never_train_in_lock_step(written):
    planned = experiment(written(TEXT), "runs").plan
    for group in planned.groups(planned.runs):
        assert len({run_.environment for run_ in group}) == 1


def test_a_tree_learns_in_one_environment(written, tmp_path, unfilmed):
    run(written(TEXT), tmp_path, "students={tree: {model: {kind: tree, depth: 2}, environment: pole}}")
    assert results(tmp_path)["students/tree/copy/seed-0"].rules() is not None


def test_stacked_students_learn_what_they_learn_alone(written, tmp_path, unfilmed):
    two = "methods=[{name: copy, losses: [{kind: hard}]}, {name: kd, losses: [{kind: kd}]}]"
    for name, stack in (("alone", "false"), ("stacked", "true")):
        run(written(TEXT), tmp_path / name, two, "seeds=[0, 1]", f"training.stack={stack}")
    alone, stacked = results(tmp_path / "alone"), results(tmp_path / "stacked")
    for place in (f"students/both/{method}/seed-{seed}" for method in ("copy", "kd") for seed in (0, 1)):
        for name, weights in alone[place].weights().items():
            assert np.allclose(weights, stacked[place].weights()[name], atol=1e-4)


@pytest.mark.parametrize("step", [5, 8, 13])
def test_stopped_while_states_are_gathered_it_goes_on_to_the_same_bits(
    written, tmp_path, monkeypatch, unfilmed, step
):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    text, rollouts = written(TEXT), "training.rollouts={source: student, states: 20, start: 50}"
    run(text, tmp_path / "whole", rollouts)
    original = bookkeeping.Keeper.pause

    def pause(self):
        if self.seats and self.progress[1] == step:
            self.stop.signal = signal.SIGTERM
        original(self)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(bookkeeping.Keeper, "pause", pause)
        run(text, tmp_path / "pieces", rollouts)
    assert [*(tmp_path / "pieces").rglob(f"checkpoint-{step}")]
    run(text, tmp_path / "pieces", rollouts)
    assert outcome(tmp_path / "pieces") == outcome(tmp_path / "whole")


def test_what_is_stored_says_the_same(written, tmp_path, unfilmed):
    one = experiment(written(TEXT), tmp_path)
    one.run()
    [run_] = [r for r in one.plan.runs if (r.name, r.method) == ("both", "copy")]
    dataset = assembly.shown(run_, one.finished, one.dataset, CPU)
    network = assembly.frozen(run_, one.finished(run_), one.dataset.spec, CPU)
    stored = one.finished(run_).predictions()
    assert np.array_equal(predict(network, dataset.split("test"))["logits"], stored["logits"])
    teacher = assembly.teacher(run_.demonstrator, one.finished(run_.demonstrator), dataset, CPU, True)
    assert torch.equal(
        torch.from_numpy(stored["labels"]),
        torch.cat([teacher(batch).logits.argmax(dim=1) for batch in dataset.split("test")]),
    )


# ---------------------------------------------------------------------------------------------- the table


@pytest.fixture(scope="module")
def compared(written, tmp_path_factory):
    """A comparison of students of both environments and of one each, by two seeds, and the folder of its runs."""
    root = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gyms, "film", lambda *_: None)
        patch.setattr(Gym, "film", lambda *_: None)
        run(written(TEXT), root, "seeds=[0, 1]")
    parts = compare.materials(Store(root), ["several"])
    return compare.comparison(parts), parts, root


def test_every_row_has_the_score_of_its_own_and_the_return_in_each_environment(compared):
    rows, _, root = compared
    found = {(row["model"], row["method"]): row for row in rows["rows"]}
    assert {who: (row["environment"], row["metric"]) for who, row in found.items()} == {
        ("pole-teacher", None): ("pole", "return"),
        ("pole", "alone"): ("pole", "return"),
        ("pole", "copy"): ("pole", "return"),
        ("car-teacher", None): ("car", "return"),
        ("teachers", None): (None, "normalised-return"),
        ("both", "alone"): (None, "normalised-return"),
        ("both", "copy"): (None, "normalised-return"),
    }
    both, stored = found["both", "copy"], results(root)
    seeds = [stored[f"students/both/copy/seed-{seed}"].manifest["scores"] for seed in (0, 1)]
    assert both["returns"] == {
        name: pytest.approx(np.mean([one[f"return in {name}"] for one in seeds])) for name in ("pole", "car")
    }
    assert both["mean"] == pytest.approx(np.mean([one["normalised-return"] for one in seeds]))
    assert found["pole", "copy"]["returns"] == {"pole": found["pole", "copy"]["mean"]}
    assert found["teachers", None]["role"] == "teacher" and found["teachers", None]["against"] is None


def test_who_is_for_other_environments_stands_in_another_table(compared):
    tables = table.tables(compared[0])
    assert [{row["model"] for row in one.rows} for one in tables] == [
        {"pole-teacher", "pole"},
        {"teachers", "both"},
    ]
    heads = [table.cells(one.rows, every=False)[0] for one in tables]
    assert "return" in heads[0] and "return in pole" not in heads[0]
    assert {"normalised return %", "return in pole", "return in car"} <= {*heads[1]}
    [mixed] = table.tables(compared[0], mixed=True)
    head, lines = table.cells(mixed.rows)
    pole = [line[head.index("return in pole")] for line in lines if line[head.index("model")] == "pole copy"]
    row = next(row for row in mixed.rows if (row["model"], row["method"]) == ("pole", "copy"))
    assert pole == [f"{row['mean']:.2f}"], "beside that of who acts in both"


def test_the_least_difference_is_that_of_one_reward_in_one_environment(compared):
    _, parts, _ = compared
    several = next(part for part in parts if part.environment is None)
    pole = [several.outcomes(run)[:3] for run in several.results]
    car = [several.outcomes(run)[3:] for run in several.results]
    assert several.step == pytest.approx(min(reward_step(pole), reward_step(car)) / 6)


def test_a_report_is_written_of_them(compared):
    rows, parts, root = compared
    write_report(root / "several", rows, parts, mixed=False)
    page = (root / "several/report.html").read_text()
    assert "return in pole" in page and "by the mean returns of random actions" in page


def test_one_environment_compares_as_ever(written, tmp_path, unfilmed):
    run(written(ONE), tmp_path)
    rows = compare.comparison(compare.materials(Store(tmp_path), ["one"]))["rows"]
    assert all(row["returns"] is None and row["environment"] is None for row in rows)
    assert not any(name.startswith("return in") for name in table.cells(rows)[0])


# ----------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("teachers.pole-teacher.environment=pola", "no environment 'pola'; did you mean 'pole'"),
        ("students.pole.environment=pola", "no environment 'pola'; did you mean 'pole'"),
        ("teachers.pole-teacher.environment=car", "'pole-teacher' is the teacher of 'car' already"),
        ("teachers.teachers.from=[pole-teacher, pole-teacher]", "not one teacher for each of pole, car"),
        ("teachers.teachers.environment=car", "'specialists' act in all environments"),
        ("teachers.more={model: mlp, weights: POLE}", "nobody says in which environment 'more' acts"),
        ("students.both.model=tree", "'tree' has no heads"),
        ("students.both.normalization={mean: [0], std: [2]}", "of several environments, and tell which"),
        ("methods=[{name: x, teacher: car-teacher, losses: [{kind: kd}]}]", "learns from the teacher of its"),
        ("methods=[{name: x, losses: [{kind: kd, teacher: teachers}]}]", "learns from the teacher of its"),
        ("methods=[hint]", "'hint' looks at more than logits"),
        ("methods=[mutual]", "'mutual' looks at more than logits, or keeps"),
        ("dataset.environments.pole.env=CartPole-v9", "no environment 'CartPole-v9'"),
        ("dataset.environments.pole.physics={lenght: 2}", "no such number"),
        ("dataset.environments={pole: {env: CartPole-v1}}", "has 1 entries; write 2 or more"),
        ("dataset.labels_per_class=3", "says nothing of states"),
    ],
)
def test_every_mistake_is_told(written, change, told):
    with pytest.raises(ConfigError) as caught:
        experiment(written(TEXT), "runs", written(change))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("teachers={pole-teacher: {model: mlp, weights: POLE, environment: pole}}", "'both' acts in all"),
        ("students.car={model: mlp, environment: car}", "'car' acts in 'car', and no teacher does"),
    ],
)
def test_who_has_no_teacher_is_told(written, change, told):
    only = "teachers={pole-teacher: {model: {kind: mlp, hidden: []}, weights: POLE, environment: pole}}"
    assert told in problems(written(TEXT), written(only), written(change))


def test_a_mistake_in_an_environment_points_at_it(written):
    message = problems(written(TEXT), "dataset.environments.pole.evn=x")
    assert "evn" in message and "has not several environments" not in message, "for it may have"


def test_a_mistake_in_a_teacher_is_told_alone(written):
    message = problems(written(TEXT), "teachers.pole-teacher.modell=mlp")
    assert "modell" in message and "names none of" not in message and "nobody says" not in message


@pytest.mark.parametrize("wrong", ["normalization={mean: [0], std: [0]}", "resize=0", "expect=high"])
def test_what_is_wrong_of_what_a_teacher_sees_leaves_its_environment(written, wrong):
    message = problems(written(TEXT), f"teachers.pole-teacher.{wrong}")
    assert f"teachers.pole-teacher.{wrong.partition('=')[0]}" in message and "nobody says" not in message


def test_a_teacher_of_all_is_measured_by_itself_and_expects_nothing(written):
    assert "its normalised return is 1" in problems(written(TEXT), "teachers.teachers.expect=0.9")


def test_a_data_set_of_one_environment_has_no_other(written):
    assert "has not several environments" in problems(written(ONE), "student.environment=pole")
    third = "teachers={a: {model: mlp, weights: POLE}, b: {model: specialists, from: [a, a]}}"
    assert "'specialists' are for several environments" in problems(
        textwrap.dedent(ONE).replace("teacher: {", "#"), written(third)
    )


def test_a_name_of_an_environment_is_a_word(written):
    assert "is no name of an environment" in problems(
        written(TEXT).replace("{pole: {env", "{'a/b': {env"), "students.pole.environment=car"
    )


def test_what_asks_for_nothing_is_not_there(written):
    """Configs of one environment have the fingerprints that they had."""
    for run_ in experiment(written(ONE), "runs").plan.runs:
        assert "environment" not in run_.inputs
    assert checked(written(ONE)).experiment.students["student"].environment is None


def test_loss_of_a_head_is_as_of_a_network_of_its_own(network):
    """With one head for each, the cross-entropy over own actions is that of a network with these outputs alone."""
    model, spec = network
    batch = spec.joined({"pole": spec.parts["pole"].random_batch(4)})
    said = model(batch.views["observation"])
    own = F.linear(
        model.body(batch.views["observation"]), model.classifier.weight[:2], model.classifier.bias[:2]
    )
    assert torch.allclose(F.cross_entropy(said, batch.labels), F.cross_entropy(own, batch.labels)), (
        "what is left out has no probability"
    )
