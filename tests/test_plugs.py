"""What works on any mix: schedules, masks, several teachers, stages, two momenta, mixing."""

import json
import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from kdrun import assembly, rehearsal
from kdrun.config import published_methods
from kdrun.contracts import HIDDEN, Batch, Draw, LossConfig, Mask, Mix, Outputs
from kdrun.data.base import _mixed
from kdrun.models import Prepared
from kdrun.objective import Term, combined, kept
from kdrun.optimization import Stage, stage_at
from kdrun.plan import plan
from kdrun.registry import LOSSES
from kdrun.schedules import AnyWeightSchedule
from support import Ears, checked, experiment, problems, results, run, students

TABLE = """
name: plugs
dataset: {kind: digits}
seeds: [0]
training: {epochs: 4, batch_size: 128, optimizer: {kind: sgd, lr: 0.05}}
teachers:
  a: {model: {kind: cnn, width: 4, depth: 2, hidden: 16}}
  b: {model: {kind: mlp, hidden: [24]}, seed: 1}
student: {model: {kind: cnn, width: 4, depth: 2, hidden: 16}}
controls: none
methods:
"""


def with_methods(*methods):
    return TABLE + "".join(f"  - {method}\n" for method in methods)


def log(root, method):
    """What a method's student wrote down, an epoch each."""
    lines = (root / "plugs" / "students" / "student" / method / "seed-0" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in lines.splitlines()]


# ------------------------------------------------------------------------------------------- schedules


def schedule(**keys):
    return TypeAdapter(AnyWeightSchedule).validate_python(keys)


@pytest.mark.parametrize(
    ("keys", "factors"),
    [
        ({"kind": "constant"}, [1, 1, 1, 1]),
        ({"kind": "warmup", "epochs": 2}, [0.5, 1, 1, 1]),
        ({"kind": "warmup", "share": 0.75}, [1 / 3, 2 / 3, 1, 1]),
        ({"kind": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"kind": "linear", "final": 0.5, "start": 0.5}, [1, 1, 1, 0.75]),
        ({"kind": "cosine"}, [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
        ({"kind": "cosine", "start": 0.5}, [1, 1, 1, 0.5]),
        ({"kind": "step", "milestones": [1, 3]}, [1, 0.1, 0.1, 0.01]),
    ],
)
def test_a_schedule_gives_a_factor_an_epoch(keys, factors):
    made = schedule(**keys)
    assert [made.factor(epoch, 4) for epoch in range(4)] == pytest.approx(factors)


def test_weights_follow_their_schedule_and_their_epochs_and_stand_in_the_log(tmp_path):
    losses = (
        "{kind: ce, schedule: linear}, {kind: kd, teacher: a, weight: 2, schedule: {kind: warmup, epochs: 4}, "
        "last_epoch: 3}, {kind: rkd, teacher: a, first_epoch: 3}"
    )
    run(
        with_methods(
            f"{{name: m, losses: [{losses}]}}", "{name: stopped, use: kd, teacher: a, early_stop: 1}"
        ),
        tmp_path,
    )

    def weights(method, term):
        lines = log(tmp_path, method)
        return [line["terms"][term]["weight"] for line in lines], [
            line["terms"][term]["value"] for line in lines
        ]

    assert weights("m", "ce")[0] == pytest.approx([1, 0.75, 0.5, 0.25])
    given, values = weights("m", "kd")
    assert given == pytest.approx([0.5, 1.0, 1.5, 0.0])
    assert values[3] is None and all(value > 0 for value in values[:3])
    assert weights("m", "rkd")[0] == [0, 0, 1, 1]
    assert weights("stopped", "kd")[0] == [0.9, 0, 0, 0]
    assert weights("stopped", "ce")[0] == [0.1] * 4


# ------------------------------------------------------------------------------------------------ masks


def said(*rows):
    return Outputs(torch.tensor(rows, dtype=torch.float32))


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ({"kind": "teacher-correct"}, [True, False, False, False]),
        ({"kind": "teacher-confident", "confidence": 0.9}, [False, True, False, True]),
        ({"kind": "labelled"}, [True, True, False, True]),
        ({"kind": "unlabelled"}, [False, False, True, False]),
    ],
)
def test_a_mask_keeps_some_samples(mask, expected):
    teacher = said([1, 0], [9, 0], [0, 1], [0, 9])
    batch = Batch({}, torch.tensor([0, 1, HIDDEN, 0]), torch.arange(4))
    assert kept(Mask.model_validate(mask), [teacher], batch).tolist() == expected


def test_of_several_teachers_the_mean_probability_is_masked():
    batch = Batch({}, torch.tensor([0]), torch.arange(1))
    sure, unsure = said([9, 0]), said([0, 1])
    assert kept(Mask(kind="teacher-correct"), [sure, unsure], batch).tolist() == [True]
    assert kept(Mask(kind="teacher-confident"), [sure, unsure], batch).tolist() == [False]


