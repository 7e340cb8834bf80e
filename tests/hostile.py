"""Files that mean harm, by what is wrong with them: configs, weights, archives, sets of data, pictures, results.

What is made gets ``ran``, the path of a file that foreign code makes if it is run.
"""

import base64
import contextlib
import gzip
import io
import json
import os
import pickle
import shutil
import socket
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch._utils import _rebuild_tensor_v2

from kdrun.errors import printable
from kdrun.store.files import digest, read_json, sealed

CONFIG = """\
name: tiny
dataset: {dataset}
device: cpu
seeds: [0]
training: {{epochs: 1, batch_size: 16}}
teacher: {teacher}
student: {{model: {{kind: mlp, hidden: [4]}}}}
controls: none
methods: [kd]
"""
TABLE = "{kind: synthetic, shape: [8], classes: 3, samples: 48, test_samples: 30}"
TEACHER = "{model: {kind: mlp, hidden: [8]}}"


# ---------------------------------------------------------------------------------------------------- configs


def laughs(levels):
    """Anchors of which each stands ten times in the next."""
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels))]
    return "\n".join(lines)


def tiny(**changed):
    """The config, with some of its lines changed."""
    lines = dict(line.split(": ", 1) for line in CONFIG.format(dataset=TABLE, teacher=TEACHER).splitlines())
    return "\n".join(f"{key}: {value}" for key, value in (lines | changed).items())


CONFIGS = {
    "a tag that runs a program": lambda ran: tiny(name=f"!!python/object/apply:os.system ['touch {ran}']"),
    "a tag that makes an object": lambda ran: tiny(name="!!python/object/new:kdrun.store.Store [x]"),
    "a tag of its own": lambda ran: (
        f"%TAG ! tag:yaml.org,2002:python/\n---\nname: !name:os.system touch {ran}"
    ),
    "anchors that explode": lambda ran: laughs(12),
    "merges that explode": lambda ran: laughs(12).replace("[", "{<<: [").replace("]", "]}"),
    "an anchor within itself": lambda ran: "name: &a [*a]",
    "a hundred thousand brackets": lambda ran: "[" * 100_000,
    "a hundred thousand braces": lambda ran: "{a: " * 100_000,
    "a hundred thousand levels": lambda ran: "- " * 100_000,
    "a hundred thousand questions": lambda ran: "? " * 100_000,
    "eighty thousand keys": lambda ran: "\n".join(f"key{number}: 1" for number in range(80_000)),
    "a hundred thousand digits": lambda ran: tiny(seeds=f"[{'9' * 100_000}]"),
    "NUL bytes": lambda ran: bytes(5000),
    "a NUL in a path": lambda ran: tiny(dataset='{kind: arrays, path: "a\\0b"}'),
    "half a letter in a path": lambda ran: tiny(dataset='{kind: arrays, path: "\\ud800"}'),
    "a path without end": lambda ran: tiny(dataset=f"{{kind: image-folder, root: {'a/' * 50_000}}}"),
    "a name without end": lambda ran: tiny(dataset=f"{{kind: arrays, path: {'a' * 50_000}.npz}}"),
    "the home of nobody": lambda ran: tiny(dataset="{kind: image-folder, root: ~nobody-by-this-name}"),
    "weights in the home of nobody": lambda ran: tiny(
        teacher="{model: mlp, weights: ~nobody-by-this-name/w.pt}"
    ),
    "a run in the home of nobody": lambda ran: tiny(teacher="{run: ~nobody-by-this-name/seed-0}"),
    "a run without end": lambda ran: tiny(teacher=f"{{run: {'a/' * 50_000}}}"),
    "a run of a name without end": lambda ran: tiny(teacher=f"{{run: {'a' * 50_000}}}"),
    "a run at the root of all": lambda ran: tiny(teacher="{run: /}"),
    "the root of all": lambda ran: tiny(dataset="{kind: arrays, path: /dev/zero}"),
    "letters that a terminal obeys": lambda ran: b"\x1b]0;you\x07\x1b[2Jname: x",
    "keys that a terminal obeys": lambda ran: tiny(**{'"\\e[2J\\a"': "1"}),
    "values that a terminal obeys": lambda ran: tiny(device='"\\e[2J\\r\\nerror: all is well"'),
    "another encoding": lambda ran: tiny().encode("utf-16"),
    "bytes that are no text": lambda ran: tiny().encode() + b"\xff",
    "a name that climbs out": lambda ran: tiny(name="../../climbed"),
    "a name from the root": lambda ran: tiny(name=str(ran)),
    "a student that climbs out": lambda ran: tiny(student="", students="{../../climbed: {model: mlp}}"),
    "a method that climbs out": lambda ran: tiny(methods="[{name: ../../../climbed, use: kd}]"),
    "a plugin": lambda ran: tiny(plugins="[os]"),
    "a number that is none": lambda ran: tiny(training="{epochs: .inf, batch_size: .nan}"),
    "a key without end": lambda ran: tiny(**{"k" * 1000: "1"}),
    "an expression that never ends": lambda ran: tiny(device="'cuda:" + "1" * 50_000 + "x'"),
}
SAID = {"a path without end": "a/a/a/a/a", "a name without end": "aaaaa"}
"""What names the file in messages that do not name the config."""


# -------------------------------------------------------------------------------------------- what is no file


def bind(path):
    """Make a socket in the place of a file; its address may not be as long as a path."""
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)


def hole(path):
    """Make a file of a terabyte with nothing in it."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


PLACES = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": bind,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a terabyte": hole,
    "nothing that may be read": lambda path: path.touch(0),
    "nothing": lambda path: None,
}
"""What lies where a file should."""
TAKEN = {
    "c.yaml": {},
    "w.pt": {"teacher": "{model: {kind: mlp, hidden: [8]}, weights: w.pt}"},
    "w.safetensors": {"teacher": "{model: {kind: mlp, hidden: [8], initial_weights: w.safetensors}}"},
    "d.npz": {"dataset": "{kind: arrays, path: d.npz}"},
    "d.csv": {"dataset": "{kind: arrays, path: d.csv}"},
    "data/MNIST/raw/train-images-idx3-ubyte": {"dataset": "{kind: mnist}"},
    "data/train_32x32.mat": {"dataset": "{kind: svhn}"},
}
"""The files that a config takes, and how."""


# ---------------------------------------------------------------------------------------------------- weights


class Calls:
    """What is pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def good():
    """The weights of the teacher."""
    shapes = {
        "body.0.0.weight": (8, 8),
        "body.0.0.bias": (8,),
        "classifier.weight": (3, 8),
        "classifier.bias": (3,),
    }
    return {name: torch.ones(shape) for name, shape in shapes.items()}


