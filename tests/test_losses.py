"""What every loss promises. A new loss needs a closed form, and an entry in ``VARIANTS`` for each of its modes."""

import weakref

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import closed_features
import closed_logits
import closed_relations
import kdrun.losses
from given import (
    CLASSES,
    SAMPLES,
    SIZE,
    STUDENT,
    TEACHER,
    TEACHERS,
    batch_of,
    build,
    gradients,
    is_joint,
    kinds,
    mapped,
    outputs,
    student_of,
    table,
    taught,
    tensors,
    with_equal_layers,
)
from kdrun.contracts import HIDDEN, Batch, LossConfig, Mix, Outputs
from kdrun.errors import Mismatch
from kdrun.losses.adapters import regressor, to_smaller
from kdrun.losses.matching import stage_pairs
from kdrun.optimization import Stage
from kdrun.registry import LOSSES
from kdrun.taps import CLASS_MAPS

KINDS = kinds()
CLOSED_FORM = closed_logits.CLOSED_FORM | closed_features.CLOSED_FORM | closed_relations.CLOSED_FORM
VARIANTS = [
    {"kind": "ce", "label_smoothing": 0.1},
    {"kind": "ce", "label_smoothing": 0.1, "smoothing_over": "others"},
    {"kind": "kd", "temperature": 1},
    {"kind": "kd", "divergence": "reverse-kl"},
    {"kind": "kd", "divergence": "js"},
    {"kind": "kd", "divergence": "mse"},
    {"kind": "kd", "divergence": "alpha-beta"},
    {"kind": "kd", "divergence": "alpha-beta", "alpha": 0, "beta": 2},
    {"kind": "kd", "divergence": "alpha-beta", "alpha": 2, "beta": 0},
    {"kind": "kd", "reduction": "mean"},
    {"kind": "kd", "logit_standardization": True},
    {"kind": "dkd", "logit_standardization": True},
    {"kind": "mlkd", "logit_standardization": True, "confidence": "sample"},
    {"kind": "mlkd", "confidence": "none"},
    {"kind": "policy-kl", "temperature": 2},
    {"kind": "policy-kl", "logit_standardization": True},
    {"kind": "viper", "logit_standardization": True},
    {"kind": "aekd", "cap": 1},
    {"kind": "hint", "student_layer": "embedding", "teacher_layer": "embedding"},
    {"kind": "at", "p": 1, "mode": "paper"},
    {"kind": "at", "layers": [["stage1", "stage3"]]},
    {"kind": "sp", "student_layer": "embedding", "teacher_layer": "stage1"},
    {"kind": "rkd", "distance": 0},
    {"kind": "rkd", "angle": 0},
    {"kind": "cc", "mode": "code"},
    {"kind": "absolute", "normalized": False},
    {"kind": "relative", "normalized": False},
    {"kind": "relative", "mode": "code"},
    {"kind": "triplet", "normalized": False, "student_layer": "stage3"},
    {"kind": "ft", "planes": 2},
    {"kind": "vid", "middle": 3},
    {"kind": "hint", "relu": False},
    {"kind": "irg", "changes": [[["stage1", "stage1"], ["stage2", "stage2"]]]},
    {"kind": "gkd", "edges": 0, "nodes": 1},
    {"kind": "gkd", "change": 2, "neighbours": 2},
    {"kind": "itrd", "correlation": 0},
    {"kind": "itrd", "mutual": 0},
    {"kind": "crd", "negatives": 7, "positive": "class"},
    {"kind": "ft", "form": "attention", "adapter": "none"},
    {"kind": "mgd", "mask_of": "positions", "masked": 0.5},
    {"kind": "cat-kd", "normalized": False, "resolution": 1},
    {"kind": "srrl", "student_layer": "embedding", "teacher_layer": "embedding"},
    {"kind": "wkd-feature", "grid": 2},
    {"kind": "mutual", "peers": 2},
    {"kind": "kdcl", "together": "best"},
    {"kind": "kdcl", "together": "mean", "peers": 3},
    {"kind": "exits", "layers": ["embedding", "stage3"], "label_smoothing": 0.1},
    {"kind": "exits", "alpha": 1, "hint": 0},
    {"kind": "minilm", "relations": ["queries", "keys", "values"], "relation_heads": 4},
]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_config = pytest.mark.parametrize(
    "config",
    [{"kind": kind} for kind in KINDS] + VARIANTS,
    ids=lambda config: "-".join(str(value) for value in config.values()),
)


def array(x):
    return x.detach().double().numpy()


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def given(config, size=SIZE, **options):
    """A loss, a student and what it is taught, and a batch."""
    student = outputs(student_of(config["kind"]), size, seed=1, **options)
    return build(config, size=size), student, taught(config["kind"], size, **options), batch_of(size)


@every_kind
def test_value_is_the_closed_form(kind):
    loss, student, teacher, batch = given({"kind": kind})
    expected = CLOSED_FORM[kind](student, teacher, batch, loss)
    torch.manual_seed(0)
    assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert abs(expected) > 1e-5


@pytest.mark.parametrize("divergence", closed_logits.DIVERGENCE)
def test_divergences_are_their_closed_forms(divergence):
    loss, student, teacher, batch = given({"kind": "kd", "divergence": divergence})
    expected = closed_logits.DIVERGENCE[divergence](student, teacher, batch, loss)
    assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("exponents", "divergence"), [((1, 0), "forward-kl"), ((0, 1), "reverse-kl")])
