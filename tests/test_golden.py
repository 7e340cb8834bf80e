"""Every loss gives the values and gradients of the reference implementations.

``pytest tests/test_golden.py --golden FOLDER`` runs any folder of cases of the same form.
"""

import json
import re

import numpy as np
import pytest
import torch

import kdrun.losses  # noqa: F401
from golden_map import DESCRIBING, FIXED, TERMS
from kdrun.contracts import Batch, Context, JointLoss, Outputs
from kdrun.objective import Term
from kdrun.registry import LOSSES
from kdrun.taps import LayerTable


def pytest_generate_tests(metafunc):
    folder = metafunc.config.getoption("golden")
    cases = json.loads((folder / "cases.json").read_text())
    metafunc.parametrize("case", cases, ids=[f"{case['loss']}-{case['case']}" for case in cases])
    metafunc.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])


@pytest.fixture
def arrays(case, dtype, request):
    with np.load(request.config.getoption("golden") / case["file"]) as file:
        tensors = {name: torch.from_numpy(file[name]) for name in file.files}
    inputs = {
        name: array.to(dtype) if array.is_floating_point() else array.to(torch.int64)
        for name, array in tensors.items()
        if not name.startswith("grad_")
    }
    return inputs | {name: array for name, array in tensors.items() if name.startswith("grad_")}


def table(owner, features):
    """The layers of one model: all arrays are stages, before their last ReLU too, and the last one is the embedding."""
    shapes = {name: tuple(array.shape[1:]) for name, array in features.items()}
    stages = tuple(name for name in shapes if not name.startswith("transform"))
    norms = tuple(f"norm.{i}" for i in range(len(stages)))
    return LayerTable(owner, shapes, stages, "".join(stages[-1:]), stages, norms)


def models(term, case, arrays):
    """The student's outputs and layers, and those of each teacher by name."""
    size = len(arrays[next(iter(case["inputs"]))])

    def outputs(logits, owner, only=None):
        wanted = [name for name in case["inputs"] if f"{owner}_features" in name and only in (None, name)]
        return Outputs(arrays.get(logits, torch.zeros(size, 2)), {name: arrays[name] for name in wanted})

    student = outputs(term.student_logits, "student")
    if term.teachers:
        names = [str(i) for i in range(term.teachers)]
        teachers = {
            n: outputs(f"{term.teacher_logits}_{n}", "teacher", f"teacher_features_{n}") for n in names
        }
    else:
        teachers = {"teacher": outputs(term.teacher_logits, "teacher")}
    if not student.features:  # what teaches the adapters about the teacher only
        student.features.update(next(iter(teachers.values())).features)
    for view, ending in term.views.items():
        for owner, said in (("student", student), ("teacher", teachers["teacher"])):
            said.views[view] = Outputs(arrays[f"{owner}_logits_{ending}"])
    return student, teachers


def teacher_state(arrays, name):
    """The teacher's weights that a case gives: its classifier, and the BatchNorms of its stages."""
    suffix = f"_{name}" if name.isdigit() else ""
    found = {}
    for array, value in arrays.items():
        if match := re.fullmatch(rf"param__teacher_classifier{suffix}\.(\w+)", array):
            found[f"head.{match[1]}"] = value
        if match := re.fullmatch(r"teacher_bn_(\w+)_(\d+)", array):
            found[f"norm.{match[2]}.{match[1]}"] = value
    return found


def built(term, case, arrays, dtype):
    """The term's losses, built from the case's arrays, as one ``Term``."""
    student, teachers = models(term, case, arrays)
    size = len(next(iter(teachers.values())).logits)
    labels = arrays.get("labels", torch.zeros(size, dtype=torch.int64))
    batch = Batch({}, labels, arrays.get("idx", torch.arange(size)))
    samples = len(arrays.get("memory_v1", labels))
    classes = next(iter(teachers.values())).logits.shape[1]
    centres = arrays.get("class_centers", torch.zeros(classes, 1))

    def survey():
        where = torch.arange(len(centres))
        features = {name: centres for name in teachers["teacher"].features}
        yield Batch({}, where, where), Outputs(torch.zeros(len(centres), len(centres)), features)

    def context(name):
        state, said = teacher_state(arrays, name), teachers[name]
        if "head.weight" in state:  # the classifier reads the last map's mean over places
            (features,) = said.features.values()
            said = Outputs(
                features.mean(dim=(2, 3)) @ state["head.weight"].T + state["head.bias"], said.features
            )
        seen = torch.arange(samples) % 2
        return Context(
            batch, student, said, samples, len(centres), size, seen, state, "head", survey, "", None, dict
        )

    loss_class = LOSSES[term.config["kind"]]
    names = {"teacher": [*teachers]} if term.teachers else {}
    config = loss_class.Config.model_validate(term.config | names)
    joint = issubclass(loss_class, JointLoss)
    apart = term.teachers and not joint and config.combine == "mean-loss"
    losses, taps = [], {}
    for name in teachers if apart else [next(iter(teachers))]:
        loss = loss_class(config)
        tables = {n: table("teacher", said.features) for n, said in teachers.items()}
        ours = table("student", student.features)
        taps |= loss.taps(ours, tables) if joint else {name: loss.taps(ours, tables[name])}
        loss.build({n: context(n) for n in teachers} if joint else context(name))
        losses.append(loss)
    made = Term(config, losses, taps).to(dtype)
    made.teachers = [*teachers] if loss_class.needs_teacher else []
    made.begin(term.epoch - 1, 1000)
    made.pretrains = term.pretrain
    return made, student, teachers, batch


