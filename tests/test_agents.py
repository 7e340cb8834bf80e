"""Agents: trained by stable-baselines3 to the same bits, read from its archives, refused where they are none."""

import base64
import inspect
import io
import json
import os
import pickle
import random
import re
import sys
import tempfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hostile import Calls, saved
from kdrun import agents, bookkeeping, models, registry
from kdrun.console import Console
from kdrun.contracts import Draw
from kdrun.data import episodes
from kdrun.data.episodes import PURPOSES, EnvironmentConfig, play, seed_of
from kdrun.errors import Interrupted, Mismatch, WeightsError
from kdrun.models import Lens, Network
from kdrun.models.agents import OWN, falling
from kdrun.optimization import Training
from kdrun.schedules import Constant, Linear
from kdrun.store import Store
from kdrun.store.forms import Line
from kdrun.student import Plugs
from support import results, run

gymnasium = pytest.importorskip("gymnasium")
sb3 = pytest.importorskip("stable_baselines3")

CPU = torch.device("cpu")
SHORT = {
    "dqn": {
        "hidden": [8],
        "steps": 400,
        "learning_starts": 50,
        "train_freq": 4,
        "n_steps": 3,
        "target_update_interval": 50,
        "learning_rate": 0.01,
        "looks": 4,
        "look_episodes": 3,
    },
    "ppo": {
        "hidden": [8],
        "steps": 384,
        "n_envs": 2,
        "n_steps": 64,
        "batch_size": 64,
        "learning_rate": 0.01,
        "clip_range_schedule": "linear",
        "looks": 3,
        "look_episodes": 3,
    },
}
KINDS = pytest.mark.parametrize("kind", SHORT)
CARTPOLE = EnvironmentConfig(env="CartPole-v1", options={"max_episode_steps": 60})


def config(kind, **options):
    return registry.MODELS.read({"kind": kind, **SHORT[kind], **options})


def build(kind, shape=(4,), classes=2, lens=None, **options):
    return models.build(config(kind, **options), shape, classes, 0, lens)


def agent(kind, seed=0, lens=None, **options):
    """One that has learnt nothing yet."""
    network = Network(build(kind, lens=lens, **options), "observation", CPU)
    return agents.Agent(f"teacher/seed {seed}", network, None, Training(), Draw(seed, 32), Plugs())


def fit(*students, console=None, pause=lambda: None):
    """Train agents in a data set that has nothing but its environment."""
    agents.fit(students, SimpleNamespace(environment=CARTPOLE), 1, console or Console(quiet=True), pause)
    return students[0]


def bits(student):
    return {name: value.numpy().tobytes() for name, value in student.selected().model.state_dict().items()}


# --------------------------------------------------------------------------------------------------- training


@KINDS
def test_of_one_seed_come_the_same_bits_and_of_another_others(kind):
    first = bits(fit(agent(kind)))
    assert first != bits(fit(agent(kind, seed=1)))
    torch.set_num_threads(2)
    try:
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        again = agent(kind)
        fit(agent(kind, seed=3), again)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert bits(again) == first


@KINDS
def test_a_training_moves_no_global_generator(kind):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    fit(agent(kind))
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


@KINDS
def test_what_it_learns_in_and_is_looked_at_in_are_no_test_episodes(kind, monkeypatch):
    seeds = {"training": [], "validation": []}

    class Told(gymnasium.Wrapper):
        def reset(self, *, seed=None, options=None):
            seeds["training"].append(seed)
            return self.env.reset(seed=seed, options=options)

    monkeypatch.setattr(agents, "opened", lambda environment: Told(episodes.opened(environment)))
    monkeypatch.setattr(
        agents, "play", lambda *given: seeds["validation"].extend(given[2]) or episodes.play(*given)
    )
    fit(agent(kind, seed=7))
    for purpose, used in seeds.items():
        assert used and {seed % len(PURPOSES) for seed in used} == {PURPOSES.index(purpose)}
    wanted = [seed_of("training", 7, number) for number in range(len(seeds["training"]))]
    assert seeds["training"] == wanted, "each episode has its own"


