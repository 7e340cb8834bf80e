"""What the tests of the losses give them: outputs of models that do not exist, their layers, and a training set."""

import torch
from torch import nn

import kdrun.losses  # noqa: F401
from kdrun.contracts import Acted, Batch, Context, JointLoss, Outputs
from kdrun.registry import LOSSES
from kdrun.taps import CLASS_MAPS, LayerTable

SIZE, CLASSES, SAMPLES = 8, 5, 20
STUDENT = {
    "stage1": (3, 8, 8),
    "stage2": (4, 4, 4),
    "stage3": (5, 2, 2),
    "embedding": (5,),
    CLASS_MAPS: (CLASSES, 2, 2),
    "qkv": (5, 12),
}
TEACHER = {
    "stage1": (4, 8, 8),
    "stage2": (6, 4, 4),
    "stage3": (7, 2, 2),
    "embedding": (7,),
    CLASS_MAPS: (CLASSES, 2, 2),
    "qkv": (5, 24),
}
TEACHERS = ("a", "b")
"""The names of the teachers of a loss that weighs several."""
EQUAL_WIDTHS = {"fsp"}
"""Losses that need a student as wide as its teacher."""
SOFT_TREE = {"gates": (7,), "visits": (15,)}


def kinds():
    """All of kdrun's own losses."""
    return [kind for kind in LOSSES if LOSSES[kind].__module__.startswith("kdrun.losses")]


def is_joint(kind):
    return issubclass(LOSSES[kind], JointLoss)


def student_of(kind):
    """The shapes of a student that a loss can be made for."""
    if kind == "split-balance":
        return SOFT_TREE
    return TEACHER if kind in EQUAL_WIDTHS else STUDENT


def table(owner, shapes):
    """Layers whose stages are their own values before the last ReLU."""
    stages = tuple(name for name in shapes if name.startswith("stage"))
    norms = tuple(f"{stage}.norm" for stage in stages)
    attentions = {"qkv": 2} if "qkv" in shapes else {}
    embedding = "embedding" if "embedding" in shapes else ""
    return LayerTable(owner, dict(shapes), stages, embedding, stages, norms, attentions=attentions)


def outputs(shapes, size=SIZE, seed=0, scale=1.0, same_rows=False, gradient=True):
    """Standard normal logits and features, times a scale."""
    draw = torch.Generator().manual_seed(seed)

    def tensor(shape):
        x = scale * torch.randn(1 if same_rows else size, *shape, generator=draw)
        return x.expand(size, *shape).clone().requires_grad_(gradient)

    return Outputs(tensor((CLASSES,)), {name: tensor(shape) for name, shape in shapes.items()})


def taught(kind, size=SIZE, seed=2, shapes=TEACHER, **options):
    """What a loss gets of its teacher: outputs, or those of several by name."""
    if not is_joint(kind):
        return outputs(shapes, size, seed, **options)
    return {name: outputs(shapes, size, seed + place, **options) for place, name in enumerate(TEACHERS)}


def tensors(said):
    """All tensors of outputs, of one model or of several."""
    if isinstance(said, dict):
        return [x for one in said.values() for x in tensors(one)]
    return [said.logits, *said.features.values()]


def mapped(said, change):
    """The outputs with ``change`` done to every tensor, as new leaves."""
    if isinstance(said, dict):
        return {name: mapped(one, change) for name, one in said.items()}
    new = [change(x.detach()).clone().requires_grad_() for x in tensors(said)]
    return Outputs(new[0], dict(zip(said.features, new[1:], strict=True)))


def batch_of(size=SIZE, labels=None, mix=None):
    labels = torch.arange(size) % CLASSES if labels is None else torch.tensor(labels)
    draw = torch.Generator().manual_seed(7)
    seen = torch.randn(size, 3, generator=draw)
    advantage, outcome = torch.randn(2, size, generator=draw)
    before = torch.full((size,), 1 / CLASSES).log()
    acted = Acted(torch.arange(size) % CLASSES, before, advantage, outcome)
    return Batch({"input": seen}, labels, torch.arange(size), mix, acted=acted)


class Twin(nn.Linear):
    """A network like the student, from other first weights."""

    def __init__(self, number):
        super().__init__(3, CLASSES)
        draw = torch.Generator().manual_seed(number)
        with torch.no_grad():
            self.weight.copy_(torch.randn(CLASSES, 3, generator=draw))


def teacher_state(shapes):
    """A linear classifier on the embedding, and a BatchNorm for each stage."""
    draw = torch.Generator().manual_seed(11)
    width = shapes.get("embedding", (1,))[0]
    state = {
        "head.weight": torch.randn(CLASSES, width, generator=draw),
        "head.bias": torch.randn(CLASSES, generator=draw),
    }
    for name, shape in shapes.items():
        if name.startswith("stage"):
            state[f"{name}.norm.weight"] = torch.randn(shape[0], generator=draw)
            state[f"{name}.norm.bias"] = torch.randn(shape[0], generator=draw)
    return state


def survey(shapes):
    """A training set of ``SAMPLES`` as the teacher sees it, in two batches."""
    for place in range(2):
        labels = (torch.arange(SAMPLES // 2) + place) % CLASSES
        index = torch.arange(SAMPLES // 2) + place * (SAMPLES // 2)
        yield Batch({}, labels, index), outputs(shapes, SAMPLES // 2, seed=20 + place, gradient=False)


def consistent(said, state):
    """Outputs whose embedding is the last stage's mean over places, and whose logits are its classifier's."""
    features = said.features | {"embedding": said.features["stage3"].mean(dim=(2, 3))}
    return Outputs(features["embedding"] @ state["head.weight"].T + state["head.bias"], features)


def build(config, student=None, teacher=TEACHER, size=SIZE):
    """A loss of a config, its layers tapped and its adapters made."""
    loss_class = LOSSES[config["kind"]]
    student = student or student_of(config["kind"])
    joint = is_joint(config["kind"])
    loss = loss_class(loss_class.Config.model_validate(config))
    theirs = table("the teacher", teacher)
    state, said = teacher_state(teacher), outputs(teacher, gradient=False)
    if "stage3" in said.features and "embedding" in said.features:
        said = consistent(said, state)
    loss.taps(table("the student", student), dict.fromkeys(TEACHERS, theirs) if joint else theirs)
    context = Context(
        batch_of(),
        outputs(student, gradient=False),
        said,
        SAMPLES,
        CLASSES,
        size,
        torch.arange(SAMPLES) % CLASSES,
        state,
        "head",
        lambda: survey(teacher),
        "input",
        Twin,
        Twin(0).state_dict,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss.build(dict.fromkeys(TEACHERS, context) if joint else context)
    return loss


def gradients(loss, student, teacher, batch):
    """The value, and the gradients of what the loss depends on: student outputs, then adapters."""
    value = loss(student, teacher, batch)
    value.backward()
    sources = [*tensors(student), *loss.parameters()]
    return value.item(), [x.grad for x in sources if x.grad is not None]


def with_equal_layers(loss):
    """The loss with everything that adapts the student left out, so that equal layers are equal to it."""
    plain = nn.Identity()
    for name in ("adapter", "generator", "projector"):
        if isinstance(getattr(loss, name, None), nn.Module):
            setattr(loss, name, plain)
    return loss