def saved(value, **options):
    """What torch writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def legacy(value):
    """What torch wrote before it wrote archives."""
    return saved(value, _use_new_zipfile_serialization=False)


def packed(data, *more, compression=zipfile.ZIP_STORED):
    """An archive as torch writes them, with a pickle of one's own."""
    buffer = io.BytesIO()
    entries = [("data.pkl", data), ("byteorder", b"little"), *more, ("version", b"3\n")]
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def tensor(size, stride, offset=0, kept=64):
    """A tensor that says of itself what it likes, over so many numbers."""
    return Calls(
        _rebuild_tensor_v2, torch.ones(kept)._typed_storage(), offset, size, stride, False, OrderedDict()
    )


def safetensors(header, data=b"", length=None):
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(1,), begin=0, end=4):
    """What a header says of a tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def evil(ran):
    """A call of the shell."""
    return Calls(os.system, f"touch {ran}")


def old_tar(ran):
    """torch's oldest format, with an entry that climbs out."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle", "../../../climbed", str(ran)):
            data = pickle.dumps(evil(ran), 2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def script(ran):
    """A TorchScript archive."""
    code = b"def forward(self, x):\n  return x\n"
    return packed(
        pickle.dumps(evil(ran), 2), ("constants.pkl", pickle.dumps(evil(ran), 2)), ("code/m.py", code)
    )


def overlapping():
    """An archive of which a thousand entries are one and the same piece."""
    data = bytearray(packed(pickle.dumps({}, 2), ("data/0", bytes(1 << 20))))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start, count = archive.start_dir, len(archive.infolist())
    directory = bytes(data[start:-22])
    again = directory * 1000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1000 * count, 1000 * count, len(again), start, 0)
    return bytes(data[:start]) + again + end


def unreadable_bomb():
    """A bomb in an archive that Python's reader refuses (a name that is no UTF-8), and others read."""
    data = packed(
        b"".join([b"\x80\x02}q\0", bytes(1 << 25), b"."]), ("n\xe9", b""), compression=zipfile.ZIP_DEFLATED
    )
    return data.replace("n\xe9".encode(), b"n\xff\xff")


def attributes(tensor, **state):
    """A tensor with attributes in place of its methods."""
    arguments = tensor.storage(), 0, tuple(tensor.shape), tensor.stride(), False, OrderedDict()
    return Calls(torch._tensor._rebuild_from_type_v2, _rebuild_tensor_v2, torch.Tensor, arguments, state)


def shadowed(**state):
    """A mapping with attributes in place of its methods."""
    mapping = Calls(OrderedDict, list((good() | {"x": torch.ones(1)}).items()))
    mapping.reduced += (state,)
    return mapping


def nested(depth):
    """A mapping by a key of tuples in tuples."""
    return b"\x80\x02})" + b"\x85" * depth + b"K\x01s."


def text(letters):
    """A text as pickles hold it."""
    return struct.pack("<I", len(letters)) + letters.encode()