def term(config, losses=1, shares=None):
    loss_class = LOSSES[config["kind"]]
    checked_config = loss_class.Config.model_validate(config)
    return Term(checked_config, [loss_class(checked_config) for _ in range(losses)], {}, shares)


def test_a_masked_term_is_the_sum_over_the_kept_samples_divided_by_all():
    draw = torch.Generator().manual_seed(0)
    student, teacher = (Outputs(torch.randn(6, 3, generator=draw)) for _ in range(2))
    labels = teacher.logits.argmax(1)
    labels[[1, 4]] = (labels[[1, 4]] + 1) % 3
    batch = Batch({}, labels, torch.arange(6))
    masked = term({"kind": "kd", "teacher": "t", "weight": 0.5, "mask": "teacher-correct"})
    p, q = (x.logits.div(4).softmax(1) for x in (teacher, student))
    each = 16 * (p * (p / q).log()).sum(1)
    expected = 0.5 * each[[0, 2, 3, 5]].sum() / 6
    assert masked(student, {"t": teacher}, batch).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("right", [0, 1])
def test_a_masked_term_of_fewer_than_two_samples_is_nothing(right):
    teacher = said([9, 0], [9, 0], [9, 0])
    batch = Batch({}, torch.tensor([0] * right + [1] * (3 - right)), torch.arange(3))
    masked = term({"kind": "kd", "teacher": "t", "mask": "teacher-correct"})
    assert masked(said([1, 0], [1, 0], [1, 0]), {"t": teacher}, batch) == 0


def test_under_mixup_a_mask_goes_by_the_label_of_the_larger_share():
    mix = Mix(torch.tensor([1, 0]), torch.tensor([0.3, 0.8]))
    batch = Batch({}, torch.tensor([0, 1]), torch.arange(2), mix)
    assert kept(Mask(kind="teacher-correct"), [said([0, 1], [0, 1])], batch).tolist() == [True, True]
    assert batch.rows(torch.tensor([0])).labels.tolist() == [1]


# -------------------------------------------------------------------------------------- several teachers


