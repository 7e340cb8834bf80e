"""States of environments: every episode by its own seed, who shows them, who gathers more, and what is scored."""

import io
import os
import signal
from contextlib import suppress
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from kdrun import agents, bookkeeping, models, registry, rehearsal, trees
from kdrun.contracts import Draw, Outputs, Rollouts
from kdrun.data import episodes, experience
from kdrun.data.episodes import EnvironmentConfig, play, seed_of
from kdrun.errors import ConfigError, DataError, Interrupted
from support import checked, comparison, outcome, problems, results, run

gymnasium = pytest.importorskip("gymnasium", reason="needs the extra `rl`")
CPU = torch.device("cpu")
POLE, CAR = EnvironmentConfig(env="CartPole-v1"), EnvironmentConfig(env="MountainCar-v0")
TEXT = """\
name: act
dataset: {{kind: gym, env: CartPole-v1, states: 300, episodes: 6}}
device: cpu
seeds: [0]
training: {{epochs: 3, batch_size: 50}}
teacher: {{model: {{kind: mlp, hidden: [2]}}, weights: {weights}}}
student: {{model: {{kind: mlp, hidden: [4]}}}}
controls: none
methods:
  - {{name: copy, losses: [{{kind: hard}}]}}
  - {{name: dagger, losses: [{{kind: hard}}], training: {{rollouts: {{states: 100, start: 100}}}}}}
"""


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Nothing here cuts the power, so nothing has to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def policy_file(folder, sharp=1.0):
    """Weights of a network that balances the pole: the sign of a sum, by two rectified ones."""
    config = registry.MODELS["mlp"].Config(kind="mlp", hidden=[2])
    model = models.build(config, (4,), 2, 0)
    first, last = (layer for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    lean = torch.tensor([0.05, 0.3, 4.0, 1.0])
    with torch.no_grad():
        first.weight.copy_(torch.stack([lean, -lean]))
        last.weight.copy_(sharp * torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        first.bias.zero_()
        last.bias.zero_()
    file = folder / f"policy-{sharp}.safetensors"
    save_file(model.state_dict(), file)
    return file


@pytest.fixture
def text(tmp_path):
    return TEXT.format(weights=policy_file(tmp_path))


def pushing(observations, seeds):
    """To the right where the pole leans to the right."""
    return (observations[:, 2] > 0).astype(np.int64)


class Leaning:
    """The same as a predictor."""

    def __call__(self, batch):
        lean = batch.views["observation"][:, 2]
        return Outputs(torch.stack([-lean, lean], dim=1))


class Constant:
    """Always the same action."""

    def __init__(self, action, actions=2):
        self.logits = torch.nn.functional.one_hot(torch.tensor(action), actions).float()

    def __call__(self, batch):
        return Outputs(self.logits.expand(len(batch), -1))


def opened(**options):
    component = registry.DATASETS["gym"]
    written = {"kind": "gym", "env": "CartPole-v1", "states": 300, "episodes": 5} | options
    dataset = component(component.Config.model_validate(written))
    dataset.load(CPU)
    return dataset


def shown(**options):
    return opened(**options).shown_by("leaning", Leaning)


# ---------------------------------------------------------------------------------------------- episodes


def test_an_episode_is_decided_by_its_seed_and_not_by_its_company():
    seeds = [seed_of("test", number) for number in range(6)]
    together = play(POLE, pushing, seeds)
    for episode, seed in zip(together, seeds, strict=True):
        [alone] = play(POLE, pushing, [seed])
        assert alone.seed == episode.seed == seed
        for one, other in zip(alone[1:], episode[1:], strict=True):
            assert np.array_equal(one, other)
    assert len({len(episode) for episode in together}) > 1


def test_no_seed_is_for_two_purposes():
    seeds = {purpose: {seed_of(purpose, 0, n) for n in range(500)} for purpose in episodes.PURPOSES}
    assert sum(map(len, seeds.values())) == len(set().union(*seeds.values())) == 4 * 500
    assert all(0 <= seed < 2**31 for of in seeds.values() for seed in of)


def test_what_ends_an_episode_is_told_apart():
    [fallen] = play(POLE, lambda seen, seeds: np.ones(len(seen), np.int64), [1])
    [cut] = play(CAR, lambda seen, seeds: np.ones(len(seen), np.int64), [1])
    assert fallen.terminated and len(fallen) < 20
    assert not cut.terminated and len(cut) == 200 and cut.rewards.sum() == -200
    assert cut.observations.shape == (200, 2) and cut.last.shape == (2,)


def test_physics_are_changed_with_what_follows_from_them():
    bare = episodes.opened(
        EnvironmentConfig(env="CartPole-v1", physics={"length": 1.0, "masspole": 0.2})
    ).unwrapped
    assert bare.polemass_length == 0.2 * 1.0 and bare.total_mass == 1.2
    [usual] = play(POLE, pushing, [3])
    [heavy] = play(EnvironmentConfig(env="CartPole-v1", physics={"gravity": 20}), pushing, [3])
    assert np.array_equal(usual.observations[0], heavy.observations[0])
    assert not np.array_equal(usual.observations[2], heavy.observations[2])


def test_a_film_is_of_the_episode():
    told = []
    film = episodes.film(POLE, pushing, 1, told.append)
    [episode] = play(POLE, pushing, [1])
    with Image.open(io.BytesIO(film)) as pictures:
        assert pictures.n_frames == min(len(episode) + 1, episodes.FRAMES)
    assert film == episodes.film(POLE, pushing, 1, told.append) and not told


def onwards(observations, seeds):
    """To the right."""
    return np.ones(len(observations), np.int64)


class Corridor(gymnasium.Env):
    """Two steps to the right; it is drawn as ``picture`` says."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None, picture="none"):
        self.render_mode, self.picture = render_mode, picture

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0.0
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.place += 1 if action else -1
        return np.array([self.place], np.float32), 1.0, self.place == 2, False, {}

    def render(self):
        if self.picture == "lacking":
            raise gymnasium.error.DependencyNotInstalled("pygame is not installed, run `pip install pygame`")
        return {"none": None, "picture": np.zeros((4, 4, 3), np.uint8)}[self.picture]


class Undrawn(Corridor):
    """One that says that it cannot be drawn."""

    metadata: ClassVar = {"render_modes": []}


@pytest.fixture
def registered(monkeypatch):
    """Registers a class as an environment, until the test is over."""
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))

    def register(environment, steps=9):
        gymnasium.register("Own-v0", environment, max_episode_steps=steps)
        return EnvironmentConfig(env="Own-v0", options={"picture": "picture"})

    return register


@pytest.mark.parametrize(
    ("environment", "picture", "words"),
    [
        (Corridor, "lacking", "run `pip install pygame`"),
        (Corridor, "none", "no episode of 'Own-v0' is shown"),
        (Corridor, "unheard-of", "KeyError"),
        (Undrawn, "picture", "it has no `render_mode` 'rgb_array'"),
    ],
)
def test_what_cannot_be_drawn_is_told_and_costs_no_training(registered, recwarn, environment, picture, words):
    told, config = [], registered(environment)
    assert episodes.film(config, onwards, 1, told.append) is not None or environment is Undrawn
    own = config.model_copy(update={"options": {"picture": picture}})
    told.clear()
    assert episodes.film(own, onwards, 1, told.append) is None
    assert words in " ".join(told) and not recwarn.list


@pytest.mark.parametrize("options", [{}, {"max_episode_steps": -1}])
def test_an_environment_whose_episodes_may_never_end_is_refused(registered, options):
    own = registered(Corridor, None if not options else 9).model_copy(update={"options": options})
    with pytest.raises(DataError, match=r"options: {max_episode_steps: 500}"):
        episodes.opened(own)
    limited = own.model_copy(update={"options": {"max_episode_steps": 3}})
    [episode] = play(limited, lambda seen, seeds: np.zeros(len(seen), np.int64), [1])
    assert len(episode) == 3 and not episode.terminated


class Reusing(Corridor):
    """One that hands out its own state, and changes that in each step."""

    def reset(self, *, seed=None, options=None):
        self.state, _ = super().reset(seed=seed)
        return self.state, {}

    def step(self, action):
        self.state[:], *rest = super().step(action)
        return self.state, *rest


def test_what_was_observed_stays_as_it_was(registered):
    config = registered(Reusing)
    [episode] = play(config, onwards, [1])
    assert episode.observations.tolist() == [[0.0], [1.0]] and episode.last.tolist() == [2.0]
    stretches, _ = experience.gather(config, lambda seen: onwards(seen, ()), 16, [], iter(range(8)))
    for one in stretches:
        assert one.observations.tolist() == [[0.0], [1.0]] and one.last.tolist() == [2.0]


class Failing(Corridor):
    """One whose second step, or beginning, fails; it tells how often one was made and closed."""

    made = closed = 0

    def __init__(self, render_mode=None, picture="none"):
        super().__init__(render_mode, picture)
        Failing.made += 1

    def reset(self, *, seed=None, options=None):
        if self.picture == "no beginning":
            raise KeyError("level 3")
        return super().reset(seed=seed)

    def step(self, action):
        seen, reward, ended, cut, about = super().step(action)
        if ended and self.picture == "no reward":
            reward = float("nan")
        elif ended:
            raise RuntimeError("the simulator is gone")
        return seen, reward, ended, cut, about

    def close(self):
        Failing.closed += 1


def practised(config):
    room = agents._practice(config, iter([1, 2]), torch.from_numpy, [])
    try:
        room.reset()
        for _ in range(2):
            room.step(1)
    finally:
        room.close()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no end", "RuntimeError: the simulator is gone"),
        ("no beginning", "KeyError: 'level 3'"),
        ("no reward", "a reward of nan"),
    ],
)
@pytest.mark.parametrize(
    "playing",
    [
        lambda config: play(config, onwards, [1, 2, 3]),
        lambda config: experience.gather(config, lambda seen: onwards(seen, ()), 9, [], iter(range(9))),
        practised,
    ],
)
def test_an_environment_that_fails_is_named_and_closed(registered, playing, how, words):
    registered(Failing)
    Failing.made = Failing.closed = 0
    config = EnvironmentConfig(env="Own-v0", options={"picture": how})
    with pytest.raises(DataError) as caught:
        playing(config)
    assert "'Own-v0'" in str(caught.value) and words in str(caught.value)
    assert Failing.made == Failing.closed > 0


class Unmakable(Corridor):
    """One that has demands of its own."""

    def __init__(self, render_mode=None, picture="none"):
        assert picture == "oil on canvas", "no such picture"


def test_an_environment_that_cannot_be_made_is_told_whatever_it_raises(registered):
    with pytest.raises(DataError, match=r"'Own-v0' cannot be made: AssertionError: no such picture"):
        episodes.opened(registered(Unmakable))


def test_a_failing_policy_leaves_no_environment_open(registered):
    registered(Failing)
    Failing.made = Failing.closed = 0
    with pytest.raises(ZeroDivisionError):
        play(EnvironmentConfig(env="Own-v0"), lambda seen, seeds: 1 // 0, [1, 2])
    assert Failing.made == Failing.closed == 2


def test_numbers_that_follow_from_others_are_not_changed():
    for name in ("total_mass", "polemass_length"):
        with pytest.raises(DataError, match=f"dataset.physics.{name}: the environment has no such number"):
            episodes.opened(EnvironmentConfig(env="CartPole-v1", physics={name: 3}))


# ---------------------------------------------------------------------------------------------- the set


def test_states_are_the_demonstrators_and_labels_what_it_does():
    dataset = shown(validation=0.1)
    assert {name: len(dataset.labels(name)) for name in ("train", "validation")} == {
        "train": 270,
        "validation": 30,
    }
    for name in ("train", "validation", "test"):
        seen = torch.cat([batch.views["observation"] for batch in dataset.split(name)])
        assert dataset.labels(name).tolist() == (seen[:, 2] > 0).long().tolist()
    [first] = play(POLE, pushing, [seed_of("recorded", 0, "states", 0)])
    train = torch.cat([batch.views["observation"] for batch in dataset.split("train")])
    assert np.array_equal(train[: len(first)], first.observations)


def test_views_are_the_raw_numbers_and_those_by_their_bounds_to_the_bit():
    dataset = opened(env="MountainCar-v0", states=50).shown_by("constant", lambda: Constant(2, 3))
    [batch] = dataset.split("train")
    raw, scaled = batch.views["observation"], batch.views["scaled"]
    assert raw[:, 0].min() >= -1.2 and scaled.abs().max() <= 1 + 1e-6
    units = dataset.units("scaled")
    assert units.names == ("position", "velocity (per step)")
    for number in range(2):
        assert np.array_equal(units.seen(raw[:, number].numpy(), number), scaled[:, number].numpy())
    assert np.array_equal(dataset.units("observation").seen(raw[:, 0].numpy(), 0), raw[:, 0].numpy())
    assert np.isfinite(shown().units("scaled").scale).all(), "CartPole has velocities without bounds"


def test_the_test_episodes_are_the_same_whoever_shows_the_states():
    dataset = opened()
    assert dataset.test_hash() == dataset.shown_by("leaning", Leaning).test_hash()
    for other in ({"physics": {"length": 1.0}}, {"episodes": 6}, {"seed": 1}):
        assert opened(**other).test_hash() != dataset.test_hash()
    played = dataset.play(Constant(1), "test", lambda: None)
    again = dataset.shown_by("leaning", Leaning).play(Constant(1), "test", lambda: None)
    assert np.array_equal(played.returns, again.returns) and len(played.returns) == 5
    assert np.array_equal(played.lengths, played.returns) and not played.truncated.any()
    assert sum(map(len, played.states)) == played.lengths.sum()


def test_validation_episodes_are_others_and_any_of_them_can_be_played():
    dataset = opened()
    found = [dataset.play(Leaning(), split, lambda: None).returns for split in ("test", "validation")]
    assert not np.array_equal(*found)
    later = dataset.play(Leaning(), "validation", lambda: None, range(3, 7)).returns
    assert np.array_equal(later, found[1][3:7]) and len(found[1]) == 20


# -------------------------------------------------------------------------------------------- gathering


class Pupil:
    """As much of a student as a data set looks at."""

    def __init__(self, draw, policy):
        self.draw, self.policy, self.gathered = draw, policy, {}

    def exported(self):
        return self.policy


def pool(dataset, draw):
    return torch.cat([batch.views["observation"] for batch in dataset.gathered(draw, 64)])


@pytest.mark.parametrize("source", ["teacher", "student", "mixed"])
def test_a_pool_grows_by_states_of_who_acts_and_is_labelled_by_the_teacher(source):
    dataset = shown()
    draw = Draw(3, 50, rollouts=Rollouts(source=source, states=40, start=30), actor="pupil")
    pupil = Pupil(draw, Constant(1))
    sizes = []
    for epoch in range(3):
        dataset.refresh(epoch, [pupil])
        dataset.refresh(epoch, [pupil])  # a second time changes nothing
        sizes.append(len(pool(dataset, draw)))
        batches = [*dataset.batches(draw, epoch)]
        assert len(batches) == dataset.steps(draw) == 6 and {len(batch) for batch in batches} == {50}
        for batch in batches:
            assert batch.labels.tolist() == (batch.views["observation"][:, 2] > 0).long().tolist()
    assert sizes == [30, 70, 110]
    states = pool(dataset, draw)
    train = torch.cat([batch.views["observation"] for batch in dataset.split("train")])
    assert torch.equal(states[:30], train[:30])
    seed = seed_of("recorded", 0, "epoch", 3, 1, 0)
    acts = {"teacher": pushing, "student": lambda seen, seeds: np.ones(len(seen), np.int64)}
    expected = play(POLE, acts.get(source, pushing), [seed])[0].observations
    count = min(len(expected), 40)
    same = np.array_equal(states[30 : 30 + count], expected[:count])
    assert same == (source != "mixed")


def test_a_pool_that_is_full_loses_its_oldest_states():
    dataset = shown()
    draw = Draw(0, 50, rollouts=Rollouts(source="teacher", states=40, start=60, cap=80))
    pupil = Pupil(draw, Leaning())
    dataset.refresh(0, [pupil])
    before = pool(dataset, draw)
    dataset.refresh(2, [pupil])
    after = pool(dataset, draw)
    assert (len(before), len(after)) == (60, 80) and dataset.training_samples(draw) == 300
    dataset.refresh(3, [pupil])
    assert torch.equal(pool(dataset, draw)[:40], after[40:])


def test_a_pool_is_taken_up_where_it_was_left():
    draw = Draw(0, 50, rollouts=Rollouts(states=40, start=30), actor="pupil")
    whole, first = Pupil(draw, Leaning()), Pupil(draw, Leaning())
    dataset, other, third = (shown() for _ in range(3))
    for epoch in range(4):
        dataset.refresh(epoch, [whole])
    for epoch in range(2):
        other.refresh(epoch, [first])
    second = Pupil(draw, Leaning())
    second.gathered = first.gathered
    for epoch in range(1, 4):
        third.refresh(epoch, [second])
    assert torch.equal(pool(dataset, draw), pool(third, draw))


def test_what_mixes_tosses_a_coin_for_each_episode_of_its_own():
    dataset = shown()
    act = dataset._mixed(Constant(0), Constant(1), 0.25)
    chosen = np.concatenate([act(np.zeros((2, 4), np.float32), [7, 8])[None] for _ in range(2000)])
    assert abs(1 - chosen.mean() - 0.25) < 0.03
    alone = dataset._mixed(Constant(0), Constant(1), 0.25)
    again = np.concatenate([alone(np.zeros((1, 4), np.float32), [8]) for _ in range(2000)])
    assert np.array_equal(again, chosen[:, 1])


# ------------------------------------------------------------------------------------------- experiments


def test_a_whole_experiment(text, tmp_path):
    """The same seed gives the same table, and returns and agreement part ways."""
    for root in ("a", "b"):
        run(text, tmp_path / root)
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    assert comparison(tmp_path / "a", "act") == comparison(tmp_path / "b", "act")
    found = results(tmp_path / "a")
    teacher = found["teachers/teacher/seed-0"]
    assert teacher.manifest["scores"]["return"] == 500 and teacher.manifest["scores"]["accuracy"] == 1
    assert teacher.manifest["protocol"]["test_samples"] == 6
    student = found["students/student/dagger/seed-0"]
    predictions = student.predictions()
    assert (
        predictions["returns"].shape == (6,)
        and student.manifest["scores"]["return"] == predictions["returns"].mean()
    )
    assert student.manifest["likeness"].keys() == {"train", "test", "own"}
    assert student.manifest["details"]["classes"] == ["push left", "push right"]
    assert student.episode().startswith(b"GIF")


def test_stopped_after_every_step_it_comes_to_the_same_bits(text, tmp_path, monkeypatch):
    """With what was gathered, by each student as it was then."""
    mixed = "methods.dagger.training={rollouts: {source: mixed, states: 100, start: 100}, ema: 0.7}"
    run(text, tmp_path / "whole", mixed, "training.epochs=2")
    pause, begun = bookkeeping.Keeper.pause, []

    def stopping(self):
        if self.seats:
            _, done, _ = self.progress
            self.first = getattr(self, "first", done)
            if done - self.first == 1:
                self.stop.signal = signal.SIGTERM
        pause(self)

    monkeypatch.setattr(bookkeeping.Keeper, "pause", stopping)
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: [])
    while "students/student/dagger/seed-0" not in results(tmp_path / "pieces"):
        with suppress(Interrupted):
            run(text, tmp_path / "pieces", mixed, "training.epochs=2")
        begun.append(1)
        assert len(begun) < 40
    assert len(begun) >= 2 * 2 * 6
    assert outcome(tmp_path / "pieces") == outcome(tmp_path / "whole")


def test_company_changes_no_bit(text, tmp_path):
    run(text, tmp_path / "all")
    run(text, tmp_path / "one", methods=["dagger"])
    together, alone = outcome(tmp_path / "all"), outcome(tmp_path / "one")
    assert alone.items() <= together.items() and "students/student/dagger/seed-0" in alone


def test_another_demonstrator_makes_other_students(text, tmp_path):
    text = text.replace("teacher: {", "teachers:\n  teacher: {")
    other = f"teachers.other={{model: {{kind: mlp, hidden: [2]}}, weights: {policy_file(tmp_path, 2.0)}}}"
    own = "methods=[{name: copy, losses: [{kind: hard, teacher: teacher}]}]"
    plans = [
        run(text, tmp_path, other, own, f"dataset.demonstrator={name}", roles=[])
        for name in ("teacher", "other")
    ]
    first, second = (
        {one.title: one.fingerprint for one in plan.runs if one.role == "student"} for plan in plans
    )
    assert first.keys() == second.keys() and not set(first.values()) & set(second.values())


def test_a_tree_that_acts_is_fitted_in_rounds_and_the_best_is_chosen(text, tmp_path, monkeypatch):
    chosen = []
    choose = trees.FittedStudent.choose

    def noted(self, dataset, pause):
        choose(self, dataset, pause)
        policies = [self.network.copied(self.fitted, state) for state in self.candidates]
        scores = [dataset.play(one, "validation", pause, range(10)).returns.mean() for one in policies]
        own = dataset.play(self.selected(), "validation", pause, range(10)).returns.mean()
        chosen.append((own == max(scores), len(scores)))

    monkeypatch.setattr(trees.FittedStudent, "choose", noted)
    tree = "student.model={kind: tree, depth: 2}"
    validation = "dataset={kind: gym, env: CartPole-v1, states: 300, episodes: 6, validation: 0.1}"
    run(text, tmp_path, tree, validation, "training.epochs=2", "training.selection=best-on-validation")
    assert chosen == [(True, 2)]
    assert (results(tmp_path)["students/student/dagger/seed-0"].rules() or {})["features"][:1] == [
        "cart position (m)"
    ]


# -------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("dataset.env=CartPol-v1", "did you mean 'CartPole-v1'?"),
        ("dataset.env=Pendulum-v1", "only policies that choose one of several actions"),
        ("dataset.env='myenvs:Mine-v0'", "a config imports no module"),
        ("dataset.options={render_mode: human}", "dataset.options.render_mode"),
        ("dataset.options={max_step: 9}", "unexpected keyword argument 'max_step'"),
        ("dataset.physics={lenght: 1}", "dataset.physics.lenght"),
        ("dataset.physics={np_random_seed: 1}", "dataset.physics.np_random_seed"),
        ("dataset.labels_per_class=3", "write `states` for fewer samples"),
        ("dataset.action_names=[left]", "there are 2, and 1 names"),
        ("dataset.validation=0.999", "dataset.validation: of 300 states none is left to learn from"),
    ],
)
def test_an_environment_that_is_none_is_an_error_of_the_config(text, tmp_path, change, told):
    with pytest.raises((ConfigError, DataError), match="dataset") as caught:
        run(text, tmp_path, change)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("teacher={model: {kind: mlp}}", "nobody shows 'teacher' what to do"),
        (
            "teacher={model: ppo, training: {epochs: 9}}",
            "`training` says nothing; write `steps` in the model",
        ),
        ("methods.dagger.losses=[{kind: ps-kd}]", "'ps-kd' keeps something of each sample"),
        ("methods.dagger.losses=[{kind: hard}, {kind: crd}]", "'crd' keeps something of each sample"),
        ("dataset.demonstrator=teatcher", "did you mean 'teacher'?"),
        ("training.queries={jitter: 1}", "write `rollouts`"),
        ("training.mixup=0.2", "a mixed state is none"),
        ("dataset={kind: digits}", "there is no environment to act in"),
        ("dataset={kind: digits, metric: return}", "these samples are of none"),
        ("methods.dagger.training={rollouts: {source: pupil}}", "source"),
    ],
)
def test_what_does_not_go_together_is_told(text, change, told):
    assert told in problems(text, change)


def test_a_mistake_in_an_agent_is_told_alone(text):
    told = problems(text, "teacher={model: {kind: ppo, stps: 100}}")
    assert "did you mean 'steps'?" in told and "nobody shows" not in told


def test_without_a_teacher_nobody_shows_anything(text):
    lines = [line for line in text.splitlines() if not line.startswith("teacher")]
    assert "there is none" in problems("\n".join(lines).replace("kind: hard", "kind: ce"))
    assert checked(text).experiment.demonstrator_of() == "teacher"


def test_who_is_shown_no_states_is_not_decided_by_them(text, tmp_path):
    text = text.replace("teacher: {", "teachers:\n  teacher: {")
    assistant = "teachers.assistant={model: {kind: mlp, hidden: [3]}, from: teacher, method: copy}"
    plans = [
        run(
            text,
            tmp_path,
            assistant,
            "methods=[{name: copy, losses: [{kind: hard}], teacher: teacher}]",
            states,
            roles=[],
        )
        for states in ("dataset.states=300", "dataset.states=200")
    ]
    first, second = (
        {one.name: one.fingerprint for one in plan.runs if one.role == "teacher"} for plan in plans
    )
    assert first["teacher"] == second["teacher"] and first["assistant"] != second["assistant"]