def test_alpha_beta_has_the_kullback_leibler_divergences_as_limits(exponents, divergence):
    alpha, beta = exponents
    config = {"kind": "kd", "divergence": "alpha-beta", "alpha": alpha, "beta": beta}
    limit, student, teacher, batch = given(config)
    near = build(config | {"alpha": alpha or 0.01, "beta": beta or 0.01})
    expected = build({"kind": "kd", "divergence": divergence})(student, teacher, batch).item()
    assert limit(student, teacher, batch).item() == pytest.approx(expected, rel=1e-5)
    assert near(student, teacher, batch).item() == pytest.approx(expected, rel=5e-2)


@pytest.mark.parametrize("kind", ["cc", "relative"])
def test_what_the_authors_code_says_is_its_closed_form(kind):
    loss, student, teacher, batch = given({"kind": kind, "mode": "code"})
    expected = closed_relations.VARIANT_FORM[f"{kind}-code"](student, teacher, batch, loss)
    assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"neighbours": 2}, {"edges": 0, "nodes": 3}, {"edges": 0, "change": 2}, {"edges": 2, "nodes": 1}],
)
def test_the_parts_of_a_graph_are_their_closed_forms(options):
    loss, student, teacher, batch = given({"kind": "gkd"} | options)
    expected = closed_relations.gkd(student, teacher, batch, loss)
    assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-4)


# ------------------------------------------------------------------------------------- promises of all losses

SEES_LABELS = {"ce", "tf-kd-reg", "ps-kd", "triplet"}
LABELS_MATTER = SEES_LABELS | {
    "kdcl",
    "exits",
    "dkd",
    "nkd",
    "wsld",
    "rld",
    "ca-mkd",
    "ca-mkd-feature",
    "nd",
    "wkd-logit",
}
AT_TEACHER = {
    "hint": {"adapter": "none"},
    "ft": {"adapter": "none"},
    "reviewkd": {"fusion": False},
}
MINIMUM_ELSEWHERE = {
    "hard": "the teacher's most probable class",
    "policy-kl": "the teacher at temperature τ",
    "viper": "the teacher's best action",
    "nkd": "the own class entirely sure, the others as the teacher's",
    "binary-kd": "a sigmoid that equals the teacher's softmax",
    "nd": "the direction of the class",
    "ab": "beyond the margin",
    "ofd": "the positive part and the margin",
    "wkd-logit": "near the teacher: the flow is spread",
    "crd": "the own row of the memory",
    "itrd": "correlations of 1, and relations of the student with more entropy",
    "ttm": "the teacher at temperature 1/γ",
    "wttm": "the teacher at temperature 1/γ",
    "wsld": "the teacher, with weights that follow the student",
    "semckd": "adapters that cannot be left out",
    "split-balance": "gates that send half of the samples each way",
    "pad": "an uncertainty of its own",
    "ca-mkd-feature": "adapters that cannot be left out",
    "mutual": "what its peers say",
    "kdcl": "what all peers say together",
    "mean-teacher": "what the average of its weights says",
    "exits": "exits that say what the deepest classifier says",
    "ppo": "what its rewards want",
}
"""Losses that want something else than what the teacher gives, and what."""


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in SEES_LABELS | MINIMUM_ELSEWHERE.keys()])
def test_a_student_like_its_teacher_has_nothing_to_learn(kind):
    loss = with_equal_layers(
        build(
            {"kind": kind, "masked": 0} if kind == "mgd" else {"kind": kind} | AT_TEACHER.get(kind, {}),
            student=TEACHER,
        )
    )
    for adapter in getattr(loss, "adapters", []) if kind == "vid" else []:
        adapter.regressor = torch.nn.Identity()
    teacher = taught(kind)
    if is_joint(kind):
        teacher = dict.fromkeys(TEACHERS, teacher["a"])
    like = mapped(teacher["a"] if is_joint(kind) else teacher, torch.clone)
    batch = batch_of().with_labels(like.logits.argmax(dim=1))
    value = loss(like, teacher, batch)
    value.backward()
    slopes = [x.grad for x in tensors(like) if x.grad is not None]
    assert slopes
    assert all(slope.abs().max() < 1e-4 * max(1, abs(value.item())) for slope in slopes)
    for step in (0.1, -0.1):
        other = mapped(like, lambda x, step=step: x + step * torch.sin(100 * x))
        assert loss(other, teacher, batch) > value


def test_the_own_class_of_nkd_is_to_be_sure_and_the_others_as_the_teacher_s():
    teacher, batch = outputs({}, seed=2), batch_of()
    sure = mapped(teacher, lambda z: z + 50 * torch.nn.functional.one_hot(batch.labels, CLASSES))
    _, (slope,) = gradients(build({"kind": "nkd"}), sure, teacher, batch)
    assert slope.abs().max() < 1e-6


def test_binary_kd_wants_a_sigmoid_like_the_teacher_s_softmax():
    teacher = outputs({}, seed=2)
    there = mapped(teacher, lambda z: z.softmax(-1).logit())
    _, (slope,) = gradients(build({"kind": "binary-kd"}), there, teacher, batch_of())
    assert slope.abs().max() < 1e-7


def test_nd_wants_the_direction_of_the_class_and_a_norm_no_smaller():
    loss, teacher, batch = build({"kind": "nd"}, student=TEACHER), outputs(TEACHER, seed=2), batch_of()
    there = outputs(TEACHER, seed=1)
    there.features["embedding"] = (100 * loss.directions[batch.labels]).requires_grad_()
    assert loss(there, teacher, batch).item() == pytest.approx(0, abs=1e-6)


def test_ab_wants_the_sign_and_the_margin():
    teacher = outputs(TEACHER, seed=2)
    far = mapped(teacher, lambda x: torch.where(x > 0, 1.5, -1.5))
    loss = build({"kind": "ab"}, student=TEACHER)
    assert loss(far, teacher, batch_of()) == 0
    assert loss(mapped(far, torch.neg), teacher, batch_of()) > 0.1


