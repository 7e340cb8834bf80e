"""Weights from files: read without running anything that a file holds, and checked before they are used."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from kdrun.contracts import Model
from kdrun.errors import Mismatch, WeightsError, shown
from kdrun.machine import available_memory, raise_lack, told_size
from kdrun.models import archives

State = dict[str, Tensor]

USUAL_KEYS = ("state_dict", "model", "model_state_dict", "net")
"""Under which of a checkpoint's keys the weights commonly lie."""

WRAPPERS = ("module.", "_orig_mod.")
"""What data parallel training and compilation put before every name."""

SHOWN = 5
"""How many of a file's faults are told."""
NUMBERS = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}
"""The types of what models have."""
PICKLES = 5
"""With which a file of PyTorch begins that is no archive: number, version, system, the weights, and their keys."""
MOST_TUPLES = 50_000
"""In a pickle: four to a tensor. Tuples that are nested deeper than some 100,000 overflow the stack as keys."""


ADVICE = "save them with safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
ADVICE_ON_AGENTS = (
    "save its policy with torch.save(model.policy.state_dict(), 'agent.pt'), and write that file"
)


@dataclass(frozen=True)
class Source:
    """A file of weights, or one in an archive: what is read, its bytes, what messages call it, and their advice."""

    file: IO[bytes]
    size: int
    told: str
    advice: str = ADVICE


def read_state(path: Path) -> State:
    """The tensors of a file of weights, by name, on the CPU.

    Safetensors, a ``.pt`` of a state dict, also one under a usual key, or the policy of an agent of stable-baselines3
    in its archive. Raises ``WeightsError`` where the file is missing or broken, would run code, or holds anything but
    finite plain tensors.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[State, archives.Facts | None]:
    """A file's tensors, and what an archive of an agent says of it besides; None where it is no such archive."""
    if not path.is_file():
        raise WeightsError(
            f"{path}: there is no such file of weights; write the path of a .safetensors or .pt file"
        )
    demand_memory(path)
    with path.open("rb") as file:
        source, facts = Source(file, path.stat().st_size, str(path)), None
        if path.suffix == ".safetensors":
            loaded = _read_safetensors(path)
        else:
            _demand_unpacked(source)
            agent = _archived(source)
            if agent is not None:
                source, facts = agent
            loaded = _unpickle(source)
    state = _unwrap(loaded)
    if not state:
        raise WeightsError(f"{path}: holds no weights; {source.advice}")
    return {name: _checked(name, value, source) for name, value in state.items()}, facts


def _archived(source: Source) -> tuple[Source, archives.Facts] | None:
    """The policy of an agent in an archive of stable-baselines3, and what that says of it; None for any other file."""
    if not _is_archive(source.file):
        return None
    try:
        opened = archives.opened(source.file)
    except Exception as error:  # a damaged archive fails in any way
        raise_lack(error)
        words = f"is no archive of an agent, or is damaged: {shown(error)}"
        raise WeightsError(f"{source.told}: {words}; {ADVICE_ON_AGENTS}") from error
    if opened is None:
        return None
    policy, facts = opened
    inside = Source(io.BytesIO(policy), len(policy), source.told, ADVICE_ON_AGENTS)
    _demand_unpacked(inside)
    return inside, facts


def demand_memory(path: Path) -> None:
    """Raise ``WeightsError`` for a file, perhaps with nothing but a hole in it, that the memory has no room for."""
    size, room = path.stat().st_size, available_memory()
    if size > room:
        raise WeightsError(f"{path}: is {told_size(size)} long, and {told_size(room)} of memory are free")


def load_weights(model: Model, path: Path) -> None:
    """Give a model the weights of a finished one; raises ``WeightsError`` where they are not exactly its own."""
    state, facts = _read(path)
    state = _translate(model, state, str(path))
    if facts is not None:
        _demand_described(model, facts, path)
    _check_classes(model, state, path)
    _load(model, state, str(path))


def start_from(model: Model, state: Mapping[str, Tensor], source: str) -> None:
    """Give a model weights to start from; a classifier of other shape than its own stays as it was drawn.

    So do training samples that it holds. Raises ``WeightsError``, naming the ``source``, where anything else differs.
    """
    own, state = model.state_dict(), _translate(model, state, source)
    head = {name for name in own if name.startswith(f"{model.head}.")}
    kept = {
        name: value
        for name, value in state.items()
        if name not in model.held_buffers and (name not in head or value.shape == own[name].shape)
    }
    fresh = {name: own[name] for name in head.union(model.held_buffers) - kept.keys() if name in state}
    _load(model, kept | fresh, source)


def _translate(model: Model, state: Mapping[str, Tensor], source: str) -> State:
    """A state under the model's own names, where it knows others too; raises ``WeightsError``."""
    translate = getattr(model, "translate", dict)
    try:
        return dict(translate(state))
    except Mismatch as error:
        raise WeightsError(f"{source}: {error}; {error.hint}") from error


def _demand_described(model: Model, facts: archives.Facts, path: Path) -> None:
    """Raise ``WeightsError`` where a model is not what an archive says of the agent in it."""
    demand = getattr(model, "demand_described", None)
    if demand is None:
        raise WeightsError(f"{path}: holds an agent of stable-baselines3; write `kind: dqn`, or ppo")
    try:
        demand(facts)
    except Mismatch as error:
        raise WeightsError(f"{path}: {error}; {error.hint}") from error


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path, device="cpu")
    except Exception as error:  # SafetensorError for the most part, and what building the tensors raises
        raise_lack(error)
        raise WeightsError(f"{path}: is no safetensors file, or is damaged: {shown(error)}") from error


