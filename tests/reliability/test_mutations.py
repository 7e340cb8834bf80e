"""Configs with mistakes of every kind: each is answered in words that say where, or is a config after all.

Every mutant has a number, from which it is made again: ``mutant(4711)``.
"""

import copy
import itertools
import json
import random
import re
import resource
import signal
import string
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

import kdrun
from commands import TINY, command, process
from kdrun import assembly, config, rehearsal
from kdrun.config import json_schema
from kdrun.errors import ConfigError, KdrunError
from kdrun.plan import plan
from kdrun.yamlsource import BREAKS, Source, as_yaml
from support import said

SHIPPED = [
    file
    for folder in (Path(__file__).parents[2] / "configs", Path(kdrun.__file__).parent)
    for file in sorted(folder.glob("*.yaml"))
    if "initial_weights" not in file.read_text()  # a file of weights that another config makes
]

RICH = """\
name: rich
dataset:
  kind: synthetic
  shape: [1, 8, 8]
  classes: 3
  samples: 60
  validation: 0.2
  metric: macro-f1
  augmentation: {copies: 2, parts: [{kind: crop, padding: 1}, flip]}
  strong_view: [jitter, cutout]
device: cpu
seeds: [0, 7]
training: {epochs: 6, batch_size: 16, optimizer: adamw, schedule: linear, selection: best-on-validation}
teachers:
  big: {model: {kind: mlp, activation: gelu}, seeds: each, training: {schedule: {kind: step, milestones: [2]}}}
  deep: {model: {kind: mlp, hidden: [8, 8, 8]}, from: big, method: kd, seeds: each}
students:
  small: {model: {kind: vit, patch: 4, dim: 8, depth: 1, heads: 2}, training: {precision: auto, ema: 0.9}}
  thin: {model: cnn}
methods:
  - name: mine
    losses:
      - ce
      - {kind: kd, name: soft, teacher: big, mask: teacher-confident, schedule: {kind: warmup, share: 0.5}}
      - {kind: hint, teacher: deep, student_layer: pooled, teacher_layer: pooled, adapter: auto, mask: {kind: labelled}}
    stages: [{epochs: 1, losses: [hint, soft], train: [adapters, body]}, {losses: [ce, soft]}]
  - {name: both, use: kd, teacher: [big, deep], combine: fixed, set: {kd.teacher_weights: [1, 2]}, early_stop: 3}
  - {use: logit-mse, teacher: deep, training: {optimizer: {kind: sgd, nesterov: true}}, momentum_gap: 0.05}
  - {use: dkd, teacher: big, tune: {dkd.beta: {low: 1, high: 8, log: true}, training.optimizer.lr: [1e-3, 1e-2]}}
controls: [alone, {name: label-smoothing, set: {ce.label_smoothing: 0.2}}, shuffled-teacher]
"""
"""What the shipped configs do not show."""


class Base(NamedTuple):
    """A config that is right: its file, what it says, and its text where it was written by hand."""

    file: str
    data: dict
    text: str | None


def in_full(checked):
    """What a config means, with every default and every published mix written out."""
    experiment = checked.experiment
    data = experiment.model_dump(mode="json", by_alias=True)
    as_they_are = experiment.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for family in ("teachers", "students"):  # what one has of its own is what it changes of all training
        for name, one in data[family].items():
            one["training"] = as_they_are[family][name].get("training")
    for teacher in data["teachers"].values():
        if teacher["seeds"] == "each":
            del teacher["seed"]
    data["training"]["rollouts"] = as_they_are["training"].get("rollouts")
    of_each = {"teacher"} if data["dataset"]["kind"] == "gyms" else set()
    for written in data["methods"]:
        method = checked.methods[written["name"]]
        losses = [loss.model_dump(mode="json", by_alias=True, exclude=of_each) for loss in method.losses]
        stages = [stage.model_dump(mode="json") for stage in method.stages]
        written |= {
            "use": None,
            "set": {},
            "losses": losses,
            "stages": stages,
            "teacher": None,
            "combine": None,
        }
    return data