def cut(data, share):
    """The first of a hundred parts of a file."""
    return data[: len(data) * share // 100]


PICKLES = {
    **{
        f"the shell, protocol {protocol}": lambda ran, protocol=protocol: pickle.dumps(
            {"a": evil(ran)}, protocol
        )
        for protocol in range(6)
    },
    "the shell in an archive": lambda ran: saved({"a": torch.ones(1), "b": evil(ran)}),
    "the shell in an old stream": lambda ran: legacy({"a": torch.ones(1), "b": evil(ran)}),
    "the shell in torch's oldest format": old_tar,
    "the shell in TorchScript": script,
    "the shell by its global": lambda ran: packed(
        b"\x80\x02cposix\nsystem\nX%b\x85R." % text(f"touch {ran}")
    ),
    "exec": lambda ran: saved({"a": Calls(exec, f"open({str(ran)!r}, 'w')")}),
    "eval": lambda ran: legacy({"a": Calls(eval, f"open({str(ran)!r}, 'w')")}),
    "a file is opened": lambda ran: saved({"a": Calls(open, str(ran), "w")}),
    "a folder is made": lambda ran: saved({"a": Calls(os.mkdir, str(ran))}),
    "getattr": lambda ran: saved({"a": Calls(getattr, Calls(__import__, "os"), "system")}),
    "what kdrun has itself": lambda ran: saved({"a": Calls(Path.touch, ran)}),
    "torch writes a file": lambda ran: saved({"a": Calls(torch.save, {}, str(ran))}),
    "torch maps a file": lambda ran: saved({"a": Calls(torch.from_file, str(ran), True, 8)}),
    "torch trusts": lambda ran: saved({"a": Calls(torch.serialization.add_safe_globals, [os.system])}),
    "an array of objects": lambda ran: saved({"a": np.array([evil(ran)], dtype=object)}),
    "a method by its dotted name": lambda ran: packed(b"\x80\x04ctorch\nhub.load\n)R."),
}
TENSORS = {
    "more than there is": lambda ran: saved({"a": tensor((2**40,), (0,))}),
    "backwards": lambda ran: saved({"a": tensor((8,), (-1,), 8)}),
    "beside its storage": lambda ran: saved({"a": tensor((8,), (1,), 2**40)}),
    "larger than its storage": lambda ran: saved({"a": tensor((2**30,), (1,))}),
    "made where it is read": lambda ran: saved({"a": Calls(torch.FloatTensor, 2**29)}),
    "bytes made where they are read": lambda ran: saved({"a": Calls(bytearray, 3 << 30)}, pickle_protocol=2),
    "sparse": lambda ran: saved({"a": torch.ones(2, 2).to_sparse()}),
    "sparse, with places that are not there": lambda ran: saved(
        {"a": torch.sparse_coo_tensor([[2**40]], [1.0], (2,), check_invariants=False)}
    ),
    "quantized": lambda ran: saved({"a": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}),
    "meta": lambda ran: saved({"a": torch.ones(2**40, device="meta")}),
    "nested": lambda ran: saved({"a": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)])}),
    "complex": lambda ran: saved(good() | {"classifier.bias": torch.ones(3, dtype=torch.complex64)}),
    "integers": lambda ran: saved({name: value.int() for name, value in good().items()}),
    "of a type that cannot be reckoned with": lambda ran: saved(
        good() | {"classifier.bias": torch.ones(3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}
    ),
    "not a number": lambda ran: saved(good() | {"classifier.bias": torch.full((3,), torch.nan)}),
    "infinite": lambda ran: legacy(good() | {"classifier.bias": torch.full((3,), -torch.inf)}),
    "of other shapes": lambda ran: saved(good() | {"body.0.0.bias": torch.ones(8, 1, 1)}),
    "of other names": lambda ran: saved({f"encoder.{name}": value for name, value in good().items()}),
    "with attributes for methods": lambda ran: saved(
        {name: attributes(value, float=1, detach=2, isfinite=3, dim=4) for name, value in good().items()}
        | {"x": torch.ones(1)}
    ),
    "a mapping with attributes for methods": lambda ran: saved(shadowed(get=1, items=2, keys=3)),
    "a name that a terminal obeys": lambda ran: saved(
        {"\x1b[2J\x1b]0;you\x07\nerror: all is well\r": torch.ones(1)}
    ),
    "a name of 1 MB": lambda ran: saved({"a" * 1_000_000: 1}),
    "names that are none": lambda ran: saved(
        {3: torch.ones(1), (4, 5): torch.ones(1), b"\x1b": torch.ones(1)}
    ),
    "a name of tuples in tuples": lambda ran: packed(nested(3000)),
    "a name of tuples in 300,000 tuples": lambda ran: packed(nested(300_000)),
    "lists in lists": lambda ran: packed(b"\x80\x02" + b"]" * 40_000 + b"a" * 39_999 + b"."),
    "a huge number": lambda ran: packed(pickle.dumps({"a": 1 << 2000}, 2)),
    "no mapping": lambda ran: saved([torch.ones(1)]),
    "nothing in it": lambda ran: saved({}),
}
BROKEN = {
    "empty": lambda ran: b"",
    "one byte": lambda ran: b"\x80",
    **{f"cut at {share} %": lambda ran, share=share: cut(saved(good()), share) for share in (3, 30, 90, 99)},
    **{
        f"an old one cut at {share} %": lambda ran, share=share: cut(legacy(good()), share)
        for share in (30, 90)
    },
    "text": lambda ran: b"these are no weights\n" * 100,
    "safetensors by another name": lambda ran: safetensors({"a": entry()}, bytes(4)),
    "a bomb": lambda ran: packed(b"\x80\x02}.", ("data/0", bytes(1 << 25)), compression=zipfile.ZIP_DEFLATED),
    "a bomb for one reader only": lambda ran: unreadable_bomb(),
    "entries on top of each other": lambda ran: overlapping(),
    "entries by one name": lambda ran: packed(pickle.dumps({}, 2), ("data.pkl", pickle.dumps(evil(ran), 2))),
}
SAFETENSORS = {
    "torch's by another name": lambda ran: saved({"a": evil(ran)}),
    "empty": lambda ran: b"",
    "a header of 2^63": lambda ran: safetensors({"a": entry()}, bytes(4), 1 << 63),
    "a header longer than the file": lambda ran: safetensors({"a": entry()}, bytes(4), 1 << 20),
    "a header of 10 MB": lambda ran: safetensors(b"{" + b" " * 10_000_000 + b"}"),
    "a header of 10 MB of names": lambda ran: safetensors(
        b'{"__metadata__":{%b"z":""}}'
        % b"".join(b'"%07d":"",' % number for number in range(10_000_000 // 13))
    ),
    "no JSON": lambda ran: safetensors(b"{'a': 1}"),
    "JSON that is deep": lambda ran: safetensors(b'{"a":' + b"[" * 100_000),
    "no mapping": lambda ran: safetensors(b"[]"),
    "a name twice": lambda ran: safetensors(
        b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)
    ),
    "tensors on top of each other": lambda ran: safetensors({"a": entry(), "b": entry()}, bytes(4)),
    "a tensor outside of the file": lambda ran: safetensors({"a": entry(begin=400, end=404)}, bytes(4)),
    "a tensor that ends before it begins": lambda ran: safetensors({"a": entry(begin=4, end=0)}, bytes(4)),
    "a shape that overflows": lambda ran: safetensors({"a": entry(shape=(2**32, 2**32, 4))}, bytes(4)),
    "a shape that overflows to 1": lambda ran: safetensors({"a": entry(shape=(2**62 + 1, 4))}, bytes(16)),
    "a type that is none": lambda ran: safetensors({"a": entry(dtype="OBJECT")}, bytes(4)),
    "a type that cannot be reckoned with": lambda ran: safetensors(
        {"a": entry(dtype="F4", shape=(8,))}, bytes(4)
    ),
    "a hole": lambda ran: safetensors({"a": entry(begin=8, end=12)}, bytes(12)),
    "more at its end": lambda ran: safetensors({"a": entry()}, bytes(4000)),
    "a name that a terminal obeys": lambda ran: safetensors({"\x1b[2J\n\r\u202e": entry()}, bytes(4)),
    "not a number": lambda ran: safetensors({"a": entry()}, struct.pack("<f", float("nan"))),
}


def agent(compression=zipfile.ZIP_STORED, **entries):
    """An archive as stable-baselines3 writes them, with some of its files changed."""
    buffer = io.BytesIO()
    policy = {f"q_net.q_net.{2 * number}.weight": torch.ones(3, 8) for number in range(2)}
    contents = {"data": b"{}", "policy": saved(policy), "optimizer": saved({})} | entries
    names = {"policy": "policy.pth", "optimizer": "policy.optimizer.pth"}
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(names.get(name, name), content)
    return buffer.getvalue()


def pickled_facts(ran):
    """What an archive holds of its agent beside weights, as a call of the shell."""
    fact = {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(evil(ran))).decode()}
    return json.dumps({"policy_kwargs": fact, "policy_class": fact}).encode()


