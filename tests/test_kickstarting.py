"""Students that act for rewards: experience, advantages, PPO, a teacher whose pull fades."""

import math
import signal
from itertools import count

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

pytest.importorskip("gymnasium", reason="needs the extra rl")

from kdrun import agents, assembly, bookkeeping, models, registry, rehearsal
from kdrun.contracts import Acted, Batch, Outputs
from kdrun.data import experience
from kdrun.data.episodes import EnvironmentConfig
from kdrun.data.experience import Pool, Recorded, Underway, advantages, gather, sampled
from kdrun.losses import ProximalPolicy
from kdrun.plan import plan
from support import checked, comparison, outcome, problems, results, run
from test_resume import to_the_end

CARTPOLE = EnvironmentConfig(env="CartPole-v1")
BASE = """
    name: kick
    device: cpu
    dataset: {kind: gym, env: CartPole-v1, states: 100, episodes: 2, validation: 0.04, options: {max_episode_steps: 60}}
    seeds: [3]
    training: {epochs: 3, batch_size: 48, optimizer: {kind: adam, lr: 1e-2}, rollouts: {source: self, states: 40}}
    teachers: {teacher: {model: {kind: mlp, hidden: [4]}, weights: WEIGHTS}}
    students: {net: {model: {kind: mlp, hidden: [6]}}}
    controls: [{name: alone, losses: [{kind: ppo}]}]
    methods: [kickstarting]
"""
"""Two steps an epoch, six in all."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """``BASE`` with a teacher that pushes against the way in which the pole falls."""
    model = models.build(registry.MODELS["mlp"].Config(kind="mlp", hidden=[4]), (4,), 2, seed=0)
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    first, last = (name for name in state if name.endswith("weight"))
    state[first][0], state[first][1] = torch.tensor([0, 0, 10.0, 10]), torch.tensor([0, 0, -10.0, -10])
    state[last][1, 0] = state[last][0, 1] = 1.0
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(state, file)
    return BASE.replace("WEIGHTS", str(file))


# -------------------------------------------------------------------------------------------- advantages


def test_advantages_by_hand():
    """γ = 0.5, λ = 0.5; surprises are r + γ V' − V."""
    rewards, values = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0, 8.0])
    surprises = [1 + 1.5 - 1, 2 + 1 - 3, 4 + 4 - 2]
    last = surprises[2]
    middle = surprises[1] + last / 4
    expected = [surprises[0] + middle / 4, middle, last]
    assert advantages(rewards, values, False, 0.5, 0.5) == pytest.approx(expected)
    ended = advantages(rewards, values, True, 0.5, 0.5)
    assert ended[2] == pytest.approx(4 - 2)  # nothing comes after it
    assert ended[0] == pytest.approx(surprises[0] + (surprises[1] + 2 / 4) / 4)


def test_advantages_that_look_one_step_ahead_and_to_the_end():
    rewards, values = np.array([1.0, 1.0, 1.0]), np.array([5.0, 6.0, 7.0, 9.0])
    assert advantages(rewards, values, False, 0.9, 0.0) == pytest.approx(1 + 0.9 * values[1:] - values[:-1])
    to_the_end = advantages(rewards, values, True, 0.9, 1.0) + values[:-1]
    assert to_the_end == pytest.approx([1 + 0.9 + 0.81, 1.9, 1])


def test_advantages_are_those_of_stable_baselines3():
    """An episode that ends, one that is cut off by the limit of time, and one that is not over: one after the other."""
    buffers = pytest.importorskip("stable_baselines3.common.buffers", reason="needs the extra rl")
    from gymnasium import spaces

    draw, gamma, trace = np.random.default_rng(0), 0.97, 0.9
    lengths, ends = [4, 3, 5], [True, False, False]
    rewards = [draw.normal(size=length) for length in lengths]
    values = [draw.normal(size=length + 1) for length in lengths]
    buffer = buffers.RolloutBuffer(12, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), "cpu", trace, gamma, 1)
    for number, (reward, value) in enumerate(zip(rewards, values, strict=True)):
        for step in range(len(reward)):
            cut_off = number == 1 and step == len(reward) - 1
            given = reward[step] + gamma * value[-1] * cut_off  # as its algorithms hand it over
            args = (np.zeros((1, 1)), np.zeros((1, 1)), np.array([given]), np.array([step == 0]))
            buffer.add(*args, torch.tensor([value[step]]), torch.zeros(1))
    buffer.compute_returns_and_advantage(torch.tensor([values[-1][-1]]), np.array([False]))
    own = [advantages(*parts, gamma, trace) for parts in zip(rewards, values, ends, strict=True)]
    assert np.concatenate(own) == pytest.approx(buffer.advantages[:, 0], abs=1e-5)


