"""The user's config as it was written: its data, and where each key and value stands.

The syntax is PyYAML's (its pure Python loader: the C one overflows the stack on deep nesting), the meaning
of plain scalars that of the YAML 1.2 core schema: ``1e-3`` is a number, ``no`` and ``12:30:45`` are text.
Anchors, aliases and merge keys work; tags beyond the core schema's are refused. Every size is bounded, so
that any text ends, soon, in a ``Source`` or in a ``ConfigError`` whose lines say ``file:line:col``.
"""

from __future__ import annotations

import pathlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import yaml
import yaml.composer
import yaml.parser
import yaml.reader
import yaml.resolver
import yaml.scanner

from kdrun.errors import ConfigError, Path, Problem, did_you_mean, printable

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_NODES = 50_000
"""Keys and values in one config, aliases counted as often as they are used."""
MAX_DIGITS = 400
MAX_INTEGER = 2**53 - 1
"""What all readers of JSON take as it is (RFC 7493): resolved configs are written as JSON."""
LINE = 110
"""Characters of a line that is written, about."""
WORDS = 300
"""Characters that are said of a problem or of its place, about."""
MOST_TOLD = 100
"""Problems that are told one by one."""
EXCERPT = 120
"""Characters of a line that are shown below a problem."""

TAG = "tag:yaml.org,2002:"
TEXT, MERGE = TAG + "str", TAG + "merge"
COLLECTIONS: dict[type[yaml.Node], str] = {yaml.SequenceNode: TAG + "seq", yaml.MappingNode: TAG + "map"}
BREAKS = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""What escapes can smuggle into a string although neither files nor systems take it."""


def _integer(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _real(text: str) -> float:
    return float(re.sub(r"\.(?=[in])", "", text.lower()))


SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    TAG + "null": (re.compile("|~|null|Null|NULL"), lambda _: None),
    TAG + "bool": (re.compile("true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    TAG + "int": (re.compile("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), _integer),
    TAG + "float": (
        re.compile(
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
        ),
        _real,
    ),
    MERGE: (re.compile("<<"), str),
}
"""The YAML 1.2 core schema (YAML Language Development Team, YAML 1.2.2, section 10.3), and merge keys."""

NO_TAGS = "tags are not allowed: a config never runs code"
QUOTE = "put it in quotes if it is meant as text"
SYNTAX: tuple[tuple[str, str, str, str], ...] = (
    (r"character '\\t'", "problem", "a tab cannot stand here", "indent and separate with spaces"),
    ("character (.+) that cannot start", "problem", "text cannot start with {0}", "put it in quotes"),
    (
        "a simple key",
        "context",
        "neither 'KEY: VALUE' nor a list item",
        "the ':' after a key is followed by a space",
    ),
    (
        "mapping values are not allowed",
        "problem",
        "a ':' cannot stand here",
        "indent a key like its neighbours, put a space after each ':', and text that contains ': ' in quotes",
    ),
    (
        "sequence entries are not allowed",
        "problem",
        "a '-' cannot stand here",
        "start a list on a line of its own",
    ),
    ("mapping keys are not allowed", "problem", "a '?' cannot stand here", QUOTE),
    ("unknown escape|escape sequence", "problem", "unknown escape", "use single quotes, or double each '\\'"),
    ("a quoted scalar", "context", "the quote is never closed", ""),
    ("a flow sequence", "context", "the '[' is not closed", "a ',' or ']' is missing before {other}"),
    ("a flow mapping", "context", "the '{{' is not closed", "a ',' or '}}' is missing before {other}"),
    ("a directive", "context", "a line cannot start with '%'", QUOTE),
    ("a tag|tag handle", "context", NO_TAGS, ""),
    ("a block scalar", "context", "'|' and '>' start a block of text on the lines below", QUOTE),
    ("scanning an (alias|anchor)", "context", "'*' and '&' are followed by the name of an anchor", QUOTE),
    ("undefined alias '(.+)'", "problem", "'*{0}' names no anchor above", QUOTE),
    ("duplicate anchor '(.+)'", "problem", "the anchor '&{0}' stands twice", "the first is in {other}"),
    ("content, but found '<", "problem", "a value is missing here", ""),
    ("content, but found (.+)", "problem", "a value is missing before {0}", ""),
    (
        "<block end>, but found '<(scalar|alias)",
        "problem",
        "the value has ended before this",
        "put all of the text in quotes",
    ),
    ("<block end>, but found ':'", "problem", "a key is missing before the ':'", ""),
    (
        "expected <block end>",
        "problem",
        "this does not continue the block that starts in {other}",
        "indent it like its neighbours",
    ),
    ("a single document", "problem", "a second document starts here", "a config is one document"),
    ("incompatible YAML", "problem", "this version of YAML is not known", "a config is YAML 1.2"),
    (
        "'<document start>'",
        "problem",
        "this stands outside of the config",
        "a config is one mapping, without '...' and '%' lines",
    ),
)
"""PyYAML's words (context and problem), which of its two places to point at, and our words and hint."""