def weighted(term, case, arrays, dtype):
    """The term's weighted value, its parameters by the case's names, and its loss."""
    made, student, teachers, batch = built(term, case, arrays, dtype)
    loss = made.losses[0]
    parameters = {
        f"param__{theirs}.{name}": parameter
        for theirs, module in term.modules.items()
        if any(array.startswith(f"param__{theirs}.") for array in arrays)
        for name, parameter in loss.get_submodule(module).named_parameters()
    }
    for name, value in term.buffers.items():
        loss.get_buffer(name).copy_(arrays[value] if isinstance(value, str) else torch.tensor(value))
    for method, name in term.drawn.items():
        setattr(loss, method, lambda *_, name=name: arrays[name])
    given = [name for name in arrays if name.startswith("param__")]
    assert set(given) == {name for name in parameters if name in arrays}, (
        "the map leaves out what the case gives"
    )
    if not term.pretrain and not term.drawn:
        assert len(parameters) == len(list(loss.parameters())), "the map leaves out learnable parts"
    with torch.no_grad():
        for name in given:
            parameters[name].copy_(arrays[name])
    return made(student, teachers, batch), parameters, loss


class Read(dict):
    """Hyperparameters, and which of them the map read."""

    def __init__(self, values):
        super().__init__(values)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)


def test_golden(case, dtype, arrays):
    assert case["loss"] in TERMS, f"tests/golden_map.py has no term for '{case['loss']}'"
    hyperparameters = Read(case["hyperparameters"])
    for name in case["inputs"]:
        if f"grad_{name}" in arrays:
            arrays[name].requires_grad_()
    terms = TERMS[case["loss"]](hyperparameters, list(case["inputs"]))
    ignored = {n: v for n, v in hyperparameters.items() if n not in hyperparameters.names | DESCRIBING}
    assert ignored.items() <= FIXED.get(case["loss"], {}).items(), "the map does not read them"
    values, parameters, losses = zip(*(weighted(term, case, arrays, dtype) for term in terms), strict=True)
    sources = arrays | {name: p for found in parameters for name, p in found.items()}

    value = torch.stack(values).sum()
    value.backward()

    tolerance, double = case["tolerance"], dtype == torch.float64
    expected = case["expected"]["loss_f64" if double else "loss"]
    assert value.dtype == dtype
    assert value.item() == pytest.approx(expected, **_approx(tolerance["loss_f64" if double else "loss"]))
    assert case["gradients"]
    for name in case["gradients"]:
        _assert_close(sources[name.removeprefix("grad_")].grad, arrays[name], tolerance, double, name)
    for term, loss in zip(terms, losses, strict=True):
        for buffer, name in term.after.items():
            _assert_close(loss.get_buffer(buffer), arrays[name], tolerance, double, name)


def _approx(tolerance):
    return {"rel": tolerance["rtol"], "abs": tolerance["atol"]}


def _assert_close(found, expected, tolerance, double, name):
    """Gradient tolerances are given for float64; float32 gets the loss's own."""
    if double:
        share, atol = tolerance["gradients"]["rtol_of_max_abs"], tolerance["gradients"]["atol"]
    else:
        share, atol = tolerance["loss"]["rtol"], tolerance["loss"]["atol"]
    assert found is not None, f"{name} is missing"
    error = (found.double() - expected).abs().max().item()
    assert error <= share * expected.abs().max().item() + atol, f"{name} is off by {error}"