@KINDS
def test_the_log_has_a_line_for_each_stretch_and_the_best_weights_are_kept(kind):
    student = fit(agent(kind))
    looks = student.config.looks
    assert [line["epoch"] for line in student.metrics] == list(range(looks))
    steps = [line["step"] for line in student.metrics]
    assert steps[-1] == student.total_steps and steps == sorted(set(steps))
    for line in student.metrics:
        assert Line.model_validate(line)
        assert 0 < line["training_return"] <= 60 and line["training_episodes"] > 0
    best = max(line["validation_return"] for line in student.metrics)
    seeds = [seed_of("validation", "look", number) for number in range(3)]
    network = student.selected().model
    played = play(CARTPOLE, lambda x, _: network(torch.from_numpy(x)).argmax(dim=1).numpy(), seeds)
    assert np.mean([len(episode) for episode in played]) == best
    assert student.seconds > 0 and student.failure is None


@KINDS
def test_without_looks_the_last_weights_are_kept(kind, monkeypatch):
    made = []
    monkeypatch.setattr(
        agents.Agent, "_algorithm", lambda *a, make=agents.Agent._algorithm: made.append(make(*a)) or made[0]
    )
    student = fit(agent(kind, looks=0))
    assert len(student.metrics) == agents.STRETCHES
    assert {line["validation_return"] for line in student.metrics} == {None}
    last = student.policy.translate(made[0].policy.state_dict())
    assert all(
        torch.equal(value, last[name]) for name, value in student.selected().model.state_dict().items()
    )


@KINDS
def test_it_sees_what_its_model_sees(kind):
    """After a training the outputs are compared, of raw observations: of another lens they would be others."""
    lens = Lens(None, (0.0,), (0.5,), (torch.full((4,), 2.0), torch.full((4,), 0.1)))
    seen, plain = bits(fit(agent(kind, lens=lens))), bits(fit(agent(kind)))
    assert seen != plain


@KINDS
def test_progress_is_told_and_pause_is_called_at_every_step(kind):
    steps, pauses = [], []
    console = Console(quiet=True)
    console.step = steps.append
    student = fit(agent(kind), console=console, pause=lambda: pauses.append(1))
    assert sum(steps) == student.total_steps
    assert len(pauses) > student.total_steps / student.config.copies


def test_the_progress_of_an_agent_is_told_in_words(capfd):
    fit(agent("ppo"), console=Console())
    told = capfd.readouterr().err
    assert "teacher/seed 0: from the start of 384 steps" in told
    assert "epoch 3/3" in told and "in training" in told and "when looked at" in told