def teachers(count=3, size=5):
    logits = 3 * torch.randn(count, size, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return logits, [Outputs(each) for each in logits]


def together(combine, outputs, temperature=1.0, batch=None, shares=None, **options):
    """The probabilities that `kd` wants where several teachers are combined."""
    names = [f"t{number}" for number in range(len(outputs))]
    config = {"kind": "kd", "teacher": names, "combine": combine, "temperature": temperature} | options
    taught = dict(zip(names, outputs, strict=True))
    size = len(outputs[0].logits)
    batch = batch or Batch({}, torch.zeros(size, dtype=torch.int64), torch.arange(size))
    return term(config, shares=shares).target(taught, batch)


def test_the_mean_is_of_probabilities_or_of_logits():
    logits, outputs = teachers()
    for temperature in (1.0, 2.0, 7.0):
        mean = (logits / temperature).softmax(-1).mean(0)
        torch.testing.assert_close(together("mean", outputs, temperature), mean)
    torch.testing.assert_close(together("mean-logits", outputs, 3.0), (logits.mean(0) / 3).softmax(-1))


def test_fixed_weights_are_shares_of_probabilities():
    logits, outputs = teachers()
    found = together("fixed", outputs, 3.0, teacher_weights=[2.0, 1.0, 1.0])
    p = (logits / 3).softmax(-1)
    torch.testing.assert_close(found, 0.5 * p[0] + 0.25 * p[1] + 0.25 * p[2])


def test_entropy_weighs_each_sample_s_teachers_by_how_sure_they_are():
    logits, outputs = teachers()
    p, sharp = (logits / 2).softmax(-1), logits.softmax(-1)
    entropy = -(sharp * sharp.log()).sum(-1)
    weights = (1 - entropy / entropy.sum(0)) / 2
    assert weights.sum(0) == pytest.approx(np.ones(5))
    torch.testing.assert_close(together("entropy", outputs, 2.0), (weights[..., None] * p).sum(0))


def test_teachers_that_are_all_sure_count_alike():
    assert together("entropy", [said([1e4, 0]), said([0, 1e4])]).tolist() == [[0.5, 0.5]]


def test_the_best_teacher_of_a_batch_is_the_one_that_explains_its_labels_best():
    right, wrong = said([2, 0], [0, 2], [0, 9]), said([0, 2], [2, 0], [0, 0])
    batch = Batch({}, torch.tensor([0, 1, HIDDEN]), torch.arange(3))
    for outputs in ([right, wrong], [wrong, right]):
        torch.testing.assert_close(together("best", outputs, 2.0, batch), (right.logits / 2).softmax(-1))


def test_where_no_label_is_seen_the_surest_teacher_is_the_best():
    sure, unsure = said([5, 0], [0, 5]), said([1, 0], [0, 1])
    batch = Batch({}, torch.tensor([HIDDEN, HIDDEN]), torch.arange(2))
    torch.testing.assert_close(together("best", [unsure, sure], 1.0, batch), sure.logits.softmax(-1))


def test_a_random_teacher_is_one_of_them_and_another_in_another_step():
    logits, outputs = teachers()
    seen = []
    for seed in range(60):
        torch.manual_seed(seed)
        found = together("random", outputs)
        [which] = [i for i, z in enumerate(logits) if torch.allclose(found, z.softmax(-1), atol=1e-6)]
        seen.append(which)
    assert sorted(set(seen)) == [0, 1, 2] and min(map(seen.count, range(3))) > 8


def test_the_best_teacher_is_chosen_by_what_it_says_of_its_own_samples():
    """Also where all that the student hears is shuffled."""
    right, unsure = said([9, 0], [0, 9], [9, 0]), said([0, 0], [0, 0], [0, 0])
    batch = Batch({}, torch.tensor([0, 1, 0]), torch.arange(3))
    for seed in range(9):
        torch.manual_seed(seed)
        found = together("best", [unsure, right], 1.0, batch, shuffle_teacher=True)
        assert (found.amax(dim=1) > 0.99).all()


@pytest.mark.parametrize("combine", ["best", "random"])
def test_one_teacher_of_a_step_is_one_for_every_view_and_of_losses_one(combine):
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 6, 3, generator=draw)
    outputs = [Outputs(one, {"f": one}, {"strong": Outputs(-one)}) for one in logits]
    batch = Batch({}, logits[1].argmax(1), torch.arange(6))
    config = LossConfig(kind="kd", teacher=["a", "b"], combine=combine)
    taught = {"a": outputs[0], "b": outputs[1]}
    for seed in range(8):
        torch.manual_seed(seed)
        weigh = Term(config, [], {})._weigh(taught, batch)
        both = combined(outputs, config, 2.0, weigh)
        assert torch.equal(
            both.logits, logits[weigh(logits).argmax()]
        )  # its very logits, not such of its softmax
        assert torch.equal(both.views["strong"].logits, -both.logits)
        apart = term({"kind": "logit-mse", "teacher": ["a", "b"], "combine": combine}, losses=2)
        torch.manual_seed(seed)
        value = apart(Outputs(torch.zeros(6, 3)), taught, batch)
        each = (logits**2).mean(dim=(1, 2))
        assert value.item() == pytest.approx(each[weigh(logits).argmax()].item(), rel=1e-5)
        assert combine == "random" or weigh(logits).tolist() == [[0], [1]]


def test_fitted_weights_explain_the_validation_labels_best_and_are_told(tmp_path):
    method = "{name: m, use: kd, teacher: [a, b], combine: fitted}"
    ears = Ears()
    experiment(with_methods(method), tmp_path, "dataset.validation=0.2", console=ears).run()
    found = results(tmp_path)
    weights = found["students/student/m/seed-0"].manifest["teacher_weights"]["kd"]
    assert list(weights) == ["a", "b"] and sum(weights.values()) == pytest.approx(1)
    told = ", ".join(f"{name} {share:.2f}" for name, share in weights.items())
    assert ears.heard.count(f"student/m: kd weighs its teachers: {told}") == 1
    made, taught_by, dataset, _ = students(with_methods(method), "dataset.validation=0.2")
    batches = list(dataset.split("validation"))
    labels = torch.cat([batch.labels for batch in batches])
    p = torch.stack(
        [torch.cat([taught_by[name](batch).logits for batch in batches]).softmax(1) for name in "ab"]
    )[:, torch.arange(len(labels)), labels].double()
    shares = made["m"].objective.fitted_shares["kd"]

    def explained(share):
        return (share * p[0] + (1 - share) * p[1]).log().mean().item()

    most = max(map(explained, np.linspace(0, 1, 101)))
    assert explained(shares["a"]) >= most - 1e-7


@pytest.mark.parametrize(("combine", "weights"), [("mean-loss", None), ("fixed", [3.0, 1.0])])
def test_a_loss_for_each_teacher_is_averaged(combine, weights):
    _, (a, b, student) = teachers()
    batch = Batch({}, torch.arange(5) % 4, torch.arange(5))
    config = {"kind": "kd", "teacher": ["a", "b"], "combine": combine}
    config |= {"teacher_weights": weights} if weights else {}
    one, other = (term({"kind": "kd", "teacher": "t"})(student, {"t": t}, batch).item() for t in (a, b))
    shares = np.array(weights or [1.0, 1.0]) / sum(weights or [1.0, 1.0])
    together = term(config, losses=2)(student, {"a": a, "b": b}, batch)
    assert together.item() == pytest.approx(shares @ [one, other], rel=1e-5)