AGENTS = {
    "the shell in its policy": lambda ran: agent(policy=saved({"a": torch.ones(1), "b": evil(ran)})),
    "the shell in a bare pickle": lambda ran: agent(policy=pickle.dumps(evil(ran))),
    "the shell in its optimizer": lambda ran: agent(optimizer=saved(evil(ran))),
    "the shell in its facts": lambda ran: agent(data=pickled_facts(ran)),
    "the shell in a file of any name": lambda ran: agent(**{"tensors.pth": saved(evil(ran))}),
    "facts without end": lambda ran: agent(data=b"[" * 200_000),
    "facts that are no text": lambda ran: agent(data=bytes(range(256))),
    "a bomb": lambda ran: agent(zipfile.ZIP_DEFLATED, policy=bytes(1 << 25)),
    "a bomb in its policy": lambda ran: agent(
        policy=packed(b"\x80\x02}.", ("data/0", bytes(1 << 25)), compression=zipfile.ZIP_DEFLATED)
    ),
    "bytes made where they are read": lambda ran: agent(
        policy=saved({"a": Calls(bytearray, 3 << 30)}, pickle_protocol=2)
    ),
    "cut": lambda ran: cut(agent(), 90),
    "a terminal's letters": lambda ran: agent(policy=saved({"\x1b[2J\r": torch.ones(1)})),
}


WEIGHTS = {
    f"{family}: {name}": (file, make)
    for family, file, cases in (
        ("pickle", "hostile.pt", PICKLES),
        ("tensor", "hostile.pt", TENSORS),
        ("broken", "hostile.pt", BROKEN),
        ("safetensors", "hostile.safetensors", SAFETENSORS),
        ("agent", "hostile.zip", AGENTS),
    )
    for name, make in cases.items()
}


# --------------------------------------------------------------------------------------------------- archives


def npz(*entries, compression=zipfile.ZIP_STORED):
    """An archive with any entries."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(array):
    """An array as numpy writes it, also one of objects."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def headed(header, data=b"", version=1):
    """An array as numpy writes it, with any header."""
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