@cache
def bases():
    """Every shipped config and a rich one, as they are written and in full."""
    texts = {path.name: path.read_text() for path in SHIPPED} | {"rich.yaml": RICH}
    found = []
    for name, text in texts.items():
        checked = config.validate(Source(name, text))
        found += [Base(name, checked.source.data, text), Base(f"full-{name}", in_full(checked), None)]
    return found


def places(node):
    """Every value in a tree, as what holds it and its key."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(value, dict | list):
            yield from places(value)


# --------------------------------------------------------------------------------------------- mutations

NUMBERS = [0, 1, -1, 3, 0.5, -0.0, 1.5, 1e-320, 1e308, float("inf"), float("nan"), 2**64, 10**390, -(10**390)]
WORDS = [
    "",
    " ",
    "no",
    "1e-3",
    "null",
    "0x1F",
    "a: b",
    "kd",
    "{kd}",
    "%s %d",
    "{0}",
    "[",
    "*",
    "~",
    "a\nb",
    "\0",
]
PATHS = [
    "../../x",
    "/dev/zero",
    "/etc/passwd",
    "/nowhere/x",
    "x" * 5000,
    "a/" * 3000,
    "~/x",
    "file:///x",
    "C:\\x",
]
LETTERS = ["漢字", "\u202eabc", "\ud800", "e\u0301", "\x1b[31m", "🦆", "ＫＤ", "ｋｄ", "kd\u200b", "ı", "ß"]
LISTS = [[], [[]], [None], ["kd", 3, {}], [[[["kd"]]]], [0.5, 1.5], list(range(300))]
MAPPINGS = [{}, {"": None}, {"kind": None}, {"kind": {}}, {"kind": "kd"}, {str(n): n for n in range(50)}]
RUBBISH = [[None, True, False], NUMBERS, WORDS, PATHS, LETTERS, LISTS, MAPPINGS]

STRANGE = (
    "\t\r\n\0\x07\x1b\x7f\x85\u2028\u200b\u202e\ufeff\ufffe\ud800ÿß漢🦆\u0301ＡK'\"\\:#-{}[],&*!|>%@`?~<= 0"
)
SNIPPETS = [
    *[
        "!!python/object/apply:os.system ['id']",
        "!!python/name:os.system ",
        "!include x",
        "!!int ",
        "!<x> ",
        "! ",
    ],
    *["&a ", "*a", "&a [*a]", "<<: *a", "<<: {}", "? ", "? [a]\n: ", "---\n", "\n...\n", "%YAML 1.1\n---\n"],
    *[
        "|\n",
        ">-\n",
        "|2 ",
        '"\\x',
        '"\\U0011FFFF"',
        "'",
        "\t",
        "\r",
        "- ",
        ": ",
        "- - - ",
        "{",
        "}",
        "[" * 99,
    ],
    *[
        "#",
        "\ufeff",
        "x: " * 60,
        "{a: " * 60,
        "9" * 500,
        "=",
        "1_000",
        "0o17",
        ".inf",
        "2001-01-01",
        "12:30:45",
    ],
]


def renamed(node, key, new):
    """Give a key of a mapping another name, in its place."""
    items = [(new if old == key else old, value) for old, value in node.items()]
    node.clear()
    node.update(items)


def slip(name, draw):
    """A name with a letter left out, put in or taken for another, or with two neighbours changed over."""
    at, letter = draw.randrange(len(name)), draw.choice(string.ascii_lowercase + string.digits + "-_")
    return draw.choice(
        [
            name[:at] + name[at + 1 :],
            name[:at] + letter + name[at:],
            name[:at] + letter + name[at + 1 :],
            name[:at] + name[at + 1 : at + 2] + name[at] + name[at + 2 :],
        ]
    )


@cache
def parts():
    """Every key with a value that it has somewhere."""
    found = [
        (key, holder[key]) for base in bases() for holder, key in places(base.data) if isinstance(key, str)
    ]
    return [pair for pair in found if pair[1] is not None]


def drop(draw, node, key):
    del node[key]


def rename(draw, node, key):
    other = draw.choice([draw.choice(parts())[0], draw.choice([1, None, True, 0.5, "", *STRANGE])])
    if isinstance(node, dict):
        renamed(node, key, other)
    else:
        node[key] = other


def misspell(draw, node, key):
    if isinstance(node[key], str) and node[key] and draw.random() < 0.5:
        node[key] = slip(node[key], draw)
    elif isinstance(key, str) and key:
        renamed(node, key, slip(key, draw))


def retype(draw, node, key):
    rubbish = draw.choice(draw.choice(RUBBISH))
    node[key] = copy.deepcopy(draw.choice([rubbish, str(node[key]), draw.choice(parts())[1]]))


def swap(draw, node, key):
    other, its = draw.choice([*places(node)])
    node[key], other[its] = copy.deepcopy(other[its]), copy.deepcopy(node[key])


def nest(draw, node, key):
    for _ in range(draw.choice([1, 1, 2, 3, 60])):
        node[key] = draw.choice([[node[key]], {"kind": node[key]}, {str(key): node[key]}])


def unnest(draw, node, key):
    if isinstance(node[key], dict | list) and node[key]:
        holder, inner = next(places(node[key]))
        node[key] = holder[inner]


def graft(draw, node, key):
    new, value = copy.deepcopy(draw.choice(parts()))
    if isinstance(node, dict):
        node[new] = value
    else:
        node.insert(draw.randrange(len(node) + 1), value)


def repeat(draw, node, key):
    if isinstance(node, list):
        node[key:key] = [node[key]] * draw.choice([1, 1, 1, 2, 300])
    else:
        node[f"{key}{draw.choice(['', '2', '-', ' '])}"] = copy.deepcopy(node[key])


def garble(draw, node, key):
    for which in (node[key], key):
        if isinstance(which, str) and draw.random() < 0.7:
            at = draw.randrange(len(which) + 1)
            new = which[:at] + draw.choice(STRANGE) * draw.choice([1, 1, 1, 400]) + which[at:]
            if which is key:
                renamed(node, key, new)
            else:
                node[key] = new


def reckon(draw, node, _):
    """Anywhere below."""
    if numbers := [place for place in places(node) if type(place[0][place[1]]) in (int, float)]:
        node, key = draw.choice(numbers)
        was = node[key]
        node[key] = draw.choice(
            [-was, 0, was + 1, was * 3, was / 7, 10**12, 1e300, 1e-300, str(was), [was], not was]
        )


IN_TREE = [drop, rename, misspell, retype, swap, nest, unnest, graft, repeat, garble, reckon]


def cut(draw, text):
    return text[: draw.randrange(len(text))]


def without(draw, text):
    at = draw.randrange(len(text))
    return text[:at] + text[at + draw.choice([1, 1, 1, 2, 10, 100]) :]


def strewn(draw, text):
    at = draw.randrange(len(text))
    return text[:at] + draw.choice(STRANGE) + text[at + draw.choice([0, 1]) :]


def pasted(draw, text):
    at = draw.choice([match.start() for match in re.finditer(r"\b|^|$", text)])
    return text[:at] + draw.choice(SNIPPETS) + text[at:]


def unmarked(draw, text):
    at = draw.choice([match.start() for match in re.finditer(r"[^\w\n]", text)])
    return text[:at] + draw.choice(["", " ", *"{}[],:-'\""]) + text[at + 1 :]


def relined(draw, text):
    lines = text.split("\n")
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    line, end = lines[one], one + 1
    foreign = draw.choice(bases()[::2]).text.split("\n")
    instead = draw.choice(
        [
            [],
            [line, line],
            [line, lines[other]],
            [line * 2],
            [draw.choice([" ", "  ", "\t", "    ", "- "]) + line],
            [draw.choice(["", " ", "\t"]) + line.lstrip()],
            foreign[draw.randrange(len(foreign)) :],
        ]
    )
    return "\n".join(lines[:one] + instead + lines[draw.choice([end, end, max(end, other)]) :])


def rewritten(draw, text):
    return draw.choice(
        [text.replace("\n", "\r\n"), text.replace("\n", "\r"), text.replace("  ", "\t"), text * 2]
    )


IN_TEXT = [cut, without, strewn, pasted, unmarked, relined, relined, rewritten]


def as_bytes(draw, text):
    """UTF-8 as a rule."""
    raw = text.encode(draw.choice(["utf-8"] * 60 + ["utf-16", "utf-7"]), "surrogatepass")
    at = draw.randrange(len(raw) + 1)
    return raw if draw.random() < 0.98 else raw[:at] + draw.randbytes(draw.choice([1, 1, 100])) + raw[at:]


class Mutant(NamedTuple):
    """A config with a few mistakes, and what was done to it."""

    what: str
    raw: bytes


def few_methods(data, draw):
    """A copy of the data, with two of its methods."""
    methods = draw.sample(data["methods"], min(2, len(data["methods"])))
    return copy.deepcopy(data | {"methods": methods})


def as_blocks(data):
    return yaml.safe_dump(data, allow_unicode=True)


def as_text(data, draw):
    """JSON is YAML, and is written soonest."""
    return draw.choice([as_yaml, as_blocks, *[json.dumps] * 6])(data)


def mutated(data, draw):
    """Data with one to three mistakes, made in place, and their names."""
    for change in (made := draw.choices(IN_TREE, k=draw.choice([1, 1, 2, 3]))):
        if choices := [*places(data)]:
            change(draw, *draw.choice(choices))
    return [change.__name__ for change in made]


def mutant(number):
    """A mutant by its number."""
    draw = random.Random(number)
    base = draw.choice(bases())
    in_tree, in_text = draw.choice([(True, False), (False, True), (True, False), (True, True)])
    done, text = [base.file], base.text
    if in_tree or text is None:
        data = few_methods(base.data, draw)
        done += mutated(data, draw) if in_tree else []
        text = as_text(data, draw)
    if in_text:
        for change in draw.choices(IN_TEXT, k=draw.choice([1, 1, 2, 3])):
            done.append(change.__name__)
            text = change(draw, text) if len(text) > 1 and re.search(r"[^\w\n]", text) else text
    return Mutant(f"{number}: {', '.join(done)}", as_bytes(draw, text))


# ----------------------------------------------------------------------------------------- misspellings

LAYERS = {"student_layer", "teacher_layer", "layers"}
FREE = {"name", "root", "path", "weights", "initial_weights", "view", "label", "env", *LAYERS}
"""Keys whose values are the user's own, or are looked up where models and environments are built."""
OWN = {"teachers", "students", "environments", "options", "physics"}
"""Keys of mappings whose keys are the user's own, or an environment's."""