# ----------------------------------------------------------------------------------------------- stages


def test_stages_follow_each_other_and_after_them_everything_learns():
    stages = [Stage(epochs=2), Stage(share=0.3), Stage(epochs=1, train=["body"])]
    found = [stage_at(stages, epoch, 10) for epoch in range(10)]
    assert found == [stages[0]] * 2 + [stages[1]] * 3 + [stages[2]] + [Stage()] * 4
    assert stage_at([Stage(epochs=1), Stage(losses=["ce"])], 9, 10).losses == ["ce"]
    assert stage_at([Stage(share=0.01)], 0, 10).share == 0.01  # at least one epoch


def changed(student, before):
    """The parts whose weights are not what they were."""
    head = f"{student.model.head}."
    moved = {key for key, p in student.model.named_parameters() if not torch.equal(p, before[0][key])}
    parts = {"classifier" if key.startswith(head) else "body" for key in moved}
    if any(not torch.equal(p, before[1][key]) for key, p in student.objective.named_parameters()):
        parts.add("adapters")
    return parts


def state(student):
    return [
        {k: v.clone() for k, v in part.state_dict().items()} for part in (student.model, student.objective)
    ]


@pytest.mark.parametrize("optimizer", ["{kind: sgd, lr: 0.05}", "{kind: adamw}"])
@pytest.mark.parametrize(
    ("train", "learns"),
    [
        ("[adapters]", {"adapters"}),
        ("[body]", {"body"}),
        ("[classifier]", {"classifier"}),
        ("[body, adapters]", {"body", "adapters"}),
        ("[adapters, body, classifier]", {"adapters", "body", "classifier"}),
    ],
)
def test_in_a_stage_only_its_parts_learn_and_then_all(train, learns, optimizer):
    losses = "[{kind: ce}, {kind: hint, teacher: a}]"
    method = f"{{name: m, losses: {losses}, stages: [{{epochs: 1, train: {train}}}]}}"
    made, taught_by, dataset, planned = students(with_methods(method), f"training.optimizer={optimizer}")
    student, draw = made["m"], planned.runs[-1].draw
    seen = []
    for epoch in range(2):
        before = state(student)
        for batch in dataset.batches(draw, epoch):
            student.step(batch, {name: teacher(batch) for name, teacher in taught_by.items()})
        seen.append(changed(student, before))
    assert seen == [learns, {"adapters", "body", "classifier"}]


def test_where_adapters_learn_alone_the_student_s_statistics_stay():
    method = "{name: m, losses: [{kind: hint, teacher: a}], stages: [{train: [adapters]}]}"
    made, taught_by, dataset, planned = students(with_methods(method))
    before = state(made["m"])[0]
    for batch in dataset.batches(planned.runs[-1].draw, 0):
        made["m"].step(batch, {name: teacher(batch) for name, teacher in taught_by.items()})
    assert all(torch.equal(value, before[key]) for key, value in made["m"].model.state_dict().items())


def test_a_stage_has_its_own_terms(tmp_path):
    stages = "[{epochs: 1, losses: [hint], train: [body, adapters]}, {share: 0.25, losses: [ce]}]"
    method = f"{{name: m, losses: [{{kind: ce}}, {{kind: hint, teacher: a}}], stages: {stages}}}"
    run(with_methods(method), tmp_path)
    lines = log(tmp_path, "m")
    assert [line["terms"]["ce"]["weight"] for line in lines] == [0, 1, 1, 1]
    assert [line["terms"]["hint"]["weight"] for line in lines] == [1, 0, 1, 1]


def test_the_paraphraser_of_ft_learns_in_its_stage_and_then_stays():
    stages = "[{epochs: 1, losses: [ft], train: [adapters]}]"
    method = f"{{name: m, use: ft, teacher: a, set: {{ft.weight: 1}}, stages: {stages}}}"
    made, taught_by, dataset, planned = students(with_methods(method))
    student, draw = made["m"], planned.runs[-1].draw
    seen = []
    for epoch in range(2):
        before = state(student)
        for batch in dataset.batches(draw, epoch):
            student.step(batch, {name: teacher(batch) for name, teacher in taught_by.items()})
        after = student.objective.state_dict()
        moved = {key.split(".")[4] for key, value in before[1].items() if not torch.equal(value, after[key])}
        seen.append((changed(student, before), moved))
    assert seen == [({"adapters"}, {"paraphraser"}), ({"adapters", "body", "classifier"}, {"adapter"})]