def claims(shape, kind="<f4", data=bytes(64)):
    """An array that says of itself what it likes."""
    return headed(repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n", data)


X, Y = npy(np.arange(160, dtype=np.float32).reshape(40, 4)), npy(np.arange(40) % 2)
XY = ("x.npy", X), ("y.npy", Y)


def with_x(content, **options):
    """An archive of samples and labels."""
    return npz(("x.npy", content), ("y.npy", Y), **options)


def lying(size):
    """An archive of 4 GB, as its array says, and its directory of another size, and neither is right."""
    data = bytearray(with_x(claims((2**28, 4), data=bytes(1 << 20)), compression=zipfile.ZIP_DEFLATED))
    place = data.rindex(b"x.npy") - 46  # in the central directory
    data[place + 24 : place + 28] = struct.pack("<I", size)
    return bytes(data)


def piled():
    """An archive of which a thousand entries are one and the same piece: 32 GB in 64 kB."""
    data = npz(("x.npy", claims((2**23,), data=bytes(1 << 25))), compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        start = archive.start_dir
    again = data[start:-22] * 1000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1000, 1000, len(again), start, 0)
    return data[:start] + again + end


def encrypted():
    """An archive whose entries say that they are encrypted."""
    data = bytearray(npz(*XY))
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = data.find(mark)
        while place >= 0:
            data[place + flags] |= 1
            place = data.find(mark, place + 1)
    return bytes(data)


def of_links():
    """An archive of links that lead out of it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("x.npy", "y.npy"):
            link = zipfile.ZipInfo(name)
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, "../../../../etc/passwd")
    return buffer.getvalue()


def unknown_packing():
    """An archive whose entries are packed in a way that nobody knows."""
    data = npz(*XY)
    return data.replace(b"PK\3\4\x14\0\0\0\0\0", b"PK\3\4\x14\0\0\0\x63\0").replace(
        b"PK\1\2\x14\x03\x14\0\0\0\0\0", b"PK\1\2\x14\x03\x14\0\0\0\x63\0"
    )


def objects(ran):
    """An array of Python objects."""
    found = np.empty(40, dtype=object)
    found[:] = [evil(ran)] * 40
    return found


NPZ = {
    "a pickle": lambda ran: pickle.dumps(evil(ran)),
    "objects for samples": lambda ran: with_x(npy(objects(ran))),
    "objects for labels": lambda ran: npz(("x.npy", X), ("y.npy", npy(objects(ran)))),
    "objects in a structure": lambda ran: with_x(
        npy(np.array([(1, evil(ran))] * 40, dtype=[("a", int), ("b", object)]))
    ),
    "a pickle for an entry": lambda ran: with_x(pickle.dumps(evil(ran))),
    "entries that climb out": lambda ran: npz(("../../../x.npy", X), ("../../../y.npy", Y)),
    "entries from the root": lambda ran: npz((f"{ran}.npy", X), ("/y.npy", Y)),
    "links that lead out": lambda ran: of_links(),
    "a header that is a program": lambda ran: with_x(
        headed(b"__import__('os').system('touch %b')\n" % str(ran).encode())
    ),
    "a shape that is a program": lambda ran: with_x(claims(f"(open({str(ran)!r}, 'w'),)")),
    "a type that is a program": lambda ran: with_x(claims((40, 4), f"open({str(ran)!r}, 'w')")),
    "a header of parentheses": lambda ran: with_x(headed(b"(" * 60_000)),
    "a header of many signs": lambda ran: with_x(headed(b"{'descr': " + b"-" * 60_000 + b"1}")),
    "a header of 4 GB": lambda ran: with_x(b"\x93NUMPY\2\0\xff\xff\xff\xff{}"),
    "a header of 10 MB": lambda ran: with_x(headed(b"{" + b" " * 10_000_000 + b"}", version=2)),
    "terabytes in a header": lambda ran: with_x(claims((2**40, 4))),
    "more than counts in a header": lambda ran: with_x(claims((2**62, 2**62))),
    "less than nothing in a header": lambda ran: with_x(claims((-1, 4))),
    "terabytes of nothing": lambda ran: with_x(claims((2**40, 0))),
    "a shape of no numbers": lambda ran: with_x(claims((True, None, "4"))),
    "a type of 2 GB": lambda ran: with_x(claims((40,), "<U2000000000")),
    "a bomb that says so": lambda ran: with_x(
        claims((2**40,), data=bytes(1 << 24)), compression=zipfile.ZIP_DEFLATED
    ),
    "a bomb that says less": lambda ran: lying(200),
    "a bomb that says more": lambda ran: lying(0xFFFFFF00),
    "a thousand entries in one place": lambda ran: piled(),
    "encrypted": lambda ran: encrypted(),
    "of an unknown packing": lambda ran: unknown_packing(),
    "cut in its directory": lambda ran: npz(*XY)[:-40],
    "cut in an entry": lambda ran: npz(*XY)[:300],
    "cut in a packed entry": lambda ran: npz(*XY, compression=zipfile.ZIP_DEFLATED)[100:],
    "no entries": lambda ran: npz(),
    "no bytes": lambda ran: b"",
    "not a number": lambda ran: with_x(npy(np.full((40, 4), np.nan))),
    "complex": lambda ran: with_x(npy(np.ones((40, 4), complex))),
    "dates": lambda ran: with_x(npy(np.zeros((40, 4), "datetime64[s]"))),
    "of 32 dimensions": lambda ran: with_x(npy(np.ones((40, *[1] * 31)))),
    "names that a terminal obeys": lambda ran: npz(("\x1b[2J\n\u202e.npy", X)),
    "labels that a terminal obeys": lambda ran: npz(
        ("x_train.npy", X),
        ("y_train.npy", Y),
        ("x_test.npy", X),
        ("y_test.npy", npy(np.array(["\x1b[2J\n"] * 40))),
    ),
    "labels of another length": lambda ran: npz(("x.npy", X), ("y.npy", npy(np.arange(4)))),
    "a name of 60 kB": lambda ran: npz(("n" * 60_000 + ".npy", X)),
    "three thousand names": lambda ran: npz(*((f"{number}.npy", X) for number in range(3_000))),
}
CSV = {
    "NUL bytes": lambda ran: b"a,label\n1,x\n\0,y\n",
    "only NUL bytes": lambda ran: bytes(10_000_000),
    "a line of 20 MB": lambda ran: b"a,label\n" + b"1" * 20_000_000,
    "a line of 12 million cells": lambda ran: b"," * 12_000_000,
    "a line of a million columns": lambda ran: b",".join(b"c%d" % number for number in range(1_000_000)),
    "a field that is never closed": lambda ran: b'a,label\n1,"' + b"x\n" * 1_000_000,
    "another encoding": lambda ran: "gr\xf6\xdfe,label\n1,x\n".encode("utf-16"),
    "bytes that are no text": lambda ran: b"a,label\n1,\xff\n",
    "a cell that is a program": lambda ran: b"a,label\n=cmd|' /C calc'!A0,x\n1,y\n",
    "a cell that a terminal obeys": lambda ran: b"a,label\n\x1b[2J,x\n1,y\n",
    "a column that a terminal obeys": lambda ran: b"\x1b[2Jlable\n1\n",
    "a cell of 100 kB": lambda ran: b"a,label\n" + b"y" * 100_000 + b",x\n1,y\n",
    "a number without end": lambda ran: b"a,label\n1e999999,x\n1,y\n",
}


ARCHIVES = {
    f"{suffix}: {name}": (f"hostile.{suffix}", make)
    for suffix, cases in (("npz", NPZ), ("csv", CSV))
    for name, make in cases.items()
}


# ---------------------------------------------------------------------------------------- sets of torchvision


def idx(shape, data=b"", kind=8):
    """A file of MNIST's format."""
    return bytes([0, 0, kind, len(shape)]) + b"".join(struct.pack(">I", n) for n in shape) + data


def mnist(images=None, labels=None):
    """The files of MNIST, with thirty pictures or with anything else."""
    images = idx((30, 28, 28), bytes(30 * 784)) if images is None else images
    labels = idx((30,), bytes(30)) if labels is None else labels
    return {
        f"MNIST/raw/{part}-{name}-ubyte": data
        for part in ("train", "t10k")
        for name, data in (("images-idx3", images), ("labels-idx1", labels))
    }


def climbing(ran):
    """A packed archive with entries and links that lead out of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("../../climbed", str(ran), "cifar-10-batches-py/data_batch_1"):
            data = pickle.dumps(evil(ran))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


def cifar(ran):
    """All files of CIFAR-10, each of which runs a program."""
    names = [f"data_batch_{number}" for number in range(1, 6)]
    return {
        f"cifar-10-batches-py/{name}": pickle.dumps(evil(ran))
        for name in (*names, "test_batch", "batches.meta")
    }


def older(content):
    """MNIST with the files that torchvision reads instead, where they are there."""
    return mnist() | {f"MNIST/processed/{part}.pt": saved(content) for part in ("training", "test")}


SETS = {
    f"{kind}: {name}": (kind, named, make)
    for kind, named, cases in (
        (
            "mnist",
            "MNIST/raw/train-images-idx3-ubyte",
            {
                "pickles": lambda ran: mnist(pickle.dumps(evil(ran)), pickle.dumps(evil(ran))),
                "pictures without end": lambda ran: mnist(idx((2**31, 28, 28))),
                "two hundred dimensions": lambda ran: mnist(idx((1,) * 200)),
                "real numbers": lambda ran: mnist(idx((30, 28, 28), bytes(30 * 784 * 8), kind=14)),
                "other pictures": lambda ran: mnist(idx((30, 9, 9), bytes(30 * 81))),
                "other classes": lambda ran: mnist(labels=idx((30,), bytes(range(200, 230)))),
                "fewer labels": lambda ran: mnist(labels=idx((3,), bytes(3))),
                "fewer pictures": lambda ran: mnist(),
                "no pictures": lambda ran: mnist(idx((0, 28, 28)), idx((0,))),
                "cut pictures": lambda ran: mnist(idx((30, 28, 28), bytes(30))),
                "nothing": lambda ran: mnist(b""),
                "a packed bomb": lambda ran: {
                    "MNIST/raw/train-images-idx3-ubyte.gz": gzip.compress(bytes(1 << 24))
                },
            },
        ),
        (
            "mnist",
            "MNIST/processed/training.pt",
            {
                "the shell, in the older files": lambda ran: older(evil(ran)),
                "something else, in the older files": lambda ran: older(([1], [2])),
            },
        ),
        (
            "fashion-mnist",
            "FashionMNIST/raw/train-images-idx3-ubyte",
            {
                "pickles": lambda ran: {
                    name.replace("MNIST", "FashionMNIST"): pickle.dumps(evil(ran)) for name in mnist()
                }
            },
        ),
        (
            "cifar10",
            "cifar-10-batches-py/data_batch_1",
            {
                "pickles": cifar,
                "an archive that climbs out": lambda ran: {"cifar-10-python.tar.gz": climbing(ran)},
            },
        ),
        (
            "cifar100",
            "cifar-100-python/train",
            {
                "pickles": lambda ran: {
                    f"cifar-100-python/{name}": pickle.dumps(evil(ran)) for name in ("train", "test", "meta")
                }
            },
        ),
        (
            "svhn",
            "train_32x32.mat",
            {
                "pickles": lambda ran: {
                    f"{part}_32x32.mat": pickle.dumps(evil(ran)) for part in ("train", "test")
                }
            },
        ),
    )
    for name, make in cases.items()
}
"""Of each the kind of data set, a file that a message must name, and the files by their places."""


# --------------------------------------------------------------------------------------------------- pictures


def png(colour=200):
    """A picture of one colour."""
    return picture(Image.new("RGB", (9, 7), (colour,) * 3), "PNG")


def picture(image, kind, **options):
    """What Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    """A piece of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(kind, data):
    """A picture with a further chunk behind its header."""
    whole = png()
    return whole[:33] + chunk(kind, data) + whole[33:]


def black(side, rows=None):
    """A picture of one bit a pixel with this width and height, and so many rows of black."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes((side // 8 + 2) * (side if rows is None else rows)), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def endless_tiff():
    """A TIFF whose first directory says that the next one is itself."""
    data = bytearray(picture(grey(), "TIFF"))
    (at,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, at)
    struct.pack_into("<I", data, at + 2 + 12 * entries, at)
    return bytes(data)


def postscript(ran):
    """A program that would be handed to Ghostscript."""
    return f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 7\n(%pipe%touch {ran}) (w) file\nshowpage\n%%EOF\n".encode()


def frames(count):
    """A GIF of many pictures."""
    data = picture(grey(), "GIF", save_all=True, append_images=[Image.new("L", (9, 7), 3)])
    last = data.rindex(b"\x21\xf9\x04")
    return data[:last] + data[last:-1] * (count - 1) + b";"


def classes(folder):
    """A folder with six pictures in each of two classes."""
    for label, name in enumerate(("cat", "dog")):
        for number in range(6):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{number}.png").write_bytes(png(40 * label + number))


FILES = {
    "no bytes": ("x.png", lambda ran: b""),
    "cut png": ("x.png", lambda ran: picture(Image.effect_noise((64, 64), 9), "PNG")[:900]),
    "cut jpeg": ("x.jpg", lambda ran: picture(Image.effect_noise((64, 64), 9), "JPEG")[:900]),
    "cut tiff": ("x.tif", lambda ran: picture(Image.effect_noise((64, 64), 9), "TIFF")[:900]),
    "text": ("x.png", lambda ran: b"this is no picture\n" * 9),
    "a pickle": ("x.png", lambda ran: pickle.dumps(evil(ran))),
    "an archive": ("x.png", lambda ran: npz(("../../x", b"x"))),
    "a program in PostScript": ("x.png", postscript),
    "a program in PostScript by its name": ("x.eps", postscript),
    "a program in PDF": ("x.pdf", lambda ran: b"%PDF-1.4\n/OpenAction << /S /Launch /F (touch) >>\n%%EOF\n"),
    "a program in SVG": ("x.svg", lambda ran: b"<svg><script>alert(1)</script></svg>"),
    "a header of ten thousand million pixels": ("x.png", lambda ran: black(100_000, rows=1)),
    "four hundred million pixels": ("x.png", lambda ran: black(20_000)),
    "pixels without end": ("x.ppm", lambda ran: b"P6 99999999999999 99999999999999 255\n"),
    "a gif of 65,535 by 65,535": (
        "x.gif",
        lambda ran: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\1\0\0;",
    ),
    "text that is a bomb": (
        "x.png",
        lambda ran: with_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26))),
    ),
    "a profile that is a bomb": (
        "x.png",
        lambda ran: with_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 26))),
    ),
    "real numbers": ("x.tif", lambda ran: picture(Image.new("F", (9, 7)), "TIFF")),
    "a name that a terminal obeys": ("\x1b[2J\nerror: all is well\r.png", lambda ran: b""),
    "a name that is no text": (os.fsdecode(b"\xff\xfe.png"), lambda ran: b""),
    "a name of 255 bytes": ("n" * 251 + ".png", lambda ran: b""),
}
"""Files among pictures, each of which a message must name."""