class Word(NamedTuple):
    """A name that kdrun knows: where it stands, in a key or in a value, and how much of what is there precedes it."""

    path: tuple
    on_key: bool
    before: int
    name: str


def words(node, path=()):
    """All names in a tree that a misspelling would make unknown."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        inner = (*path, key)
        if path[-1:] in (("set",), ("tune",)):
            term, _, rest = key.partition(".")
            yield Word(inner, True, 0, term)
            for piece in rest.split("."):
                yield Word(inner, True, key.index(piece, len(term)), piece)
        elif isinstance(key, str) and path[-1:] not in [(name,) for name in OWN]:
            yield Word(inner, True, 0, key)
        last = next(part for part in inner[::-1] if isinstance(part, str)).rpartition(".")[2]
        if isinstance(value, str) and (last not in FREE or inner[0] == "controls"):
            yield Word(inner, False, 0, value)
        elif isinstance(value, dict | list):
            yield from words(value, inner)


@cache
def vocabulary():
    """Every name that may stand somewhere."""
    found = {word.name for base in bases() for word in words(base.data)}
    schemas = [json_schema()]
    while schemas:
        schema = schemas.pop()
        if isinstance(schema, dict):
            found |= {
                *schema.get("properties", ()),
                *map(str, schema.get("enum", ())),
                schema.get("const", ""),
            }
            schemas += schema.values()
        elif isinstance(schema, list):
            schemas += schema
    return found


class Misspelt(NamedTuple):
    """A config with one name misspelt: what it would be called and where it stands."""

    what: str
    file: str
    text: str
    place: str
    right: str
    wrong: str


def misspelt(number):
    """A misspelling by its number; one that is another name is no misspelling."""
    draw = random.Random(number)
    base = draw.choice(bases())
    data = base.data if base.text else few_methods(base.data, draw)
    text = base.text or as_text(data, draw)
    word = draw.choice([*words(data)])
    while not re.fullmatch(r"[A-Za-z][\w.-]*", wrong := slip(word.name, draw)) or wrong in vocabulary():
        pass
    place = Source(base.file, text).place(word.path, word.on_key)
    row, column = map(int, place.split(":")[1:])
    lines = text.split("\n")
    start = lines[row - 1].index(word.name, column - 1 + word.before)
    lines[row - 1] = lines[row - 1][:start] + wrong + lines[row - 1][start + len(word.name) :]
    what = f"{number}: {place}: {wrong} for {word.name}"
    return Misspelt(what, base.file, "\n".join(lines), place, word.name, wrong)


def neighbours(name):
    """Every text that one slip makes of a name."""
    letters = string.ascii_lowercase + string.digits + ".:-"
    halves = [(name[:at], name[at:]) for at in range(len(name) + 1)]
    return {
        *(left + right[1:] for left, right in halves),
        *(left + letter + right for left, right in halves for letter in letters),
        *(left + letter + right[1:] for left, right in halves for letter in letters),
        *(left + right[1:2] + right[:1] + right[2:] for left, right in halves),
    }


# ------------------------------------------------------------------------------------------------ answers


class Hang(BaseException):
    """Something takes much too long."""


@contextmanager
def at_most(seconds):
    """Raises ``Hang`` where the block takes longer."""

    def ring(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answer(file, raw):
    """What a config on disk is taken for: an experiment that could be written out, or what is wrong with it."""
    file.write_bytes(raw)
    with at_most(10):
        try:
            checked = config.read(file)
            assert set(checked.methods) and checked.experiment.model_dump_json()
            return checked
        except ConfigError as error:
            return error


def unplaced(error, file, raw):
    """The problems of which it is not said where in the file they are."""
    lines = BREAKS.split(raw.decode(errors="replace").removeprefix("\ufeff"))

    def is_placed(told):
        place = re.match(rf"{re.escape(str(file))}:(\d+):(\d+): ", told)
        row, column = map(int, place.groups()) if place else (0, 0)
        inside = 1 <= row <= len(lines) and 1 <= column <= len(lines[row - 1]) + 1
        return inside or told.startswith(f"{file}: the config is empty; ")

    return [told for told in said(error) if not is_placed(told) or not told.isprintable()]


def fault(error):
    """An error that no user is to see, and where it comes from."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"


