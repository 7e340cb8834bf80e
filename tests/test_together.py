"""Ensembles and cascades: what they say, what validation decides of them, what they cost, and how they are refused."""

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kdrun import assembly, ensembles
from kdrun.contracts import Model
from kdrun.errors import ConfigError, Mismatch
from kdrun.models import Cascade, Ensemble, macs, parameters
from kdrun.statistics import cascades, scores
from support import Ears, checked, comparison, experiment, problems, results, run

TEXT = """
name: together
dataset: {kind: digits, validation: 0.2}
seeds: [0]
training: {epochs: 3, batch_size: 64, optimizer: {kind: adamw, lr: 5e-3}}
teachers:
  small: {model: {kind: mlp, hidden: [8]}}
  middle: {model: {kind: mlp, hidden: [64]}, seed: 1}
  big: {model: {kind: cnn}}
  all: {model: ensemble, from: [small, middle, big]}
  fitted: {model: {kind: ensemble, combine: fitted}, from: [small, big]}
  vote: {model: {kind: ensemble, combine: vote}, from: [small, middle, big]}
  cascade: {model: cascade, from: [small, middle, big]}
student: {model: {kind: mlp, hidden: [16]}}
methods:
  - {name: of-all, use: kd, teacher: all}
  - {name: of-cascade, use: kd, teacher: cascade}
"""


class Says(Model):
    """A member that says the same whatever it sees, or what it sees times a number."""

    stages, pooled, head = (), "", ""

    def __init__(self, logits=None, times=None):
        super().__init__()
        self.logits, self.times = logits, times
        self.asked = 0
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        self.asked += len(x)
        return torch.tensor(self.logits).expand(len(x), -1) if self.times is None else self.times * x


def together(model, members, **options):
    return model(
        model.Config(kind=model.Config.model_fields["kind"].annotation.__args__[0], **options), members
    )


def said_by(model, inputs=2):
    return F.softmax(model(torch.zeros(inputs, 3)), dim=1)[0].numpy()


# ------------------------------------------------------------------------------------------- what they say

EACH = [0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.1, 0.5, 0.4]
MEAN, MEDIAL = np.mean(EACH, axis=0), np.exp(np.mean(np.log(EACH), axis=0))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, MEAN),
        ({"combine": "fixed", "member_weights": [2, 1, 1]}, np.average(EACH, axis=0, weights=[2, 1, 1])),
        ({"combine": "mean-logits"}, MEDIAL / MEDIAL.sum()),
        ({"combine": "vote"}, (np.array([1, 2, 0]) + MEAN / 2) / 3.5),
    ],
    ids=["mean", "fixed", "mean-logits", "vote"],
)
def test_an_ensemble_says_the_mean_that_it_is_asked_for(options, wanted):
    members = [Says(logits) for logits in np.log(EACH).tolist()]
    np.testing.assert_allclose(said_by(together(Ensemble, members, **options)), wanted, rtol=1e-5)


@settings(deadline=None)
@given(
    st.lists(st.permutations([-3.0, 0.0, 1.0]) | st.permutations([-40.0, 5.0, 6.0]), min_size=2, max_size=6)
)
def test_a_vote_goes_to_the_most_and_of_several_to_the_largest_mean(logits):
    votes = np.bincount(np.argmax(logits, axis=1), minlength=3)
    mean = np.exp(scores.log_probabilities(np.array(logits))).mean(axis=0)
    chosen = said_by(together(Ensemble, [Says(one) for one in logits], combine="vote")).argmax()
    assert votes[chosen] == votes.max()
    assert mean[chosen] >= mean[votes == votes.max()].max() - 1e-5


def test_extreme_logits_stay_finite():
    members = [Says([1e4, -1e4, 0.0]), Says([-1e4, 1e4, 0.0])]
    for model in (together(Ensemble, members, combine="vote"), together(Ensemble, members)):
        assert model(torch.zeros(1, 3)).isfinite().all()
    for options in ({}, {"combine": "vote"}, {"combine": "fixed", "member_weights": [0, 1]}):
        assert np.isfinite(said_by(together(Ensemble, members, **options))).all()
    assert np.isfinite(said_by(together(Cascade, members, confidence=0.5))).all()


