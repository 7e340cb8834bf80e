"""What every loss promises. A new loss needs an entry in ``CLOSED_FORM``, and in ``VARIANTS`` for its modes."""

import weakref

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kdrun.losses
from kdrun.contracts import HIDDEN, Batch, Context, LossConfig, Mix, Outputs
from kdrun.errors import Mismatch
from kdrun.losses.adapters import regressor, to_smaller
from kdrun.losses.matching import stage_pairs
from kdrun.registry import LOSSES
from kdrun.taps import LayerTable

SIZE, CLASSES = 6, 5
STUDENT = {"stage1": (3, 8, 8), "stage2": (4, 4, 4), "stage3": (5, 2, 2), "embedding": (5,)}
TEACHER = {"stage1": (4, 8, 8), "stage2": (6, 4, 4), "stage3": (7, 2, 2), "embedding": (7,)}

KINDS = [kind for kind in LOSSES if LOSSES[kind].__module__.startswith("kdrun.losses")]
VARIANTS = [
    {"kind": "ce", "label_smoothing": 0.1},
    {"kind": "kd", "temperature": 1},
    {"kind": "hint", "student_layer": "embedding", "teacher_layer": "embedding"},
    {"kind": "at", "p": 1, "mode": "paper"},
    {"kind": "at", "layers": [["stage1", "stage3"]]},
    {"kind": "sp", "student_layer": "embedding", "teacher_layer": "stage1"},
    {"kind": "rkd", "distance": 0},
    {"kind": "rkd", "angle": 0},
]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_config = pytest.mark.parametrize(
    "config",
    [{"kind": kind} for kind in KINDS] + VARIANTS,
    ids=lambda config: "-".join(str(value) for value in config.values()),
)

# ------------------------------------------------------------------------------------- what losses are given


def table(owner, shapes):
    stages = tuple(name for name in shapes if name != "embedding")
    return LayerTable(owner, shapes, stages, "embedding" if "embedding" in shapes else "")


def outputs(shapes, size=SIZE, seed=0, scale=1.0, same_rows=False, gradient=True):
    draw = torch.Generator().manual_seed(seed)

    def tensor(shape):
        x = scale * torch.randn(1 if same_rows else size, *shape, generator=draw)
        return x.expand(size, *shape).clone().requires_grad_(gradient)

    return Outputs(tensor((CLASSES,)), {name: tensor(shape) for name, shape in shapes.items()})


def tensors(said):
    return [said.logits, *said.features.values()]


def mapped(said, change):
    """The outputs with ``change`` done to every tensor, as new leaves."""
    new = [change(x.detach()).clone().requires_grad_() for x in tensors(said)]
    return Outputs(new[0], dict(zip(said.features, new[1:], strict=True)))


def batch_of(size=SIZE, labels=None, mix=None):
    labels = torch.arange(size) % CLASSES if labels is None else torch.tensor(labels)
    return Batch({}, labels, torch.arange(size), mix)