def test_the_configs_that_are_changed_are_right():
    for base in bases():
        config.validate(Source(base.file, base.text or as_yaml(base.data)))


def test_any_mutation_is_a_config_or_is_refused_with_its_place(tmp_path, times, figure):
    count, wrong, problems, slowest, faults = times(600, 40_000), 0, 0, 0.0, []
    for number in range(count):
        made, file = mutant(number), tmp_path / "c.yaml"
        began = time.perf_counter()
        try:
            told = answer(file, made.raw)
        except (Exception, Hang) as error:
            faults.append(f"{made.what}: {fault(error)}")
            continue
        finally:
            slowest = max(slowest, time.perf_counter() - began)
        if isinstance(told, ConfigError):
            wrong, problems = wrong + 1, problems + len(told.problems)
            faults += [f"{made.what}: {line}" for line in unplaced(told, file, made.raw)]
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:20]])
    figure(
        f"{count:,} mutations of {len(SHIPPED)} shipped configs and a rich one: {count - wrong:,} are configs, "
        f"{wrong:,} are refused for {problems:,} problems, each with file, line and column; "
        f"0 tracebacks, 0 hangs (the slowest took {slowest:.1f} s)"
    )


HINT = re.compile(r"(?:did you mean (?P<near>.*?)\?)?(?: ?known: (?P<known>[^;]*))?")