class Span(NamedTuple):
    """Characters of one line: the line and the first column, from 1, and the column after the last.

    ``stop`` is None where they go on beyond the line.
    """

    line: int
    column: int
    stop: int | None


Names = dict[int, Counter[str | None]]
"""What the items of lists are called, by the list's ``id``."""

Spot = Span | str | None
"""Where a problem is shown: in the text, at a ``--set`` option, or at the file as a whole."""


class Fault(NamedTuple):
    """A problem and its spot."""

    spot: Spot
    problem: Problem


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What may name a folder."""
RESERVED = {"index", "cache"}
"""What kdrun's own folders among those of the experiments are called."""
NO_NAME = "'{}' cannot name a folder; use letters, digits, '.', '_' and '-'"

NOT_FREE = "'{}' is what a folder of kdrun's own is called; write another `name`"


def default_name(path: pathlib.Path) -> str:
    """What an experiment is called whose config does not say: the file's name, without what no folder is called."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).strip("-._")[:100] or "experiment"


def _span(start: yaml.Mark, end: yaml.Mark | None = None) -> Span:
    stop = None if end is None or end.line != start.line else end.column + 1
    return Span(start.line + 1, start.column + 1, stop)


def _words(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _width(text: str) -> int:
    """Columns of a terminal that the text takes."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