def test_ofd_wants_the_positive_part_and_no_more_than_the_margin():
    loss, teacher = build({"kind": "ofd"}, student=TEACHER), outputs(TEACHER, seed=2)
    loss.adapters = torch.nn.ModuleList(torch.nn.Identity() for _ in loss.pairs)
    there = mapped(teacher, torch.clone)
    with torch.no_grad():
        for i, (layer, _) in enumerate(loss.pairs):
            x = torch.maximum(there.features[layer], loss.get_buffer(f"margin{i}"))
            there.features[layer].copy_(torch.where(x > 0, x, x - 1))
    assert loss(there, teacher, batch_of()).item() == pytest.approx(0, abs=1e-7)


def test_the_wasserstein_distance_to_the_teacher_itself_is_small():
    loss, student, teacher, batch = given({"kind": "wkd-logit"})
    itself = loss(mapped(teacher, torch.clone), teacher, batch)
    assert itself < 0.2 * loss(mapped(student, lambda z: 20 * z), teacher, batch)


def test_semckd_wants_each_regressed_map_to_be_the_teacher_s():
    loss = build({"kind": "semckd", "layers": [["stage3", "stage3"]]}, student=TEACHER)
    loss.regressors = torch.nn.ModuleList([torch.nn.ModuleList([torch.nn.Identity()])])
    teacher = outputs(TEACHER, seed=2)
    value, slopes = gradients(loss, mapped(teacher, torch.clone), teacher, batch_of())
    assert value == 0 and not any(slope.any() for slope in slopes)
    assert loss(mapped(teacher, lambda x: x + 0.1), teacher, batch_of()) > 0


def test_pad_wants_the_teacher_s_embedding_whatever_the_uncertainty():
    loss = with_equal_layers(build({"kind": "pad"}, student=TEACHER))
    loss.log_variances = lambda student: torch.full_like(student, 0.5)
    teacher = outputs(TEACHER, seed=2)
    value, (slope,) = gradients(loss, mapped(teacher, torch.clone), teacher, batch_of())
    assert value == pytest.approx(0.5) and slope.abs().max() == 0
    assert loss(mapped(teacher, lambda x: x + 0.1), teacher, batch_of()) > 0.5


def test_itrd_wants_full_correlation_and_1_is_out_of_its_reach():
    loss = with_equal_layers(build({"kind": "itrd", "mutual": 0, "correlation": 1}, student=TEACHER))
    teacher = outputs(TEACHER, seed=2)
    value, (slope,) = gradients(loss, mapped(teacher, torch.clone), teacher, batch_of())
    assert value == pytest.approx(np.log2(7 * (1 / SIZE) ** 2.02), rel=1e-4)
    assert slope.abs().max() < 1e-5


def test_crd_wants_each_sample_near_its_own_row_and_far_from_the_others():
    loss, batch, draw = build({"kind": "crd", "negatives": 10}), batch_of(), torch.Generator().manual_seed(0)
    near = torch.nn.functional.normalize(torch.randn(SIZE, loss.config.width, generator=draw))
    loss.adapter = loss.teacher_adapter = torch.nn.Identity()
    rows = loss.compared(batch)
    loss.compared = lambda batch: rows
    loss.student_normaliser, loss.teacher_normaliser = torch.tensor(100.0), torch.tensor(100.0)
    found = []
    for shift in (0, 1):
        for memory in (loss.student_memory, loss.teacher_memory):
            memory[batch.index] = near.roll(shift, 0)
        found.append(loss.distance(near, near, batch).item())
    assert found[0] < found[1] - 1


def test_ca_mkd_features_want_the_projected_map_to_be_each_teacher_s():
    loss, _, teachers, batch = given({"kind": "ca-mkd-feature"})
    like = outputs(TEACHER, seed=2)
    same = dict.fromkeys(TEACHERS, like)
    loss.projections = torch.nn.ModuleList(torch.nn.Identity() for _ in TEACHERS)
    assert loss(mapped(like, torch.clone), same, batch) == 0
    assert loss(mapped(like, lambda x: x + 1), teachers, batch) > 0.1


@every_kind
def test_target_minimises_the_loss(kind):
    loss, _, teacher, batch = given({"kind": kind})
    target = None if is_joint(kind) else loss.target(teacher, batch)
    assert loss.has_target() == (target is not None)
    if target is None:
        told = {"hard", "kd", "logit-mse", "ttm", "wttm", "policy-kl", "viper"}
        assert kind not in (SEES_LABELS | told) - {"ps-kd", "triplet"}
        return
    sums = target.sum(dim=1, keepdim=True).detach()
    assert loss.weighs_samples or sums == pytest.approx(torch.ones(SIZE, 1).numpy(), rel=1e-5)
    target = target / sums
    if kind in ("rld", "mlkd"):  # several temperatures: no one distribution at one of them
        return
    reached = mapped(outputs(STUDENT), torch.clone)
    temperature = 1.0 if kind in ("ttm", "wttm", "tf-kd-reg", "policy-kl") else loss.temperature
    logits = temperature * target.detach().clamp_min(1e-12).log()
    if kind == "logit-mse":
        logits += (teacher.logits - logits).mean(dim=1, keepdim=True).detach()
    with torch.no_grad():
        reached.logits.copy_(logits)
    _, slopes = gradients(loss, reached, teacher, batch)
    assert slopes[0].abs().max() < 1e-4


TEACHES_ITSELF = {"exits": {"embedding"}}
"""Layers of the student that a loss takes as they are, and what it learns from them."""