def build(config, student=STUDENT, teacher=TEACHER):
    loss_class = LOSSES[config["kind"]]
    loss = loss_class(loss_class.Config.model_validate(config))
    loss.taps(table("the student", student), table("the teacher", teacher))
    said = outputs(student, gradient=False), outputs(teacher, gradient=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss.build(Context(batch_of(), *said, SIZE, CLASSES, batch_of().labels, {}, None))
    return loss


def gradients(loss, student, teacher, batch):
    """The value, and the gradients of what the loss depends on: student outputs, then adapters."""
    value = loss(student, teacher, batch)
    value.backward()
    sources = [*tensors(student), *loss.parameters()]
    return value.item(), [x.grad for x in sources if x.grad is not None]


# -------------------------------------------------------------------------------------------- closed forms


def array(x):
    return x.detach().double().numpy()


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def cross_entropy(z, classes):
    return np.mean([-np.log(softmax(row)[c]) for row, c in zip(z, classes, strict=True)])


def kd(student, teacher, batch, loss):
    p, q = softmax(array(teacher.logits) / 4), softmax(array(student.logits) / 4)
    return 16 * np.sum(p * np.log(p / q)) / SIZE


def hint(student, teacher, batch, loss):
    weights = {name: array(x) for name, x in loss.regressor.named_parameters()}
    mapped = np.einsum("oc,bchw->bohw", weights["conv.weight"][:, :, 0, 0], array(student.features["stage2"]))
    mapped -= mapped.mean(axis=(0, 2, 3), keepdims=True)
    mapped /= np.sqrt(mapped.var(axis=(0, 2, 3), keepdims=True) + 1e-5)
    return np.mean((np.maximum(mapped, 0) - array(teacher.features["stage2"])) ** 2)


def at(student, teacher, batch, loss):
    def attention(f):
        a = (f**2).mean(axis=1).reshape(SIZE, -1)
        return a / np.sqrt((a**2).sum(axis=1, keepdims=True))

    stages = ("stage1", "stage2", "stage3")
    pairs = [(array(student.features[name]), array(teacher.features[name])) for name in stages]
    return sum(np.mean((attention(s) - attention(t)) ** 2) for s, t in pairs)


def sp(student, teacher, batch, loss):
    def similarity(f):
        rows = f.reshape(SIZE, -1)
        gram = rows @ rows.T
        return gram / np.sqrt((gram**2).sum(axis=1, keepdims=True))

    s, t = (similarity(array(said.features["stage3"])) for said in (student, teacher))
    return np.sum((s - t) ** 2) / SIZE**2


def rkd(student, teacher, batch, loss):
    def relations(x):
        distance = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        cosine = np.zeros((SIZE,) * 3)
        for i, j, k in np.ndindex(cosine.shape):
            if i not in (j, k):
                cosine[i, j, k] = (x[j] - x[i]) @ (x[k] - x[i]) / distance[i, j] / distance[i, k]
        return distance / distance.sum() * SIZE * (SIZE - 1), cosine

    def smooth_l1(a, b):
        d = np.abs(a - b)
        return np.where(d < 1, d**2 / 2, d - 0.5).mean()

    (ds, cs), (dt, ct) = (relations(array(said.features["embedding"])) for said in (student, teacher))
    return 25 * smooth_l1(ds, dt) + 50 * smooth_l1(cs, ct)


CLOSED_FORM = {
    "ce": lambda student, teacher, batch, loss: cross_entropy(array(student.logits), batch.labels),
    "kd": kd,
    "hard": lambda student, teacher, batch, loss: cross_entropy(
        array(student.logits), array(teacher.logits).argmax(axis=1)
    ),
    "logit-mse": lambda student, teacher, batch, loss: np.mean(
        (array(student.logits) - array(teacher.logits)) ** 2
    ),
    "hint": hint,
    "at": at,
    "sp": sp,
    "rkd": rkd,
}


@every_kind
def test_value_is_the_closed_form(kind):
    student, teacher, batch = outputs(STUDENT, seed=1), outputs(TEACHER, seed=2), batch_of()
    loss = build({"kind": kind})
    expected = CLOSED_FORM[kind](student, teacher, batch, loss)
    assert expected > 1e-3
    assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-4)


# ------------------------------------------------------------------------------------- promises of all losses

SEES_LABELS = {"ce"}
NOT_ZERO_AT_TEACHER = {"ce", "hard"}
AT_TEACHER = {"hint": {"adapter": "none"}}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NOT_ZERO_AT_TEACHER])
def test_a_student_like_its_teacher_has_nothing_to_learn(kind):
    teacher, batch = outputs(TEACHER, seed=2), batch_of()
    loss = build({"kind": kind} | AT_TEACHER.get(kind, {}), student=TEACHER)
    value, slopes = gradients(loss, mapped(teacher, torch.clone), teacher, batch)
    assert value == pytest.approx(0, abs=1e-6)
    assert slopes
    assert all(slope.abs().max() < 1e-5 for slope in slopes)
    other = mapped(teacher, lambda x: x + 0.1 * torch.sin(100 * x))
    assert loss(other, teacher, batch) > 1e-6