def suggested(case, lines):
    """The names that are suggested for a misspelling where it stands, and those that it could have been."""
    [line] = [line for line in lines if f"{case.place}: " in line and f"'{case.wrong}'" in line]
    hint = HINT.match(line.partition("; ")[2])
    return re.findall("'([^']*)'", hint["near"] or ""), (hint["known"] or "").split(", ")


def test_a_misspelt_name_is_answered_with_the_right_one(tmp_path, times, figure):
    count, long, among, first, several, faults = times(300, 10_000), 0, 0, 0, 0, []
    for number in range(count):
        case = misspelt(number)
        told = answer(tmp_path / case.file, case.text.encode())
        if not isinstance(told, ConfigError):
            faults.append(f"{case.what}: is a config")
            continue
        try:
            near, known = suggested(case, said(told))
        except ValueError:
            faults.append(f"{case.what}: is not told where it stands: {said(told)}")
            continue
        several += len(near) > 1
        if len(case.right) > 3:
            long, among, first = long + 1, among + (case.right in near), first + (case.right in near[:1])
        elif case.right not in near:
            faults.append(f"{case.what}: {near} are suggested")
        if missing := {name for name in known if name in neighbours(case.wrong)} - {*near}:
            faults.append(f"{case.what}: {missing} are as near as {near}")
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:20]])
    assert first / long >= 0.95
    figure(
        f"{count:,} misspelt names: of {long:,} of four letters and more the right one is suggested for "
        f"{among / long:.2%}, as the first for {first / long:.2%}; for {count - long:,} shorter ones all that are one "
        f"slip away; for {several:,} names there are several"
    )


