"""MiniLM between transformers: which heads, which tokens, which layers are compared. See tests/test_losses.py, too."""

import pytest
import torch

from given import outputs
from kdrun.contracts import Outputs
from kdrun.errors import Mismatch
from kdrun.losses.attention import SelfAttentionRelations
from kdrun.models import Network
from kdrun.taps import LayerTable, Layout
from support import students
from test_models import CPU, batch, build

QKV = "blocks.1.attention.qkv"


def loss_of(**options):
    return SelfAttentionRelations(SelfAttentionRelations.Config(kind="minilm", **options))


def layers(width, heads, tokens=5, layout=None, owner="the student"):
    return LayerTable(owner, {"qkv": (tokens, 3 * width)}, (), "", layout=layout, attentions={"qkv": heads})


def value(loss, ours, theirs):
    return loss(
        Outputs(ours.new_zeros(len(ours), 2), {"qkv": ours}), Outputs(ours, {"qkv": theirs}), None
    ).item()


def relation(x, heads, one, other):
    """Probabilities (B, R, T, T), head by head."""
    parts = x.chunk(3, dim=2)
    queries, keys = (parts[part].chunk(heads, dim=2) for part in (one, other))
    width = queries[0].shape[2]
    return torch.stack(
        [(q @ k.mT / width**0.5).softmax(-1) for q, k in zip(queries, keys, strict=True)], dim=1
    )


def divergence(ours, theirs):
    return (theirs * (theirs / ours).log()).sum(-1).mean().item()


def test_relation_heads_compare_networks_of_other_widths_and_heads():
    loss = loss_of(relations=["queries", "keys", "values"], relation_heads=6)
    loss.taps(layers(12, 2), layers(24, 8, owner="the teacher"))
    ours, theirs = (outputs({"qkv": (5, 3 * width)}, seed=width).features["qkv"] for width in (12, 24))
    expected = sum(
        divergence(relation(ours, 6, part, part), relation(theirs, 6, part, part)) for part in (0, 1, 2)
    )
    assert value(loss, ours, theirs) == pytest.approx(expected, rel=1e-5)


def test_what_is_compared_is_what_the_network_attends_to():
    model = build("vit", (1, 8, 8), dim=8, heads=2, patch=4)
    net, asked = Network(model, "input", CPU), batch((1, 8, 8))
    net.tap([QKV, "blocks.1.attention"])
    features = net(asked).features
    attended, values = relation(features[QKV], 2, 0, 1), features[QKV].chunk(3, dim=2)[2]
    mixed = torch.cat([p @ v for p, v in zip(attended.unbind(1), values.chunk(2, dim=2), strict=True)], dim=2)
    torch.testing.assert_close(model.blocks[1].attention.projection(mixed), features["blocks.1.attention"])
    assert model.attentions == {"blocks.0.attention.qkv": 2, QKV: 2}


def test_tokens_that_one_network_alone_learns_are_left_out():
    loss = loss_of()
    loss.taps(layers(4, 2, 6, Layout(2, (2, 2))), layers(4, 2, 5, Layout(1, (2, 2)), owner="the teacher"))
    theirs = outputs({"qkv": (5, 12)}).features["qkv"]
    alien = torch.randn(len(theirs), 1, 12)
    assert value(loss, torch.cat((theirs[:, :1], alien, theirs[:, 1:]), dim=1), theirs) == pytest.approx(
        0, abs=1e-6
    )
    assert value(loss, torch.cat((alien, theirs), dim=1), theirs) > 1e-3