def drawn_logits(members=3, samples=200, classes=4):
    labels = np.random.default_rng(0).integers(classes, size=samples)
    noise = np.random.default_rng(1).normal(size=(members, samples, classes))
    skill = np.arange(1, members + 1)[:, None, None]
    return (noise * 2 + skill * np.eye(classes)[labels]).astype(np.float32), labels


class Remembers(Says):
    """A member that looks up what it says of the sample of a number."""

    def forward(self, x):
        return torch.from_numpy(self.logits)[x[:, 0].long()]


@pytest.mark.parametrize("demanded", [[0.6, 0.8], [0.0, 0.5], [0.99, 0.0]])
def test_a_cascade_says_what_the_first_sure_member_says(demanded):
    logits, _ = drawn_logits()
    model = together(Cascade, [Remembers(one) for one in logits], confidence=demanded)
    x = torch.arange(len(logits[0]))[:, None].float()
    answered = cascades.answering(cascades.confidences(logits), demanded)
    assert model.answering(model.said(x)).tolist() == answered.tolist()
    wanted = F.log_softmax(torch.from_numpy(logits[answered, np.arange(len(answered))]), dim=1)
    assert torch.equal(model(x), wanted)
    assert len(set(answered)) == 1 if 0.0 in demanded[:1] else len(set(answered)) > 1