# ----------------------------------------------------------------------------------------- two momenta


def test_two_momenta_are_two_running_sums():
    method = "{name: m, losses: [{kind: ce}, {kind: kd, teacher: a, weight: 2}], momentum_gap: 0.075}"
    made, taught_by, dataset, planned = students(with_methods(method), "training.schedule=constant")
    student, draw = made["m"], planned.runs[-1].draw
    sgd = student.training.optimizer
    mine = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    sums = [{name: torch.zeros_like(p) for name, p in mine.items()} for _ in range(2)]
    for batch in dataset.batches(draw, 0):
        taught = {name: teacher(batch) for name, teacher in taught_by.items()}
        student.model.train()
        terms = student.objective(student.network(batch), taught, batch)
        parameters = dict(student.model.named_parameters())
        gradients = [
            torch.autograd.grad(terms[label], parameters.values(), retain_graph=True)
            for label in ("ce", "kd")
        ]
        for name, ce, kd in zip(parameters, *gradients, strict=True):
            sums[0][name] = (sgd.momentum - 0.075) * sums[0][name] + ce + sgd.weight_decay * mine[name]
            sums[1][name] = (sgd.momentum + 0.075) * sums[1][name] + kd
            mine[name] = mine[name] - sgd.lr * (sums[0][name] + sums[1][name])
        student.step(batch, taught)
        for name, parameter in student.model.named_parameters():
            torch.testing.assert_close(parameter.detach(), mine[name], rtol=1e-3, atol=1e-5)
            mine[name] = parameter.detach().clone()


def test_a_weight_with_one_kind_of_gradient_has_the_plain_momentum():
    losses = "[{kind: ce}, {kind: hint, teacher: a}]"
    made, taught_by, dataset, planned = students(
        with_methods(
            f"{{name: m, losses: {losses}, momentum_gap: 0.05}}", f"{{name: plain, losses: {losses}}}"
        )
    )
    draw = planned.runs[-1].draw
    batch = next(dataset.batches(draw, 0))
    taught = {name: teacher(batch) for name, teacher in taught_by.items()}
    for _ in range(2):
        for name in ("m", "plain"):
            made[name].step(batch, taught)
            made[name].model.load_state_dict(made["alone"].model.state_dict())  # equal gradients
    apart, plain = (made[name].optimizers for name in ("m", "plain"))
    names = [name for name, _ in made["m"].model.named_parameters()]
    both = {
        n
        for n, p in zip(names, made["m"].parameters, strict=False)
        if apart[0].state[p]["momentum_buffer"].any()
    }
    one = {
        n
        for n, p in zip(names, made["m"].parameters, strict=False)
        if apart[2].state[p]["momentum_buffer"].any()
    }
    assert "classifier.weight" in one and "body.0.0.weight" in both and not both & one
    ours, theirs = (
        dict(zip(names, made[n].parameters, strict=False))["classifier.weight"] for n in ("m", "plain")
    )
    torch.testing.assert_close(
        apart[2].state[ours]["momentum_buffer"], plain[0].state[theirs]["momentum_buffer"]
    )


def test_a_momentum_runs_on_when_its_terms_have_ended():
    method = "{name: m, losses: [{kind: ce}, {kind: kd, teacher: a, last_epoch: 1}], momentum_gap: 0.075}"
    made, taught_by, dataset, planned = students(with_methods(method))
    student, draw = made["m"], planned.runs[-1].draw
    for epoch in range(2):
        batch = next(dataset.batches(draw, epoch))
        student.position = epoch * student.steps_per_epoch
        before = [student.optimizers[1].state[p]["momentum_buffer"].clone() for p in student.parameters]
        student.step(batch, {name: teacher(batch) for name, teacher in taught_by.items()})
    after = [student.optimizers[1].state[p]["momentum_buffer"] for p in student.parameters]
    assert any(buffer.any() for buffer in before)
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, 0.975 * old)
    assert student.checkpoint({}).state["both_gradients"] == [True] * len(student.parameters)