@pytest.mark.parametrize(
    ("options", "student", "teacher", "words", "cure"),
    [
        (
            {},
            layers(12, 2),
            layers(24, 8, owner="the teacher"),
            "the student has 2 heads, the teacher 8",
            "write relation_heads: one of 1, 2, 3, 4, 6, 12",
        ),
        (
            {"relation_heads": 5},
            layers(12, 2),
            layers(24, 8, owner="the teacher"),
            "5 heads cannot share 12 dimensions of the student and 24 of the teacher",
            "write relation_heads: one of 1, 2, 3, 4, 6, 12",
        ),
        (
            {},
            layers(8, 2, 17, Layout(1, (4, 4))),
            layers(8, 2, 6, Layout(2, (2, 2)), owner="the teacher"),
            r"the student has 16 beside 1 learned, the teacher has 4 beside 2 learned",
            "give both patches of one size",
        ),
        (
            {},
            LayerTable("the student", {"body": (8,)}, ("body",), "body"),
            layers(8, 2),
            "the student names no layer that gives queries, keys and values",
            "use a vit",
        ),
        (
            {"teacher_layer": "norm"},
            layers(8, 2),
            LayerTable("the teacher", {"norm": (5, 8), "qkv": (5, 24)}, (), "", attentions={"qkv": 2}),
            "layer 'norm' of the teacher does not give queries, keys and values",
            "layers that do: qkv",
        ),
    ],
)
def test_transformers_that_do_not_fit_are_refused_with_a_way_out(options, student, teacher, words, cure):
    with pytest.raises(Mismatch, match=words) as caught:
        loss_of(**options).taps(student, teacher)
    assert caught.value.hint.startswith(cure)
    assert caught.value.key is None or caught.value.key in SelfAttentionRelations.Config.model_fields


def test_the_last_layer_is_taken_and_another_one_can_be_named():
    tables = [
        Network(build("vit", (1, 8, 8), depth=depth), "input", CPU).describe(batch((1, 8, 8)), "m")
        for depth in (2, 3)
    ]
    last = loss_of().taps(*tables)
    assert (*last.student, *last.teacher) == (QKV, "blocks.2.attention.qkv")
    named = loss_of(student_layer="blocks.0.attention.qkv", teacher_layer=QKV).taps(*tables)
    assert (*named.student, *named.teacher) == ("blocks.0.attention.qkv", QKV)


def test_timms_plain_transformers_say_where_they_attend_and_those_that_change_it_do_not():
    timm = pytest.importorskip("timm")
    model = build("timm", name="test_vit", shape=(1, 16, 16))
    assert list(model.attentions) == [f"net.blocks.{i}.attn.qkv" for i in range(len(model.net.blocks))]
    assert set(model.attentions.values()) == {timm.create_model("test_vit").blocks[0].attn.num_heads}
    shapes = Network(model, "input", CPU).describe(batch((1, 16, 16)), "m").shapes
    assert {shapes[name][1] for name in model.attentions} == {3 * 64}
    biased = build("timm", name="test_vit_relpos", shape=(1, 16, 16))
    assert biased.stages and not biased.attentions, "its attention is more than what queries and keys say"


@pytest.mark.parametrize("method", ["minilm", "minilm-v2"])
def test_published_mixes_train_a_transformer_with_a_token_under_a_wider_teacher(method):
    made, teachers, dataset, _ = students(
        f"""
        name: minilm
        dataset: {{kind: digits}}
        seeds: [0]
        training: {{batch_size: 32, optimizer: {{kind: adamw, lr: 3e-3}}}}
        controls: none
        teacher: {{model: {{kind: vit, dim: 16, depth: 2, heads: 4, patch: 2}}}}
        student: {{model: {{kind: vit, dim: 8, depth: 1, heads: 2, patch: 2, distillation_token: true}}}}
        methods:
          - {{name: tried, use: {method}, set: {{minilm.relation_heads: 4, ce.weight: 0}}}}
        """
    )
    student, lesson = made["tried"], next(dataset.batches(made["alone"].draw, 0))
    taught = {"teacher": teachers["teacher"](lesson)}
    before = student.model.blocks[0].attention.qkv.weight.clone()
    values = []
    for _ in range(8):
        student.step(lesson, taught)
        values.append(student.rehearsed()["minilm"])
    assert 0 < values[-1] < values[0]
    assert not torch.equal(before, student.model.blocks[0].attention.qkv.weight)