def _unpickle(source: Source) -> Any:
    """What PyTorch's restricted reader makes of a file; it builds tensors and plain containers only."""
    _demand_harmless(source)
    source.file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of here, it also refuses
            return torch.load(source.file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({shown(found[1])})" if found else ""
        raise WeightsError(
            f"{source.told}: holds Python objects{what}, which kdrun does not unpickle; {source.advice}"
        ) from error
    except Exception as error:  # a damaged file fails in any way
        raise_lack(error)
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise WeightsError(
            f"{source.told}: cannot be read as weights: {type(error).__name__}: {shown(reason)}; {source.advice}"
        ) from error


def _demand_unpacked(source: Source) -> None:
    """Raise ``WeightsError`` for an archive that holds more than its bytes: PyTorch packs nothing, bombs do."""
    if not _is_archive(source.file):
        return
    try:
        with zipfile.ZipFile(source.file) as archive:
            inside = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # PyTorch's own reader might see more in it
        raise_lack(error)
        raise WeightsError(
            f"{source.told}: cannot be read as weights: {shown(error)}; {source.advice}"
        ) from error
    if inside > source.size:
        raise WeightsError(
            f"{source.told}: would unpack to {told_size(inside)}, and is {told_size(source.size)} long, as no file of "
            f"weights is; {source.advice}"
        )


def _is_archive(file: IO[bytes]) -> bool:
    """As PyTorch tells."""
    file.seek(0)
    return file.read(4) == b"PK\3\4"


def _demand_harmless(source: Source) -> None:
    """Raise ``WeightsError`` for what harms while it is unpickled without running any code.

    PyTorch's reader makes byte arrays of any length, and hashes tuples however deep.
    """
    try:
        for pickled in _pickles(source.file):
            tuples = 0
            for opcode, argument, _ in pickletools.genops(pickled):
                tuples += opcode.name.startswith("TUPLE")
                if tuples > MOST_TUPLES or (opcode.name == "GLOBAL" and str(argument).endswith(" bytearray")):
                    what = f"more than {MOST_TUPLES:,} tuples" if tuples > MOST_TUPLES else "byte arrays"
                    raise WeightsError(f"{source.told}: holds {what}, which no weights need; {source.advice}")
    except WeightsError:
        raise
    except Exception:  # PyTorch's reader stops there, too, and says so
        return


def _pickles(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Where PyTorch unpickles: one record of an archive, or one pickle after the other at the beginning of a file."""
    archived = _is_archive(file)
    file.seek(0)
    if archived:
        yield io.BytesIO(torch._C.PyTorchFileReader(file).get_record("data.pkl"))
    else:
        yield from [file] * PICKLES


def _unwrap(loaded: Any) -> dict[Any, Any]:
    """The state dict in what was read, with its own names; empty where there is none."""
    if not isinstance(loaded, dict):
        return {}
    entries = dict(dict.items(loaded))  # whatever a file made of its mapping's own methods
    inner = [entries[key] for key in USUAL_KEYS if isinstance(entries.get(key), dict)]
    state = dict(dict.items(inner[0])) if inner else entries
    for wrapper in WRAPPERS:
        if all(isinstance(name, str) and name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state


def _checked(name: object, value: object, source: Source) -> Tensor:
    """An entry of a file, without what a file made of its methods.

    Raises ``WeightsError`` where it is no plain tensor, or not finite.
    """
    if not isinstance(name, str):
        raise WeightsError(
            f"{source.told}: names an entry by a {type(name).__name__}, not by a text; {source.advice}"
        )
    plain = isinstance(value, Tensor) and value.layout is torch.strided and value.dtype in NUMBERS
    if not isinstance(value, Tensor) or not plain or value.is_meta or value.is_nested:
        raise WeightsError(
            f"{source.told}: '{shown(name)}' is no tensor of weights but {_described(value)}; {source.advice}"
        )
    value = Tensor.detach(value)
    kept = value.untyped_storage().nbytes()
    if value.nbytes > kept or kept > source.size:
        raise WeightsError(
            f"{source.told}: '{shown(name)}' is {_shape(value)} and has {told_size(min(kept, source.size))} of values "
            f"to show for it; {source.advice}"
        )
    if value.is_floating_point() and not value.float().isfinite().all():
        raise WeightsError(
            f"{source.told}: '{shown(name)}' holds values that are not finite; these weights are broken"
        )
    return value


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            return f"a tensor stored as {value.layout}"
        if value.is_nested:
            return "a nested tensor"
        return "a tensor without values" if value.is_meta else f"a tensor of {value.dtype}"
    return type(value).__name__


def _check_classes(model: Model, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise ``WeightsError`` where the classifier, and so perhaps the data set, is another."""
    name = f"{model.logits_for.get('labels', model.head)}.weight"
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
    faults += [f"'{shown(name)}' {_shape(state[name])} is unexpected" for name in state if name not in own]
    if not model.fitted:  # or the sizes come with the data
        faults += [
            f"'{name}' is {_shape(state[name])} and should be {_shape(own[name])}"
            for name in own
            if name in state and _shape(state[name]) != _shape(own[name])
        ]
    if not faults:
        try:
            model.load_state_dict(state)
            return
        except RuntimeError as error:
            raise_lack(error)
            faults = [shown(" ".join(str(error).split("\n", 1)[-1].split()), 200)]
    more = f", and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    raise WeightsError(
        f"{source}: these are not the weights of this model: {', '.join(faults[:SHOWN])}{more}; "
        "write the model that they were trained for"
    )


def _shape(value: Tensor) -> str:
    return shown(f"{list(value.shape)}") + ("" if value.is_floating_point() else " of integers")