@every_kind
def test_target_minimises_the_loss(kind):
    teacher, batch = outputs(TEACHER, seed=2), batch_of()
    loss = build({"kind": kind})
    target = loss.target(teacher, batch)
    if target is None:
        assert kind not in NOT_ZERO_AT_TEACHER, "a loss needs a minimum that is known"
        return
    assert target.sum(dim=1) == pytest.approx(torch.ones(SIZE).numpy())
    reached = mapped(outputs(STUDENT), torch.clone)
    logits = loss.temperature * target.clamp_min(1e-12).log()
    if kind == "logit-mse":
        logits += (teacher.logits - logits).mean(dim=1, keepdim=True)
    reached = Outputs(logits.detach().requires_grad_(), reached.features)
    value, slopes = gradients(loss, reached, teacher, batch)
    assert all(slope.abs().max() < 1e-5 for slope in slopes)
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        nearby = Outputs(logits + 0.3 * torch.randn(logits.shape, generator=draw), reached.features)
        assert loss(nearby, teacher, batch).item() >= value - 1e-6


@every_config
def test_gradient_reaches_student_and_adapters_but_no_teacher(config):
    student, teacher = outputs(STUDENT, seed=1), outputs(TEACHER, seed=2)
    loss = build(config)
    value = loss(student, teacher, batch_of())
    assert value.shape == ()
    value.backward()
    taps = loss.taps(table("the student", STUDENT), table("the teacher", TEACHER))
    wanted = [student.features[name] for name in taps.student] or [student.logits]
    assert all(x.grad is not None and x.grad.any() for x in wanted)
    assert all(parameter.grad is not None for parameter in loss.parameters())
    assert not list(loss.parameters()) or any(parameter.grad.any() for parameter in loss.parameters())
    assert all(x.grad is None for x in tensors(teacher))


@every_config
@pytest.mark.parametrize("same_rows", [False, True], ids=["different-rows", "equal-rows"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_values_and_gradients_are_finite(config, same_rows, scale):
    student = outputs(STUDENT, seed=1, scale=scale, same_rows=same_rows)
    value, slopes = gradients(build(config), student, outputs(TEACHER, seed=2, scale=scale), batch_of())
    assert np.isfinite(value)
    assert all(slope.isfinite().all() for slope in slopes)


@every_config
def test_order_of_the_batch_does_not_matter(config):
    student, teacher, batch = outputs(STUDENT, seed=1), outputs(TEACHER, seed=2), batch_of()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    shuffled = Batch({}, batch.labels[order], batch.index[order])
    loss = build(config)
    again = loss(mapped(student, lambda x: x[order]), mapped(teacher, lambda x: x[order]), shuffled)
    assert again.item() == pytest.approx(loss(student, teacher, batch).item(), rel=1e-5)


@every_config
def test_batch_of_one(config):
    loss = build(config)
    value, slopes = gradients(loss, outputs(STUDENT, 1, seed=1), outputs(TEACHER, 1, seed=2), batch_of(1))
    assert value == 0 if config["kind"] in ("sp", "rkd") else value > 0
    assert slopes
    assert all(slope.isfinite().all() for slope in slopes)


@every_config
def test_half_precision_is_computed_in_full(config):
    halves = [
        mapped(outputs(shapes, seed=s), torch.Tensor.bfloat16) for s, shapes in ((1, STUDENT), (2, TEACHER))
    ]
    fulls = [mapped(half, torch.Tensor.float) for half in halves]
    loss, batch = build(config), batch_of()
    expected, value = loss(*fulls, batch), loss(*halves, batch)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*halves, batch)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=2e-2 if list(loss.parameters()) else 1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in SEES_LABELS])
def test_losses_on_the_teacher_need_no_labels(kind):
    student, teacher, loss = outputs(STUDENT, seed=1), outputs(TEACHER, seed=2), build({"kind": kind})
    hidden = batch_of(labels=[HIDDEN] * SIZE)
    assert loss(student, teacher, hidden) == loss(student, teacher, batch_of())


@every_kind
def test_documentation_names_source_and_trap(kind):
    loss_class = LOSSES[kind]
    assert "Source: " in loss_class.__doc__
    assert "Trap: " in loss_class.__doc__
    own = loss_class.Config.model_fields.keys() - LossConfig.model_fields.keys()
    assert all(loss_class.Config.model_fields[name].description for name in own)


@every_kind
def test_published_mix_is_valid_and_uses_the_loss(kind):
    published = LOSSES[kind].published
    terms = [LOSSES[term["kind"]].Config.model_validate(term) for term in published.losses]
    assert kind in [term.kind for term in terms]
    assert published.source


def test_package_exports_every_loss():
    assert {LOSSES[kind].__name__ for kind in KINDS} == set(kdrun.losses.__all__)