def test_with_two_momenta_the_norm_of_both_gradients_together_is_clipped(monkeypatch):
    method = "{name: m, losses: [{kind: ce}, {kind: kd, teacher: a}], momentum_gap: 0.075}"
    made, taught_by, dataset, planned = students(with_methods(method), "training.clip=0.01")
    student, seen = made["m"], []
    apart = student._apart
    monkeypatch.setattr(student, "_apart", lambda *both: seen.append(both) or apart(*both))
    batch = next(dataset.batches(planned.runs[-1].draw, 0))
    student.step(batch, {name: teacher(batch) for name, teacher in taught_by.items()})
    ((others, taught),) = seen
    norm = torch.cat([(a + b).flatten() for a, b in zip(others, taught, strict=True)]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


# ---------------------------------------------------------------------------------------------- mixing


def draw_with(**keys):
    return Draw(seed=0, batch_size=8, **keys)


def mixed_view(x, draw, seed):
    views, mix = _mixed({"input": x}, draw, seed)
    return views["input"], mix


def test_cutmix_takes_a_box_of_the_partner_and_its_exact_share():
    x = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 2, 6, 5).clone()
    for seed in range(20):
        mixed, mix = mixed_view(x, draw_with(cutmix=1.0), seed)
        own = (mixed == x).all(dim=1)
        assert ((mixed == x) | (mixed == x[mix.partner])).all()
        alone = mix.partner == torch.arange(8)
        torch.testing.assert_close(own.float().mean(dim=(1, 2))[~alone], mix.share[~alone])
        for sample in torch.nonzero(~alone).flatten():
            outside = torch.nonzero(~own[sample])
            if len(outside):
                size = outside.max(0).values - outside.min(0).values + 1
                assert size.prod() == len(outside)  # a box, without gaps


def test_with_both_each_batch_is_mixed_in_one_way():
    x = torch.randn(8, 1, 6, 6)
    boxes = []
    for seed in range(30):
        mixed, mix = mixed_view(x, draw_with(mixup=1.0, cutmix=1.0), seed)
        others = mix.partner != torch.arange(8)
        either = ((mixed == x) | (mixed == x[mix.partner]))[others]
        boxes.append(bool(either.all()))
    assert 5 < sum(boxes) < 25


def test_a_method_mixes_for_its_own_students_and_their_teachers():
    methods = (
        "{name: fm, use: function-matching, teacher: a, training: {mixup: 1.0, cutmix: 0.5}}",
        "{name: kd, use: kd, teacher: a}",
    )
    _, _, dataset, planned = students(with_methods(*methods))
    draws = {run_.method: run_.draw for run_ in planned.runs if run_.role == "student"}
    assert (draws["fm"].mixup, draws["fm"].cutmix) == (1.0, 0.5)
    assert (draws["kd"].mixup, draws["alone"].mixup) == (0, 0)
    assert next(dataset.batches(draws["fm"], 0)).mix is not None
    assert next(dataset.batches(draws["kd"], 0)).mix is None


def test_the_teacher_sees_the_mixed_samples(tmp_path, monkeypatch):
    seen = []
    original = Prepared.__call__

    def noted(self, batch):
        if batch.mix is not None:
            seen.append(batch)
        return original(self, batch)

    monkeypatch.setattr(Prepared, "__call__", noted)
    run(with_methods("{name: fm, use: function-matching, teacher: a, training: {mixup: 1.0}}"), tmp_path)
    assert len(seen) == 4 * (1257 // 128)


# -------------------------------------------------------------------------------------- a second view


def test_a_second_view_is_augmented_by_itself_and_reaches_the_loss():
    text = with_methods("{name: m, use: mlkd, teacher: a, set: {mlkd.view: strong}}").replace(
        "{kind: digits}", "{kind: digits, augmentation: crop, strong_view: [crop, {kind: cutout, size: 4}]}"
    )
    made, taught_by, dataset, planned = students(text)
    draw = planned.runs[-1].draw
    batch, plain = next(dataset.batches(draw, 0)), next(iter(dataset.split("test")))
    assert not torch.equal(batch.views["input"], batch.views["strong"])
    assert torch.equal(plain.views["input"], plain.views["strong"])
    taught = taught_by["a"](batch)
    assert torch.equal(taught.views["strong"].logits, taught_by["a"].model(batch.views["strong"]))
    made["m"].step(batch, {"a": taught})
    made["m"].flush()
    assert made["m"].failure is None


def test_two_teachers_are_combined_view_by_view():
    outputs = [Outputs(logits, views={"strong": Outputs(-logits)}) for logits in teachers()[0]]
    config = LossConfig(kind="mlkd", teacher=["a", "b", "c"], combine="mean-logits")
    both = combined(outputs, config, 1.0, weigh=lambda logits: logits)
    torch.testing.assert_close(both.views["strong"].logits, -both.logits)


# --------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (
            "{name: m, use: kd, teacher: a, stages: [{losses: [kb]}]}",
            "'kb' is no term of this method; did you mean 'kd'? known: ce, kd",
        ),
        ("{name: m, use: kd, teacher: a, stages: [{}, {}]}", "only the last stage may say no length"),
        (
            "{name: m, use: kd, teacher: a, stages: [{epochs: 1, share: 0.5}]}",
            "say either 'epochs' or 'share'",
        ),
        ("{name: m, losses: [{kind: ce}], early_stop: 2}", "no term of this method looks at a teacher"),
        (
            "{name: m, use: kd, teacher: a, momentum_gap: 0.2}",
            "momenta 0.9 ± 0.2 are not both between 0 and 1",
        ),
        (
            "{name: m, use: kd, teacher: a, set: {kd.schedule: {kind: warmup}}}",
            "say either 'epochs' or 'share'",
        ),
        (
            "{name: m, use: kd, teacher: a, set: {kd.first_epoch: 3, kd.last_epoch: 2}}",
            "2 is before the first epoch, 3",
        ),
        ("{name: m, losses: [{kind: ce, mask: teacher-correct}]}", "'ce' looks at no teacher"),
        (
            "{name: m, use: semckd, teacher: a, set: {semckd.mask: labelled}}",
            "'semckd' needs every batch whole",
        ),
        ("{name: m, use: ebkd, teacher: a}", "'ebkd' weighs several teachers and has one"),
        ("{name: m, use: ebkd, set: {ebkd.combine: mean-logits}}", "'ebkd' weighs its teachers by itself"),
        ("{name: m, use: kd, teacher: [a, b], combine: fixed}", "`combine: fixed` needs `teacher_weights`"),
        (
            "{name: m, use: kd, teacher: [a, b], combine: fixed, set: {kd.teacher_weights: [1, 2, 3]}}",
            "3 weights for 2 teachers",
        ),
        (
            "{name: m, use: kd, teacher: [a, b], combine: fixed, set: {kd.teacher_weights: [0, 0]}}",
            "all weights are 0",
        ),
        (
            "{name: m, use: kd, teacher: [a, b], combine: fitted}",
            "the weights are fitted to the validation share, and there is none; add `validation: 0.1`",
        ),
        (
            "{name: m, use: rkd, teacher: [a, b], combine: entropy}",
            "'rkd' looks at more than logits, which cannot be combined",
        ),
    ],
)
def test_what_does_not_fit_together_is_said_in_words(method, words):
    assert words in problems(with_methods(method))


