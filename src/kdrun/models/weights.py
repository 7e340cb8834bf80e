"""Weights from files: read without running anything that a file holds, and checked before they are used."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kdrun.contracts import Model
from kdrun.errors import WeightsError
from kdrun.machine import told_size

State = dict[str, Tensor]

USUAL_KEYS = ("state_dict", "model", "model_state_dict", "net")
"""Under which of a checkpoint's keys the weights commonly lie."""

WRAPPERS = ("module.", "_orig_mod.")
"""What data parallel training and compilation put before every name."""

SHOWN = 5
"""How many of a file's faults are told."""


def read_state(path: Path) -> State:
    """The tensors of a file of weights, by name, on the CPU.

    Safetensors, or a ``.pt`` of a state dict, also one under a usual key. Raises ``WeightsError`` where the file
    is missing or broken, would run code, or holds anything but finite plain tensors.
    """
    if not path.is_file():
        raise WeightsError(
            f"{path}: there is no such file of weights; write the path of a .safetensors or .pt file"
        )
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _unpickle(path)
    state = _unwrap(loaded)
    if not state:
        raise WeightsError(f"{path}: holds no weights; {_advice()}")
    for name, value in state.items():
        _check(name, value, path)
    return state


def load_weights(model: Model, path: Path) -> None:
    """Give a model the weights of a finished one; raises ``WeightsError`` where they are not exactly its own."""
    state = _translate(model, read_state(path))
    _check_classes(model, state, path)
    _load(model, state, str(path))


def start_from(model: Model, state: Mapping[str, Tensor], source: str) -> None:
    """Give a model weights to start from; a classifier of other shape than its own stays as it was drawn.

    Raises ``WeightsError``, naming the ``source``, where anything else differs.
    """
    own, state = model.state_dict(), _translate(model, state)
    head = {name for name in own if name.startswith(f"{model.head}.")}
    kept = {
        name: value for name, value in state.items() if name not in head or value.shape == own[name].shape
    }
    fresh = {name: own[name] for name in head - kept.keys() if name in state}
    _load(model, kept | fresh, source)


def _translate(model: Model, state: Mapping[str, Tensor]) -> State:
    """A state under the model's own names, where it knows others too."""
    translate = getattr(model, "translate", dict)
    return dict(translate(state))


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: is no safetensors file, or is damaged: {error}") from error


def _unpickle(path: Path) -> Any:
    """What PyTorch's restricted reader makes of a file; it builds tensors and plain containers only."""
    _demand_unpacked(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of here, it also refuses
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise WeightsError(
            f"{path}: holds Python objects{what}, which kdrun does not unpickle; {_advice()}"
        ) from error
    except Exception as error:  # a damaged file fails in any way
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise WeightsError(
            f"{path}: cannot be read as weights: {type(error).__name__}: {reason}; {_advice()}"
        ) from error


def _demand_unpacked(path: Path) -> None:
    """Raise ``WeightsError`` for an archive that holds more than its bytes: PyTorch packs nothing, bombs do."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = sum(entry.file_size for entry in archive.infolist())
    except Exception:  # no archive, or a broken one: the reader says so
        return
    if inside > path.stat().st_size:
        raise WeightsError(
            f"{path}: would unpack to {told_size(inside)}, and is {told_size(path.stat().st_size)} long, as no file of "
            f"weights is; {_advice()}"
        )


def _advice() -> str:
    return "save them with safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"


def _unwrap(loaded: Any) -> dict[Any, Any]:
    """The state dict in what was read, with its own names; empty where there is none."""
    if not isinstance(loaded, Mapping):
        return {}
    inner = [loaded[key] for key in USUAL_KEYS if isinstance(loaded.get(key), Mapping)]
    state = dict(inner[0] if inner else loaded)
    for wrapper in WRAPPERS:
        if all(isinstance(name, str) and name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state


def _check(name: object, value: object, path: Path) -> None:
    """Raise ``WeightsError`` where an entry is no plain tensor, or not finite."""
    plain = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized
    if not isinstance(name, str) or not isinstance(value, Tensor) or not plain or value.is_meta:
        raise WeightsError(f"{path}: '{name}' is no tensor of weights but {_described(value)}; {_advice()}")
    if value.nbytes > value.untyped_storage().nbytes():
        raise WeightsError(
            f"{path}: '{name}' is {_shape(value)} and has {told_size(value.untyped_storage().nbytes())} of values to "
            f"show for it; {_advice()}"
        )
    if value.is_floating_point() and not value.float().isfinite().all():
        raise WeightsError(f"{path}: '{name}' holds values that are not finite; these weights are broken")


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return "a quantized tensor" if value.is_quantized else f"a tensor stored as {value.layout}"
    return type(value).__name__


def _check_classes(model: Model, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise ``WeightsError`` where the classifier, and so perhaps the data set, is another."""
    name = f"{model.head}.weight"
    own = model.state_dict().get(name)  # a user's classifier may be more than one layer
    if own is None or name not in state or state[name].ndim != own.ndim:
        return
    if len(state[name]) != len(own):
        raise WeightsError(
            f"{path}: these weights tell {len(state[name])} classes apart, and the data set has {len(own)}; "
            "write weights that were trained on these classes"
        )


def _load(model: Model, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state that has the model's very names and shapes; raises ``WeightsError`` naming some differences."""
    own = model.state_dict()
    faults = [f"'{name}' is missing" for name in own if name not in state]
    faults += [f"'{name}' {_shape(state[name])} is unexpected" for name in state if name not in own]
    faults += [
        f"'{name}' is {_shape(state[name])} and should be {_shape(own[name])}"
        for name in own
        if name in state and _shape(state[name]) != _shape(own[name])
    ]
    if faults:
        more = f", and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise WeightsError(
            f"{source}: these are not the weights of this model: {', '.join(faults[:SHOWN])}{more}; "
            "write the model that they were trained for"
        )
    model.load_state_dict(state)


def _shape(value: Tensor) -> str:
    return f"{list(value.shape)}" + ("" if value.is_floating_point() else " of integers")