# ------------------------------------------------------------------------------------------------------ labels


def test_ce_averages_over_labelled_samples_only():
    student, loss = outputs(STUDENT, seed=1), build({"kind": "ce", "label_smoothing": 0.2})
    some = loss(student, None, batch_of(labels=[0, HIDDEN, 3, HIDDEN, HIDDEN, 4]))
    known = Outputs(student.logits[[0, 2, 5]])
    assert some.item() == pytest.approx(loss(known, None, batch_of(3, labels=[0, 3, 4])).item(), rel=1e-6)


@pytest.mark.parametrize("mix", [None, Mix(torch.tensor([1, 0]), torch.tensor([0.3, 0.6]))])
def test_ce_without_any_label_is_a_zero_with_a_graph(mix):
    student = Outputs(torch.tensor([[torch.inf, 1.0], [torch.nan, -torch.inf]], requires_grad=True))
    value = build({"kind": "ce"})(student, None, batch_of(2, labels=[HIDDEN, HIDDEN], mix=mix))
    value.backward()
    assert value == 0
    assert torch.equal(student.logits.grad, torch.zeros(2, 2))


def test_ce_under_mixup_weighs_both_labels():
    student, partner, share = outputs(STUDENT, seed=1), [2, 0, 1, 5, 3, 4], [0.9, 0.3, 0.5, 0.0, 1.0, 0.6]
    labels = [0, 1, HIDDEN, 3, HIDDEN, 4]
    batch = batch_of(labels=labels, mix=Mix(torch.tensor(partner), torch.tensor(share)))
    log_p = np.log(softmax(array(student.logits)))
    total = seen = 0
    for i in range(SIZE):
        for label, weight in ((labels[i], share[i]), (labels[partner[i]], 1 - share[i])):
            if label != HIDDEN:
                total, seen = total - weight * log_p[i, label], seen + weight
    loss = build({"kind": "ce"})
    assert loss(student, None, batch).item() == pytest.approx(total / seen, rel=1e-5)
    hot = loss.target(None, batch)
    assert hot[1].tolist() == pytest.approx([0.7, 0.3, 0, 0, 0])  # its own label 1, its partner's 0
    assert hot[0].tolist() == pytest.approx([1, 0, 0, 0, 0])  # its partner's label is hidden


def test_ce_target_smooths_and_leaves_hidden_rows_empty():
    target = build({"kind": "ce", "label_smoothing": 0.5}).target(None, batch_of(2, labels=[1, HIDDEN]))
    assert target.tolist() == [pytest.approx([0.1, 0.6, 0.1, 0.1, 0.1]), [0, 0, 0, 0, 0]]


def test_teacher_may_rule_out_classes():
    teacher = Outputs(torch.tensor([[0.0, -torch.inf, 0.0]]))
    student = Outputs(torch.zeros(1, 3, requires_grad=True))
    value, (slope,) = gradients(build({"kind": "kd", "temperature": 1}), student, teacher, batch_of(1))
    assert value == pytest.approx(np.log(3 / 2), rel=1e-6)
    assert slope[0].tolist() == pytest.approx([-1 / 6, 1 / 3, -1 / 6], rel=1e-5)


# ----------------------------------------------------------------------------------------------------- relations


def test_rkd_gradient_stays_small_where_the_student_confuses_samples():
    features = outputs({"embedding": (5,)}, seed=1).features["embedding"].detach()
    features[1] = features[0]
    student = Outputs(torch.zeros(SIZE, 2), {"embedding": features.requires_grad_()})
    _, slopes = gradients(build({"kind": "rkd"}), student, outputs(TEACHER, seed=2), batch_of())
    assert slopes[0].abs().max() < 100


def test_rkd_in_slices_has_the_values_and_gradients_of_one_slice(monkeypatch):
    def found():
        return gradients(
            build({"kind": "rkd"}), outputs(STUDENT, seed=1), outputs(TEACHER, seed=2), batch_of()
        )

    value, (slope,) = found()
    monkeypatch.setattr("kdrun.losses.relations.CHUNK", 2 * SIZE * 7)
    sliced_value, (sliced_slope,) = found()
    assert sliced_value == pytest.approx(value, rel=1e-6)
    torch.testing.assert_close(sliced_slope, slope)