@every_config
def test_gradient_reaches_student_and_adapters_but_no_teacher(config):
    loss, student, teacher, batch = given(config)
    value = loss(student, teacher, batch)
    assert value.shape == ()
    value.backward()
    theirs = table("the teacher", TEACHER)
    taps = loss.taps(
        table("the student", student_of(config["kind"])),
        dict.fromkeys(TEACHERS, theirs) if is_joint(config["kind"]) else theirs,
    )
    wanted = next(iter(taps.values())) if is_joint(config["kind"]) else taps
    learning = set(wanted.student) - TEACHES_ITSELF.get(config["kind"], set())
    assert all(student.features[name].grad is not None for name in learning)
    assert all(student.features[name].grad.any() for name in learning)
    assert learning or student.logits.grad.any()
    trained = {
        n: p for n, p in loss.named_parameters() if p.requires_grad and not n.startswith("paraphraser")
    }
    assert all(p.grad is not None for p in trained.values())
    assert not trained or any(p.grad.any() for p in trained.values())
    assert all(p.grad is None for n, p in loss.named_parameters() if n not in trained)
    assert all(x.grad is None for x in tensors(teacher))


@every_config
@pytest.mark.parametrize("same_rows", [False, True], ids=["different-rows", "equal-rows"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_values_and_gradients_are_finite(config, same_rows, scale):
    loss, student, _, batch = given(config, scale=scale, same_rows=same_rows)
    value, slopes = gradients(loss, student, taught(config["kind"], scale=scale), batch)
    assert np.isfinite(value)
    assert all(slope.isfinite().all() for slope in slopes)


IN_ORDER = {
    ("semckd", None): "its networks read places of the batch",
    ("cc", "code"): "products of neighbours",
}


@every_config
def test_order_of_the_batch_does_not_matter(config):
    order = torch.tensor([3, 1, 5, 0, 7, 2, 4, 6])
    loss, student, teacher, batch = given(config)
    if config["kind"] == "mgd":
        loss.kept = lambda aligned: 1.0
    if config["kind"] == "crd":
        places = loss.compared(batch)
        loss.compared = lambda batch: places[batch.index]
    shuffled = batch.rows(order)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    expected = loss(student, teacher, batch).item()
    loss.load_state_dict(state)
    again = loss(mapped(student, lambda x: x[order]), mapped(teacher, lambda x: x[order]), shuffled).item()
    matters = (config["kind"], config.get("mode")) in IN_ORDER
    assert (again == pytest.approx(expected, rel=1e-4)) is not matters


@every_config
def test_batch_of_one_gives_a_value_or_says_why_not(config):
    loss, student, teacher, batch = given(config, size=1)
    try:
        value, slopes = gradients(loss, student, teacher, batch)
    except ValueError as error:
        assert "more than 1 value" in str(error)  # BatchNorm
        return
    assert np.isfinite(value)
    assert config["kind"] not in ("sp", "rkd") or value == 0
    assert slopes
    assert all(slope.isfinite().all() for slope in slopes)


@every_config
def test_half_precision_is_computed_in_full(config):
    kind = config["kind"]
    halves = (
        mapped(outputs(student_of(kind), seed=1), torch.Tensor.bfloat16),
        mapped(taught(kind), torch.Tensor.bfloat16),
    )
    fulls = [mapped(half, torch.Tensor.float) for half in halves]
    loss, batch = build(config), batch_of()

    def value(said):
        torch.manual_seed(0)
        return loss(*said, batch)

    state = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    expected, found = value(fulls), None
    loss.load_state_dict(state)
    found = value(halves)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.load_state_dict(state)
    with torch.autocast("cpu", torch.bfloat16):
        found = value(halves)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(
        expected.item(), rel=3e-2 if list(loss.parameters()) else 1e-6, abs=1e-5
    )


@every_config
def test_two_steps_under_autocast_are_close_to_float32(config):
    found = []
    for half in (False, True):
        loss, student, teacher, batch = given(config)
        sources = [*tensors(student), *(p for p in loss.parameters() if p.requires_grad)]
        values = []
        for step in range(2):
            torch.manual_seed(step)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                value = loss(student, teacher, batch)
            value.backward()
            size = sum(float(x.grad.square().sum()) for x in sources if x.grad is not None) ** 0.5
            with torch.no_grad():
                for x in sources:
                    if x.grad is not None:
                        x -= 0.01 * x.grad / max(size, 1e-12)
                        x.grad = None
            values.append(value.item())
        found.append(values)
    assert np.isfinite(found).all()
    assert found[1] == pytest.approx(found[0], rel=5e-2, abs=1e-3)


@every_config
def test_nothing_of_a_step_is_kept(config):
    loss, student, teacher, batch = given(config)
    loss(student, teacher, batch).backward()
    kept = [
        value
        for value in loss.state_dict(keep_vars=True).values()
        if not isinstance(value, torch.nn.Parameter)
    ]
    assert all(value.grad_fn is None for value in kept)
    assert not [name for name, value in vars(loss).items() if isinstance(value, torch.Tensor)]
    nodes = weakref.WeakSet(tensors(student))
    del student, teacher
    assert not list(nodes)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in SEES_LABELS])
def test_losses_on_the_teacher_need_no_labels(kind):
    loss, student, teacher, batch = given({"kind": kind})
    hidden = batch_of(labels=[HIDDEN] * SIZE)
    torch.manual_seed(0)
    value, slopes = gradients(loss, student, teacher, hidden)
    assert np.isfinite(value) and all(slope.isfinite().all() for slope in slopes)
    assert any(slope.any() for slope in slopes)
    if kind not in LABELS_MATTER | {"crd"}:
        torch.manual_seed(0)
        assert loss(student, teacher, batch).item() == pytest.approx(value, rel=1e-6)


