"""Any architecture can teach any other: every pair of MLP, CNN, GRU and transformer, by logits and by layers."""

import math

import pytest
import torch
import torch.nn.functional as F

from kdrun import models, registry
from kdrun.errors import Mismatch
from kdrun.losses.matching import of_one_form
from kdrun.models import Frozen, Network
from kdrun.taps import describe
from support import students
from test_models import CPU, batch, build
from test_prepared import near, prepare

MODELS = {
    "mlp": {"hidden": [16, 12]},
    "cnn": {"width": 4, "depth": 2, "hidden": 10},
    "gru": {"hidden": 14, "layers": 2},
    "vit": {"dim": 8, "depth": 2, "heads": 2, "patch": 2},
}
LOSSES = ("kd", "hint", "rkd", "sp", "cc")
"""One on logits, one on a pair of layers, and three on how a layer's outputs lie to each other."""
PLACED = (
    *("at", "nst", "vid", "cwd", "pkd", "ickd", "mgd", "ft"),
    *("reviewkd", "semckd", "wkd-feature"),
)
"""Losses that compare the places of maps, which the layers of an MLP do not have."""
STEPS = 6


def config(student, losses, teachers=tuple(MODELS)):
    """A student that learns from each of the teachers by each of the losses."""
    methods = [
        f"  - {{name: {loss}-of-{name}, losses: [{{kind: {loss}, teacher: {name}}}]}}"
        for loss in losses
        for name in teachers
    ]
    lines = [
        *("name: families", "dataset: {kind: digits}", "seeds: [0]", "controls: none"),
        "training: {batch_size: 32, optimizer: {kind: adamw, lr: 5e-3}}",
        *("teachers:", *(f"  {name}: {{model: {{kind: {name}, {written(name)}}}}}" for name in teachers)),
        f"student: {{model: {{kind: {student}, {written(student)}}}}}",
        *("methods:", *methods),
    ]
    return "\n".join(lines)


def written(kind):
    return ", ".join(f"{key}: {value}" for key, value in MODELS[kind].items())