def test_rkd_distances_survive_a_large_common_offset():
    student, teacher = outputs(STUDENT, seed=1), outputs(TEACHER, seed=2)
    far = mapped(student, lambda x: x + 500)
    loss = build({"kind": "rkd", "angle": 0})
    expected, value = loss(student, teacher, batch_of()), loss(far, teacher, batch_of())
    assert value.item() == pytest.approx(expected.item(), rel=1e-3)


def test_rkd_gradient_can_be_taken_twice():
    student = outputs(STUDENT, seed=1)
    value = build({"kind": "rkd"})(student, outputs(TEACHER, seed=2), batch_of())
    first, second = (
        torch.autograd.grad(value, student.features["embedding"], retain_graph=again)[0]
        for again in (True, False)
    )
    assert torch.equal(first, second)


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors alive at the worst moment."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = set(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self._count(x.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key, size):
        self.alive.remove(key)
        self.now -= size


def test_rkd_memory_is_bounded():
    loss = build({"kind": "rkd"}, {"embedding": (64,)}, {"embedding": (128,)})
    student, teacher = outputs({"embedding": (64,)}, 256, seed=1), outputs({"embedding": (128,)}, 256, seed=2)
    with PeakMemory() as memory:
        loss(student, teacher, batch_of(256)).backward()
    assert student.features["embedding"].grad.any()
    assert 10e6 < memory.peak < 200e6


# ------------------------------------------------------------------------------------------ layers and adapters


def shapes(*stages, **more):
    return {f"stage{i}": shape for i, shape in enumerate(stages, start=1)} | more


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (STUDENT, TEACHER, [(1, 1), (2, 2), (3, 3)]),
        (
            shapes((4, 8, 8), (4, 8, 8), (8, 4, 4)),
            shapes((4, 16, 16), (6, 8, 8), (9, 4, 4)),
            [(2, 2), (3, 3)],
        ),
        (shapes((4, 8, 8), (8, 4, 4)), shapes((4, 14, 14), (6, 7, 7), (9, 3, 3)), [(1, 2), (2, 3)]),
        (shapes((32,)), shapes((512,), (256,)), [(1, 2)]),
        (shapes((32,), (16,)), shapes((8, 4, 4)), [(2, 1)]),
    ],
    ids=["equal", "last-of-each-size", "sizes-never-meet", "vectors", "vectors-and-maps"],
)
def test_stages_are_paired_by_size_else_from_the_deep_end(student, teacher, pairs):
    found = stage_pairs(table("the student", student), table("the teacher", teacher))
    assert found == [(f"stage{s}", f"stage{t}") for s, t in pairs]


def test_default_layers():
    student, teacher = table("the student", STUDENT), table("the teacher", TEACHER)
    taps = {kind: build({"kind": kind}).taps(student, teacher) for kind in ("hint", "at", "sp", "rkd")}
    stages = ("stage1", "stage2", "stage3")
    assert {kind: tap.student for kind, tap in taps.items()} == {
        "hint": ("stage2",),
        "at": stages,
        "sp": ("stage3",),
        "rkd": ("embedding",),
    }
    assert all(tap.teacher == tap.student for tap in taps.values())


@pytest.mark.parametrize(
    ("config", "student", "teacher", "words"),
    [
        ({"kind": "at"}, shapes((32,)), shapes((64,)), r"'stage1' of the student gives \(32,\)"),
        ({"kind": "hint"}, shapes((8, 4, 4)), shapes((64,)), "one form"),
        ({"kind": "hint"}, shapes((16, 32)), shapes((49, 32)), "token by token"),
        ({"kind": "hint", "adapter": "none"}, shapes((32,)), shapes((64,)), "shapes must agree"),
        (
            {"kind": "hint", "student_layer": "stage9", "teacher_layer": "stage1"},
            STUDENT,
            TEACHER,
            "no layer 'stage9'",
        ),
        ({"kind": "at", "layers": [["stage1", "conv"]]}, STUDENT, TEACHER, "no layer 'conv'"),
        ({"kind": "hint"}, {"embedding": (5,)}, TEACHER, "the student does not say"),
        ({"kind": "sp"}, STUDENT, {"embedding": (5,)}, "the teacher does not say"),
        ({"kind": "rkd"}, shapes((32,)), TEACHER, "the student does not say"),
    ],
)
def test_layers_that_do_not_fit_are_refused_with_a_way_out(config, student, teacher, words):
    with pytest.raises(Mismatch, match=words) as caught:
        build(config, student, teacher)
    assert caught.value.hint
    assert caught.value.key is None or caught.value.key in LOSSES[config["kind"]].Config.model_fields