@every_kind
def test_documentation_names_source_and_trap(kind):
    loss_class = LOSSES[kind]
    assert "Source: " in loss_class.__doc__
    assert "Trap: " in loss_class.__doc__
    own = loss_class.Config.model_fields.keys() - LossConfig.model_fields.keys()
    assert all(loss_class.Config.model_fields[name].description for name in own)


PART_OF = {"ca-mkd-feature": "ca-mkd", "split-balance": "soft-tree", "exits": "be-your-own-teacher"}
"""Losses that stand in a mix of another name."""


@every_kind
def test_published_mix_is_valid_and_uses_the_loss(kind):
    mixes = LOSSES[kind].published
    for published in mixes.values():
        terms = [LOSSES[term["kind"]].Config.model_validate(term) for term in published.losses]
        stages = [Stage.model_validate(stage) for stage in published.stages]
        labels = {term.label for term in terms}
        assert {LOSSES[kind]} <= {LOSSES[term.kind] for term in terms}
        assert all(labels >= set(stage.losses or ()) for stage in stages)
        assert published.source
    assert kind in mixes or kind in PART_OF


def test_package_exports_every_loss():
    assert {LOSSES[kind].__name__ for kind in KINDS} == set(kdrun.losses.__all__)


# ------------------------------------------------------------------------------------------------------ labels


def test_ce_averages_over_labelled_samples_only():
    student, loss = outputs(STUDENT, 6, seed=1), build({"kind": "ce", "label_smoothing": 0.2})
    some = loss(student, None, batch_of(6, labels=[0, HIDDEN, 3, HIDDEN, HIDDEN, 4]))
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
    student, partner, share = outputs(STUDENT, 6, seed=1), [2, 0, 1, 5, 3, 4], [0.9, 0.3, 0.5, 0.0, 1.0, 0.6]
    labels = [0, 1, HIDDEN, 3, HIDDEN, 4]
    batch = batch_of(6, labels=labels, mix=Mix(torch.tensor(partner), torch.tensor(share)))
    log_p = np.log(softmax(array(student.logits)))
    total = seen = 0
    for i in range(6):
        for label, weight in ((labels[i], share[i]), (labels[partner[i]], 1 - share[i])):
            if label != HIDDEN:
                total, seen = total - weight * log_p[i, label], seen + weight
    loss = build({"kind": "ce"})
    assert loss(student, None, batch).item() == pytest.approx(total / seen, rel=1e-5)
    hot = loss.target(None, batch)
    assert hot[1].tolist() == pytest.approx([0.7, 0.3, 0, 0, 0])  # its own label 1, its partner's 0
    assert hot[0].tolist() == pytest.approx([0.9, 0, 0, 0, 0])  # its partner's label is hidden


def test_ce_target_smooths_and_leaves_hidden_rows_empty():
    target = build({"kind": "ce", "label_smoothing": 0.5}).target(None, batch_of(2, labels=[1, HIDDEN]))
    assert target.tolist() == [pytest.approx([0.1, 0.6, 0.1, 0.1, 0.1]), [0, 0, 0, 0, 0]]


def test_ps_kd_learns_from_what_was_said_an_epoch_ago_more_and_more():
    loss, draw = build({"kind": "ps-kd", "share": 0.6}), np.random.default_rng(0)
    said = draw.normal(size=(3, SAMPLES, CLASSES)).astype(np.float32)
    labels = np.arange(SAMPLES) % CLASSES
    hot = np.eye(CLASSES)[labels]
    for epoch in range(3):
        loss.begin(epoch, 3)
        if epoch == 1:  # a resume tells it again
            loss.load_state_dict(loss.state_dict())
            loss.begin(epoch, 3)
        for rows in (slice(0, 7), slice(7, SAMPLES - 1)):  # an epoch leaves out its last sample
            batch = Batch({}, torch.from_numpy(labels[rows]), torch.arange(SAMPLES)[rows])
            value = loss(Outputs(torch.from_numpy(said[epoch, rows])), None, batch).item()
            share = 0.6 * (epoch + 1) / 3
            past = softmax(said[epoch - 1, rows]) if epoch else hot[rows]
            wanted = (1 - share) * hot[rows] + share * past
            expected = -(wanted * np.log(softmax(said[epoch, rows]))).sum(axis=1).mean()
            assert value == pytest.approx(expected, rel=1e-5)
    last = Batch({}, torch.tensor([labels[-1]]), torch.tensor([SAMPLES - 1]))
    value = loss(Outputs(torch.from_numpy(said[2, -1:])), None, last).item()
    assert value == pytest.approx(-np.log(softmax(said[2, -1:])[0, labels[-1]]), rel=1e-5)


def test_ps_kd_looks_at_labelled_samples_only_and_remembers_nothing_of_others():
    loss, student = build({"kind": "ps-kd"}), outputs(STUDENT, 4, seed=1)
    some = loss(student, None, batch_of(4, labels=[0, HIDDEN, 3, HIDDEN]))
    known = Outputs(student.logits[[0, 2]])
    expected = build({"kind": "ce"})(known, None, batch_of(2, labels=[0, 3]))
    assert some.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.begin(1, 2)
    remembered = loss.past[:4]
    torch.testing.assert_close(remembered[[0, 2]], student.logits[[0, 2]].softmax(1).detach())
    assert not remembered[[1, 3]].any()
    broken = Outputs(torch.full((2, CLASSES), torch.inf, requires_grad=True))
    value = loss(broken, None, batch_of(2, labels=[HIDDEN, HIDDEN]))
    value.backward()
    assert value == 0 and not broken.logits.grad.any()


