"""What every model promises, and what the literature's architectures are made of."""

import argparse
import copy
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdrun import models, registry
from kdrun.contracts import Batch, Spec
from kdrun.errors import Mismatch, WeightsError
from kdrun.models.weights import start_from
from kdrun.taps import Recorder, describe

PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn-16-1": 180_916,
    "wrn-16-2": 703_284,
    "wrn-40-1": 569_780,
    "wrn-40-2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "mobilenetv2-half": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
    "resnet50-cifar": 23_705_252,
}
"""At 100 classes and three channels, as the distillation literature has them."""

SIMPLE = ("mlp", "cnn", "gru", "vit")
TREES = {"soft-tree", "tree", "forest", "boosting", "svc", "logistic-regression"}
"""Those of tests/test_trees.py and tests/test_soft_tree.py, most of which are fitted at once."""
GRAPHS = {"appnp"}
"""Those of tests/test_graph.py, which hold training samples."""
TOGETHER = {"ensemble", "cascade", "specialists"}
"""Those of tests/test_together.py and tests/test_several_environments.py, which are made of others."""
COMPRESSED = ["int8", "pruned"]
"""Those of tests/test_compressed.py, which are made of a finished student."""
AGENTS = {"dqn", "ppo"}
"""Those of tests/test_agents.py, which read rows of numbers."""
SMALL = {
    "torchvision": {"name": "shufflenet_v2_x0_5"},
    "timm": {"name": "test_resnet"},
    "vit": {"dim": 16, "depth": 2},
}
"""Options that keep the tests fast."""
ONE_OF_EACH = (
    *SIMPLE,
    "resnet8",
    "wrn-16-1",
    "vgg8",
    "mobilenetv2-half",
    "shufflenetv1",
    "shufflenetv2",
    "torchvision",
    "timm",
)
RGB, GREY = (3, 32, 32), (1, 28, 28)
CPU = torch.device("cpu")


def config(kind, **options):
    return registry.MODELS[kind].Config(kind=kind, **{**SMALL.get(kind, {}), **options})


def build(kind, shape=RGB, classes=7, seed=0, **options):
    if kind == "timm":
        pytest.importorskip("timm")
    return models.build(config(kind, **options), shape, classes, seed)


def batch(shape=RGB, size=4):
    return Spec({"input": shape}, 7).random_batch(size)