# ---------------------------------------------------------------------------------------------- commands


def wrong_mutants(folder):
    """Configs that are refused, as files, and the problems that are told of each."""
    for number in itertools.count(10**6):
        file = folder / f"{number}.yaml"
        if isinstance(told := answer(file, mutant(number).raw), ConfigError):
            yield file, str(told)


@pytest.mark.parametrize(
    ("run", "few", "many"), [(command, 10, 200), (process, 2, 30)], ids=["called", "as a process"]
)
def test_commands_refuse_a_wrong_config_with_exit_code_2(run, few, many, tmp_path, times, figure):
    count = times(few, many)
    for file, problems in itertools.islice(wrong_mutants(tmp_path), count):
        told = run("check", file, folder=tmp_path)
        assert (told.code, told.out) == (2, ""), file.name
        assert told.err.removeprefix("error: ").rstrip("\n") == problems, file.name
    figure(f"{count} wrong configs given to {run.__name__}: exit code 2, and nothing said but what is wrong")


# ------------------------------------------------------------------------------------------------ models

ROOM = 4 << 30
"""Bytes that a rehearsal may take beside what its process had before."""


def little_room():
    """Leave this process only so much memory."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, resource.getrlimit(resource.RLIMIT_AS)[1]))


@pytest.fixture
def apart(monkeypatch):
    """Calls in a process of its own, which has little room: ``apart(function, …)``."""
    monkeypatch.setattr(assembly, "DRY_SAMPLES", 4)
    with ProcessPoolExecutor(1, get_context("fork"), little_room) as pool:
        yield lambda *call: pool.submit(*call).result()


def small(base, draw):
    """A config's data, on samples that are at hand and few."""
    data = few_methods(base.data, draw)
    if data["dataset"]["kind"] not in ("digits", "synthetic"):
        data["dataset"] = {"kind": "synthetic", "shape": [3, 16, 16], "classes": 2, "samples": 8}
    return data