def test_ps_kd_remembers_of_mixed_samples_those_that_are_mostly_themselves():
    loss, student = build({"kind": "ps-kd"}), outputs(STUDENT, 3, seed=1)
    mix = Mix(torch.tensor([1, 0, 2]), torch.tensor([0.8, 0.3, 1.0]))
    loss(student, None, batch_of(3, labels=[0, 1, HIDDEN], mix=mix))
    torch.testing.assert_close(loss.now[0], student.logits[0].softmax(0).detach())
    assert not loss.now[1:].any()


def test_ps_kd_remembers_what_was_said_last_of_a_sample_that_stands_in_a_batch_twice():
    loss, student = build({"kind": "ps-kd"}), outputs(STUDENT, 5, seed=1)
    batch = Batch({}, torch.tensor([0, 1, 0, HIDDEN, 2]), torch.tensor([4, 1, 4, 4, 9]))
    loss(student, None, batch)
    said = student.logits.softmax(1).detach()
    torch.testing.assert_close(loss.now[[4, 1, 9]], said[[2, 1, 4]])


def test_ps_kd_under_mixup_weighs_both_labels_and_both_pasts():
    loss, student = build({"kind": "ps-kd", "share": 1}), outputs(STUDENT, 2, seed=1)
    loss.begin(1, 2)
    loss.past[:2] = torch.eye(CLASSES)[[3, 4]]
    batch = batch_of(2, labels=[0, 1], mix=Mix(torch.tensor([1, 0]), torch.tensor([0.7, 0.7])))
    wanted = np.zeros((2, CLASSES))
    wanted[0, [3, 4]], wanted[1, [4, 3]] = (0.7, 0.3), (0.7, 0.3)
    expected = -(wanted * np.log(softmax(array(student.logits)))).sum(axis=1).mean()
    assert loss(student, None, batch).item() == pytest.approx(expected, rel=1e-5)


def said_by_peers(loss, batch):
    return [peer(batch.views["input"]) for peer in loss.peers]


@pytest.mark.parametrize("config", [{"kind": "mutual"}, {"kind": "kdcl", "together": "mean"}])
def test_a_student_that_says_what_its_peer_says_has_nothing_to_learn_of_it(config):
    loss, batch = build(config), batch_of()
    (theirs,) = said_by_peers(loss, batch)
    like = Outputs(theirs.detach().clone().requires_grad_())
    value, (slope, *_) = gradients(loss, like, None, batch)
    assert value == pytest.approx(0, abs=1e-6) and slope.abs().max() < 1e-6
    assert loss(outputs({}, seed=1), None, batch) > 0.1


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, HIDDEN, 2, HIDDEN], [HIDDEN] * 4])
def test_each_peer_learns_the_labels_and_of_all_others(labels, smoothing):
    loss = build({"kind": "mutual", "peers": 2, "label_smoothing": smoothing})
    batch, student = batch_of(4, labels), outputs({}, 4, seed=1)
    loss(student, None, batch).backward()
    said = [student.logits.detach(), *(z.detach() for z in said_by_peers(loss, batch))]
    for place, peer in enumerate(loss.peers, start=1):
        z = said[place].clone().requires_grad_()
        others = [softmax(array(said[k])) for k in range(3) if k != place]
        p = torch.from_numpy(np.mean(others, axis=0)).float()  # its gradient is that of the mean
        value = torch.nn.functional.cross_entropy(z, p)
        if seen := [(row, label) for row, label in enumerate(labels) if label != HIDDEN]:
            rows, classes = (torch.tensor(part) for part in zip(*seen, strict=True))
            value = value + torch.nn.functional.cross_entropy(z[rows], classes, label_smoothing=smoothing)
        value.backward()
        torch.testing.assert_close(peer.weight.grad, z.grad.T @ batch.views["input"], rtol=1e-4, atol=1e-6)


def test_peers_under_mixup_learn_both_labels():
    mix = Mix(torch.tensor([1, 0]), torch.tensor([0.7, 0.2]))
    loss, batch = build({"kind": "mutual"}), batch_of(2, [0, 3], mix)
    (z,) = said_by_peers(loss, batch)
    z = z.detach().requires_grad_()
    student = Outputs(z.detach().clone().requires_grad_())
    loss(student, None, batch).backward()
    log_p = z.log_softmax(1)
    wanted = 0.7 * log_p[0, 0] + 0.3 * log_p[0, 3] + 0.2 * log_p[1, 3] + 0.8 * log_p[1, 0]
    (-wanted / 2).backward()
    expected = z.grad.T @ batch.views["input"]
    torch.testing.assert_close(loss.peers[0].weight.grad, expected, rtol=1e-4, atol=1e-6)


def test_kdcl_takes_for_each_sample_the_network_that_explains_its_label_best():
    loss, batch = build({"kind": "kdcl", "together": "best"}), batch_of()
    (theirs,) = (array(z) for z in said_by_peers(loss, batch))
    student = outputs({}, seed=1)
    ours, expected = array(student.logits), 0
    for row, label in enumerate(batch.labels.tolist()):
        if softmax(theirs[row])[label] > softmax(ours[row])[label]:
            p, q = softmax(theirs[row] / 2), softmax(ours[row] / 2)
            expected += 4 * (p * np.log(p / q)).sum() / SIZE
    assert expected > 0.1
    assert loss(student, None, batch).item() == pytest.approx(expected, rel=1e-5)