# -------------------------------------------------------------------------------------------- experience


def leaning(observations):
    """Push towards the side to which the pole leans."""
    return (observations[:, 2] > 0).astype(int)


def falling(observations):
    return np.zeros(len(observations), int)


def test_exactly_so_many_steps_are_taken():
    for states in (1, 7, 8, 50):
        stretches, underway = gather(CARTPOLE, leaning, states, [], count())
        assert sum(len(one.actions) for one in stretches) == states
        assert all(len(one.observations) == len(one.rewards) == len(one.actions) for one in stretches)
        assert len(underway) <= min(states, experience.AT_ONCE)


def test_episodes_go_on_where_they_were_left():
    """In two gatherings the same is seen and done as in one; what is split is split at the same place."""
    whole, _ = gather(CARTPOLE, leaning, 160, [], count())
    seeds = count()
    first, underway = gather(CARTPOLE, leaning, 80, [], seeds)
    second, _ = gather(CARTPOLE, leaning, 80, underway, seeds)

    def seen(*gatherings):
        return sorted(tuple(row) for part in gatherings for one in part for row in one.observations)

    assert seen(first, second) == seen(whole)
    assert all(
        not one.terminated
        for one in first
        if any((one.last == other.observations[0]).all() for other in second)
    )


def test_the_end_of_an_episode_is_told_from_the_limit_of_time():
    fallen, _ = gather(CARTPOLE, falling, 200, [], count())
    assert any(one.terminated for one in fallen)
    limited = EnvironmentConfig(env="CartPole-v1", options={"max_episode_steps": 5})
    cut, underway = gather(limited, falling, 5 * experience.AT_ONCE, [], count())
    assert not underway and {len(one.actions) for one in cut} == {5}
    assert not any(one.terminated for one in cut)


def test_actions_are_as_probable_as_the_policy_has_them():
    wanted = np.array([0.1, 0.6, 0.3])
    drawn = sampled(np.log(np.tile(wanted, (20_000, 1))), np.random.default_rng(0))
    assert np.bincount(drawn, minlength=3) / 20_000 == pytest.approx(wanted, abs=0.015)
    sure = sampled(np.array([[0.0, -math.inf], [-math.inf, 0.0]]), np.random.default_rng(0))
    assert sure.tolist() == [0, 1]


def test_a_pool_is_kept_as_tensors():
    acted = Acted(torch.tensor([1, 0]), *(torch.rand(2) for _ in range(3)))
    pool = Pool(
        Recorded(torch.rand(2, 4), torch.tensor([0, 1])),
        3,
        acted,
        [Underway(7, [0, 1, 1]), *(Underway(number, []) for number in range(20, 32))],
        5,
    )
    back = Pool.of(pool.as_tensors())
    assert (back.epochs, back.begun, back.underway) == (3, 5, pool.underway)
    assert all(map(torch.equal, back.states, pool.states))
    assert torch.equal(back.acted.advantage, acted.advantage) and torch.equal(back.acted.action, acted.action)
    assert Pool.of(Pool(pool.states, 1).as_tensors()).acted is None


def test_a_batch_carries_what_was_done():
    acted = Acted(torch.tensor([1, 0, 1]), *(torch.arange(3.0) + number for number in range(3)))
    batch = Batch({"x": torch.rand(3, 2)}, torch.zeros(3, dtype=torch.int64), torch.arange(3), acted=acted)
    some = batch.rows(torch.tensor([2, 0]))
    assert some.acted.action.tolist() == [1, 1] and some.acted.outcome.tolist() == [4, 2]
    assert torch.equal(batch.to(torch.device("cpu")).acted.log_probability, acted.log_probability)
    assert batch.with_labels(torch.ones(3, dtype=torch.int64)).acted is acted


# --------------------------------------------------------------------------------------------------- ppo


def objective(**options):
    loss = ProximalPolicy(ProximalPolicy.Config(kind="ppo", **options))
    loss.layer, loss.critic = "embedding", torch.nn.Linear(2, 1)
    return loss


def lesson(logits, action, before, advantage, outcome):
    rows = len(logits)
    acted = Acted(*(torch.tensor(part) for part in (action, before, advantage, outcome)))
    batch = Batch(
        {"x": torch.zeros(rows, 1)}, torch.zeros(rows, dtype=torch.int64), torch.arange(rows), acted=acted
    )
    return Outputs(logits, {"embedding": torch.tensor([[1.0, 2.0]] * rows)}), batch