def test_two_momenta_need_an_optimizer_with_one():
    said_of = problems(
        with_methods("{name: m, use: kd, teacher: a, momentum_gap: 0.1}"), "training.optimizer=adamw"
    )
    assert "two momenta need an optimizer that has one, and this is adamw; use sgd" in said_of


def test_a_mask_is_not_compiled():
    method = "{name: m, use: kd, teacher: a, set: {kd.mask: teacher-correct}}"
    assert "'kd' has a mask" in problems(with_methods(method), "training.compile=true")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("ebkd", "'ebkd' weighs several teachers and has one"),
        ("m", "two momenta need an optimizer that has one"),
    ],
)
def test_a_distilled_teacher_s_method_must_fit_its_sources(method, words):
    text = with_methods("{name: m, use: kd, teacher: a, momentum_gap: 0.05}").replace(
        "student:",
        f"  c: {{model: {{kind: mlp}}, from: a, method: {method}, training: {{optimizer: adam}}}}\nstudent:",
    )
    assert f"teachers.c.method: {words}" in problems(text)


def test_published_stages_follow_a_term_to_its_new_name():
    text = with_methods("{name: m, use: fitnet, teacher: a, set: {hint.name: guide, kd.name: soft}}")
    stages = checked(text).methods["m"].stages
    assert [stage.losses for stage in stages] == [["guide"], ["ce", "soft"]]


def test_a_second_view_is_no_reason_to_train_what_does_not_look_at_it():
    def fingerprints(dataset):
        mlkd = "{name: mlkd, use: mlkd, teacher: a" + (
            ", set: {mlkd.view: strong}}" if "view" in dataset else "}"
        )
        text = with_methods("{name: kd, use: kd, teacher: a}", mlkd).replace("{kind: digits}", dataset)
        return {run_.kin: run_.fingerprint for run_ in students(text)[3].runs}

    plain, with_view = (fingerprints(d) for d in ("{kind: digits}", "{kind: digits, strong_view: crop}"))
    differ = {kin[2] or kin[1] for kin in plain if plain[kin] != with_view[kin]}
    assert differ == {"mlkd"}


def test_a_rehearsal_tries_every_term_in_its_turn():
    method = "{name: m, use: fitnet, teacher: a}"
    config = checked(with_methods(method))
    dataset = assembly.open_dataset(config)
    shown = rehearsal.rehearse(plan(config, dataset), dataset, torch.device("cpu"))
    terms = next(one.terms for one in shown if one.run.method == "m")
    assert terms.keys() == {"ce", "kd", "hint"} and all(value > 0 for value in terms.values())


def test_cutmix_needs_pictures(tmp_path):
    text = with_methods("{name: m, use: kd, teacher: b, training: {cutmix: 1.0}}").replace(
        "{kind: digits}", "{kind: wine}"
    )
    with pytest.raises(Exception, match="cutmix cuts pictures"):
        run(text.replace("{kind: cnn, width: 4, depth: 2, hidden: 16}", "{kind: mlp, hidden: [8]}"), tmp_path)