def hide(folder):
    """Hide all files of a folder."""
    for file in folder.iterdir():
        file.rename(folder / f".{file.name}")


def split(folder, other):
    """Folders `train` and `test`, one of which has another class."""
    for part in ("train", "test"):
        classes(folder / part)
    (folder / "test" / "dog").rename(folder / "test" / other)
    for name in ("cat", "dog"):
        shutil.rmtree(folder / name)


def emptied(folder):
    """An empty folder in the place of one that is not."""
    shutil.rmtree(folder)
    folder.mkdir()


def replaced(folder, put):
    """Something else in the place of a folder."""
    shutil.rmtree(folder)
    put(folder)


def for_classes(photos):
    """Files in the place of all classes."""
    for name in ("cat", "dog"):
        replaced(photos / name, Path.touch)


PLACED = {
    "a picture that may not be read": ("cat/0.png", lambda photos: (photos / "cat" / "0.png").chmod(0)),
    "a class that may not be read": ("photos/cat", lambda photos: (photos / "cat").chmod(0)),
    "a class that may not be entered": ("photos/cat", lambda photos: (photos / "cat").chmod(0o444)),
    "a deeper folder that may not be read": ("cat/deep", lambda photos: (photos / "cat" / "deep").mkdir(0)),
    "a folder that may not be read": ("photos", lambda photos: photos.chmod(0)),
    "a class without pictures": ("photos/cat", lambda photos: emptied(photos / "cat")),
    "a class of hidden files": ("photos/cat", lambda photos: hide(photos / "cat")),
    "a class by a name that a terminal obeys": (
        r"photos/\x1b[2J\nerror: x",
        lambda photos: (photos / "\x1b[2J\nerror: x").mkdir(),
    ),
    "one class": ("photos", lambda photos: shutil.rmtree(photos / "cat")),
    "no class": ("photos", emptied),
    "files for classes": ("photos", for_classes),
    "other classes in the test": ("photos/test", lambda photos: split(photos, "\x1b[2J")),
    "a link to itself for a class": (
        "photos/cat",
        lambda photos: replaced(photos / "cat", PLACES["a link to itself"]),
    ),
}
FOLDERS = (
    {
        f"a file: {name}": (
            printable(file),
            lambda photos, ran, file=file, make=make: (photos / "cat" / file).write_bytes(make(ran)),
        )
        for name, (file, make) in FILES.items()
    }
    | {
        f"for a picture: {name}": ("cat/x.png", lambda photos, ran, put=put: put(photos / "cat" / "x.png"))
        for name, put in PLACES.items()
        if name not in ("a folder", "nothing")  # in which there might be others, and which is nothing
    }
    | {
        f"for the folder: {name}": ("photos", lambda photos, ran, put=put: replaced(photos, put))
        for name, put in PLACES.items()
    }
    | {
        name: (named, lambda photos, ran, change=change: change(photos))
        for name, (named, change) in PLACED.items()
    }
)
"""What a folder of pictures is made into, and the name that a message must say."""