def test_the_average_is_a_true_mean_at_first_and_then_forgets():
    loss, live = build({"kind": "mean-teacher", "ema": 0.75}), torch.nn.Linear(3, CLASSES)
    loss.student_state, draw = live.state_dict, torch.Generator().manual_seed(0)
    seen = [loss.average.weight.detach().clone()]
    for step in range(1, 7):
        with torch.no_grad():
            live.weight.copy_(torch.randn(CLASSES, 3, generator=draw))
        seen.append(live.weight.detach().clone())
        before = loss.average.weight.detach().clone()
        loss.end_step(step)
        wanted = torch.stack(seen).mean(dim=0) if step < 4 else 0.75 * before + 0.25 * seen[-1]
        torch.testing.assert_close(loss.average.weight.detach(), wanted)
    assert not loss.average.weight.requires_grad


def test_counts_are_copied_and_statistics_averaged():
    loss, live = build({"kind": "mean-teacher"}), torch.nn.BatchNorm1d(2)
    loss.average, loss.student_state = torch.nn.BatchNorm1d(2), live.state_dict
    live(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    loss.end_step(1)
    assert loss.average.num_batches_tracked == 1
    torch.testing.assert_close(loss.average.running_mean, live.running_mean / 2)


def test_a_student_that_says_what_its_average_says_has_nothing_to_learn_of_it():
    loss, batch = build({"kind": "mean-teacher"}), batch_of()
    like = Outputs(loss.average(batch.views["input"]).detach().requires_grad_())
    value, (slope,) = gradients(loss, like, None, batch)
    assert value == 0 and not slope.any()
    assert loss(outputs({}, seed=1), None, batch) > 1e-3


def exit_after(shape, **config):
    """A loss with one exit, after a layer of a shape, and what the student says."""
    shapes = {"stage1": shape, "embedding": (7,)}
    return build({"kind": "exits", "layers": ["stage1"]} | config, student=shapes), outputs(shapes, seed=1)


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((4,), lambda x: x),
        ((6, 4), lambda x: x.mean(dim=1)),
        ((4, 5, 3), lambda x: x),
    ],
    ids=["vectors", "tokens", "maps"],
)
def test_an_exit_reads_every_form_of_layer(shape, seen):
    loss, student = exit_after(shape, hint=0.5, alpha=0.4)
    (one,) = loss.exits
    vectors = one.body(seen(student.features["stage1"]))
    vectors = vectors.mean(dim=(2, 3)) if len(shape) == 3 else vectors
    z, batch = one.classifier(vectors), batch_of()
    p = (student.logits / 3).softmax(1)
    kl = (p * (p.log() - (z / 3).log_softmax(1))).sum(dim=1).mean()
    apart = (vectors - student.features["embedding"]).square().sum(dim=1).mean()
    expected = 0.6 * torch.nn.functional.cross_entropy(z, batch.labels) + 0.4 * kl + 0.5 * apart
    assert loss(student, None, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_exit_that_says_what_the_deepest_classifier_says_has_nothing_to_learn_of_it():
    loss, student = exit_after((4,), alpha=1)
    (one,) = loss.exits
    one.body, one.classifier = torch.nn.Linear(4, 7), torch.nn.Linear(7, CLASSES)
    vectors = one.body(student.features["stage1"]).detach()
    student.features["embedding"] = vectors
    student = Outputs(one.classifier(vectors).detach(), student.features)
    value, slopes = gradients(loss, student, None, batch_of())
    assert value == pytest.approx(0, abs=1e-6) and all(slope.abs().max() < 1e-6 for slope in slopes)
    with torch.no_grad():
        one.classifier.bias += torch.arange(CLASSES)
    assert loss(student, None, batch_of()) > 0.01


def test_the_deepest_classifier_learns_nothing_of_its_exits():
    loss, student, _, batch = given({"kind": "exits"})
    loss(student, None, batch).backward()
    assert student.logits.grad is None and student.features["embedding"].grad is None


@pytest.mark.parametrize(
    ("shapes", "config", "words"),
    [
        ({"stage1": (4,), "embedding": (4,)}, {}, "has one stage"),
        ({"embedding": (4,)}, {}, "does not say which of its layers are stages"),
        (STUDENT, {"layers": ["stage4"]}, "no layer 'stage4'"),
        (STUDENT | {"stage1": (2, 3, 4, 5)}, {}, r"gives \(2, 3, 4, 5\)"),
    ],
)
def test_exits_need_stages(shapes, config, words):
    with pytest.raises(Mismatch, match=words):
        build({"kind": "exits"} | config, student=shapes)


def test_teacher_may_rule_out_classes():
    teacher = Outputs(torch.tensor([[0.0, -torch.inf, 0.0]]))
    student = Outputs(torch.zeros(1, 3, requires_grad=True))
    value, (slope,) = gradients(build({"kind": "kd", "temperature": 1}), student, teacher, batch_of(1))
    assert value == pytest.approx(np.log(3 / 2), rel=1e-6)
    assert slope[0].tolist() == pytest.approx([-1 / 6, 1 / 3, -1 / 6], rel=1e-5)


# ----------------------------------------------------------------------------------------------------- distances


def test_absolute_needs_no_layer_where_the_widths_agree():
    assert isinstance(build({"kind": "absolute"}, student=TEACHER).adapter, torch.nn.Identity)
    adapter = build({"kind": "absolute"}).adapter
    assert (adapter.in_features, adapter.out_features) == (5, 7)


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_the_length_of_an_embedding_counts_only_where_that_is_asked_for(kind):
    for normalized in (True, False):
        loss = build({"kind": kind, "normalized": normalized}, student=TEACHER)
        student, teacher, batch = outputs(TEACHER, seed=1), outputs(TEACHER, seed=2), batch_of()
        values = [loss(student, mapped(teacher, lambda x, by=by: by * x), batch).item() for by in (1, 3)]
        assert (values[0] == pytest.approx(values[1], rel=1e-5)) is normalized


@pytest.mark.parametrize("mode", ["paper", "code"])
def test_relative_wants_the_distances_and_not_the_places(mode):
    loss, teacher, batch = (
        build({"kind": "relative", "mode": mode}, student=TEACHER),
        outputs(TEACHER, seed=2),
        batch_of(),
    )
    turn = torch.linalg.qr(torch.randn(7, 7, generator=torch.Generator().manual_seed(3))).Q
    turned = outputs(TEACHER, seed=1)
    turned.features["embedding"] = (4 * teacher.features["embedding"] @ turn).detach().requires_grad_()
    assert loss(turned, teacher, batch).item() == pytest.approx(0, abs=1e-5)


def triplets(labels, mix=None):
    """The value and the gradient to the embedding of a batch of four samples on a line of directions."""
    loss = build({"kind": "triplet", "margin": 1}, {"embedding": (2,)})
    angles = torch.tensor([0.0, 0.1, 0.5, 1.1])
    student = outputs({"embedding": (2,)}, 4)
    student.features["embedding"] = torch.stack([angles.cos(), angles.sin()], dim=1).requires_grad_()
    value = loss(student, None, batch_of(4, labels, mix))
    value.backward()
    return value.item(), student.features["embedding"].grad


def chord(angle):
    return 2 * np.sin(angle / 2)


def test_a_triplet_is_of_the_hardest_samples():
    value, _ = triplets([0, 0, 1, 0])
    anchors = [1 + chord(1.1) - chord(0.5), 1 + chord(1.0) - chord(0.4), 1 + chord(1.1) - chord(0.6)]
    assert value == pytest.approx(np.mean(anchors), rel=1e-5)


@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 3], [0] * 4, [HIDDEN] * 4, [0, 0, HIDDEN, HIDDEN], [0, HIDDEN, 1, 2]]
)
def test_without_a_triplet_there_is_nothing_to_learn(labels):
    value, slope = triplets(labels)
    assert value == 0 and slope is not None and not slope.any()