@pytest.fixture(scope="module")
def teachers():
    """One of each kind that has learnt a little of the digits."""
    _, drawn, dataset, planned = students(config("mlp", ["kd"]))
    lesson = next(dataset.batches(next(one.draw for one in planned.runs if one.role == "teacher"), 0))
    for teacher in drawn.values():
        model = teacher.model.requires_grad_().train()
        optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
        for _ in range(20):
            F.cross_entropy(model(lesson.views["input"]), lesson.labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        model.requires_grad_(False).eval()
    return drawn


def learn(one, lesson, taught):
    """The values of a student's only term while it learns one lesson again and again."""
    values = []
    for _ in range(STEPS):
        one.step(lesson, {name: taught[name] for name in one.teachers})
        values.append(sum(one.rehearsed().values()))
    return values


@pytest.mark.parametrize("student", MODELS)
def test_every_architecture_learns_from_every_other_by_logits_and_by_layers(student, teachers):
    made, _, dataset, _ = students(config(student, LOSSES), teachers=teachers)
    lesson = next(dataset.batches(made.pop("alone").draw, 0))
    taught = {name: teacher(lesson) for name, teacher in teachers.items()}
    assert made.keys() == {f"{loss}-of-{name}" for loss in LOSSES for name in MODELS}
    for method, one in made.items():
        values = learn(one, lesson, taught)
        assert all(math.isfinite(value) for value in values), method
        assert min(values) < 0.95 * values[0], (method, values)


@pytest.mark.parametrize(
    ("student", "teacher", "losses"),
    [
        ("vit", "cnn", PLACED),
        ("cnn", "vit", ["at", "reviewkd"]),
        ("gru", "vit", ["at"]),
        ("vit", "vit", ["at"]),
    ],
)
def test_losses_on_maps_see_tokens_as_maps(student, teacher, losses, teachers):
    chosen = {teacher: teachers[teacher]}
    made, _, dataset, _ = students(config(student, losses, [teacher]), teachers=chosen)
    lesson = next(dataset.batches(made.pop("alone").draw, 0))
    taught = {teacher: teachers[teacher](lesson)}
    for method, one in made.items():
        values = learn(one, lesson, taught)
        assert all(math.isfinite(value) for value in values), method
        assert min(values) < values[0], (method, values)


def test_a_transformer_is_exported_with_the_classifier_that_simkd_reuses():
    text = config("vit", ["simkd"], ["cnn"]).replace(
        "{kind: cnn, width: 4, depth: 2, hidden: 10}", "{kind: resnet8}"
    )
    made, drawn, dataset, _ = students(text)
    student, lesson = made["simkd-of-cnn"], next(dataset.batches(made["alone"].draw, 0))
    student.step(lesson, {"cnn": drawn["cnn"](lesson)})
    exported, term = student.exported(), student.objective.named["simkd"]
    student.model.eval()
    student.objective.eval()
    said = term.losses[0].predict(student.network(lesson))
    torch.testing.assert_close(exported(lesson).logits, said)
    assert "blocks.1:map" in term.taps["cnn"].student


# ------------------------------------------------------------------------------------- layers in another form


def network(kind, shape=(1, 8, 8), **options):
    return Network(build(kind, shape, **(MODELS.get(kind, {}) | options)).eval(), "input", CPU)


def described(kind, shape=(1, 8, 8), **options):
    return network(kind, shape, **options).describe(batch(shape), f"the {kind}")


def seen(net, layer, asked):
    net.tap([layer])
    return net(asked).features[layer]


@pytest.mark.parametrize(("token", "learned"), [(False, 1), (True, 2)])
def test_the_map_of_a_transformer_has_its_patches_where_they_are_in_the_picture(token, learned):
    net, asked = network("vit", (1, 8, 12), distillation_token=token), batch((1, 8, 12))
    table = net.describe(asked, "m")
    assert table.as_map("blocks.1") == "blocks.1:map" and table.shapes["blocks.1:map"] == (8, 4, 6)
    tokens, maps = seen(net, "blocks.1", asked), seen(net, "blocks.1:map", asked)
    for row, column in ((0, 0), (1, 0), (3, 5)):
        assert torch.equal(maps[:, :, row, column], tokens[:, learned + 6 * row + column])


def test_the_map_of_a_gru_has_a_row_for_each_step():
    net, asked = network("gru"), batch((1, 8, 8))
    maps = seen(net, net.describe(asked, "m").as_map("body.1"), asked)
    assert torch.equal(maps, seen(net, "body.1", asked).mT[..., None]) and maps.shape == (4, 14, 8, 1)


@pytest.mark.parametrize(("kind", "over"), [("gru", 1), ("cnn", (2, 3))])
def test_the_mean_is_over_tokens_and_over_places(kind, over):
    net, asked = network(kind), batch((1, 8, 8))
    mean = net.describe(asked, "m").as_mean("body.0")
    torch.testing.assert_close(seen(net, mean, asked), seen(net, "body.0", asked).mean(dim=over))


@pytest.mark.parametrize(
    ("kinds", "layers", "found"),
    [
        (("vit", "vit"), ("blocks.0", "blocks.1"), ("blocks.0", "blocks.1")),
        (("vit", "vit token"), ("blocks.0", "blocks.1"), ("blocks.0:map", "blocks.1:map")),
        (("vit", "cnn"), ("blocks.0", "body.0"), ("blocks.0:map", "body.0")),
        (("gru", "vit"), ("body.0", "blocks.0"), ("body.0:map", "blocks.0:map")),
        (("mlp", "cnn"), ("body.0", "body.1"), ("body.0", "body.1:mean")),
        (("vit", "mlp"), ("blocks.0", "body.1"), ("blocks.0:mean", "body.1")),
    ],
)
def test_a_hint_brings_two_layers_to_one_form(kinds, layers, found):
    both = [kind.partition(" ") for kind in kinds]
    tables = [described(kind, **({"distillation_token": True} if token else {})) for kind, _, token in both]
    assert of_one_form(layers, *tables) == found


def test_a_config_may_name_what_is_made_of_a_layer():
    table = described("vit")
    assert table.resolve("stage2:map", "layers") == "blocks.1:map"
    assert table.resolve("blocks.0.attention:mean", "layers") == "blocks.0.attention:mean"
    with pytest.raises(
        Mismatch, match=r"layer 'token' of the vit gives \(8,\), of which no map is made"
    ) as caught:
        table.resolve("pooled:map", "student_layer")
    assert caught.value.hint.startswith("write 'token'") and caught.value.key == "student_layer"
    with pytest.raises(Mismatch, match=r"no layer 'blocks\.9'"):
        table.resolve("blocks.9:map", "layers")
    with pytest.raises(Mismatch) as caught:
        table.resolve("blocks.0:maps", "layers")
    near, _, listed = caught.value.hint.partition(" layers: ")
    assert near == "did you mean 'blocks.0:map'?" and ":" not in listed


def test_a_prepared_teacher_gives_what_is_made_of_its_layers():
    frozen, asked = Frozen(network("cnn").model, "input", CPU), batch((1, 8, 8))
    layers = ["body.0:mean", "body.1"]
    frozen.tap(layers)
    fast = prepare(frozen, layers, asked)(asked)
    assert all(near(fast.features[layer], frozen(asked).features[layer]) for layer in layers)


@pytest.mark.parametrize(
    ("kind", "name", "side"), [("timm", "test_vit", 16), ("torchvision", "vit_b_32", 32)]
)
def test_the_transformers_of_other_libraries_say_where_their_tokens_come_from(kind, name, side):
    if kind == "timm":
        pytest.importorskip("timm")
    with torch.device("meta"):
        model = models.build(registry.MODELS[kind].Config(kind=kind, name=name), (3, 64, 64), 7, 0)
        table = describe(model, torch.empty(2, 3, 64, 64), "m")
    assert table.shapes[table.as_map(model.stages[-1])][1:] == (64 // side, 64 // side)