def test_ppo_by_hand():
    """Ratios 1, 1.5 and 0.5 with advantages of both signs: what leaves the clip on its good side counts no further."""
    p = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.25, 0.75], [0.75, 0.25]])
    logits = p.log().requires_grad_()
    before = [math.log(0.5)] * 4
    said, batch = lesson(logits, [0, 0, 0, 0], before, [1.0, 2.0, -1.0, -3.0], [0.0, 1.0, 2.0, 3.0])
    loss = objective(normalize=False, value_weight=0.5, entropy_weight=0.1)
    value = float(loss.critic(torch.tensor([1.0, 2.0])).detach())
    surrogate = (1.0 + 1.2 * 2 - 0.8 * 1 - 1.5 * 3) / 4
    entropy = -(p * p.log()).sum(dim=1).mean()
    errors = sum((value - outcome) ** 2 for outcome in range(4)) / 4
    got = loss(said, None, batch)
    assert got.item() == pytest.approx(0.5 * errors - surrogate - 0.1 * float(entropy), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss(said, None, batch) + 0.1 * entropy_of(logits), logits)
    # d ratio / d z_0 = ratio · (1 − p_0); the second and the third row are clipped.
    assert gradient[:, 0].tolist() == pytest.approx([-1 * 1.0 * 0.5 / 4, 0, 0, 3 * 1.5 * 0.25 / 4], abs=1e-6)


def entropy_of(logits):
    p = F.softmax(logits, dim=-1)
    return -(p * F.log_softmax(logits, dim=-1)).sum(dim=-1).mean()


def test_advantages_are_normalised_in_each_batch():
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    before = F.log_softmax(logits, dim=-1)[:, 0].tolist()
    loss = objective(value_weight=0.0)
    said, batch = lesson(logits, [0, 0, 0], before, [1.0, 5.0, 30.0], [0.0] * 3)
    assert loss(said, None, batch).item() == pytest.approx(0, abs=1e-6)  # all ratios are 1
    moved = Outputs(logits + torch.tensor([[0.1, 0.0]]), said.features)
    scaled = lesson(logits, [0, 0, 0], before, [10.0, 50.0, 300.0], [0.0] * 3)[1]
    assert loss(moved, None, batch).item() == pytest.approx(loss(moved, None, scaled).item(), rel=1e-3)


def test_a_batch_of_one_is_not_normalised():
    said, batch = lesson(torch.zeros(1, 2), [0], [math.log(0.5)], [3.0], [0.0])
    assert objective(value_weight=0.0)(said, None, batch).item() == pytest.approx(-3)


def test_the_critic_learns_what_is_to_be_expected():
    loss = objective()
    said, batch = lesson(torch.zeros(2, 2), [0, 1], [math.log(0.5)] * 2, [0.0, 0.0], [10.0, 10.0])
    optimizer = torch.optim.Adam(loss.parameters(), 0.5)
    for _ in range(200):
        optimizer.zero_grad()
        loss(said, None, batch).backward()
        optimizer.step()
    assert loss.value(said).tolist() == pytest.approx([10, 10], abs=0.1)


# ---------------------------------------------------------------------------------------------- learning


def test_what_a_student_is_given_is_what_it_did_last(base):
    """Before each epoch, the first among them; the policy that acted is the one that learns."""
    cpu = torch.device("cpu")
    config = checked(base)
    opened = assembly.open_dataset(config)
    opened.load(cpu)
    teacher, _, asked = plan(config, opened).runs
    policy = assembly.from_file(teacher, opened.spec, cpu)
    dataset = opened.shown_by(teacher.fingerprint, lambda: policy)
    student = assembly.make_student(asked, {"teacher": policy}, dataset, cpu)
    seen = []
    for epoch in range(2):
        dataset.refresh(epoch, [student])
        [whole] = list(dataset.gathered(student.draw, 512))
        batch = next(dataset.batches(student.draw, epoch))
        log_p = student.look(batch).logits.log_softmax(dim=1)
        own = log_p.gather(1, batch.acted.action[:, None]).squeeze(1)
        assert torch.allclose(own, batch.acted.log_probability, atol=1e-5)
        assert len(whole) == 40 and len(batch) == 48
        seen.append(whole.views["observation"])
        before = student.gathered
        dataset.refresh(epoch, [student])
        assert all(torch.equal(before[name], tensor) for name, tensor in student.gathered.items())
    assert not torch.equal(*seen)