def test_a_view_that_the_data_lack_is_said_in_words(tmp_path):
    with pytest.raises(Exception, match=r"the data set has no view 'strong'.*strong_view"):
        run(with_methods("{name: m, use: mlkd, teacher: a, set: {mlkd.view: strong}}"), tmp_path)


def test_the_pairs_of_layers_are_told(tmp_path):
    ears = Ears()
    experiment(with_methods("{name: at, use: at, teacher: a}"), tmp_path, console=ears).run()
    assert "student/at: at: body.0 with body.0, body.1 with body.1 of a" in ears.heard


def test_linear_warm_up_of_the_published_mixes_is_full_in_epoch_20_of_240():
    term_of = next(t for t in published_methods()["dkd"].losses if t["kind"] == "dkd")
    made = schedule(**term_of["schedule"])
    assert made.factor(0, 240) == pytest.approx(1 / 20, rel=1e-2)
    assert made.factor(18, 240) < 1 == made.factor(19, 240)


# ---------------------------------------------------------------------------------------------- targets


def wants(*methods, taught, labels):
    """What the terms of the last method want together, of what teachers say of a batch with some labels."""
    made, *_ = students(with_methods(*methods), "dataset.labels_per_class=2")
    objective = made["m"].objective
    taught = {name: said(*rows) for name, rows in taught.items()}
    batch = Batch({}, torch.tensor(labels), torch.arange(len(labels)))
    return objective.target(taught, batch, objective.mean_weights(4, made["m"].plugs.stages))


def hot(place, value=9.0):
    return [value if place == i else 0.0 for i in range(10)]


def test_a_mix_wants_the_mean_of_what_its_terms_want_of_each_sample():
    mix = "{name: m, losses: [{kind: ce, weight: 1}, {kind: kd, teacher: a, weight: 3, temperature: 2}]}"
    found = wants(mix, taught={"a": [hot(3), hot(4)]}, labels=[1, HIDDEN])
    soft = torch.softmax(torch.tensor([hot(3), hot(4)]) / 2, dim=1)
    label = torch.tensor(hot(1, 1.0))
    torch.testing.assert_close(found[0], (label + 3 * soft[0]) / 4)
    torch.testing.assert_close(found[1], soft[1])  # no label: what is left


def test_a_mix_without_a_teacher_wants_nothing_of_samples_without_a_label():
    found = wants("{name: m, losses: [ce]}", taught={}, labels=[2, HIDDEN])
    assert found.tolist() == [hot(2, 1.0), [0.0] * 10]


def test_the_wanted_mean_counts_each_teacher_by_its_share():
    both = "teacher: [a, b], temperature: 1, weight: 1"
    sure = {"a": [hot(1, 99.0)], "b": [hot(2, 99.0)]}
    for combine in (
        "combine: fixed, teacher_weights: [1, 3]",
        "combine: mean-loss, teacher_weights: null",
        "combine: mean",
    ):
        found = wants(f"{{name: m, losses: [{{kind: kd, {both}, {combine}}}]}}", taught=sure, labels=[0])
        shares = [0.25, 0.75] if "fixed" in combine else [0.5, 0.5]
        assert found[0, 1:3].tolist() == pytest.approx(shares)


def test_schedules_epochs_and_stages_count_by_their_mean():
    terms = "{kind: ce, weight: 2, schedule: linear}, {kind: kd, teacher: a, weight: 4}"
    made, *_ = students(
        with_methods(
            f"{{name: m, losses: [{terms}], stages: [{{epochs: 1, losses: [kd]}}, {{losses: [ce]}}]}}"
        )
    )
    weights = made["m"].objective.mean_weights(4, made["m"].plugs.stages)
    assert weights == {"ce": pytest.approx(2 * (0.75 + 0.5 + 0.25) / 4), "kd": 1.0}


def test_what_is_masked_out_is_not_wanted():
    mix = "{name: m, losses: [{kind: kd, teacher: a, mask: teacher-correct}]}"
    found = wants(mix, taught={"a": [hot(3), hot(4)]}, labels=[3, 3])
    assert found[0].sum().item() == pytest.approx(1.0) and not found[1].any()


def test_a_shuffled_teacher_is_shuffled_for_targets_too():
    mix = "{name: m, losses: [{kind: hard, teacher: a, shuffle_teacher: true}]}"
    torch.manual_seed(1)
    found = wants(mix, taught={"a": [hot(i) for i in range(10)]}, labels=[HIDDEN] * 10)
    assert found.argmax(dim=1).sort().values.tolist() == list(range(10))
    assert found.argmax(dim=1).tolist() != list(range(10))
