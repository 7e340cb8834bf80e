"""Every loss gives the values and gradients of the reference implementations.

``pytest tests/test_golden.py --golden FOLDER`` runs any folder of cases of the same form.
"""

import json

import numpy as np
import pytest
import torch

import kdrun.losses  # noqa: F401
from golden_map import TERMS
from kdrun.contracts import Batch, Context, Outputs
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
    wanted = [name for name in tensors if not name.startswith("grad_")]
    inputs = {
        name: tensors[name].to(dtype if tensors[name].is_floating_point() else torch.int64) for name in wanted
    }
    return inputs | {name: tensors[name] for name in tensors if name.startswith("grad_")}


def side(arrays, case, owner, logits):
    """One model's outputs and layer table, made from the case's arrays."""
    features = {name: arrays[name] for name in case["inputs"] if name.startswith(f"{owner}_features")}
    size = len(arrays[next(iter(case["inputs"]))])
    names = tuple(features)
    table = LayerTable(
        owner, {n: tuple(f.shape[1:]) for n, f in features.items()}, names, "".join(names[-1:])
    )
    return Outputs(arrays.get(logits, torch.zeros(size, 2)), features), table


def weighted(term, case, arrays, dtype):
    """The term's weighted value, and its parameters by the case's names."""
    loss_class = LOSSES[term.config["kind"]]
    loss = loss_class(loss_class.Config.model_validate(term.config))
    student, ours = side(arrays, case, "student", term.student_logits)
    teacher, theirs = side(arrays, case, "teacher", "teacher_logits")
    size, classes = teacher.logits.shape
    labels = arrays.get("labels", torch.zeros(size, dtype=torch.int64))
    batch = Batch({}, labels, torch.arange(size))
    loss.taps(ours, theirs)
    loss.build(Context(batch, student, teacher, size, classes, labels, {}, None))
    loss.to(dtype)
    parameters = {
        f"param__{theirs}.{name}": parameter
        for theirs, module in term.modules.items()
        for name, parameter in loss.get_submodule(module).named_parameters()
    }
    assert len(parameters) == len(list(loss.parameters())), "the map leaves out learnable parts"
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(arrays[name])
    return loss.config.weight * loss(student, teacher, batch), parameters


def test_golden(case, dtype, arrays):
    if case["loss"] not in TERMS:
        pytest.skip(f"tests/golden_map.py has no term for '{case['loss']}'")
    for name in case["inputs"]:
        if f"grad_{name}" in arrays:
            arrays[name].requires_grad_()
    terms = TERMS[case["loss"]](case["hyperparameters"], list(case["inputs"]))
    values, parameters = zip(*(weighted(term, case, arrays, dtype) for term in terms), strict=True)
    sources = arrays | {name: p for found in parameters for name, p in found.items()}

    value = torch.stack(values).sum()
    value.backward()

    tolerance, double = case["tolerance"], dtype == torch.float64
    expected = case["expected"]["loss_f64" if double else "loss"]
    assert value.dtype == dtype
    assert value.item() == pytest.approx(expected, **_approx(tolerance["loss_f64" if double else "loss"]))
    assert case["gradients"]
    for name in case["gradients"]:
        _assert_gradient(sources[name.removeprefix("grad_")].grad, arrays[name], tolerance, double, name)


def _approx(tolerance):
    return {"rel": tolerance["rtol"], "abs": tolerance["atol"]}


def _assert_gradient(found, expected, tolerance, double, name):
    """Gradient tolerances are given for float64; float32 gets the loss's own."""
    if double:
        share, atol = tolerance["gradients"]["rtol_of_max_abs"], tolerance["gradients"]["atol"]
    else:
        share, atol = tolerance["loss"]["rtol"], tolerance["loss"]["atol"]
    error = (found.double() - expected).abs().max().item()
    assert error <= share * expected.abs().max().item() + atol, f"{name} is off by {error}"
