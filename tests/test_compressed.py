"""Students that are made of finished ones: pruned and in int8, fine-tuned with and without the teacher."""

import copy
import signal
import sys

import numpy as np
import pytest
import torch
from torch import nn

from kdrun import assembly, bookkeeping, compare, models
from kdrun.errors import Interrupted, Mismatch, TrainingError
from kdrun.evaluate import predict
from kdrun.models import int8
from kdrun.plan import plan
from kdrun.registry import MODELS
from kdrun.report import words
from kdrun.report.page import page
from kdrun.report.table import cells
from kdrun.stack import why_not
from kdrun.store import Store
from kdrun.store.housekeeping import disposable, entries
from kdrun.tune import tune
from support import Ears, checked, comparison, experiment, outcome, problems, results, run, students

BASE = """
    name: base
    device: cpu
    dataset: {kind: synthetic, shape: [1, 8, 8], classes: 3, samples: 64, test_samples: 24, validation: 0.25}
    seeds: [2]
    training: {epochs: 2, batch_size: 16, optimizer: {kind: adamw, lr: 1e-2}}
    teacher: {model: {kind: cnn, width: 8}}
    students:
      fewer: {model: {kind: pruned, share: 0.5, structured: true}, from: small, method: kd}
      small: {model: {kind: cnn, width: 16, hidden: 32}}
      ninety: {model: {kind: pruned, share: 0.9}, from: small, method: kd}
      whole: {model: int8, from: small, method: kd}
    methods: [kd]
    controls: none
"""
SHAPE = (1, 8, 8)
CONVOLUTIONS = [("cnn", SHAPE), ("mlp", (6,)), ("resnet8", (3, 16, 16)), ("mobilenetv2-half", (3, 32, 32))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of runs and their plan."""
    root = tmp_path_factory.mktemp("trained")
    return root, run(BASE, root)


def of(kind, made="cnn", **options):
    """The config of a model that is made of another."""
    return MODELS[kind].Config.model_validate({"kind": kind, "of": made, **options})


def weights(root, name, method="kd"):
    return results(root)[f"students/{name}/{method}/seed-2"].weights()


def runs_of(planned, name, method="kd"):
    return next(r for r in planned.runs if (r.name, r.method) == (name, method))


# --------------------------------------------------------------------------------------------- zeros


@pytest.mark.parametrize("method", ["kd", "alone"])
def test_the_smallest_weights_of_all_layers_are_0_and_exactly_so_many(trained, method):
    before, after = weights(trained[0], "small"), weights(trained[0], "ninety", method)
    names = [name for name, array in before.items() if array.ndim > 1]
    sizes = np.sort(np.concatenate([np.abs(before[name]).ravel() for name in names]))
    count = round(0.9 * len(sizes))
    assert sum((after[name] == 0).sum() for name in names) == count
    for name in names:
        assert ((after[name] == 0) == (np.abs(before[name]) <= sizes[count - 1])).all()
    assert not any((after[name] == 0).all() for name in after if name.endswith("bias"))


@pytest.mark.parametrize("optimizer", ["{kind: sgd, lr: 0.1, weight_decay: 0.01}", "{kind: adamw, lr: 0.1}"])
def test_zeros_stay_whatever_moves_the_others(optimizer):
    made, teachers, dataset, _ = students(
        BASE,
        f"training.optimizer={optimizer}",
        "training.ema=0.5",
        "students={small: {model: {kind: cnn, width: 4}}, "
        "student: {model: {kind: pruned, share: 0.7}, from: small}}",
        "seeds=[2]",
    )
    student = made["kd"]
    before = copy.deepcopy(student.model.state_dict())
    for number, batch in zip(range(5), dataset.batches(student.draw, 0), strict=False):
        del number
        student.step(batch, {name: teacher(batch) for name, teacher in teachers.items()})
    for state in (student.model.state_dict(), student.average):
        pruned = [name for name in before if name.endswith("weight") and before[name].ndim > 1]
        assert all(torch.equal(state[name] == 0, before[name] == 0) for name in pruned)
        assert all(not torch.equal(state[name], before[name]) for name in pruned if before[name].any())


def test_zeros_save_nothing_and_the_table_says_so(trained):
    rows = {(r["model"], r["method"]): r for r in comparison(trained[0], "base")["rows"]}
    pruned, small = rows["ninety", "kd"], rows["small", "kd"]
    assert (pruned["bytes"], pruned["macs"], pruned["parameters"]) == (
        small["bytes"],
        small["macs"],
        small["parameters"],
    )
    assert (pruned["origin"], small["origin"]) == ("small/kd", None)
    found = weights(trained[0], "ninety")
    parameters = [array for name, array in found.items() if "running" not in name and "num" not in name]
    assert pruned["zeros"] == sum((a == 0).sum() for a in parameters) / sum(a.size for a in parameters)
    remarks = comparison(trained[0], "base")["remarks"]
    told, *others = (
        r for name in ("ninety", "fewer", "whole") for r in remarks if r.startswith(f"{name} is made")
    )
    assert told.startswith("ninety is made of small/kd; 89% of its parameters are 0, which saves")
    assert f"which saves neither bytes nor time: {small['bytes']:,} bytes beside {small['bytes']:,}" in told
    assert len(others) == 2 and not any("saves" in other for other in others)


def test_zeros_of_what_is_smaller_are_not_said_to_save_nothing():
    """Whole numbers round to 0, and channels may be taken out of what has zeros: these are smaller all the same."""
    small = {
        "experiment": "e",
        "model": "small",
        "method": "kd",
        "origin": None,
        "bytes": 400,
        "macs": 90,
        "teacher": None,
    }
    small |= {"latency_ms": {"p50": 1.0}, "zeros": None}
    whole = small | {"model": "whole", "origin": "small/kd", "bytes": 100, "zeros": 0.3}
    fewer = whole | {"model": "fewer", "bytes": 400, "macs": 30}
    told = [*words._of_compressed([small, whole, fewer])]
    assert told == [
        "whole is made of small/kd: 100 bytes beside 400, 1 ms for one sample beside 1",
        "fewer is made of small/kd: 400 bytes beside 400, 1 ms for one sample beside 1",
    ]


def test_a_row_that_is_not_finished_says_what_it_is_made_of(tmp_path):
    run(BASE, tmp_path, methods=[])
    compared = comparison(tmp_path, "base")
    made = {
        (row["model"], row["method"]): row["origin"]
        for row in compared["rows"]
        if row["status"] != "finished"
    }
    assert made["ninety", "kd"] == made["whole", "kd"] == "small/kd"
    assert sum("is made of" in remark for remark in compared["remarks"]) == 3


def test_the_terminal_shows_what_it_is_made_of_and_its_bytes(trained):
    compared = comparison(trained[0], "base")
    rows = [row | {"latency_ms": None, "train_seconds": None, "throughput": None} for row in compared["rows"]]
    rows = [row | {"train_seconds_all": None} for row in rows]
    head, lines = cells(rows, every=False)
    by_name = {line[head.index("model")]: dict(zip(head, line, strict=True)) for line in lines}
    assert by_name["ninety alone"]["made of"] == "small/kd" and by_name["small alone"]["made of"] == ""
    assert by_name["whole kd"]["bytes"] < by_name["small kd"]["bytes"]
    head, _ = cells([row | {"origin": None} for row in rows], every=False)
    assert not {"bytes", "made of"} & set(head)


def test_layers_of_which_nothing_is_left_are_warned_of(tmp_path):
    ears = Ears()
    experiment(BASE, tmp_path, "students.ninety.model.share=0.999", "training.epochs=1", console=ears).run()
    told = [line for line in ears.heard if "prune a smaller share" in line]
    assert len(told) == 1 and told[0].startswith("ninety/seed 2: all weights of ")
    state = weights(tmp_path, "ninety")
    empty = {name for name, array in state.items() if array.ndim > 1 and not array.any()}
    assert empty and {*told[0].partition("weights of ")[2].partition(" are 0")[0].split(", ")} == empty


def test_that_alone_starts_from_a_taught_student_is_said(trained):
    compared = compare.comparison(compare.materials(Store(trained[0]), ["base"]))
    told = "fewer, ninety and whole start from what a teacher has taught, and alone, too: "
    assert told + "that row has no teacher from there on" in compared["remarks"]
    cost = "and with the training of its teachers, and of what it is made of"
    assert cost in page(compared, [], {}, {})


def test_pruning_what_is_pruned_changes_nothing():
    small = models.build(MODELS["cnn"].Config(kind="cnn"), SHAPE, 3, 0)
    once = models.build(of("pruned", share=0.6), SHAPE, 3, 0, origin=small.state_dict()).state_dict()
    twice = models.build(of("pruned", share=0.6), SHAPE, 3, 1, origin=once).state_dict()
    assert all(torch.equal(once[name], twice[name]) for name in once)


# --------------------------------------------------------------------------------------------- channels


def test_channels_are_gone_and_so_are_their_bytes(trained):
    rows = {(r["model"], r["method"]): r for r in comparison(trained[0], "base")["rows"]}
    fewer, small = rows["fewer", "kd"], rows["small", "kd"]
    assert weights(trained[0], "fewer")["body.1.0.weight"].shape == (16, 8, 3, 3)
    assert weights(trained[0], "fewer")["classifier.weight"].shape == (3, 16)
    assert fewer["bytes"] < 0.4 * small["bytes"]
    assert fewer["macs"] < 0.4 * small["macs"]
    assert fewer["zeros"] < 0.01


@pytest.mark.parametrize(("kind", "shape"), CONVOLUTIONS, ids=[kind for kind, _ in CONVOLUTIONS])
def test_the_share_alone_decides_how_many_channels_are_left(kind, shape):
    made = of("pruned", kind, share=0.3, structured=True)
    states = [models.build(made, shape, 5, seed).state_dict() for seed in (0, 1)]
    assert {n: t.shape for n, t in states[0].items()} == {n: t.shape for n, t in states[1].items()}
    whole = models.build(made.of, shape, 5, 0)
    assert models.parameters(models.build(made, shape, 5, 0)) < 0.7 * models.parameters(whole)


def test_the_smallest_channels_go():
    small = models.build(MODELS["mlp"].Config(kind="mlp", hidden=[6]), (4,), 3, 0)
    with torch.no_grad():
        for place in (1, 4, 5):
            small.body[0][0].weight[place] = 1e-3
            small.classifier.weight[:, place] = 1e-3
    left = models.build(of("pruned", small.made_from, structured=True), (4,), 3, 0, origin=small.state_dict())
    assert torch.equal(left.body[0][0].weight, small.body[0][0].weight[[0, 2, 3]])
    assert torch.equal(left.classifier.weight, small.classifier.weight[:, [0, 2, 3]])


@pytest.mark.parametrize("share", [0.9, 0.99])
def test_a_layer_of_which_no_channel_would_be_left_is_refused_and_not_left_whole(share):
    with pytest.raises(Mismatch, match=r"of 8 channels of 'body\.0\.0' none would be left") as caught:
        models.build(of("pruned", {"kind": "cnn", "width": 8}, share=share, structured=True), SHAPE, 3, 0)
    assert caught.value.key == "share"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gru", "has other layers than"),
        ("vit", "has other layers than"),
        ("soft-tree", "has other layers than"),
        ("shufflenetv1", "cannot be taken out"),
        ({"kind": "mlp", "hidden": []}, "has no channels"),
    ],
)
def test_a_model_whose_channels_cannot_be_taken_out_is_refused(kind, words):
    shape = (3, 32, 32) if kind == "shufflenetv1" else SHAPE
    with pytest.raises(Mismatch, match=words):
        models.build(of("pruned", kind, structured=True), shape, 3, 0)


def test_without_the_library_its_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(Mismatch, match="torch-pruning is not installed") as caught:
        models.build(of("pruned", structured=True), SHAPE, 3, 0)
    assert "kdrun[compress]" in caught.value.hint


# --------------------------------------------------------------------------------------------- int8


def rounding(made, shape, origin=None):
    """A network that rounds, and one like it that is finished."""
    model = models.build(of("int8", made), shape, 5, 0, origin=origin).eval()
    int8.look_at_ranges(model, torch.randn(64, *shape, generator=torch.Generator().manual_seed(1)))
    finished = copy.deepcopy(model)
    int8.finish_rounding(finished)
    return model, finished


def test_whole_numbers_lie_on_disk_in_a_quarter_of_the_bytes(trained):
    found, small = weights(trained[0], "whole"), results(trained[0])["students/small/kd/seed-2"]
    wholes = {name for name, array in found.items() if array.dtype == np.int8}
    assert wholes == {"body.0.0.weight", "body.1.0.weight", "hidden.1.weight", "classifier.weight"}
    assert all(np.abs(found[name].astype(int)).max() == 127 for name in wholes)
    assert {array.dtype for name, array in found.items() if name not in wholes} == {np.dtype("float32")}
    own = results(trained[0])["students/whole/kd/seed-2"].manifest["files"]["weights.safetensors"]["bytes"]
    assert own < 0.32 * small.manifest["files"]["weights.safetensors"]["bytes"]


@pytest.mark.parametrize(
    ("kind", "shape"),
    [*CONVOLUTIONS, ("gru", SHAPE), ("vit", SHAPE), ("wrn-16-1", (3, 16, 16))],
)
def test_what_is_finished_says_what_was_trained(kind, shape):
    model, finished = rounding(kind, shape)
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        trained, said = model(x), finished(x)
        by_floats = copy.deepcopy(finished)
        for module in by_floats.modules():
            module.in_floats = True
        assert torch.allclose(said, trained, atol=0.02 * float(trained.abs().max()))
        assert torch.allclose(by_floats(x), said, atol=0.02 * float(trained.abs().max()))


def test_a_layer_says_the_same_by_whole_numbers_and_by_floats():
    """To the last digits, where no rounding of a later layer makes more of them."""
    draw = torch.Generator().manual_seed(0)
    for layer, x in [
        (nn.Linear(300, 7), torch.randn(4, 300, generator=draw)),
        (nn.Linear(30, 7, bias=False), torch.randn(4, 5, 30, generator=draw)),
        (nn.Conv2d(8, 6, 3, stride=2, padding=1, groups=2), torch.randn(4, 8, 9, 9, generator=draw)),
    ]:
        net = nn.Sequential(layer)
        int8.begin_rounding(net)
        int8.look_at_ranges(net, x)
        finished = copy.deepcopy(net)
        int8.finish_rounding(finished)
        with torch.no_grad():
            trained, said = net.eval()(x), finished(x)
            finished[0].in_floats = True
            assert torch.allclose(said, trained, atol=1e-5)
            assert torch.allclose(said, finished(x), atol=1e-5)
            assert torch.allclose(said, layer(x), atol=1e-4)


def test_rounding_is_near_what_is_not_rounded():
    plain = models.build(MODELS["cnn"].Config(kind="cnn"), SHAPE, 5, 0).eval()
    _, finished = rounding("cnn", SHAPE, plain.state_dict())
    x = torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert (finished(x) - plain(x)).norm() < 0.05 * plain(x).norm()


def test_rounding_learns():
    """Gradients pass the rounding, to the weights of every layer."""
    model, _ = rounding("cnn", SHAPE)
    model.train()(torch.randn(4, *SHAPE)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_multiply_accumulates_are_those_of_the_network_that_it_is_made_of():
    plain = models.build(MODELS["cnn"].Config(kind="cnn"), SHAPE, 5, 0)
    _, finished = rounding("cnn", SHAPE)
    assert models.macs(finished, SHAPE) == models.macs(plain, SHAPE)
    folded = sum(p.numel() for n, p in plain.named_parameters() if ".1.weight" in n and n.startswith("body"))
    assert models.parameters(finished) == models.parameters(plain) - folded


def test_zeros_stay_zeros_in_whole_numbers():
    made = of("pruned", "cnn", share=0.8)
    pruned = models.build(made, SHAPE, 5, 0)
    model, finished = rounding(made, SHAPE, pruned.state_dict())
    model.train()(torch.randn(4, *SHAPE)).square().sum().backward()
    for (name, before), after in zip(
        [(n, m) for n, m in pruned.named_modules() if hasattr(m, "weight") and m.weight.ndim > 1],
        [m for m in model.modules() if isinstance(m, int8.Rounding)],
        strict=True,
    ):
        assert torch.equal(after.weight == 0, before.weight == 0), name
        assert not after.weight.grad[before.weight == 0].any()
        assert not finished.get_submodule(name).weight[before.weight == 0].any()


def test_a_device_without_such_sums_is_told():
    _, finished = rounding("cnn", SHAPE)
    assert int8.told(finished, torch.device("cpu")) == []
    assert "its latency is not that of int8" in int8.told(finished, torch.device("meta"))[0]


def test_what_a_model_has_beside_its_layers_is_told_by_name():
    _, finished = rounding("vit", SHAPE)
    assert int8.told(finished, torch.device("cpu")) == ["stays in float32: class_token, positions"]


def test_what_cannot_be_in_int8_is_told(tmp_path):
    root, ears = tmp_path, Ears()
    overrides = [
        "students.small.model=gru",
        "students={small: {model: gru}, whole: {model: int8, from: small}}",
    ]
    overrides += ["training.epochs=1"]
    asked = experiment(BASE, root, *overrides, console=ears)
    asked.run()
    assert [told for told in ears.heard if "float32" in told] == ["whole: stays in float32: body.0.gru"]


def test_parameters_of_the_model_itself_are_told_by_name():
    _, finished = rounding("vit", SHAPE)
    own = [name for name, p in finished.named_parameters(recurse=False) if p.ndim > 1]
    assert int8.told(finished, torch.device("cpu")) == [f"stays in float32: {', '.join(own)}"] and own


# --------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("name", ["ninety", "fewer", "whole"])
def test_what_is_stored_says_what_it_was_scored_by(trained, name):
    root, planned = trained
    asked = experiment(BASE, root)
    asked.dataset.load(torch.device("cpu"))
    found = results(root)[f"students/{name}/kd/seed-2"]
    network = assembly.frozen(runs_of(planned, name), found, asked.dataset.spec, torch.device("cpu"))
    said = predict(network, asked.dataset.split("test"))
    assert np.array_equal(said["logits"], found.predictions()["logits"])


def test_it_starts_from_the_weights_of_its_origin_and_seed(trained):
    before, after = weights(trained[0], "small"), weights(trained[0], "ninety")
    kept = after["hidden.1.weight"] != 0
    near = np.abs(after["hidden.1.weight"] - before["hidden.1.weight"])[kept].mean()
    assert near < 0.5 * np.abs(before["hidden.1.weight"])[kept].mean()


def test_a_group_waits_for_what_it_is_made_of():
    asked = checked(BASE, "students.tiny={model: int8, from: fewer, method: alone}")
    planned = plan(asked, assembly.open_dataset(asked))
    groups = [{(r.name, r.method) for r in group} for group in planned.groups(planned.runs)]
    place = {who: number for number, group in enumerate(groups) for who in group}
    assert place["small", "kd"] < place["fewer", "alone"] < place["tiny", "kd"]


def test_of_some_methods_the_origins_are_kept():
    asked = checked(BASE, "methods=[kd, dkd]")
    planned = plan(asked, assembly.open_dataset(asked))
    names = {(r.name, r.method) for r in planned.select(["student"], ["dkd"]).runs}
    assert ("small", "kd") in names
    assert ("ninety", "kd") not in names


def test_the_origin_decides_the_fingerprint_and_of_others_nothing_changes():
    def prints(*overrides):
        asked = checked(BASE, *overrides)
        found = plan(asked, assembly.open_dataset(asked))
        return {(r.name, r.method): r for r in found.runs}

    before, after = prints(), prints("students.small.training={epochs: 3}")
    other = prints("students.ninety.method=alone")
    who = "ninety", "alone"
    assert len({runs[who].fingerprint for runs in (before, after, other)}) == 3
    assert before["small", "kd"].fingerprint == other["small", "kd"].fingerprint
    assert "origin" not in before["small", "kd"].inputs
    renamed = prints(
        "students={s: {model: {kind: cnn, width: 16, hidden: 32}}, "
        "n: {model: {kind: pruned, share: 0.9}, from: s, method: kd}}"
    )
    assert renamed["n", "kd"].fingerprint == before["ninety", "kd"].fingerprint


def test_it_costs_what_its_origin_cost_too(trained):
    rows = {(r["model"], r["method"]): r for r in _with_clock(trained[0])}
    every = rows["ninety", "alone"]["train_seconds_all"]
    assert every == pytest.approx(
        rows["ninety", "alone"]["train_seconds"] + rows["small", "kd"]["train_seconds_all"]
    )


def _with_clock(root):
    from kdrun import compare

    return compare.comparison(compare.materials(Store(root), ["base"]))["rows"]


def test_what_others_are_made_of_is_kept_by_clean(trained):
    assert not disposable(entries(Store(trained[0])))


@pytest.mark.parametrize("name", ["ninety", "fewer", "whole"])
def test_stopped_it_goes_on_to_the_same_bits(trained, tmp_path, monkeypatch, name):
    overrides = ["training.ema=0.9"] if name == "whole" else []
    wanted = tmp_path / "wanted"
    if overrides:
        run(BASE, wanted, *overrides)
    original = bookkeeping.Keeper.pause

    def pause(self):
        _, done, _ = self.progress
        self.first = getattr(self, "first", done)
        if done - self.first == 3:
            self.stop.signal = signal.SIGTERM
        original(self)

    monkeypatch.setattr(bookkeeping.Keeper, "pause", pause)
    for _ in range(50):
        try:
            run(BASE, tmp_path / "stopped", *overrides)
            break
        except Interrupted:
            pass
    assert outcome(tmp_path / "stopped") == outcome(wanted if overrides else trained[0])


def test_it_takes_its_steps_by_itself():
    """Stacked, its zeros would get gradients."""
    made, *_ = students(
        BASE,
        "training.stack=true",
        "students={small: {model: {kind: mlp, hidden: [4]}}, one: {model: {kind: pruned}, from: small}}",
    )
    assert why_not(made["kd"]) == "it is made of a finished student"


def test_an_origin_that_stopped_is_named_and_holds_nobody_else_up(tmp_path):
    """What is made of what was made of it is left out, too; all else is trained, and all is said in the end."""
    overrides = [
        "students={bad: {model: {kind: cnn, width: 4}, training: {optimizer: {kind: sgd, lr: 1e9}}}, "
        "whole: {model: int8, from: pruned}, pruned: {model: {kind: pruned}, from: bad}, "
        "good: {model: {kind: cnn, width: 4}}, eight: {model: int8, from: good}}",
        "seeds=[2, 3]",
    ]
    with pytest.raises(TrainingError) as caught:
        run(BASE, tmp_path, *overrides)
    told = str(caught.value).splitlines()
    assert sum(line.startswith("bad/") and ": stopped: " in line for line in told) == 4
    assert "pruned/kd/seed 2: is made of bad/alone/seed 2, which is not finished; mend that first" in told
    assert "whole/kd/seed 3: is made of pruned/alone/seed 3, which is not finished; mend that first" in told
    assert len(told) == 12
    assert {place.split("/")[1] for place in results(tmp_path)} == {"teacher", "good", "eight"}
    assert len(results(tmp_path)) == 1 + 2 * 4


@pytest.mark.parametrize("name", ["ninety", "fewer", "whole"])
def test_what_was_made_teaches_elsewhere(trained, tmp_path, name):
    folder = trained[0] / f"base/students/{name}/kd/seed-2"
    text = BASE.replace("teacher: {model: {kind: cnn, width: 8}}", f"teacher: {{run: '{folder}'}}")
    overrides = ["students={small: {model: {kind: cnn, width: 4}}}", "training.epochs=1"]
    run(text, tmp_path, *overrides)
    taught = results(tmp_path)["teachers/teacher/seed-0"]
    assert np.array_equal(
        taught.predictions()["logits"],
        results(trained[0])[f"students/{name}/kd/seed-2"].predictions()["logits"],
    )


def test_trials_are_made_of_one_finished_student(tmp_path):
    asked = experiment(
        BASE,
        tmp_path,
        "students={small: {model: {kind: cnn, width: 4}}, "
        "half: {model: {kind: pruned, share: 0.5}, from: small, method: kd}}",
    )
    told = tune(asked, 2)
    tried = [one for one in told["runs"] if one["model"] == "half"]
    assert len(tried) == 4
    assert all(one["score"] is not None for one in tried)
    assert set(results(tmp_path)) >= {"students/small/kd/seed-3"}
    assert not [place for place in results(tmp_path) if place.startswith("students/half")]
    assert not disposable(entries(Store(tmp_path)))


def test_a_config_with_every_default_written_out_is_a_config():
    first = checked(BASE)
    import yaml

    data = first.experiment.model_dump(mode="json", by_alias=True, exclude_unset=True)
    again = checked(yaml.safe_dump(data))
    assert again.experiment.students == first.experiment.students


# --------------------------------------------------------------------------------------------- wrong


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("students.whole.from=null", "'int8' is made of a finished student; write `from: NAME`"),
        ("students.whole.from=smal", "there is no student 'smal'; did you mean 'small'?"),
        ("students.whole.method=kdd", "no student is trained by 'kdd'; did you mean 'kd'?"),
        ("students.small.from=whole", "'cnn' is made of no other student, so `from` says nothing"),
        ("students.small.method=kd", "'cnn' is made of no other student, so `method` says nothing"),
        ("students.whole.from=whole", "made of each other in a circle"),
        ("students.ninety.from=whole", "'whole' is in int8, and whole numbers learn no more"),
        ("students.small.model=svc", "'small' (svc) is fitted at once"),
        ("students.whole.model.of=mlp", "`from` says of what it is made, and this is another model"),
        ("students.whole.model={kind: int8, initial_weights: a.pt}", "remove `initial_weights`"),
        ("students.small.view=input", "has to see what that one sees; write `view: input` here, too"),
        ("students.whole.view=input", "has to see what that one sees; remove `view`"),
        ("students.small.resize=12", "has to see what that one sees; write `resize: 12` here, too"),
        (
            "students.small.normalization={mean: [0.5], std: [0.25]}",
            "write `normalization: {mean: [0.5], std: [0.25]}` here, too",
        ),
        ("teacher.model={kind: int8}", "'int8' is made of a finished student, and a teacher is not"),
        ("students.ninety.model.share=1", "share"),
        ("methods=[kd, mutual]", "'ninety' starts from weights that were trained"),
        (
            "methods=[kd, {name: kd2, use: mutual, set: {mutual.models: [int8]}}]",
            "a peer is not; name a network",
        ),
    ],
)
def test_what_is_wrong_is_said(override, words):
    key, _, value = override.partition("=")
    base = BASE.replace("model: int8,", "model: {kind: int8},")
    assert words in " ".join(problems(base, f"{key}={value}").split())


def test_two_that_are_made_of_each_other_are_a_circle():
    told = problems(BASE, "students.fewer.from=ninety", "students.ninety.from=fewer")
    assert told.count("in a circle") >= 2


def test_what_predicts_by_parts_of_a_loss_is_no_origin():
    told = problems(BASE, "methods=[kd, simkd]", "students.whole.method=simkd")
    assert "predicts by parts of its loss 'simkd'" in told


def test_of_an_origin_that_is_wrong_itself_nothing_else_is_said():
    told = problems(
        BASE,
        "students.small={model: {kind: cnn, widht: 8}, resize: 12}",
        *(f"students.{name}.resize=12" for name in ("fewer", "ninety", "whole")),
    )
    assert "unknown key 'widht'" in told and "has to see" not in told