def test_it_learns_to_balance_the_pole(base, tmp_path):
    """By rewards alone: the teacher in this config has no part in it."""
    longer = [
        "dataset={kind: gym, env: CartPole-v1, states: 10240, episodes: 10, validation: 0.01}",
        "training={epochs: 4, batch_size: 64, optimizer: {kind: adam, lr: 3e-3}, clip: 0.5, schedule: constant, "
        "rollouts: {source: self, states: 2048}}",
        "students.net.model={kind: mlp, hidden: [32]}",
        "methods=[]",
    ]
    run(base, tmp_path, *longer)
    log = results(tmp_path)["students/net/alone/seed-3"].metrics()
    returns = [line["validation"]["return"] for line in log]
    assert [line["environment_steps"] for line in log] == [2048, 4096, 6144, 8192]
    assert max(returns[1:]) > 100 + returns[0] or min(returns) > 150


def test_the_teachers_pull_fades(base, tmp_path):
    run(base, tmp_path)
    log = results(tmp_path)["students/net/kickstarting/seed-3"].metrics()
    pulls = [line["terms"]["policy-kl"]["weight"] for line in log]
    assert pulls == pytest.approx([1, 2 / 3, 1 / 3])
    assert {line["terms"]["ppo"]["weight"] for line in log} == {1.0}


def test_the_critic_is_not_exported(base, tmp_path):
    run(base, tmp_path)
    names = {place: {*result.weights()} for place, result in results(tmp_path).items() if "students" in place}
    assert len(names) == 2 and not any("critic" in name for of in names.values() for name in of)


@pytest.mark.parametrize("stacked", [False, True])
def test_stopped_after_every_step_it_goes_on_to_the_same_bits(base, tmp_path, monkeypatch, stacked):
    overrides = [f"training.stack={str(stacked).lower()}", "training.rollouts.states=30"]
    run(base, tmp_path / "whole", *overrides)
    original = bookkeeping.Keeper.pause

    def pause(self):
        if not self.seats:  # the teacher's
            return
        _, done, _ = self.progress
        self.first = getattr(self, "first", done)
        if done - self.first == 1:
            self.stop.signal = signal.SIGTERM
        original(self)

    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: [])
    monkeypatch.setattr(bookkeeping.Keeper, "pause", pause)
    assert to_the_end(base, tmp_path / "pieces", *overrides) == (6 if stacked else 12) + 1
    assert outcome(tmp_path / "pieces") == outcome(tmp_path / "whole")


def test_stacked_students_act_each_by_itself(base, tmp_path):
    """A stack changes the last digits only, until an action falls otherwise: the first epoch is the same."""
    seeds = "seeds=[3, 4]"
    run(base, tmp_path / "alone", seeds)
    run(base, tmp_path / "stacked", seeds, "training.stack=true")
    for seed in (3, 4):
        place = f"students/net/kickstarting/seed-{seed}"
        own, other = (results(tmp_path / way)[place].metrics()[0] for way in ("alone", "stacked"))
        for term in ("ppo", "policy-kl"):
            assert own["terms"][term]["value"] == pytest.approx(other["terms"][term]["value"], rel=1e-3)


def test_on_policy_distillation_needs_no_rewards(base, tmp_path):
    """A student may act by chance in the latest states, and learn from its teacher alone."""
    run(
        base,
        tmp_path,
        "methods=[{name: follow, losses: [{kind: policy-kl, temperature: 1}]}]",
        "controls=none",
    )
    assert results(tmp_path)["students/net/follow/seed-3"].metrics()[-1]["environment_steps"] == 120


# --------------------------------------------------------------------------------------- what goes together


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["controls=default"], "write `controls: [{name: alone, losses: [{kind: ppo}]}]`"),
        (["controls=all"], "'alone' would learn what the teacher does"),
        (["training.rollouts.source=student"], "does not act by itself"),
        (["training.rollouts=null"], "does not act by itself"),
        (["students.net.model={kind: tree}"], "'ppo' gives no class probabilities"),
        (
            ["students.net.model={kind: tree}", "methods=[hard]", "controls=none"],
            "fitted to all that is gathered",
        ),
        (["training.rollouts.cap=500"], "`cap` says nothing with `source: self`"),
        (["controls=[{name: alone, losses: [{kind: ppo}, {kind: kd}]}]"], "one of its losses looks at one"),
        (["controls=[{name: alone, losses: [{kind: ppo, weight: 0}]}]"], "counts nothing"),
        (
            ["controls=[{name: alone, losses: [{kind: ppo}], set: {ppo.clip: 0.1}}]"],
            "`set` changes a published mix",
        ),
        (["controls=[{name: alone, losses: [{kind: ppo}]}, shuffled-teacher]"], "`shuffle_teacher: true`"),
        (["controls=[{name: shuffled-teacher, losses: [{kind: ppo}]}]"], "it has no losses of its own"),
        (
            ["methods=[{name: slow, use: kickstarting, training: {rollouts: {states: 20}}}]"],
            "by other `rollouts`",
        ),
        (["methods=[{name: two, losses: [{kind: ppo}, {kind: ppo, name: again}]}]"], "both say"),
        (["dataset.target=30", "dataset.validation=0"], "there is none; add `validation: 0.1`"),
        (
            [
                "teachers.second={model: {kind: mlp}, from: teacher, method: ppo}",
                "training.rollouts=null",
            ],
            "act by itself",
        ),
        (["dataset={kind: digits}", "training.rollouts=null"], "the samples are of no environment"),
        (
            ["dataset={kind: digits}", "training.rollouts=null", "methods=[kd]"],
            "learns from the labels alone",
        ),
        (["methods=[{name: masked, losses: [{kind: ppo, mask: labelled}]}]"], "needs every batch whole"),
    ],
)
def test_what_does_not_go_together_is_refused(base, overrides, words):
    assert words in problems(base, *overrides)