@KINDS
def test_one_that_is_stopped_leaves_nothing_behind_and_starts_anew(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before, calls = random.getstate(), []
    student = agent(kind)

    def pause():
        calls.append(1)
        if len(calls) == 150:
            raise Interrupted("stopped", 130)

    with pytest.raises(Interrupted):
        fit(student, pause=pause)
    assert random.getstate() == before and not list(tmp_path.iterdir())
    assert bits(fit(student)) == bits(fit(agent(kind)))
    assert len(student.metrics) == student.config.looks


def test_a_training_that_was_cut_short_starts_anew_and_says_so(tmp_path, capfd):
    store = Store(tmp_path)

    def begin():
        """What is said as a process begins it, or begins it again."""
        place, _ = store.workplace("a/teachers/teacher/seed-0", "f1", {})
        run_ = SimpleNamespace(title="teacher/seed 0", way="reinforced", learns=True, teachers={})
        seat = bookkeeping.Seat(run_, place, None, CPU, Console())
        seat.student = agent("dqn")
        seat.go_on(None)
        return place, capfd.readouterr().err

    store.workplace("a/teachers/teacher/seed-0", "f1", {})  # and a process that was killed after that
    place, told = begin()
    assert told == ""
    assert begin()[1] == (
        "teacher/seed 0: its training was cut short, and an agent has no checkpoints: it starts anew\n"
    )
    place.fail({"epoch": 0, "step": 0, "what": "it diverged"})
    assert begin()[1] == ""


@pytest.mark.parametrize(("kind", "words"), [("dqn", "not finite"), ("ppo", "cannot train")])
def test_one_that_diverges_is_a_failure_with_advice(kind, words):
    student = fit(agent(kind, learning_rate=1e30, max_grad_norm=1e38, looks=0))
    assert student.failure is not None and student.failure.cure == "a smaller learning_rate may help"
    assert words in str(student.failure)


# ---------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("kind", ["dqn", "ppo"])
def test_where_nothing_is_said_the_defaults_of_stable_baselines3_hold(kind):
    made = registry.MODELS.read({"kind": kind})
    signature = inspect.signature(getattr(sb3, kind.upper()).__init__).parameters
    assert made.options().keys() == (type(made).model_fields.keys() & signature.keys())
    for name, value in made.options().items():
        assert value == signature[name].default, name


@KINDS
def test_what_is_said_is_what_stable_baselines3_is_told(kind):
    said = {name: value for name, value in SHORT[kind].items() if name not in OWN}
    told = agent(kind)._algorithm(CARTPOLE, 0)
    for name, value in said.items():
        if not name.endswith("_schedule"):
            found = getattr(told, name)
            assert getattr(found, "frequency", found) == value, name
    layers = [layer for layer in told.policy.modules() if isinstance(layer, torch.nn.Linear)]
    assert {layer.out_features for layer in layers} >= {8, 2}


def test_schedules_fall_with_the_share_of_the_steps_that_is_left():
    assert falling(0.5, Constant(kind="constant")) == 0.5
    line = falling(0.5, Linear(kind="linear", final=0.2))
    assert [line(1.0), line(0.5), line(0.0)] == pytest.approx([0.5, 0.3, 0.1])


WRONG = {
    "learning_starts": ("dqn", {"learning_starts": 400}, "'learning_starts' is not below 'steps'"),
    "gradient_steps": ("dqn", {"gradient_steps": 0}, "nothing is learnt"),
    "batches": ("ppo", {"batch_size": 48}, "128 steps are no whole number of batches of 48"),
    "weights": ("ppo", {"initial_weights": "a.pt"}, "starts from no weights"),
    "gelu": ("dqn", {"activation": "gelu"}, "'relu' or 'tanh'"),
}


@pytest.mark.parametrize(("kind", "options", "words"), WRONG.values(), ids=WRONG)
def test_options_that_cannot_be_are_refused(kind, options, words):
    with pytest.raises(ValueError, match=words):
        config(kind, **options)


def test_a_round_that_is_begun_is_finished():
    assert config("ppo", steps=385).all_steps == 512 and config("dqn", steps=401).all_steps == 404


def test_pictures_are_refused():
    with pytest.raises(Mismatch, match="rows of numbers"):
        build("dqn", (1, 8, 8))


def test_without_stable_baselines3_it_is_said_what_to_install(monkeypatch):
    agents.demand_trainer()
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(Mismatch) as caught:
        agents.demand_trainer()
    assert caught.value.hint == "pip install 'kdrun[rl]'" and caught.value.key == "kind"


# --------------------------------------------------------------------------------------------------- archives

ALGORITHMS = {"dqn": ("DQN", {}), "ppo": ("PPO", {"n_steps": 16, "batch_size": 16}), "a2c": ("A2C", {})}


@pytest.fixture(scope="module")
def trained():
    """Agents of stable-baselines3 after a few steps, by algorithm."""
    found = {}
    for kind, (name, options) in ALGORITHMS.items():
        made = getattr(sb3, name)(
            "MlpPolicy",
            gymnasium.make("CartPole-v1"),
            seed=1,
            device="cpu",
            policy_kwargs={"net_arch": [8, 6]},
            **options,
        )
        found[kind] = made.learn(120)
    return found


def changed(path, to, **entries):
    """A copy of an archive with other contents of some of its files; None leaves one out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        contents = {name: old.read(name) for name in old.namelist()} | entries
        for name, data in contents.items():
            if data is not None:
                new.writestr(name, data)
    return to


def archive(trained, folder, kind):
    trained[kind].save(folder / f"{kind}.zip")
    return folder / f"{kind}.zip"


def refused(model, path):
    with pytest.raises(WeightsError) as caught:
        models.load_weights(model, path)
    told = str(caught.value)
    assert told.startswith(f"{path}: ") and "\n" not in told
    return told


X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "algorithm"), [("dqn", "dqn"), ("ppo", "ppo"), ("ppo", "a2c")])
@pytest.mark.parametrize("ending", ["zip", "pt"])
def test_an_agent_of_stable_baselines3_is_read_to_the_bit(
    kind, algorithm, ending, trained, tmp_path, monkeypatch
):
    theirs = trained[algorithm]
    path = archive(trained, tmp_path, algorithm)
    if ending == "pt":
        path = tmp_path / "agent.pt"
        torch.save(theirs.policy.state_dict(), path)
    with torch.no_grad():
        expected = build(kind).theirs(theirs.policy, X)
        monkeypatch.setitem(sys.modules, "stable_baselines3", None)
        model = build(kind, hidden=[8, 6])
        models.load_weights(model, path)
        assert torch.equal(model(X), expected)
    actions, _ = theirs.predict(X.numpy(), deterministic=True)
    assert model(X).argmax(dim=1).tolist() == actions.tolist()


def test_what_kdrun_stored_is_read_as_it_is(tmp_path):
    first, second = build("ppo"), build("ppo")
    with torch.no_grad():
        first.classifier.bias.add_(1)
    torch.save(first.state_dict(), tmp_path / "own.pt")
    models.load_weights(second, tmp_path / "own.pt")
    assert torch.equal(first(X), second(X))


OTHERS = {
    "of PPO": ("dqn", "ppo", {}, "policy of PPO; write `kind: ppo`"),
    "of DQN": ("ppo", "dqn", {}, "policy of DQN; write `kind: dqn`"),
    "other widths": ("dqn", "dqn", {"hidden": [8]}, r"write `hidden: \[8, 6\]`"),
    "other activation": ("ppo", "ppo", {"activation": "relu"}, "write `activation: tanh`"),
    "other observations": ("ppo", "ppo", {"shape": (6,)}, "4 observed numbers and 2 actions.* has 6 and 2"),
    "other actions": ("dqn", "dqn", {"classes": 3}, "4 observed numbers and 2 actions.* has 4 and 3"),
}


@pytest.mark.parametrize(("kind", "algorithm", "options", "words"), OTHERS.values(), ids=OTHERS)
def test_another_agent_is_refused_with_what_to_write(kind, algorithm, options, words, trained, tmp_path):
    model = build(kind, **{"hidden": [8, 6]} | options)
    assert re.search(words, refused(model, archive(trained, tmp_path, algorithm)))


def test_an_agent_is_no_other_model(trained, tmp_path):
    mlp = models.build(registry.MODELS.read({"kind": "mlp", "hidden": [8, 6]}), (4,), 2, 0)
    assert "write `kind: dqn`, or ppo" in refused(mlp, archive(trained, tmp_path, "dqn"))


def data_of(path):
    with zipfile.ZipFile(path) as opened:
        return json.loads(opened.read("data"))


def with_data(path, folder, **facts):
    return changed(path, folder / "changed.zip", data=json.dumps(data_of(path) | facts))


def test_what_an_archive_says_in_text_is_heeded(tmp_path):
    relu = {"net_arch": [8, 6], "activation_fn": torch.nn.ReLU}
    made = sb3.PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, device="cpu", policy_kwargs=relu)
    made.save(tmp_path / "relu.zip")
    assert "write `activation: relu`" in refused(build("ppo", hidden=[8, 6]), tmp_path / "relu.zip")
    models.load_weights(build("ppo", hidden=[8, 6], activation="relu"), tmp_path / "relu.zip")
    elu = {"policy_kwargs": {"activation_fn": "<class 'torch.nn.modules.activation.ELU'>"}}
    told = refused(build("ppo", hidden=[8, 6]), with_data(tmp_path / "relu.zip", tmp_path, **elu))
    assert "activation elu; kdrun's agents have relu, or tanh" in told
    own = {"policy_kwargs": {"features_extractor_class": "<class 'me.Scaled'>"}}
    told = refused(build("ppo", hidden=[8, 6]), with_data(tmp_path / "relu.zip", tmp_path, **own))
    assert "'Scaled'" in told and "MlpPolicy" in told


def test_one_that_saw_normalised_observations_wants_their_figures(tmp_path):
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    made = VecNormalize(DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]))
    theirs = sb3.PPO(
        "MlpPolicy", made, n_steps=16, batch_size=16, device="cpu", policy_kwargs={"net_arch": [8, 6]}
    )
    theirs.learn(64).save(tmp_path / "a.zip")
    told = refused(build("ppo", hidden=[8, 6]), tmp_path / "a.zip")
    assert "VecNormalize" in told and "`normalization: {mean: [...], std: [...]}`" in told
    std = np.sqrt(made.obs_rms.var + made.epsilon)
    scale, shift = (torch.tensor(x, dtype=torch.float32) for x in (1 / std, -made.obs_rms.mean / std))
    model = build("ppo", hidden=[8, 6], lens=Lens(None, (0.0,), (1.0,), (scale, shift)))
    models.load_weights(model, tmp_path / "a.zip")
    x = np.clip(X.numpy(), -0.1, 0.1)
    expected, _ = theirs.predict(made.normalize_obs(x), deterministic=True)
    assert model(torch.from_numpy(x)).argmax(dim=1).tolist() == expected.tolist()


def picture_policy(_):
    class Pictures(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (1, 36, 36), np.uint8)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

    return sb3.DQN("CnnPolicy", Pictures(), buffer_size=10, device="cpu").policy.state_dict()


def continuous_policy(_):
    state = sb3.PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16, device="cpu").policy.state_dict()
    assert "log_std" in state
    return state


STATES = {
    "pictures": ("dqn", picture_policy, "more than fully connected layers"),
    "continuous actions": ("ppo", continuous_policy, "'log_std', which is more than"),
    "a layer without bias": (
        "dqn",
        lambda state: {k: v for k, v in state.items() if k != "q_net.q_net.0.bias"},
        "not whole",
    ),
    "a bias of a picture": (
        "dqn",
        lambda state: state | {"q_net.q_net.0.bias": torch.ones(8, 1)},
        "not whole",
    ),
    "layers that do not fit": (
        "dqn",
        lambda state: state | {"q_net.q_net.2.weight": torch.ones(6, 9)},
        "should be",
    ),
    "nothing of an agent": ("dqn", lambda state: {"a": torch.ones(1)}, "'body.0.0.weight' is missing"),
    "no mapping": ("dqn", lambda state: [1], "holds no weights; save its policy with torch.save"),
    "not a number": (
        "dqn",
        lambda state: state | {"q_net.q_net.0.bias": torch.full((8,), torch.nan)},
        "not finite",
    ),
    "a Python object": (
        "dqn",
        lambda state: state | {"x": Calls(os.getcwd)},
        "does not unpickle; save its policy",
    ),
}


@pytest.mark.parametrize(("kind", "change", "words"), STATES.values(), ids=STATES)
def test_policies_that_are_none_are_refused(kind, change, words, trained, tmp_path):
    path = archive(trained, tmp_path, kind)
    policy = saved(change(trained[kind].policy.state_dict()))
    told = refused(build(kind, hidden=[8, 6]), changed(path, tmp_path / "x.zip", **{"policy.pth": policy}))
    assert words in told


def test_nothing_in_an_archive_is_run(trained, tmp_path):
    ran = tmp_path / "ran"
    path, evil = archive(trained, tmp_path, "dqn"), Calls(os.system, f"touch {ran}")
    inside = base64.b64encode(pickle.dumps(evil)).decode()
    hidden = {":type:": "<class 'dict'>", ":serialized:": inside}
    told = with_data(path, tmp_path, policy_kwargs=hidden, policy_class=hidden, learning_rate=hidden)
    models.load_weights(build("dqn", hidden=[8, 6]), told)
    bad = changed(path, tmp_path / "bad.zip", **{"policy.pth": saved({"a": torch.ones(1), "b": evil})})
    assert "(posix.system), which kdrun does not unpickle" in refused(build("dqn", hidden=[8, 6]), bad)
    others = {"pytorch_variables.pth": saved(evil), "policy.optimizer.pth": pickle.dumps(evil)}
    models.load_weights(build("dqn", hidden=[8, 6]), changed(path, tmp_path / "others.zip", **others))
    assert not ran.exists()


def packed(path, to):
    """A bomb: the policy packed, with a gap that unpacks to much."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("policy.pth", old.read("policy.pth") + bytes(1 << 24))
    return to


BROKEN = {
    "packed": (packed, "would unpack to"),
    "a policy that is text": (
        lambda p, to: changed(p, to, **{"policy.pth": b"none"}),
        "which kdrun does not unpickle",
    ),
    "a policy that is empty": (
        lambda p, to: changed(p, to, **{"policy.pth": b""}),
        "cannot be read as weights",
    ),
    "data that is no JSON": (lambda p, to: changed(p, to, data=b"{"), "archive of an agent, or is damaged"),
    "data that is deep": (lambda p, to: changed(p, to, data=b"[" * 99_999), "or is damaged"),
    "data that is a list": (lambda p, to: changed(p, to, data=b"[]"), "'data' is no mapping"),
    "an archive of something else": (
        lambda p, to: changed(p, to, **{"policy.pth": None}),
        "cannot be read as weights",
    ),
    "cut": (lambda p, to: to.write_bytes(p.read_bytes()[:3000]) and to, "cannot be read as weights"),
    "an archive in an archive": (
        lambda p, to: changed(p, to, **{"policy.pth": p.read_bytes()}),
        "cannot be read as weights",
    ),
}


@pytest.mark.parametrize(("make", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_archives_are_refused(make, words, trained, tmp_path):
    made = make(archive(trained, tmp_path, "dqn"), tmp_path / "x.zip")
    assert words in refused(build("dqn", hidden=[8, 6]), made)


def test_an_archive_without_facts_is_read(trained, tmp_path):
    path = changed(archive(trained, tmp_path, "dqn"), tmp_path / "x.zip", data=None)
    models.load_weights(build("dqn", hidden=[8, 6]), path)


def test_a_policy_of_before_archives_is_read(trained, tmp_path):
    buffer = io.BytesIO()
    torch.save(trained["dqn"].policy.state_dict(), buffer, _use_new_zipfile_serialization=False)
    path = archive(trained, tmp_path, "dqn")
    model = build("dqn", hidden=[8, 6])
    models.load_weights(model, changed(path, tmp_path / "x.zip", **{"policy.pth": buffer.getvalue()}))
    with torch.no_grad():
        assert torch.equal(model(X), model.theirs(trained["dqn"].policy, X))


# ---------------------------------------------------------------------------------------------------- teaching

TEXT = """
name: taught
device: cpu
dataset: {kind: gym, env: CartPole-v1, states: 64, episodes: 4}
seeds: [0]
training: {epochs: 2, batch_size: 16}
teacher: {model: {kind: dqn, hidden: [8, 6]}, weights: AGENT}
student: {model: {kind: mlp, hidden: [5]}}
controls: none
methods: [kd, fitnet]
"""


def test_a_student_learns_from_its_outputs_and_from_its_layers(trained, tmp_path):
    path = archive(trained, tmp_path, "dqn")
    run(TEXT.replace("AGENT", str(path)), tmp_path / "runs")
    found = results(tmp_path / "runs")
    kept = found["teachers/teacher/seed-0"].weights()
    state = trained["dqn"].policy.state_dict()
    assert np.array_equal(kept["body.0.0.weight"], state["q_net.q_net.0.weight"].numpy())
    assert np.array_equal(kept["classifier.bias"], state["q_net.q_net.4.bias"].numpy())
    first, *_ = found["students/student/fitnet/seed-0"].metrics()
    assert first["terms"]["hint"]["value"] > 0
    assert found["students/student/kd/seed-0"].manifest["likeness"]["test"]["agreement"] is not None