def test_triplets_leave_out_what_has_no_label():
    value, slope = triplets([0, 0, HIDDEN, 1])
    anchors = [1 + chord(0.1) - chord(1.1), 1 + chord(0.1) - chord(1.0)]
    assert value == pytest.approx(np.mean(anchors), rel=1e-5)
    assert slope[2].abs().max() < 1e-6 < slope.abs().max()


def test_triplets_of_mixed_samples_go_by_the_larger_share():
    mix = Mix(torch.tensor([3, 2, 1, 0]), torch.tensor([0.3, 0.9, 0.6, 0.8]))
    assert triplets([0, 0, 1, 2], mix)[0] == triplets([2, 0, 1, 2])[0]


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
    stages, last, embedding = ("stage1", "stage2", "stage3"), ("stage3",), ("embedding",)
    expected = {"hint": ("stage2",), "cat-kd": (CLASS_MAPS,), "reviewkd": (*stages, *embedding)}
    expected |= dict.fromkeys(("at", "nst", "vid", "ab", "ofd", "semckd", "gkd"), stages)
    expected |= dict.fromkeys(("sp", "ickd", "ft", "cwd", "pkd", "mgd", "srrl", "simkd", "wkd-feature"), last)
    expected |= dict.fromkeys(("rkd", "pkt", "cc", "irg", "itrd", "crd", "srd", "nd", "pad"), embedding)
    expected |= dict.fromkeys(("absolute", "relative"), embedding)
    taps = {kind: build({"kind": kind}).taps(student, teacher) for kind in expected}
    assert {kind: tap.student for kind, tap in taps.items()} == expected
    assert all(tap.teacher == tap.student for tap in taps.values())


@pytest.mark.parametrize(
    ("config", "student", "teacher", "words"),
    [
        (
            {"kind": "at"},
            shapes((32,)),
            shapes((64,)),
            r"'stage1' of the student gives \(32,\), layer 'stage1' of the teacher gives \(64,\)",
        ),
        (
            {"kind": "pkd"},
            shapes((8, 4, 4)),
            shapes((64,)),
            r"'stage1' of the student gives \(8, 4, 4\), layer 'stage1' of the teacher gives \(64,\)",
        ),
        ({"kind": "hint"}, shapes((8, 4, 4, 4)), shapes((64,)), "one form"),
        ({"kind": "at"}, shapes((16, 32)), shapes((8, 4, 4)), r"'stage1' of the student gives \(16, 32\)"),
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


@pytest.mark.parametrize(
    "kind",
    [k for k in KINDS if LOSSES[k].needs_teacher and not LOSSES[k].on_logits and k != "wkd-logit"],
)
@pytest.mark.parametrize("bare", [None, table("the teacher 'forest'", {})], ids=["nothing", "forest"])
def test_a_teacher_without_layers_is_refused(kind, bare):
    loss = LOSSES[kind](LOSSES[kind].Config(kind=kind))
    with pytest.raises(Mismatch, match="has none"):
        loss.taps(table("the student", STUDENT), {"a": bare} if is_joint(kind) else bare)


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "ce", "label_smoothing": 1.1},
        {"kind": "kd", "temperature": 0},
        {"kind": "hint", "student_layer": "stage1"},
        {"kind": "at", "layers": []},
        {"kind": "at", "layers": [["stage1"]]},
        {"kind": "rkd", "distance": 0, "angle": 0},
        {"kind": "gkd", "edges": 0},
        {"kind": "gkd", "change": 1, "layers": [["stage1", "stage1"]]},
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