SHADE = 200
"""Of all the odd pictures that are right."""


def grey(mode="L", size=(9, 7)):
    """A picture of that shade."""
    return Image.new("L", size, SHADE).convert(mode)


def deep_grey(kind):
    """The same in 16 bits."""
    return Image.fromarray(np.full((7, 9), SHADE * 257, kind))


ODD = {
    "cmyk.jpg": lambda: picture(grey("RGB").convert("CMYK"), "JPEG"),
    "cmyk.tif": lambda: picture(grey("RGB").convert("CMYK"), "TIFF"),
    "ycbcr.tif": lambda: picture(grey("YCbCr"), "TIFF", compression="jpeg"),
    "16 bits.png": lambda: picture(deep_grey(np.uint16), "PNG"),
    "16 bits.tif": lambda: picture(deep_grey(">u2"), "TIFF"),
    "32 bits.tif": lambda: picture(deep_grey(np.int32), "TIFF"),
    "palette.png": lambda: picture(grey("RGB").quantize(4), "PNG", transparency=0),
    "alpha.png": lambda: picture(grey("RGBA"), "PNG"),
    "alpha of grey.png": lambda: picture(grey("LA"), "PNG"),
    "one pixel.png": lambda: picture(grey(size=(1, 1)), "PNG"),
    "one row.png": lambda: picture(grey(size=(5000, 1)), "PNG"),
    "ten thousand.gif": lambda: frames(10_000),
    "moving.png": lambda: picture(grey("RGB"), "PNG", save_all=True, append_images=[grey("RGB")] * 3),
    "moving.webp": lambda: picture(grey("RGB"), "WEBP", save_all=True, append_images=[grey("RGB")] * 3),
    "endless.tif": endless_tiff,
    "broken place and date.jpg": lambda: picture(
        grey("RGB"), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(90)
    ),
    "broken colours.jpg": lambda: picture(grey("RGB"), "JPEG", icc_profile=b"\xff" * 3000),
    "another name.gif": lambda: picture(grey("RGB"), "JPEG"),
    "no name at all": lambda: picture(grey(), "BMP"),
}


NAMES = [
    "größe 猫 🐈",
    " a blank at both ends ",
    "a\nnew line",
    "--help",
    "-rf",
    "~",
    "$HOME `touch ran` $(touch ran)",
    "a; touch ran",
    r"$\frac{1}{0}$",
    r"\input{x} _^%&#",
    "<script>alert(1)",
    '"><img src=x onerror=alert(1)>',
    "&lt;b&gt; ]]> -->",
    "[bold red]x [@click=app.bell]",
    "{0} {ran} %s %n",
    "=cmd|' 'A0",
    "\x1b[2J\x07\x08",
    "\u202egnp",
    "con.",
    "é" * 127,
    os.fsdecode(b"\xff\xfe"),
    os.fsdecode(b"\xff\xfd"),
]
"""What folders and files may be called."""


# ---------------------------------------------------------------------------------------------------- results


def exchange(run, name, data):
    """Exchange a file of a result, and say in its manifest that it should be so."""
    (run / name).write_bytes(data)
    alter(run / "result.json", lambda manifest: manifest["files"].update({name: digest(data)}))


def alter(path, change):
    """Change what a file says, and seal it again."""
    value = read_json(path)
    change(value)
    path.write_bytes(sealed(value))


def npz_of(**changed):
    """Predictions of which some arrays are others."""
    buffer = io.BytesIO()
    np.savez(buffer, **PREDICTED | changed)
    return buffer.getvalue()


