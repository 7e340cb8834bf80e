"""A teacher made fast says what it said before: folded, channels last, in bf16 where it agrees with itself."""

import copy

import pytest
import torch
from torch import nn

from kdrun import models, registry
from kdrun.contracts import Batch, Spec
from kdrun.models import Frozen, Prepared, foldable, prepared
from kdrun.taps import CLASS_MAPS
from test_models import ONE_OF_EACH, SMALL

CPU = torch.device("cpu")
FOLDED = {
    "mlp": 0,
    "cnn": 2,
    "gru": 0,
    "vit": 0,
    "resnet8": 9,
    "wrn-16-1": 6,
    "vgg8": 5,
    "mobilenetv2-half": 53,
    "shufflenetv1": 49,
    "shufflenetv2": 56,
}
"""Their BatchNorms that follow a convolution; in the others a sum or a shuffle comes between."""


def teacher(kind, **options):
    """A teacher whose BatchNorms have seen something, with a batch."""
    config = registry.MODELS[kind].Config(kind=kind, **(SMALL.get(kind, {}) | options))
    model = models.build(config, (3, 32, 32), 5, seed=1).train()
    batch = Spec({"input": (3, 32, 32)}, 5).random_batch(24)
    with torch.no_grad():
        for _ in range(2):
            model(batch.views["input"] * 2 + 0.5)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
                norm.bias.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(1))
    return Frozen(model, "input", CPU), batch


def near(a, b, most=1e-5):
    return (a - b).norm() <= most * b.norm()


@pytest.mark.parametrize("kind", [*ONE_OF_EACH, "torchvision", "timm"])
def test_every_model_says_what_it_said(kind):
    frozen, batch = teacher(kind)
    layers = [*frozen.model.stages, frozen.model.pooled]
    state = copy.deepcopy(frozen.model.state_dict())
    fast = Prepared(frozen, layers, [], False, batch)
    frozen.tap(layers)
    plain, said = frozen(batch), fast(batch)
    assert near(said.logits, plain.logits) and fast.arithmetic == "fp32"
    for layer in layers:
        assert near(said.features[layer], plain.features[layer]), layer
    assert not said.logits.requires_grad
    assert all(torch.equal(state[name], tensor) for name, tensor in frozen.model.state_dict().items())
    if kind in FOLDED:
        assert len(foldable(frozen.model, batch.views["input"][:2])) == FOLDED[kind]
        left = [m for m in fast.model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        whole = [m for m in frozen.model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert len(whole) - len(left) == FOLDED[kind]


def test_a_layer_that_is_asked_for_is_not_folded():
    frozen, batch = teacher("resnet8")
    layers = ["conv1", "bn1", "layer1.0.conv2", CLASS_MAPS]
    fast = Prepared(frozen, layers, [], False, batch)
    frozen.tap(layers)
    plain, said = frozen(batch), fast(batch)
    assert all(near(said.features[layer], plain.features[layer]) for layer in layers)
    assert isinstance(fast.model.get_submodule("bn1"), nn.BatchNorm2d)
    assert isinstance(fast.model.get_submodule("layer1.0.bn1"), nn.Identity)


class Reader(models.CNN):
    """A network that reads the output of a convolution once more, behind the BatchNorm."""

    def forward(self, x):
        raw = self.body[0][0](x)
        x = self.body[0][1](raw) + raw
        return self.classifier(self.hidden(self.body[1](self.body[0][3](x.relu()))))


def test_what_something_else_reads_is_not_folded():
    config = models.CNN.Config(kind="cnn", width=4)
    model = Reader(config, (3, 8, 8), 5).train()
    batch = Spec({"input": (3, 8, 8)}, 5).random_batch(16)
    with torch.no_grad():
        model(batch.views["input"])
    frozen = Frozen(model, "input", CPU)
    assert list(foldable(model, batch.views["input"])) == ["body.1.0"], "not the first one"
    assert near(Prepared(frozen, [], [], False, batch)(batch).logits, frozen(batch).logits)


@pytest.mark.parametrize("least, arithmetic", [(0.0, "bf16"), (1.1, "bf16 autocast")])
def test_bf16_where_it_agrees_and_autocast_where_it_does_not(monkeypatch, least, arithmetic):
    monkeypatch.setattr(prepared, "AGREEMENT", least)
    frozen, batch = teacher("resnet8")
    fast = Prepared(frozen, ["layer1"], [], True, batch)
    said, plain = fast(batch), frozen(batch)
    assert fast.arithmetic == arithmetic
    assert said.logits.dtype == said.features["layer1"].dtype == torch.float32
    assert 1e-6 < (said.logits - plain.logits).norm() / plain.logits.norm() < 0.05
    kept = {p.dtype for p in fast.model.parameters()}
    assert kept == ({torch.bfloat16} if arithmetic == "bf16" else {torch.float32})


def test_autocast_keeps_the_weights_whole(monkeypatch):
    monkeypatch.setattr(prepared, "AGREEMENT", 1.1)
    frozen, batch = teacher("cnn")
    fast, exact = (Prepared(frozen, [], [], bf16, batch) for bf16 in (True, False))
    for a, b in zip(fast.model.parameters(), exact.model.parameters(), strict=True):
        assert torch.equal(a, b), "and not rounded to bf16 and back"


def test_further_views_are_looked_at_too():
    frozen, batch = teacher("resnet8")
    batch = Batch({**batch.views, "strong": batch.views["input"].flip(3)}, batch.labels, batch.index)
    frozen.tap([], ["strong"])
    said = Prepared(frozen, [], ["strong"], False, batch)(batch)
    assert near(said.views["strong"].logits, frozen(batch).views["strong"].logits)
