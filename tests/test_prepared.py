"""A teacher made fast says what it said before: folded, channels last, in bf16 where it agrees with itself."""

import copy

import pytest
import torch
from torch import nn

from kdrun import models, registry
from kdrun.contracts import Batch, Spec
from kdrun.models import Frozen, Prepared, prepared, recipe
from kdrun.models.fused import Chain, Fused
from kdrun.models.prepared import foldable
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


def prepare(frozen, layers, batch, bf16=False, views=()):
    return Prepared(frozen, recipe(frozen, layers, bf16, batch), layers, views)


def near(a, b, most=1e-5):
    return (a - b).norm() <= most * b.norm()


@pytest.mark.parametrize("kind", [*ONE_OF_EACH, "torchvision", "timm"])
def test_every_model_says_what_it_said(kind):
    frozen, batch = teacher(kind)
    layers = [*frozen.model.stages, frozen.model.pooled]
    state = copy.deepcopy(frozen.model.state_dict())
    fast = prepare(frozen, layers, batch)
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
    fast = prepare(frozen, layers, batch)
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
    frozen, batch = frozen_of(Reader)
    assert list(foldable(frozen.model, batch.views["input"])) == ["body.1.0"], "not the first one"
    assert near(prepare(frozen, [], batch)(batch).logits, frozen(batch).logits)


class Stem(models.CNN):
    """A network with a container whose output is a convolution's, and a BatchNorm that is called by keyword."""

    def __init__(self, config, shape, classes):
        super().__init__(config, shape, classes)
        self.preactivations = ()
        self.body[0] = nn.ModuleDict({"stem": nn.Sequential(self.body[0][0]), "norm": self.body[0][1]})

    def forward(self, x):
        x = self.body[0]["norm"](input=self.body[0]["stem"](x)).relu()
        return self.classifier(self.hidden(self.body[1](nn.functional.max_pool2d(x, 2))))


def frozen_of(kind, shape=(3, 8, 8)):
    model = kind(models.CNN.Config(kind="cnn", width=4), shape, 5).train()
    batch = Spec({"input": shape}, 5).random_batch(16)
    with torch.no_grad():
        model(batch.views["input"])
    return Frozen(model, "input", CPU), batch


def test_a_container_that_is_asked_for_keeps_what_its_layers_give():
    frozen, batch = frozen_of(models.CNN)
    assert dict(recipe(frozen, [], False, batch).folds) == {"body.0.0": "body.0.1", "body.1.0": "body.1.1"}
    inner = frozen.model.body[0]
    frozen.model.body[0] = nn.Sequential(nn.Sequential(inner[0]), *inner[1:])
    assert dict(recipe(frozen, [], False, batch).folds) == {"body.0.0.0": "body.0.1", "body.1.0": "body.1.1"}
    assert dict(recipe(frozen, ["body.0.0"], False, batch).folds) == {"body.1.0": "body.1.1"}


def test_a_layer_that_is_called_by_keyword_is_left_alone():
    frozen, batch = frozen_of(Stem)
    assert list(recipe(frozen, [], False, batch).folds) == [("body.1.0", "body.1.1")]


def test_a_linear_layer_over_tokens_is_not_folded():
    """A BatchNorm1d after it counts tokens, where the layer counts features."""
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(4))
    assert foldable(model.eval(), torch.zeros(2, 4, 3)) == {}
    assert foldable(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval(), torch.zeros(2, 3)) == {"0": "1"}


def test_sums_and_relus_go_with_the_convolutions_before_them():
    frozen, batch = teacher("resnet14")
    block, last = "layer1.0", frozen.model.preactivations[-1]
    found = recipe(frozen, [], False, batch).chains
    assert Chain(f"{block}.conv1", None, f"{block}.relu1") in found
    assert Chain(f"{block}.conv2", f"{block}.add", f"{block}.relu") in found
    assert sum(isinstance(m, Fused) for m in prepare(frozen, [], batch).model.modules()) == len(found) == 13
    assert last == "layer3.1.add" and Chain("layer3.1.conv2", last, None) in found
    asked = recipe(frozen, [f"{block}.bn1", f"{block}.add"], False, batch).chains
    assert not any(chain.layer == f"{block}.conv1" for chain in asked)
    assert Chain(f"{block}.conv2", f"{block}.add", None) in asked


@pytest.mark.parametrize("kind", ["resnet14", "wrn-16-1", "vgg8"])
def test_losses_on_named_layers_share_one_teacher(kind):
    frozen, batch = teacher(kind)
    plain = recipe(frozen, [], False, batch)
    for layers in (frozen.model.stages, frozen.model.preactivations, [frozen.model.pooled]):
        assert recipe(frozen, layers, False, batch) == plain


def test_what_follows_in_place_goes_along_too():
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU()
    model = nn.Sequential(*layers).eval()
    assert prepared.chains(model, torch.zeros(2, 3, 8, 8), []) == {
        Chain("0", None, "1"),
        Chain("2", None, "3"),
    }
    assert prepared.chains(model, torch.zeros(2, 3, 8, 8), ["0"]) == {Chain("2", None, "3")}


def test_where_torch_lacks_the_operations_layers_stay_apart(monkeypatch):
    def lacking(self, *inputs):
        raise AttributeError("no such operation")

    monkeypatch.setattr(Fused, "forward", lacking)
    frozen, batch = teacher("resnet8")
    assert recipe(frozen, [], False, batch).chains == frozenset()


@pytest.mark.parametrize("least, arithmetic", [(0.0, "bf16"), (1.1, "bf16 autocast")])
def test_bf16_where_it_agrees_and_autocast_where_it_does_not(monkeypatch, least, arithmetic):
    monkeypatch.setattr(prepared, "AGREEMENT", least)
    frozen, batch = teacher("resnet8")
    fast = prepare(frozen, ["layer1"], batch, bf16=True)
    said, plain = fast(batch), frozen(batch)
    assert fast.arithmetic == arithmetic
    assert said.logits.dtype == said.features["layer1"].dtype == torch.float32
    assert 1e-6 < (said.logits - plain.logits).norm() / plain.logits.norm() < 0.05
    kept = {p.dtype for p in fast.model.parameters()}
    assert kept == ({torch.bfloat16} if arithmetic == "bf16" else {torch.float32})


def test_autocast_keeps_the_weights_whole(monkeypatch):
    monkeypatch.setattr(prepared, "AGREEMENT", 1.1)
    frozen, batch = teacher("cnn")
    fast, exact = (prepare(frozen, [], batch, bf16) for bf16 in (True, False))
    for a, b in zip(fast.model.parameters(), exact.model.parameters(), strict=True):
        assert torch.equal(a, b), "and not rounded to bf16 and back"


def test_further_views_are_looked_at_too():
    frozen, batch = teacher("resnet8")
    batch = Batch({**batch.views, "strong": batch.views["input"].flip(3)}, batch.labels, batch.index)
    frozen.tap([], ["strong"])
    said = prepare(frozen, [], batch, views=["strong"])(batch)
    assert near(said.views["strong"].logits, frozen(batch).views["strong"].logits)