def rehearsed(number, file):
    """What becomes of a mutant that is tried as far as anything is before it is trained, and what it was."""
    draw = random.Random(number)
    base = draw.choice(bases())
    data = small(base, draw)
    if draw.random() < 0.5:
        what = f"{number}: {base.file}, {', '.join(mutated(data, draw))}"
    else:
        reckon(draw, data, None)
        what = f"{number}: {base.file}, reckon"
    checked = answer(file, json.dumps(data).encode())
    if isinstance(checked, ConfigError):
        return "refused as it is read", what
    try:
        with at_most(60):
            dataset = assembly.open_dataset(checked)
            rehearsal.rehearse(plan(checked, dataset), dataset, torch.device("cpu"))
    except KdrunError as error:
        return "refused as it is built", f"{what}: {error}"
    except (Exception, Hang) as error:
        return "a fault", f"{what}: {fault(error)}"
    return "rehearsed", what


def test_a_mutant_that_is_a_config_is_rehearsed_or_refused(apart, tmp_path, times, figure):
    wanted, became = times(8, 500), Counter()
    for number in itertools.count():
        end, what = apart(rehearsed, number, tmp_path / "c.yaml")
        assert end != "a fault", what
        became[end] += 1
        if became.total() - became["refused as it is read"] == wanted:
            break
    figure(
        f"{wanted} mutants that are configs: {became['rehearsed']} take a step of every model, "
        f"{became['refused as it is built']} are refused in words"
    )


BILLION = 10**9
ABSURD = {
    f"student.model.hidden=[{1000 * BILLION}]": 1,
    f"student.model.hidden=[{2**50}, {2**50}]": 1,
    f"student.model.hidden=[{2**63}]": 2,
    f"teacher.model={{kind: gru, hidden: {2**50}}}": 1,
    f"dataset.shape=[{1000 * BILLION}]": 2,
    "dataset.shape=[3, 100000, 100000]": 1,
    f"dataset.classes={1000 * BILLION}": 2,
    f"dataset.samples={BILLION}": 1,
    f"training.batch_size={1000 * BILLION}": 0,
    f"training.epochs={1000 * BILLION}": 2,
    "training.epochs=100000": 0,
    f"seeds={[*range(300)]}": 0,
    f"seeds=[{2**53 - 1}]": 0,
    f"seeds=[{10**390}]": 2,
    "training.warmup=1e308": 0,
    "training.optimizer={kind: sgd, lr: 1e308}": 0,
    f"methods=[{{use: kd, stages: [{{epochs: {1000 * BILLION}}}]}}]": 0,
    "methods=[{use: kd, set: {kd.temperature: 1e300}}]": 2,
    f"methods=[{{use: crd, set: {{crd.negatives: {1000 * BILLION}}}}}]": 1,
    f"methods=[{{use: crd, set: {{crd.width: {1000 * BILLION}}}}}]": 1,
    f"methods=[{','.join(['kd'] * 5000)}]": 2,
}
"""Options with sizes that nobody means, and the exit code that `kdrun check` ends with."""


def test_absurd_sizes_end_in_a_check_or_in_a_message(apart, tmp_path, figure):
    (tmp_path / "tiny.yaml").write_text(TINY)
    for option, code in ABSURD.items():
        told = apart(partial(command, folder=tmp_path), "check", "tiny.yaml", "--set", option)
        assert (told.code, bool(told.out)) == (code, code == 0), f"{option}: {told}"
        assert "error: " in told.err or "problems in tiny.yaml" in told.err or code == 0, f"{option}: {told}"
    fit, too_large, refused = (list(ABSURD.values()).count(code) for code in (0, 1, 2))
    figure(
        f"{len(ABSURD)} absurd sizes given to kdrun check: {fit} of them are no matter, {refused} are refused with "
        f"exit code 2, {too_large} do not fit into the memory, which is told in one message"
    )