def test_what_goes_together_is_not_refused(base):
    checked(
        base, "controls=[{name: alone, losses: [{kind: ppo}]}, {name: matched-cost, losses: [{kind: ppo}]}]"
    )
    checked(base, "methods=[{name: noise, use: kickstarting, set: {policy-kl.shuffle_teacher: true}}]")
    checked(base, "training.rollouts={source: student}", "methods=[hard]", "controls=none")


def test_a_target_changes_no_run(base):
    found = []
    for more in ((), ("dataset.target=50",)):
        config = checked(base, *more)
        found.append([one.fingerprint for one in plan(config, assembly.open_dataset(config)).runs])
    assert found[0] == found[1]


# ------------------------------------------------------------------------------------------- how fast


def test_the_comparison_tells_after_how_many_steps(base, tmp_path):
    overrides = ["seeds=[3, 4]", "dataset.target=5"]  # what any policy reaches
    run(base, tmp_path, *overrides)
    compared = comparison(tmp_path, "kick")
    rows = {row["method"]: row["steps_to_target"] for row in compared["rows"]}
    assert rows[None] is None
    assert (rows["alone"]["reached"], rows["alone"]["mean"], rows["alone"]["saved"]) == (2, 40, None)
    assert (rows["kickstarting"]["saved"], rows["kickstarting"]["saved_interval"]) == (0, [0, 0])
    assert "alone reached 5 in 2 of 2 seeds, after 40 steps in the mean" in compared["remarks"]


def test_without_a_target_nothing_is_told(base, tmp_path):
    run(base, tmp_path)
    assert all(row["steps_to_target"] is None for row in comparison(tmp_path, "kick")["rows"])


# --------------------------------------------------------------------------------------------- transfer

LONGER = "dataset.physics={length: 1.0}"


def with_agent(base, *overrides, physics=""):
    """``BASE`` and overrides by which its teacher is an agent."""
    agent = f"teachers={{teacher: {{model: {{kind: ppo, steps: 64{physics}}}}}}}"
    return base, agent, *overrides


def test_an_agent_learns_in_an_environment_of_its_own(base, tmp_path, monkeypatch):
    class Heard(Exception):
        pass

    def learn(self, environment, console, pause):
        raise Heard(environment.env, environment.physics, environment.options)

    monkeypatch.setattr(agents.Agent, "learn", learn)
    limit = {"max_episode_steps": 60}
    for physics, expected in (
        ("", {"length": 1.0}),
        (", physics: {}", {}),
        (", physics: {gravity: 20}", {"gravity": 20.0}),
    ):
        with pytest.raises(Heard) as heard:
            text, *overrides = with_agent(base, LONGER, physics=physics)
            run(text, tmp_path, *overrides)
        assert heard.value.args == ("CartPole-v1", expected, limit)


def test_where_an_agent_learns_decides_which_it_is(base):
    found = []
    for physics in ("", ", physics: {}", ", physics: {gravity: 20}"):
        text, *overrides = with_agent(base, LONGER, physics=physics)
        config = checked(text, *overrides)
        teacher = plan(config, assembly.open_dataset(config)).runs[0]
        found.append(teacher.fingerprint)
        assert ("physics" in teacher.inputs["model"]) == bool(physics)
    assert len(set(found)) == 3


def test_numbers_that_the_agents_environment_does_not_have(base):
    text, *overrides = with_agent(base, physics=", physics: {lenght: 2}")
    assert "has no such number; did you mean 'length'?" in problems(text, *overrides)