def same_bits(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# ------------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize("kind", PARAMETERS)
def test_the_literatures_networks_have_its_parameter_counts(kind):
    with torch.device("meta"):
        assert models.parameters(build(kind, classes=100)) == PARAMETERS[kind]


def test_no_kind_is_left_out_here():
    own = {k for k in registry.MODELS if registry.MODELS[k].__module__.startswith("kdrun.")}
    assert own == {
        *PARAMETERS,
        *SIMPLE,
        *TREES,
        *GRAPHS,
        *TOGETHER,
        *COMPRESSED,
        *AGENTS,
        "torchvision",
        "timm",
    }


@pytest.mark.parametrize("kind", [*PARAMETERS, *SIMPLE, "torchvision", "timm"])
def test_every_kind_names_its_stages_embedding_and_classifier(kind):
    with torch.device("meta"):
        model = build(kind)
        table = describe(model, torch.empty(2, *RGB), "the model")
    stages = [table.shapes[name] for name in model.stages]
    assert len(stages) >= 2 or kind == "gru"
    maps = [shape[1:] for shape in stages if len(shape) == 3]
    assert maps == sorted(maps, reverse=True)
    assert len(table.shapes[model.pooled]) == 1
    assert table.shapes[model.head] == (7,)
    assert isinstance(model.get_submodule(model.head), nn.Linear)
    assert not [name for name, module in model.named_modules() if getattr(module, "inplace", False)]


def recorded_and_given(model, names):
    """What a recorder keeps of some layers, and copies of what they gave, taken on the spot."""
    given = {}
    for name in names:
        keep = lambda _m, _i, out, name=name: given.__setitem__(name, copy.deepcopy(out.detach()))  # noqa: E731
        model.get_submodule(name).register_forward_hook(keep, prepend=True)
    recorder = Recorder(model, names)
    model(batch().views["input"])
    return recorder.take(), given


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("training", [False, True])
def test_no_later_layer_writes_into_what_a_tap_recorded(kind, training):
    model = build(kind).train(training)
    names = list(describe(model, batch().views["input"], "the model").shapes)
    recorded, given = recorded_and_given(model, names)
    assert same_bits(recorded, given)


def test_torchvisions_residual_sums_do_not_reach_a_tapped_normalisation():
    """torchvision's blocks add the identity in place, into what ``bn2`` gave."""
    model = build("torchvision", name="resnet18").eval()
    recorded, given = recorded_and_given(model, ["net.layer1.0.bn2", "net.layer1.0"])
    assert same_bits(recorded, given)
    assert recorded["net.layer1.0.bn2"].min() < recorded["net.layer1.0"].min() == 0


@pytest.mark.parametrize("kind", ["resnet8", "wrn-16-1", "vgg8", "shufflenetv1"])
def test_stages_are_maps_after_their_relu(kind):
    network = models.Network(build(kind).eval(), "input", CPU)
    network.tap(network.model.stages)
    assert all(map_.min() == 0 for map_ in network(batch()).features.values())


def test_the_map_before_a_blocks_last_relu_can_be_tapped():
    network = models.Network(build("resnet8").eval(), "input", CPU)
    network.tap(["layer2.0.add", "layer2"])
    features = network(batch()).features
    assert features["layer2.0.add"].min() < 0
    assert torch.equal(features["layer2.0.add"].relu(), features["layer2"])


@pytest.mark.parametrize("kind", [k for k in ONE_OF_EACH if k not in ("torchvision", "timm")])
@pytest.mark.parametrize("shape", [GREY, (1, 8, 8), (2, 64, 48), (1, 64, 64)])
def test_pictures_of_other_sizes_and_channels(kind, shape):
    model = build(kind, shape)
    assert model(batch(shape).views["input"]).shape == (4, 7)


@pytest.mark.parametrize("kind", ["mlp", "gru"])
@pytest.mark.parametrize("shape", [(13,), (5, 6)])
def test_tables_and_sequences(kind, shape):
    assert build(kind, shape)(torch.zeros(4, *shape)).shape == (4, 7)


@pytest.mark.parametrize("kind", [k for k in ONE_OF_EACH if k not in ("mlp", "gru")])
def test_a_table_is_no_picture(kind):
    with pytest.raises(Mismatch, match=r"reads pictures .* these inputs are 13"):
        build(kind, (13,))


def test_a_picture_too_small_for_vgg_is_refused():
    with pytest.raises(Mismatch, match="fewer than 8 pixels") as caught:
        build("vgg8", (1, 7, 7))
    assert caught.value.key == "kind"


def test_mlp_blocks_are_its_hidden_vectors():
    model = build("mlp", hidden=[5, 6], activation="tanh", dropout=0.5, batch_norm=True)
    assert model.stages == ("body.0", "body.1") and model.pooled == "body.1"
    assert [type(m) for m in model.body[1]] == [nn.Linear, nn.BatchNorm1d, nn.Tanh, nn.Dropout]
    linear = build("mlp", hidden=[])
    assert (linear.stages, linear.pooled) == ((), "flatten")
    assert describe(linear, torch.zeros(2, *RGB), "m").shapes["flatten"] == (3072,)


def test_cnn_stops_halving_at_one_pixel():
    table = describe(build("cnn", (1, 8, 8), depth=5, width=2), torch.zeros(2, 1, 8, 8), "m")
    assert [table.shapes[f"body.{i}"] for i in range(5)] == [
        (2, 4, 4),
        (4, 2, 2),
        (8, 1, 1),
        (16, 1, 1),
        (32, 1, 1),
    ]


def test_gru_reads_rows_and_ends_with_the_last_step():
    model = build("gru", (2, 5, 3), hidden=4, layers=2).eval()
    network = models.Network(model, "input", CPU)
    network.tap(["body.1", "last"])
    features = network(batch((2, 5, 3))).features
    assert features["body.1"].shape == (4, 5, 4)
    assert torch.equal(features["last"], features["body.1"][:, -1])
    x = torch.randn(1, 2, 5, 3)
    rows = torch.stack([x[:, :, row].flatten(1) for row in range(5)], dim=1)
    torch.testing.assert_close(model(x), model(rows))


def test_vit_says_which_patches_tile_the_picture():
    with pytest.raises(Mismatch, match=r"patches of 5 pixels do not tile pictures of 28×20") as caught:
        build("vit", (1, 28, 20), patch=5)
    assert caught.value.key == "patch" and caught.value.hint == "write one of 1, 2, 4"
    with pytest.raises(Mismatch) as caught:
        build("vit", dim=12, heads=5)
    assert caught.value.key == "heads" and caught.value.hint == "write one of 1, 2, 3, 4, 6, 12"


def test_vit_tokens_can_be_tapped():
    shapes = describe(build("vit", (1, 8, 8), patch=4), torch.zeros(2, 1, 8, 8), "m").shapes
    assert shapes["blocks.1"] == shapes["blocks.1.attention"] == (5, 16)


def test_convolutions_start_with_the_fan_out_variance():
    for name, module in build("wrn-16-2").named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.06), name