@pytest.mark.parametrize("tolerance", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("metric", list(scores.OF_CLASSES))
def test_the_cheapest_confidence_within_the_tolerance_is_chosen(tolerance, metric):
    (first, second), labels = drawn_logits(members=2)
    logits, costs, places = np.stack([first, second]), [1.0, 10.0], np.arange(len(labels))

    def outcome(demanded):
        answered = cascades.answering(cascades.confidences(logits), demanded)
        found = scores.score(metric, logits.argmax(axis=2)[answered, places], labels)
        return found, float(cascades.reached(answered, 2) @ costs)

    demanded = cascades.chosen(logits, labels, costs, metric, tolerance)
    score, cost = outcome(demanded)
    least = scores.score(metric, second.argmax(axis=1), labels) - tolerance
    each = [outcome([one]) for one in np.linspace(0, 1, 1001)]
    assert score >= least
    assert cost <= min(c for s, c in each if s >= least) + 1e-9 < 11


def test_of_three_members_all_confidences_are_chosen():
    logits, labels = drawn_logits()
    demanded = cascades.chosen(logits, labels, [1, 3, 10], "accuracy", 0.01)
    answered = cascades.answering(cascades.confidences(logits), demanded)
    right = logits.argmax(axis=2) == labels
    assert len(demanded) == 2
    assert right[answered, np.arange(len(labels))].mean() >= right[-1].mean() - 0.01
    assert cascades.reached(answered, 3) @ np.array([1, 3, 10]) < 14


def test_a_last_member_that_is_always_right_where_others_never_are_answers_all():
    labels = np.arange(40) % 4
    wrong, right = 9 * np.eye(4)[(labels + 1) % 4], 9 * np.eye(4)[labels]
    [demanded] = cascades.chosen(np.stack([wrong, right]), labels, [1, 2], "accuracy", 0.0)
    assert demanded > cascades.confidences(wrong).max()
    found = cascades.curve(np.stack([wrong, right]), labels, [1, 2], "accuracy")
    assert found["score"][0] == 0 and found["score"][-1] == 1
    assert found["macs"][0] == 1 and found["macs"][-1] == 3


@pytest.mark.parametrize("reached", [[1.0, 0.3, 0.1], [1.0, 1.0, 0.5], [1.0, 0.25, 0.0]])
@pytest.mark.parametrize("size", [1, 7])
def test_a_cascade_is_timed_with_as_many_samples_passed_on_as_in_the_test(reached, size):
    members = [Says([0.0, 1.0, 2.0]) for _ in reached]
    model = together(Cascade, members, confidence=0.5)
    model.reached.copy_(torch.tensor(reached))
    passing = model.served()
    passing(torch.zeros(size, 3))
    assert all(member.asked for member, share in zip(members, reached, strict=True) if share)
    for _ in range(999):
        passing(torch.zeros(size, 3))
    shares = [member.asked / (1000 * size) for member in members]
    np.testing.assert_allclose(shares, reached, atol=3e-3)


def test_what_is_counted_is_the_members():
    members = [registered(hidden) for hidden in (8, 32)]
    both, cascade = together(Ensemble, members), together(Cascade, members, confidence=0.5)
    cascade.reached.copy_(torch.tensor([1.0, 0.25]))
    own = [macs(member, (1, 8, 8)) for member in members]
    assert parameters(both) == parameters(cascade) == sum(map(parameters, members))
    assert macs(both, (1, 8, 8)) == sum(own)
    assert macs(cascade, (1, 8, 8)) == round(own[0] + own[1] / 4)


def registered(hidden):
    from kdrun.models import MLP

    return MLP(MLP.Config(kind="mlp", hidden=[hidden]), (1, 8, 8), 10)


# ------------------------------------------------------------------------------------------ in an experiment


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("together")
    run(TEXT, root)
    return root


def rows(root, name="together"):
    return {(row["model"], row["method"]): row for row in comparison(root, name)["rows"]}


def of(root, teacher, seed=0):
    return results(root)[f"teachers/{teacher}/seed-{seed}"]


MEMBERS = {"small": 0, "middle": 1, "big": 0}


def logits_of(root, names=tuple(MEMBERS)):
    return np.stack([of(root, name, MEMBERS[name]).predictions()["logits"] for name in names])


def test_they_stand_in_the_table_beside_their_members(finished):
    found = rows(finished)
    for name in ("all", "fitted", "vote", "cascade"):
        row = found[name, None]
        assert row["role"] == "ensemble" and row["status"] == "finished"
        assert of(finished, name).manifest["train_seconds"] == 0
        assert row["teacher"].split("+") == list(row["against"]) and len(row["against"]) > 1
        assert row["peak_memory_bytes"]
        assert row["parameters"] == sum(found[member, None]["parameters"] for member in row["against"])
        assert row["agreement"] is None
    assert ("big+middle+small", None) not in found, "its mean has a row already"
    assert found["all", None]["macs"] == sum(found[member, None]["macs"] for member in MEMBERS)
    said = " ".join(comparison(finished, "together")["remarks"])
    assert "all is better than small: +" in said
    assert found["student", "of-all"]["teacher"] == "all" and found["student", "of-all"]["agreement"] > 0.5


def test_a_difference_from_a_member_is_mcnemars(finished):
    labels = of(finished, "all").predictions()["labels"]
    own, other = (
        of(finished, name, seed).predictions()["logits"].argmax(axis=1) == labels
        for name, seed in (("all", 0), ("small", 0))
    )
    told = rows(finished)["all", None]["against"]["small"]
    assert told["difference"] == pytest.approx(own.mean() - other.mean())
    assert told["verdict"] == "better" and told["p_value"] < 0.05


def test_an_ensemble_is_scored_by_the_mean_of_its_members(finished):
    mean = np.exp([scores.log_probabilities(one) for one in logits_of(finished)]).mean(axis=0)
    own = np.exp(scores.log_probabilities(of(finished, "all").predictions()["logits"]))
    np.testing.assert_allclose(own, mean, atol=1e-5)


def test_fitted_weights_are_those_that_explain_the_validation_labels(finished):
    setup = experiment(TEXT, finished)
    assembly.load(setup.plan, setup.dataset, setup.device, setup.store.shelf, setup.console)
    explained = []
    for name in ("small", "big"):
        [own] = [one for one in setup.plan.runs if (one.role, one.name) == ("teacher", name)]
        network = assembly.frozen(own, setup.finished(own), setup.dataset.spec, setup.device)
        said = [(network(batch).logits, batch.labels) for batch in setup.dataset.split("validation")]
        explained.append(torch.cat([F.log_softmax(z, 1)[range(len(y)), y] for z, y in said]).numpy())
    weights = of(finished, "fitted").manifest["members"]["weights"]
    np.testing.assert_allclose([*weights.values()], scores.mixture(np.stack(explained)), atol=1e-5)
    assert list(weights) == ["small", "big"]


def test_a_cascade_costs_what_its_members_are_asked(finished):
    row, manifest = rows(finished)["cascade", None], of(finished, "cascade").manifest
    asked, demanded = manifest["members"]["asked"], manifest["members"]["confidence"]
    answered = cascades.answering(cascades.confidences(logits_of(finished)), list(demanded.values()))
    np.testing.assert_allclose([*asked.values()], cascades.reached(answered, 3), atol=2e-3)
    own = {name: rows(finished)[name, None]["macs"] for name in MEMBERS}
    assert row["macs"] == round(sum(asked[name] * own[name] for name in MEMBERS))
    assert row["macs"] < sum(own.values())
    said = logits_of(finished)[answered, np.arange(len(answered))].argmax(axis=1)
    assert (of(finished, "cascade").predictions()["logits"].argmax(axis=1) == said).mean() > 0.99


def test_the_curve_of_a_cascade_goes_from_its_first_member_to_its_last(finished):
    found = rows(finished)
    curve = found["cascade", None]["curve"]
    assert curve["score"][0] == found["small", None]["mean"]
    assert curve["score"][-1] == found["big", None]["mean"]
    assert curve["macs"][0] == found["small", None]["macs"]
    assert curve["macs"][-1] == sum(found[name, None]["macs"] for name in MEMBERS)
    assert curve["macs"] == sorted(curve["macs"])
    assert all(row["curve"] is None for (name, _), row in found.items() if name != "cascade")


def test_what_was_decided_is_told(tmp_path):
    ears = Ears()
    experiment(TEXT, tmp_path, "methods=[]", console=ears).run(roles=["teacher"])
    said = " ".join(ears.heard)
    assert "fitted/seed 0: weighs small 0." in said
    assert "cascade/seed 0: asks small, then middle about " in said
    assert "all/seed 0: weighs" not in said


def test_nothing_is_made_twice_and_names_decide_nothing(finished):
    before = {place: result.manifest for place, result in results(finished).items()}
    text = TEXT.replace("small", "little").replace("name: together", "name: renamed")
    ears = Ears()
    experiment(text, finished, "methods=[]", console=ears).run(roles=["teacher"])
    assert not any("epoch" in said for said in ears.heard)
    found = results(finished)
    assert not [place for place in found if place not in before and "little" in place]
    assert rows(finished, "together")["all", None]["status"] == "finished"


def test_what_is_stored_says_the_same(finished):
    setup = experiment(TEXT, finished)
    assembly.load(setup.plan, setup.dataset, setup.device, setup.store.shelf, setup.console)
    for name in ("all", "vote", "cascade"):
        [own] = [one for one in setup.plan.runs if (one.role, one.name) == ("teacher", name)]
        network = assembly.frozen(own, setup.finished(own), setup.dataset.spec, setup.device)
        said = torch.cat([network(batch).logits for batch in setup.dataset.split("test")])
        assert np.array_equal(said.numpy(), of(finished, name).predictions()["logits"])


def test_students_learn_the_same_of_what_is_looked_up_and_asked_live(finished, tmp_path):
    run(TEXT, tmp_path, "training.cache=false", "seeds=[0]")
    for method in ("of-all", "of-cascade"):
        both = [results(root)[f"students/student/{method}/seed-0"].weights() for root in (finished, tmp_path)]
        for name, array in both[0].items():
            np.testing.assert_allclose(array, both[1][name], atol=1e-4)


def test_each_seed_has_its_own_and_gains_go_over_seeds(tmp_path):
    text = (
        TEXT.replace("seeds: [0]", "seeds: [0, 1]").replace(", seed: 1}", "}").replace("}\n  ", ", seeds: each}\n  ")
        .replace("big]}\nstudent", "big], seeds: each}\nstudent")
        .replace("batch_size: 64, optimizer: {kind: adamw, lr: 5e-3}, seeds: each}", "batch_size: 64}")
    )  # fmt: skip
    run(text, tmp_path, "methods=[]")
    row = rows(tmp_path)["all", None]
    small, all_ = rows(tmp_path)["small", None]["values"], row["values"]
    assert len(all_) == 2
    assert row["against"]["small"]["difference"] == pytest.approx(np.mean(np.subtract(all_, small)))


def test_a_member_may_be_fitted_distilled_or_an_ensemble_and_students_are_told(tmp_path):
    text = """
    name: mixed
    dataset: {kind: digits}
    seeds: [0]
    training: {epochs: 1, batch_size: 64}
    teachers:
      forest: {model: {kind: forest, trees: 4}}
      net: {model: {kind: mlp, hidden: [16]}}
      assistant: {model: {kind: mlp, hidden: [8]}, from: net, method: kd}
      both: {model: {kind: ensemble, combine: fixed, member_weights: [1, 3]}, from: [forest, net]}
      cascade: {model: {kind: cascade, confidence: 0.9}, from: [assistant, both]}
    student: {model: {kind: mlp, hidden: [8]}}
    methods: [{name: kd, use: kd, teacher: cascade}]
    """
    ears = Ears()
    experiment(text, tmp_path, console=ears).run()
    assert "the teacher 'cascade' is not cross-fitted: of samples that it was fitted to" in " ".join(
        ears.heard
    )
    assert rows(tmp_path, "mixed")["cascade", None]["status"] == "finished"


def test_layers_of_a_member_can_be_tapped(tmp_path):
    text = TEXT.replace(
        "  - {name: of-cascade, use: kd, teacher: cascade}",
        "  - {name: hint, teacher: cascade, losses: [ce, {kind: hint, student_layer: pooled, teacher_layer: LAYER}]}",
    )
    run(text.replace("LAYER", "members.1.body"), tmp_path, methods=["hint"])
    assert rows(tmp_path)["student", "hint"]["status"] == "finished"


# ------------------------------------------------------------------------------------------ what is refused

REFUSED = {
    "no members": (
        "all: {model: ensemble, from: [small, middle, big]}",
        "all: {model: ensemble}",
        "'ensemble' is made of two teachers or more; write `from: [one, another]`",
    ),
    "one member": (
        "all: {model: ensemble, from: [small, middle, big]}",
        "all: {model: ensemble, from: small}",
        "two teachers or more",
    ),
    "twice": ("from: [small, big]", "from: [big, big]", "a teacher stands twice; name each once"),
    "unknown": (
        "from: [small, big]",
        "from: [smal, big]",
        "there is no teacher 'smal'; did you mean 'small'?",
    ),
    "a method": ("model: cascade, ", "model: cascade, method: kd, ", "so `method` says nothing"),
    "a training": (
        "model: cascade, ",
        "model: cascade, training: {epochs: 3}, ",
        "so `training` says nothing",
    ),
    "weights": ("model: cascade, ", "model: cascade, weights: w.safetensors, ", "so `weights` says nothing"),
    "a start": (
        "model: cascade, ",
        "model: {kind: cascade, initial_weights: w.safetensors}, ",
        "remove `initial_weights`",
    ),
    "weights without fixed": ("combine: vote", "combine: vote, member_weights: [1, 2, 3]", "need each other"),
    "fixed without weights": ("combine: vote", "combine: fixed", "need each other"),
    "too few weights": (
        "combine: vote",
        "combine: fixed, member_weights: [1, 2]",
        "2 numbers, and 3 members need 3",
    ),
    "weights of 0": (
        "combine: vote",
        "combine: fixed, member_weights: [0, 0, 0]",
        "all `member_weights` are 0",
    ),
    "too many confidences": (
        "model: cascade",
        "model: {kind: cascade, confidence: [0.5, 0.6, 0.7]}",
        "3 numbers, and 3 members need 2",
    ),
    "a tolerance that says nothing": (
        "model: cascade",
        "model: {kind: cascade, confidence: 0.5, tolerance: 0.1}",
        "remove one",
    ),
    "nothing to fit to": (", validation: 0.2", "", "`combine` is chosen on the validation share"),
    "nothing to choose on": (", validation: 0.2", "", "`confidence` is chosen on the validation share"),
    "a student": (
        "{kind: mlp, hidden: [16]}",
        "ensemble",
        "a student is to be trained; name it among the `teachers`",
    ),
    "a circle": (
        "small: {model: {kind: mlp, hidden: [8]}}",
        "small: {model: ensemble, from: [all, big]}",
        "in a circle",
    ),
    "seeds of none": (
        "{model: cascade, ",
        "{model: cascade, seeds: each, ",
        "trained once, and so it is one for all",
    ),
    "seeds": (
        "big: {model: {kind: cnn}}",
        "big: {model: {kind: cnn}, seeds: each}",
        "write `seeds: each` here too",
    ),
}


@pytest.mark.parametrize(("old", "new", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_with_its_place(old, new, words):
    assert old in TEXT
    said = problems(TEXT.replace(old, new))
    assert words in said and "<text>:" in said, said


def test_members_see_one_view_and_the_model_sees_it_too(tmp_path):
    text = TEXT.replace("digits, validation: 0.2", "digits, validation: 0.2, strong_view: standard")
    seen = text.replace("small: {", "small: {view: strong, ").replace("middle: {", "middle: {view: strong, ")
    with pytest.raises(Mismatch, match="its members see several views: input, strong"):
        [own] = [one for one in experiment(seen, ".").plan.runs if one.name == "all"]
        assembly.bare_network(own, experiment(seen, ".").dataset.spec, torch.device("cpu"))
    with pytest.raises(
        ConfigError, match="its members see several views: input, strong; name teachers that see the"
    ):
        run(seen, tmp_path)
    same = TEXT.replace("big: {", "big: {view: input, ")
    [own] = [one for one in experiment(same, ".").plan.runs if one.name == "all"]
    assert assembly.bare_network(own, experiment(same, ".").dataset.spec, torch.device("cpu")).view == "input"
    plan = experiment(seen.replace("big: {", "big: {view: strong, "), ".").plan
    assert {one.view for one in plan.runs if one.role == "teacher"} == {"strong"}


def test_a_loss_on_stages_is_refused_in_words(tmp_path):
    text = TEXT.replace("{name: of-all, use: kd, teacher: all}", "{name: at, use: at, teacher: all}")
    with pytest.raises(Exception, match="the teacher 'all' does not say which of its layers are stages"):
        run(text, tmp_path)


def test_a_pause_is_kept_while_members_are_asked(finished):
    setup = experiment(TEXT, finished)
    assembly.load(setup.plan, setup.dataset, setup.device, setup.store.shelf, setup.console)
    [own] = [one for one in setup.plan.runs if (one.role, one.name) == ("teacher", "cascade")]
    spec, device = setup.dataset.spec, setup.device
    teachers = {one: assembly.frozen(one, setup.finished(one), spec, device) for one in own.teachers.values()}
    calls = itertools.count()
    ensembles.combined(own, teachers, setup.dataset, lambda: next(calls))
    assert next(calls) >= 4, "a batch of validation for each member, and those of the test set"


def test_the_json_of_a_comparison_has_the_curve_and_the_table_a_line_each(finished):
    text = json.dumps(comparison(finished, "together"))
    assert '"curve": {"confidence"' in text
    assert checked(TEXT).experiment.teachers["cascade"].sources == ["small", "middle", "big"]