@pytest.mark.parametrize("kind", ["hint", "at", "sp", "rkd"])
def test_a_teacher_without_layers_is_refused(kind):
    loss = LOSSES[kind](LOSSES[kind].Config(kind=kind))
    with pytest.raises(Mismatch, match="has none"):
        loss.taps(table("the student", STUDENT), None)


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "ce", "label_smoothing": 1.1},
        {"kind": "kd", "temperature": 0},
        {"kind": "hint", "student_layer": "stage1"},
        {"kind": "at", "layers": []},
        {"kind": "at", "layers": [["stage1"]]},
        {"kind": "rkd", "distance": 0, "angle": 0},
    ],
)
def test_options_out_of_range_are_refused(config):
    with pytest.raises(ValidationError):
        LOSSES[config["kind"]].Config.model_validate(config)


@pytest.mark.parametrize(
    ("student", "teacher", "out", "kernel"),
    [
        ((3, 8, 8), (7, 8, 8), (7, 8, 8), (1, 1)),
        ((3, 8, 8), (7, 4, 4), (7, 4, 4), (3, 3)),
        ((3, 4, 4), (7, 8, 8), (7, 8, 8), (4, 4)),
        ((3, 7, 8), (7, 5, 5), (7, 5, 5), (3, 4)),
        ((3, 4, 4), (7, 16, 16), (7, 4, 4), (3, 3)),
    ],
    ids=["equal", "double", "half", "slightly-larger", "much-smaller"],
)
def test_map_regressor_follows_the_sizes(student, teacher, out, kernel):
    adapter = regressor(student, teacher)
    assert adapter(torch.randn(2, *student)).shape[1:] == out
    assert adapter.conv.kernel_size == kernel
    assert build({"kind": "hint"}, shapes(student), shapes(teacher)).regressor.conv.kernel_size == kernel


@pytest.mark.parametrize(
    ("student", "teacher", "adapter", "kind"),
    [
        ((32,), (64,), "auto", "Linear"),
        ((16, 32), (16, 64), "auto", "Linear"),
        ((32,), (32,), "auto", "Identity"),
        ((32,), (32,), "regressor", "Linear"),
        ((3, 4, 4), (3, 4, 4), "auto", "MapRegressor"),
        ((3, 4, 4), (3, 4, 4), "none", "Identity"),
    ],
)
def test_hint_chooses_its_adapter(student, teacher, adapter, kind):
    loss = build({"kind": "hint", "adapter": adapter}, shapes(student), shapes(teacher))
    assert type(loss.regressor).__name__ == kind
    value, slopes = gradients(
        loss, outputs(shapes(student), seed=1), outputs(shapes(teacher), seed=2), batch_of()
    )
    assert value > 0
    assert len(slopes) == 1 + len(list(loss.parameters()))


def test_hint_pools_a_teacher_that_the_student_cannot_reach():
    student, teacher = shapes((3, 2, 2)), shapes((4, 8, 8))
    loss, said = build({"kind": "hint"}, student, teacher), outputs(student, seed=1)
    taught = outputs(teacher, seed=2).features["stage1"].detach()
    pooled = taught.reshape(SIZE, 4, 2, 4, 2, 4).mean(dim=(3, 5))
    expected = (loss.regressor(said.features["stage1"]) - pooled).square().mean()
    value = loss(said, Outputs(torch.zeros(SIZE, 2), {"stage1": taught}), batch_of())
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("student", "teacher"), [((8, 8), (4, 4)), ((4, 6), (8, 3)), ((7, 7), (4, 4))])
def test_larger_maps_are_averaged_to_the_smaller(student, teacher):
    maps = torch.randn(2, 3, *student), torch.randn(2, 5, *teacher)
    size = tuple(min(pair) for pair in zip(student, teacher, strict=True))
    for before, after in zip(maps, to_smaller(*maps), strict=True):
        torch.testing.assert_close(after, torch.nn.functional.adaptive_avg_pool2d(before, size))