# ----------------------------------------------------------------------------------------- building


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_seed_decides_every_bit_and_no_global_generator_moves(kind):
    before = torch.get_rng_state()
    first, other = (build(kind, seed=seed).state_dict() for seed in (3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert same_bits(first, build(kind, seed=3).state_dict())
    assert not same_bits(first, other)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_initial_weights_with_another_number_of_classes_keep_a_fresh_classifier(kind, tmp_path):
    source = build(kind, classes=5, seed=1)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    started = build(kind, seed=2, initial_weights=tmp_path / "w.safetensors")
    fresh = build(kind, seed=2).state_dict()
    head = {name: value for name, value in fresh.items() if name.startswith(f"{started.head}.")}
    assert same_bits(started.state_dict(), source.state_dict() | head)


def test_initial_weights_with_the_same_classes_bring_their_classifier(tmp_path):
    source = build("mlp", seed=1)
    torch.save({"epoch": 3, "state_dict": source.state_dict()}, tmp_path / "w.pt")
    assert same_bits(build("mlp", initial_weights=tmp_path / "w.pt").state_dict(), source.state_dict())


def test_initial_weights_of_another_model_are_refused_with_five_differences(tmp_path):
    save_file(build("mlp", hidden=[8, 4, 4, 4]).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        build("mlp", hidden=[9, 4], initial_weights=tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "w.safetensors: these are not the weights of this model" in message
    assert "'body.2.0.weight' [4, 4] is unexpected" in message and ", and 2 more" in message
    assert message.count("is unexpected") + message.count("should be") + message.count("is missing") == 5


# ------------------------------------------------------------------------------------ files of weights

GOOD = {"a.weight": torch.ones(2, 3), "b": torch.arange(4)}


@pytest.mark.parametrize(
    "checkpoint",
    [
        GOOD,
        *({key: GOOD, "epoch": 3} for key in ("state_dict", "model", "model_state_dict", "net")),
        {f"module.{name}": value for name, value in GOOD.items()},
        {"model": {f"module._orig_mod.{name}": value for name, value in GOOD.items()}},
    ],
)
def test_usual_checkpoints_are_read(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "w.pth")
    assert same_bits(models.read_state(tmp_path / "w.pth"), GOOD)


def test_a_prefix_that_not_all_names_share_is_part_of_the_name(tmp_path):
    save_file({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.safetensors")
    assert models.read_state(tmp_path / "w.safetensors").keys() == {"module.a", "b"}


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(protocol, tmp_path):
    torch.save({"a": torch.ones(1), "b": Evil(tmp_path / "ran")}, tmp_path / "w.pt", pickle_protocol=protocol)
    with pytest.raises(
        WeightsError, match=r"holds Python objects.*which kdrun does not unpickle; save them with"
    ):
        models.read_state(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_the_python_object_in_the_way_is_named(tmp_path):
    torch.save({"model": GOOD, "opt": argparse.Namespace(lr=1)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"Python objects \(argparse\.Namespace\)"):
        models.read_state(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds no weights"),
        ({}, "holds no weights"),
        ({"a": torch.ones(1), "b": 3}, "'b' is no tensor of weights but int"),
        ({"a": torch.ones(2, 2).to_sparse()}, "'a' is no tensor of weights but a tensor stored as"),
        ({"a": torch.tensor([1.0, float("nan")])}, "'a' holds values that are not finite"),
        ({"a": torch.tensor([float("inf")], dtype=torch.float16)}, "'a' holds values that are not finite"),
    ],
)
def test_anything_but_finite_tensors_is_refused(content, words, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=words):
        models.read_state(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 64])
def test_broken_files_are_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        models.read_state(tmp_path / name)


def test_a_truncated_file_is_refused(tmp_path):
    torch.save(GOOD, tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        models.read_state(tmp_path / "w.pt")


@pytest.mark.parametrize("path", ["nowhere.pt", "."])
def test_a_missing_file_is_named(path):
    with pytest.raises(WeightsError, match="there is no such file of weights"):
        models.read_state(Path(path))


def test_load_weights_takes_a_models_own(tmp_path):
    source, model = build("resnet8", seed=1), build("resnet8", seed=2)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    models.load_weights(model, tmp_path / "w.safetensors")
    assert same_bits(model.state_dict(), source.state_dict())


def test_load_weights_names_a_wrong_number_of_classes(tmp_path):
    save_file(build("resnet8", classes=100).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="tell 100 classes apart, and the data set has 7"):
        models.load_weights(build("resnet8"), tmp_path / "w.safetensors")


def test_load_weights_is_strict(tmp_path):
    state = build("resnet8").state_dict()
    del state["bn1.bias"]
    save_file(state | {"extra": torch.ones(2)}, tmp_path / "w.safetensors")
    model = build("resnet8", seed=5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WeightsError, match=r"'bn1.bias' is missing, 'extra' \[2\] is unexpected"):
        models.load_weights(model, tmp_path / "w.safetensors")
    assert same_bits(model.state_dict(), before)


def test_integers_are_no_weights(tmp_path):
    state = {name: value.to(torch.int8) for name, value in build("mlp").state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="of integers and should be"):
        models.load_weights(build("mlp"), tmp_path / "w.safetensors")


# ------------------------------------------------------------------------------- other libraries' networks


@pytest.mark.parametrize(("kind", "library"), [("torchvision", "torchvision.models"), ("timm", "timm")])
def test_an_unknown_network_is_answered_with_the_nearest(kind, library):
    with pytest.raises(Mismatch, match="has no network 'resnot18'") as caught:
        build(kind, name="resnot18")
    assert caught.value.key == "name"
    assert (
        caught.value.hint.startswith("did you mean 'resnet18'?") and f"import {library}" in caught.value.hint
    )


def test_a_network_that_cannot_read_the_pictures_says_so():
    with pytest.raises(Mismatch, match="torchvision's alexnet cannot read inputs of 1×8×8") as caught:
        build("torchvision", (1, 8, 8), name="alexnet")
    assert caught.value.key == "name"


def test_torchvision_sees_grey_three_times():
    model = build("torchvision", GREY).eval()
    x = batch(GREY).views["input"]
    assert torch.equal(model(x), model.net.eval()(x.repeat(1, 3, 1, 1)))
    with pytest.raises(Mismatch, match="read three channels, and these pictures have 4"):
        build("torchvision", (4, 32, 32))


def test_timm_takes_any_number_of_channels():
    assert build("timm", (4, 32, 32))(torch.zeros(2, 4, 32, 32)).shape == (2, 7)


def test_a_convolution_can_be_the_classifier():
    model = build("torchvision", (3, 64, 64), name="squeezenet1_1")
    shapes = describe(model, torch.zeros(2, 3, 64, 64), "m").shapes
    assert model.head == "net.classifier.1" and shapes[model.pooled] == (512,)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("vgg11", ["features.1", "features.4", "features.9", "features.14", "features.19"]),
        ("mobilenet_v2", ["features.1", "features.3", "features.6", "features.13", "features.18"]),
        ("densenet121", [f"features.denseblock{i}" for i in range(1, 5)]),
        ("squeezenet1_1", ["features.4", "features.7", "features.12"]),
        ("shufflenet_v2_x0_5", ["conv1", "stage2", "stage3", "conv5"]),
        ("vit_b_32", [f"encoder.layers.encoder_layer_{i}" for i in range(12)]),
        ("swin_t", []),  # its maps are (B, H, W, D)
    ],
)
def test_stages_of_torchvisions_networks(name, stages):
    with torch.device("meta"):
        assert build("torchvision", (3, 224, 224), name=name).stages == tuple(f"net.{s}" for s in stages)


def test_transformers_of_other_libraries_have_their_blocks_as_stages():
    pytest.importorskip("timm")
    model = build("timm", name="test_vit", shape=(1, 16, 16))
    assert model.stages and all(name.startswith("net.blocks.") for name in model.stages)


def test_the_embedding_is_what_the_classifier_reads_even_in_a_copy():
    model = copy.deepcopy(build("torchvision")).eval()
    network = models.Network(model, "input", CPU)
    network.tap([model.pooled])
    said = network(batch())
    torch.testing.assert_close(model.get_submodule(model.head)(said.features[model.pooled]), said.logits)


def test_a_librarys_own_file_starts_a_network(tmp_path):
    import torchvision

    source = torchvision.models.shufflenet_v2_x0_5(num_classes=1000)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = build("torchvision", initial_weights=tmp_path / "w.pth")
    assert torch.equal(model.net.conv1[0].weight, source.conv1[0].weight)
    assert model.net.fc.out_features == 7


def test_torchvisions_old_names_are_translated():
    state = {
        "features.denselayer1.norm.1.weight": 1,
        "aux1.fc.weight": 2,
        "AuxLogits.fc.bias": 3,
        "fc.bias": 4,
    }
    translated = build("torchvision").translate(state)
    assert translated == {"net.features.denselayer1.norm1.weight": 1, "net.fc.bias": 4}


def test_pretrained_weights_replace_all_but_the_classifier(monkeypatch):
    import torchvision

    published = torchvision.models.shufflenet_v2_x0_5(num_classes=1000).state_dict()
    asked = {}

    def give(_self, **options):
        asked.update(options)
        return published

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", give)
    state = build("torchvision", pretrained=True).net.state_dict()
    assert asked["weights_only"] and asked["check_hash"]
    assert {name for name in state if not torch.equal(state[name], published[name])} == {
        "fc.weight",
        "fc.bias",
    }


def test_pretrained_weights_that_cannot_be_downloaded(monkeypatch):
    import torchvision

    def refuse(_self, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", refuse)
    with pytest.raises(
        WeightsError, match=r"shufflenetv2_x0\.5-.*\.pth\): no route .* `initial_weights: FILE`"
    ):
        build("torchvision", pretrained=True)


def test_timms_pretrained_weights_that_cannot_be_downloaded(monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model

    def refuse(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(WeightsError, match=r"timm/test_resnet.*no route .* `initial_weights: FILE`"):
        build("timm", pretrained=True)


def test_pretrained_and_initial_weights_exclude_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        config("torchvision", pretrained=True, initial_weights="w.pt")


def test_timm_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Mismatch, match="timm is not installed") as caught:
        models.build(config("timm"), RGB, 7, 0)
    assert caught.value.hint == "pip install 'kdrun[timm]'"


# ------------------------------------------------------------------------------------------ networks


def test_a_network_gives_logits_and_the_tapped_layers():
    network = models.Network(build("mlp", hidden=[5, 6]), "small", CPU)
    network.tap(["body.0"])
    network.tap(["body.1"])
    views = {"large": torch.zeros(4, 9), "small": torch.randn(4, *RGB)}
    said = network(Batch(views, torch.zeros(4, dtype=torch.int64), torch.arange(4)))
    assert {name: tuple(f.shape) for name, f in said.features.items()} == {"body.0": (4, 5), "body.1": (4, 6)}
    assert torch.equal(said.logits, network.model.classifier(said.features["body.1"]))
    assert said.logits.requires_grad


def test_logits_are_float32_under_autocast():
    network = models.Network(build("mlp"), "input", CPU)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(batch()).logits.dtype == torch.float32


def test_a_dry_run_and_a_description_leave_the_model_as_it_was():
    network = models.Network(build("resnet8"), "input", CPU)
    network.tap(["layer1"])
    before = copy.deepcopy(network.model.state_dict())
    network.model.bn1.eval()
    table = network.describe(batch(), "the student")
    said = network.dry(batch())
    assert table.owner == "the student" and table.shapes["layer1"] == (16, 32, 32)
    assert table.resolve("pooled", "layer") == "pool" and table.resolve("stage2", "layer") == "layer2"
    assert said.features.keys() == {"layer1"} and not said.logits.requires_grad
    assert same_bits(network.model.state_dict(), before)
    assert network.model.training and not network.model.bn1.training


def test_copied_gives_a_frozen_copy():
    network = models.Network(build("resnet8", seed=1), "input", CPU)
    network.tap(["layer1"])
    other = build("resnet8", seed=2)
    copied = network.copied(network.model, other.state_dict())
    assert same_bits(copied.model.state_dict(), other.state_dict())
    assert not same_bits(network.model.state_dict(), other.state_dict())
    assert not copied(batch()).features and not copied.model.layer1._forward_hooks
    assert torch.equal(copied(batch()).logits, other.eval()(batch().views["input"]))


@pytest.mark.parametrize("kind", ["mlp", "resnet8", "gru", "torchvision"])
def test_nothing_changes_a_frozen_network(kind):
    options = {"dropout": 0.5, "batch_norm": True} if kind == "mlp" else {}
    model = build(kind, **options)
    frozen = models.Frozen(model, "input", CPU)
    frozen.tap([model.pooled])
    before = copy.deepcopy(model.state_dict())
    expected = frozen(batch())
    model.train()
    again = frozen(batch())
    assert torch.equal(expected.logits, again.logits)
    assert torch.equal(expected.features[model.pooled], again.features[model.pooled])
    assert not again.logits.requires_grad and not again.features[model.pooled].requires_grad
    assert not again.logits.is_inference()
    assert same_bits(model.state_dict(), before)
    assert not [p for p in model.parameters() if p.requires_grad]


def test_what_a_frozen_network_gives_can_be_learnt_from():
    frozen = models.Frozen(build("mlp"), "input", CPU)
    weight = torch.ones(7, requires_grad=True)
    (frozen(batch()).logits * weight).sum().backward()
    assert weight.grad is not None


# ------------------------------------------------------------------------------------------- counting


PUBLISHED = [
    ("resnet18", "meta"),
    ("resnet50", "meta"),
    ("mobilenet_v2", "meta"),
    ("mobilenet_v3_small", "meta"),
    ("efficientnet_b0", "meta"),
    ("vgg11", "meta"),
    ("densenet121", "meta"),
    ("regnet_y_400mf", "cpu"),
    ("convnext_tiny", "meta"),
    ("vit_b_16", "meta"),
    ("vit_b_32", "cpu"),  # there attention takes a fast path that torch's counter does not see
]


@pytest.mark.parametrize(("name", "device"), PUBLISHED)
def test_macs_are_the_published_ones(name, device):
    import torchvision

    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    with torch.device(device):
        model = torchvision.models.get_model(name)
    assert models.macs(model, (3, 224, 224)) / 1e9 == pytest.approx(weights.meta["_ops"], abs=6e-4)
    assert models.parameters(model) == weights.meta["num_params"]


def test_macs_by_hand():
    assert models.macs(build("mlp", hidden=[10], shape=(5,)), (5,)) == 5 * 10 + 10 * 7
    recurrent = build("gru", GREY, hidden=8)
    assert models.macs(recurrent, GREY) == 28 * 3 * 8 * (28 + 8) + 8 * 7
    tokens, dim = 5, 16
    transformer = build("vit", (1, 8, 8), patch=4)
    block = tokens * dim * (3 * dim + dim + 2 * 2 * dim) + 2 * tokens * tokens * dim
    assert models.macs(transformer, (1, 8, 8)) == 4 * dim * 16 + 2 * block + dim * 7


def test_counting_leaves_the_model_and_the_taps_as_they_were():
    network = models.Network(build("resnet8"), "input", CPU)
    network.tap(["layer1"])
    before = copy.deepcopy(network.model.state_dict())
    models.macs(network.model, RGB)
    assert same_bits(network.model.state_dict(), before) and network.model.training
    assert network(batch()).features["layer1"].device == CPU


def test_a_state_from_anywhere_is_named_by_its_source():
    with pytest.raises(WeightsError, match=r"^somewhere: these are not the weights"):
        start_from(build("mlp"), {"a": torch.ones(1)}, "somewhere")