PREDICTED = {
    "logits": np.zeros((30, 3), np.float32),
    "labels": np.zeros(30, np.int64),
    "index": np.arange(30),
}
TEACHERS = "tiny/teachers/teacher/seed-0"
KD = "tiny/students/student/kd/seed-0"
EXCHANGED = {
    "weights.safetensors": {
        "a pickle": lambda ran: pickle.dumps(evil(ran)),
        "torch's": lambda ran: saved({"a": evil(ran)}),
        "nothing": lambda ran: b"",
        "other tensors": lambda ran: safetensors({"a": entry()}, bytes(4)),
        "other shapes": lambda ran: save(good() | {"classifier.bias": torch.ones(7)}),
        "of no numbers": lambda ran: save(good() | {"classifier.bias": torch.full((3,), torch.nan)}),
        "of another type": lambda ran: save(good() | {"classifier.bias": torch.ones(3).bfloat16()}),
        "deep": lambda ran: safetensors(b'{"a":' + b"[" * 100_000),
    },
    "predictions.npz": {
        "a pickle": lambda ran: pickle.dumps(evil(ran)),
        "objects": lambda ran: npz(("logits.npy", npy(objects(ran))), ("labels.npy", npy(objects(ran)))),
        "nothing": lambda ran: b"",
        "a bomb": lambda ran: with_x(claims((2**40,), data=bytes(1 << 20)), compression=zipfile.ZIP_DEFLATED),
        "a large bomb": lambda ran: piled(),
        "other arrays": lambda ran: npz(("x.npy", X)),
        "fewer": lambda ran: npz_of(**{name: array[:4] for name, array in PREDICTED.items()}),
        "of other classes": lambda ran: npz_of(logits=np.zeros((30, 9), np.float32)),
        "of other labels": lambda ran: npz_of(labels=np.full(30, 10**12)),
        "of labels below zero": lambda ran: npz_of(labels=np.full(30, -5)),
        "of no numbers": lambda ran: npz_of(logits=np.full((30, 3), np.nan, np.float32)),
        "of letters": lambda ran: npz_of(logits=np.full((30, 3), "x")),
        "of one dimension": lambda ran: npz_of(logits=np.zeros(30, np.float32)),
    },
    "metrics.jsonl": {
        "a pickle": lambda ran: pickle.dumps(evil(ran)),
        "deep": lambda ran: b"[" * 100_000,
        "other JSON": lambda ran: b"[1]\n3\n",
        "no numbers": lambda ran: (
            b'{"epoch": 0, "terms": {"ce": {"value": NaN, "weight": "x"}}, "validation": 3}'
        ),
        "lines of different terms": lambda ran: b'{"epoch": 0, "terms": {}, "validation": null}\n' * 3,
    },
}


RESULTS = {
    "nothing": lambda value: value.clear(),
    "a list for files": lambda value: value.update(files=[1]),
    "files that climb out": lambda value: value["files"].update(
        {"../../../../../home/.profile": {"bytes": 7, "sha256": ""}}
    ),
    "no weights": lambda value: value["files"].pop("weights.safetensors"),
    "scores of letters": lambda value: value["scores"].update(accuracy="\x1b[2J"),
    "scores that are none": lambda value: value["scores"].clear(),
    "scores without end": lambda value: value["scores"].update(accuracy=10**300),
    "no details": lambda value: value.pop("details"),
    "fewer classes": lambda value: value["details"].update(by_class=[1]),
    "classes that a terminal obeys": lambda value: value["details"].update(
        classes=["\x1b[2J", "<script>", 3]
    ),
    "bins that are none": lambda value: value["details"].update(reliability=[[1], "x"]),
    "bins beyond all": lambda value: value["details"].update(reliability=[[1, 1e9, 1e9], [1, -1e9, 0]]),
    "a likeness that is none": lambda value: value.update(likeness="<script>"),
    "a cost that is none": lambda value: value.update(cost=None),
    "a protocol that is none": lambda value: value.update(protocol=["<script>"]),
    "a protocol of letters": lambda value: value["protocol"].update(test_samples="\x1b[2J", test_sha256=3),
    "seconds that are none": lambda value: value.update(train_seconds="<script>"),
}
RESOLVED = {
    "nothing": lambda value: value.clear(),
    "a name that climbs out": lambda value: value.update(name="../../climbed"),
    "a name from the root": lambda value: value.update(name=str(Path.cwd() / "climbed")),
    "another name": lambda value: value.update(name="other"),
    "runs that are none": lambda value: value.update(runs=[1, "x"]),
    "runs that climb out": lambda value: [run.update(folder="../../../home") for run in value["runs"]],
    "fingerprints that climb out": lambda value: [
        run.update(fingerprint="../../home") for run in value["runs"]
    ],
    "no runs": lambda value: value.update(runs=[]),
    "teachers that nobody knows": lambda value: value["runs"][-1].update(teachers={"x": "y"}),
    "a metric that nobody knows": lambda value: value.update(metric="\x1b[2J"),
    "names that a terminal obeys": lambda value: [
        run.update(name="\x1b[2J<script>") for run in value["runs"]
    ],
    "options that a terminal obeys": lambda value: value.update(overrides=["\x1b[2J"]),
    "options that are none": lambda value: value.update(overrides=3),
    "a config that is none": lambda value: value.update(config="<script>\x1b[2J"),
    "ensembles that are none": lambda value: value.update(ensembles=[["x", "y"]]),
}


def of_other_questions(samples=30, classes=3, labels=0):
    """Makes a result one of so many samples and classes, and of such labels, which fits together in itself."""

    def forge(runs, ran):
        predicted = npz_of(
            logits=np.zeros((samples, classes), np.float32),
            labels=np.full(samples, labels),
            index=np.arange(samples),
        )
        exchange(runs / KD, "predictions.npz", predicted)

        def change(manifest):
            manifest["protocol"].update(test_samples=samples)
            manifest["details"].update(classes=["c"] * classes, by_class=[0.5] * classes)

        alter(runs / KD / "result.json", change)

    return forge


APART = {
    "fewer samples than in the other results": of_other_questions(samples=20),
    "more classes than in the other results": of_other_questions(classes=4),
    "other labels than in the other results": of_other_questions(labels=1),
}
FORGED = (
    {
        f"{place}/{file}: {name}": lambda runs, ran, place=place, file=file, make=make: exchange(
            runs / place, file, make(ran)
        )
        for place in (TEACHERS, KD)
        for file, made in EXCHANGED.items()
        for name, make in made.items()
    }
    | {
        f"{file}: {name}": lambda runs, ran, file=file, change=change: alter(runs / file, change)
        for file, changes in ((f"{KD}/result.json", RESULTS), ("tiny/resolved.json", RESOLVED))
        for name, change in changes.items()
    }
    | APART
)
"""What a folder of runs is made into."""