class Resolver(yaml.resolver.BaseResolver):
    """What YAML 1.2 takes a node for."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """The tag of a node that was written without one."""
        if kind is not yaml.ScalarNode:
            return COLLECTIONS[kind]
        plain = implicit[0]
        return next((tag for tag, (form, _) in SCALARS.items() if plain and form.fullmatch(value)), TEXT)


class Loader(
    yaml.reader.Reader,
    yaml.scanner.Scanner,
    yaml.parser.Parser,
    yaml.composer.Composer,
    Resolver,
):
    """PyYAML's loader with YAML 1.2's scalars, bounded in depth and size, aliases counted in full."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        Resolver.__init__(self)
        self._depth, self._deepest, self._count = 0, 0, 0
        self._measures: dict[yaml.Node, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> Any:
        """The next node. ``_measures`` keeps height and size of each complete one, for its aliases."""
        event = self.peek_event()
        before, outside = self._count, self._deepest
        self._depth += 1
        self._count += 1
        self._deepest = self._depth
        self._check(event)
        node: Any = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if node not in self._measures:
                raise self._error(event, f"'*{event.anchor}' stands inside of what it names")
            height, size = self._measures[node]
            self._deepest += height
            self._count = before + size
            self._check(event)
        self._measures[node] = self._deepest - self._depth, self._count - before
        self._depth -= 1
        self._deepest = max(self._deepest, outside)
        return node

    def _check(self, event: Any) -> None:
        if self._deepest > MAX_DEPTH:
            raise self._error(event, f"the config is nested deeper than {MAX_DEPTH} levels")
        if self._count > MAX_NODES:
            raise self._error(event, "the config grows too large", f"at most {MAX_NODES:,} keys and values")

    @staticmethod
    def _error(event: Any, words: str, hint: str = "") -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(None, None, words, event.start_mark, hint)


class Dumper(Resolver, yaml.SafeDumper):
    """PyYAML's writer for what the ``Loader`` reads: what fits on a line is on one, and nothing is an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        """Everything is written out, also what stands twice."""
        return True

    def represent(self, data: Any) -> None:
        """Write a document; its top is never on one line."""
        node: Any = self.represent_data(data)
        node.flow_style = False
        self.serialize(node)

    def represent_data(self, data: Any) -> Any:
        """A node of data, whole on its line where that is short."""
        node: Any = super().represent_data(data)
        if isinstance(data, dict | list):
            node.flow_style = len(str(data)) <= LINE
        return node


def as_yaml(data: Any) -> str:
    """Plain data as YAML that reads back as the same."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, width=LINE, allow_unicode=True)


def _translate(error: yaml.MarkedYAMLError) -> Fault:
    """A syntax error in our words, at the place where the user has to look."""
    said = f"{error.context or ''}: {error.problem}"
    marks = {"problem": error.problem_mark, "context": error.context_mark or error.problem_mark}
    for form, at, message, hint in SYNTAX:
        if match := re.search(form, said):
            other = marks["context" if at == "problem" else "problem"]
            place = _words(other) if other else ""
            words = (text.format(*match.groups(), other=place) for text in (message, hint))
            return _at(marks[at], *words)
    return _at(error.problem_mark, str(error.problem), error.note or "")


def _at(mark: yaml.Mark | None, message: str, hint: str = "") -> Fault:
    return Fault(_span(mark, mark) if mark else None, Problem((), message, hint))


def _compose(text: str) -> yaml.Node | Fault | None:
    """The tree of nodes, None where there is only white space and comments, or what is wrong."""
    if len(text) > MAX_BYTES:
        return Fault(None, Problem((), "larger than 1 MB", "a config is small: name data by its path"))
    if match := yaml.reader.Reader.NON_PRINTABLE.search(text):
        *above, line = BREAKS.split(text[: match.start()])
        span = Span(len(above) + 1, len(line) + 1, len(line) + 2)
        return Fault(span, Problem((), f"the character U+{ord(match.group()):04X} cannot stand in a config"))
    loader = Loader(text)
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        return _translate(error)
    except (ValueError, OverflowError):
        return _at(loader.get_mark(), "a number or an escape that is too large")


class Content:
    """What one text holds: its data, the spans of keys and values by path, and all that is wrong with it."""

    def __init__(self, text: str) -> None:
        self.data: Any = None
        self.keys: dict[Path, Spot] = {}
        self.values: dict[Path, Spot] = {}
        self.faults: list[Fault] = []
        root = _compose(text)
        if isinstance(root, Fault):
            self.faults.append(root)
        elif root is not None:
            self.data = self._build(root, ())
        # A block with a fault may have been built for several aliases.
        self.faults = list({(fault.spot, fault.problem.message): fault for fault in self.faults}.values())

    def _fault(self, node: yaml.Node, path: Path, message: str, hint: str = "") -> Any:
        self.faults.append(Fault(_span(node.start_mark, node.end_mark), Problem(path, message, hint)))

    def _build(self, node: yaml.Node, path: Path) -> Any:
        self.values[path] = _span(node.start_mark, node.end_mark)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag != COLLECTIONS[type(node)]:
            return self._fault(node, path, NO_TAGS)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        return [self._build(child, (*path, index)) for index, child in enumerate(node.value)]

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        if node.tag in (TEXT, MERGE):
            if match := NO_TEXT.search(node.value):
                self._fault(node, path, f"the character U+{ord(match.group()):04X} cannot stand in a config")
            return node.value
        if node.tag not in SCALARS:
            return self._fault(node, path, NO_TAGS)
        form, convert = SCALARS[node.tag]
        if not form.fullmatch(node.value):
            return self._fault(node, path, "this is not what its tag says", "leave the tag out")
        if len(node.value) > MAX_DIGITS:
            return self._fault(node, path, f"a number of more than {MAX_DIGITS} digits")
        value = convert(node.value)
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            return self._fault(node, path, f"a whole number beyond ±{MAX_INTEGER:,}")
        return value

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        """A mapping's own keys over those that it merges, which therefore come first."""
        data: dict[str, Any] = {}
        first: dict[str, yaml.Mark] = {}
        for key_node, value in sorted(node.value, key=lambda pair: pair[0].tag != MERGE):
            key = self._key(key_node, path)
            if key is None:
                continue
            if key in first:
                self._fault(
                    key_node, path, f"the key '{key}' stands twice", f"the first is in {_words(first[key])}"
                )
                continue
            first[key] = key_node.start_mark
            if key_node.tag == MERGE:
                data |= self._merged(value, path)
                continue
            if node.flow_style and ":" in key and not key_node.style and _unwritten(value):
                self._fault(key_node, path, "a ':' without a space after it", f"write '{_spaced(key)}'")
            self.keys[(*path, key)] = _span(key_node.start_mark, key_node.end_mark)
            data[key] = self._build(value, (*path, key))
        return data

    def _key(self, node: yaml.Node, path: Path) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            noun = "list" if isinstance(node, yaml.SequenceNode) else "mapping"
            return self._fault(node, path, f"a {noun} cannot be a key", "a key is text")
        faults = len(self.faults)
        key = self._scalar(node, path)
        if isinstance(key, str):
            return key
        if len(self.faults) == faults:
            hint = f"write it as text: '{node.value}'" if node.value else "write one before the ':'"
            self._fault(node, path, f"the key {node.value} is not text" if node.value else "no key", hint)
        return None

    def _merged(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        """The keys that ``<<`` brings, from one mapping or from several, of which the earlier ones win."""
        merged: dict[str, Any] = {}
        place = self.values[path]
        for block in reversed(node.value if isinstance(node, yaml.SequenceNode) else [node]):
            if isinstance(block, yaml.MappingNode):
                merged |= self._build(block, path) or {}
            else:
                self._fault(block, path, "'<<' takes a mapping or a list of mappings")
        self.values[path] = place
        return merged


def _unwritten(node: yaml.Node) -> bool:
    return bool(node.start_mark.index == node.end_mark.index)


def _spaced(key: str) -> str:
    return re.sub(": *", ": ", key, count=1)


class Source:
    """A config as it was written: its data, and where each key and value stands.

    ``name`` is the file as the user named it, ``data`` its content in plain dicts, lists, str, int, float,
    bool and None. Raises ``ConfigError``, with all that is wrong.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self._aliases: dict[Path, Path] = {}
        self.overrides: list[str] = []
        self._text = text.removeprefix("\ufeff")
        content = Content(self._text)
        self.data = content.data
        self._keys, self._values = content.keys, content.values
        faults = content.faults or self._top_level()
        if faults:
            raise self._refusal(faults)

    @classmethod
    def parse(cls, text: str, name: str = "<text>") -> Source:
        """A config from its text; raises ``ConfigError`` where it is not YAML or not a mapping."""
        return cls(name, text)

    @classmethod
    def read(cls, path: pathlib.Path) -> Source:
        """A config from its file; raises ``ConfigError``, also where the file cannot be read."""
        name = str(path)
        try:
            if path.is_fifo():  # it would be waited for, and it is read twice
                raise _told(name, "a pipe, not a file", "save the config, and name that")
            with open(path, "rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            raise _told(name, *_unreadable(path, error)) from error
        if len(raw) > MAX_BYTES:
            raise _told(name, "larger than 1 MB", "a config is small: name data by its path")
        try:
            return cls(name, raw.decode())
        except UnicodeDecodeError as error:
            *above, line = BREAKS.split(raw[: error.start].decode())
            place = f"{name}:{len(above) + 1}:{len(line) + 1}"
            raise _told(place, "not UTF-8 text", "save the file as UTF-8") from error

    @property
    def text(self) -> str:
        """The file as it was read, without what ``--set`` changes."""
        return self._text

    # ------------------------------------------------------------------------------------------- finding

    def place(self, path: Path, on_key: bool = False) -> str:
        """Where a value (or its key) stands: ``digits.yaml:14:7``, or the ``--set`` option that gave it.

        What is not in the document (a default, the inside of a shorthand) stands where the nearest part
        around it does.
        """
        return self._told_place(self._spot(path, on_key))

    def alias(self, path: Path, short: Path) -> None:
        """Have a path stand for another as well: ``("teachers", "teacher")`` and ``("teacher",)``."""
        self._aliases |= {path: short, short: path}

    def _find(self, path: Path) -> tuple[Path, Path]:
        """The part of a path that the document has, as it is written there, and the rest.

        Looks under the shorthands, too. List items may be given by name and keys with dots in pieces. An
        element that only names the ``kind`` of what it follows (a union's tag in a validation error) is
        left out, unless it is the last.
        """
        splits = [(path[:end], path[end:]) for end in range(1, len(path) + 1)]
        written = [self._aliases[head] + rest for head, rest in splits if head in self._aliases]
        return min((self._walk(way) for way in (path, *written)), key=lambda way: len(way[1]))

    def _walk(self, path: Path) -> tuple[Path, Path]:
        node = self.data
        found: Path = ()
        while path:
            part, used = _step(node, path)
            if part is not None:
                node, found = node[part], (*found, part)
            elif len(path) == 1 or not _tagged(node, path[0]):
                break
            path = path[used:]
        return found, path

    def _at(self, path: Path) -> Any:
        node = self.data
        for part in path:
            node = node[part]
        return node

    def _spot(self, path: Path, on_key: bool) -> Spot:
        found, rest = self._find(path)
        node = self._at(found)
        missing = bool(rest) and not (isinstance(node, str) or _tagged(node, rest[0]))
        for end in range(len(found), 0, -1):
            near = found[:end]
            if near in self._values:
                return (self._keys.get(near) if on_key or missing else None) or self._values[near]
        return self._values[()]

    def _dotted(self, path: Path, on_key: bool, names: Names) -> str:
        """A path as the user would write it, list items by name: without the key itself, if that is shown."""
        found, rest = self._find(path)
        if rest and _tagged(self._at(found), rest[0]):
            rest = rest[1:]
        node, labels = self.data, []
        for part in found:
            labels.append(_label(node, part, names))
            node = node[part]
        labels += map(str, rest)
        return ".".join(labels[:-1] if on_key and path and isinstance(path[-1], str) else labels)

    # ------------------------------------------------------------------------------------------- --set

    def override(self, assignment: str, aliases: Mapping[Path, Path] = {}) -> None:
        """Set one value, ``training.epochs=3``; raises ``ConfigError`` where the key or the value is none.

        The key is dotted, list items are given by index or by name (``name``, else ``use``, else ``kind``,
        else the text that they are); the value is YAML. What the key lacks is made, except list items: a
        missing mapping, or one in place of the name that is short for it (``optimizer: adamw``). Below a key
        ``set`` the rest is one key, dots and all. ``aliases`` are added to those of the source.
        """
        option = _cut(f"--set {assignment}")
        for item in aliases.items():
            self.alias(*item)
        key, equals, text = assignment.partition("=")
        parts = tuple(key.strip().split("."))
        if not equals:
            raise _told(option, "no '='", "write KEY=VALUE, for instance --set training.epochs=3")
        if not all(parts):
            raise _told(option, "the key is empty or has an empty part", "write it as in training.epochs")
        if len(parts) > MAX_DEPTH:
            raise _told(option, f"the key has more than {MAX_DEPTH} parts")
        content = Content(text)
        if content.faults:
            problems = [fault.problem for fault in content.faults]
            raise ConfigError(problems, [_line(option, "", problem) for problem in problems])
        found, rest = self._find(parts)
        if rest:
            rest = _undotted(found, rest)
            self._open(found, rest[0], option)
        self._put(found, rest, content.data, option)
        self.overrides.append(assignment)

    def _open(self, path: Path, part: str | int, option: str) -> None:
        """Make sure of a mapping at a path, also in place of nothing or of the name that is short for it."""
        node = self._at(path)
        if isinstance(node, dict):
            return
        where = self._dotted(path, on_key=False, names={})
        if isinstance(node, list):
            raise _told(option, *_no_item(where, node, part))
        if node is not None and not isinstance(node, str):
            raise _told(option, f"{where} is {node}, which has no '{part}'")
        word = "use" if path[-2:-1] == ("methods",) and isinstance(path[-1], int) else "kind"
        self._at(path[:-1])[path[-1]] = {} if node is None else {word: node}

    def _put(self, found: Path, rest: Path, value: Any, option: str) -> None:
        path = (found + rest)[: len(found) + 1] if rest else found
        for table in (self._keys, self._values):
            for below in [key for key in table if key[: len(path)] == path]:
                del table[below]
        self._values[path] = option
        *inner, last = found + rest
        node = self._at(found[: len(inner)])
        for part in inner[len(found) :]:
            node = node.setdefault(part, {})
        node[last] = value

    # ------------------------------------------------------------------------------------------- telling

    def explain(self, problems: Iterable[Problem]) -> ConfigError:
        """All problems in the order of their places, each with the line that it stands in.

        What is wrong below an anchor is told once, and not again for each of its aliases.
        """
        faults = [Fault(self._spot(p.path, p.on_key), p) for p in problems]
        told = {(f.spot, f.problem.path[-1:], f.problem.message, f.problem.hint): f for f in reversed(faults)}
        return self._refusal([*reversed(told.values())])

    def _refusal(self, faults: list[Fault]) -> ConfigError:
        faults = sorted(faults, key=_order)
        lines = [f"{len(faults)} problems in {printable(self.name)}"] if len(faults) > 1 else []
        names: Names = {}
        for spot, problem in faults[:MOST_TOLD]:
            where = self._dotted(problem.path, problem.on_key, names)
            lines.append(_line(self._told_place(spot), where, problem))
            if isinstance(spot, Span) and spot is not self._values.get(()):
                lines += self._excerpt(spot)
        if len(faults) > MOST_TOLD:
            lines.append(f"and {len(faults) - MOST_TOLD:,} more")
        return ConfigError([fault.problem for fault in faults], lines)

    def _told_place(self, spot: Spot) -> str:
        at = f"{self.name}:{spot.line}:{spot.column}" if isinstance(spot, Span) else spot or self.name
        return printable(at)

    @cached_property
    def _lines(self) -> list[str]:
        return BREAKS.split(self._text)

    def _excerpt(self, span: Span) -> Iterator[str]:
        """The line of a span, cut to what is around it, and carets below."""
        line = self._lines[span.line - 1]
        column = span.column - 1
        left = max(0, column - EXCERPT // 2)
        right = left + EXCERPT
        stop = min(len(line.rstrip()) if span.stop is None else span.stop - 1, right)
        before = ("…" if left else "") + printable(line[left:column])
        marked = printable(line[column:stop])
        after = printable(line[max(stop, column) : right]) + ("…" if line[right:] else "")
        yield f"{span.line:>4} | {before}{marked}{after}".rstrip()
        yield f"     | {' ' * _width(before)}{'^' * max(1, _width(marked))}"

    def _top_level(self) -> list[Fault]:
        if self.data is None:
            hint = "`kdrun init` writes one to start from"
            return [Fault(None, Problem((), "the config is empty", hint))]
        if not isinstance(self.data, dict):
            hint = "a config is a mapping: lines such as 'name: digits', with a space after the ':'"
            noun = "a list" if isinstance(self.data, list) else "a single value"
            return [Fault(self._values[()], Problem((), f"the config is {noun}", hint))]
        return []


def _line(place: str, where: str, problem: Problem) -> str:
    message = _cut(problem.message)
    words = f"{message}; {problem.hint}" if problem.hint else message
    return printable(": ".join(part for part in (place, _cut(where), words) if part))


def _cut(text: str) -> str:
    """Words that repeat a text of the user's, of any length, without the middle of it."""
    half = WORDS // 2
    return text if len(text) <= WORDS else f"{text[:half]} … {text[-half:]}"


def _told(place: str, message: str, hint: str = "") -> ConfigError:
    problem = Problem((), message, hint)
    return ConfigError([problem], [_line(place, "", problem)])


def _order(fault: Fault) -> tuple[int, int, int]:
    """Problems of the file as a whole, those in it by place, those of the command line."""
    if isinstance(fault.spot, Span):
        return 1, fault.spot.line, fault.spot.column
    return (2 if fault.spot else 0), 0, 0


def _unreadable(path: pathlib.Path, error: Exception) -> tuple[str, str]:
    """Why a file cannot be opened, and what to do."""
    if isinstance(error, IsADirectoryError):
        return "a folder, not a file", "name the YAML file in it"
    if isinstance(error, FileNotFoundError):
        beside = [p.name for p in path.parent.glob("*.y*ml")]
        near = did_you_mean(path.name, beside, list_all=False)
        return "no such file", near or "`kdrun init` writes a config to start from"
    return f"cannot be read: {(getattr(error, 'strerror', None) or str(error)).lower()}", ""


def _names(items: list[Any]) -> list[str | None]:
    """What the items of a list are called, if anything."""
    return [_name(item) for item in items]


def _name(item: Any) -> str | None:
    names = [item.get(key) for key in ("name", "use", "kind")] if isinstance(item, dict) else [item]
    return next((name for name in names if isinstance(name, str)), None)


def _label(node: Any, part: Any, names: Names) -> str:
    """A key, or what a list's item is called: its name, where that is short and no other's, or its index.

    ``names`` keeps the lists' names, which are counted once for all items.
    """
    name = _name(node[part]) if isinstance(node, list) else None
    if not name or len(name) > EXCERPT // 2 or name.isdecimal():
        return str(part)
    if id(node) not in names:
        names[id(node)] = Counter(_names(node))
    return name if names[id(node)][name] == 1 else str(part)


def _item(items: list[Any], part: str | int) -> int | None:
    """The index of an item that is given by index or by a name that no other item has."""
    if isinstance(part, int) or re.fullmatch("[0-9]{1,9}", part):
        return int(part) if 0 <= int(part) < len(items) else None
    names = _names(items)
    return names.index(part) if names.count(part) == 1 else None


def _no_item(where: str, items: list[Any], part: str | int) -> tuple[str, str]:
    """Why a list has no such item, and which it has."""
    names = _names(items)
    if part in names:
        indices = [str(index) for index, name in enumerate(names) if name == part]
        return f"{where} has several items '{part}'", f"give the index: {', '.join(indices)}"
    known = [name for name in names if name]
    hint = did_you_mean(part, known) if known else f"it has {len(items)}, counted from 0"
    return f"{where} has no item '{part}'", hint


def _tagged(node: Any, part: str | int) -> bool:
    """Whether a path's element is not a key but the ``kind`` of the node."""
    kind = node.get("kind") if isinstance(node, dict) else node
    return isinstance(part, str) and kind == part


def _step(node: Any, path: Path) -> tuple[str | int | None, int]:
    """The key or index that a path's first elements name in a node, and how many elements those are."""
    if isinstance(path[0], int):
        return (path[0] if isinstance(node, list) and 0 <= path[0] < len(node) else None), 1
    for used in range(len(path), 0, -1):
        part = path[0] if used == 1 else ".".join(map(str, path[:used]))
        if isinstance(node, dict) and part in node:
            return part, used
        if isinstance(node, list) and (index := _item(node, part)) is not None:
            return index, used
    return None, 1


def _undotted(found: Path, rest: Path) -> Path:
    """The keys to make of a dotted rest: below a key ``set`` it is one."""
    whole = (*found[-1:], *rest)
    if "set" not in whole[:-1]:
        return rest
    start = whole.index("set") + 1 - len(found[-1:])
    return (*rest[:start], ".".join(map(str, rest[start:])))
