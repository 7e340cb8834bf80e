"""The user's config: what it means, where everything stands, and what is said about all that can be wrong."""

import os
import pathlib
import subprocess
import sys
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrun.errors import ConfigError, Problem
from kdrun.yamlsource import MAX_INTEGER, Source, as_yaml

DIGITS = """\
name: digits
seeds: [0, 1, 2]
training: {epochs: 30, optimizer: {kind: adamw, lr: 2e-3}}
teacher:
  model: {kind: mlp, hidden: [512, 256]}
methods:
  - kd
  - {name: kd-T2, use: kd, set: {kd.temperature: 2}}
  - name: mine
    losses:
      - {kind: ce, weight: 0.1}
      - kind: kd
        temperture: 4
      - hint
clip:
optimizer: adamw
"""


def digits() -> Source:
    source = Source.parse(DIGITS, "digits.yaml")
    source.alias(("teachers", "teacher"), ("teacher",))
    return source


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        Source.parse(text, "c.yaml")
    return caught.value


def set_error(*assignments: str, source: Source | None = None) -> str:
    source = source or digits()
    with pytest.raises(ConfigError) as caught:
        for assignment in assignments:
            source.override(assignment)
    assert caught.value.exit_code == 2
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- meaning


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 1e-3),
        ("1.5e3", 1500.0),
        ("2E+5", 2e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.5", -0.5),
        ("+12", 12),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("-0x1F", "-0x1F"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        (".inf", float("inf")),
        ("-.Inf", float("-inf")),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("null", None),
        ("Null", None),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("''", ""),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("<<", "<<"),
        ("[a, {b: c}]", ["a", {"b": "c"}]),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(written: str, value: object) -> None:
    read = Source.parse(f"key: {written}").data["key"]
    assert read == value
    assert type(read) is type(value)


def test_nan_is_a_number() -> None:
    assert str(Source.parse("a: .nan").data["a"]) == "nan"


def test_aliases_are_copies_and_merged_keys_give_way() -> None:
    text = "a: &a {x: 1, y: [2]}\nb: &b {x: 3, z: 4}\nc: {<<: *a, x: 5}\nd: {<<: [*b, *a]}\ne: *a\n'<<': 1\n"
    source = Source.parse(text)
    assert source.data["c"] == {"x": 5, "y": [2]}
    assert source.data["d"] == {"x": 3, "y": [2], "z": 4}
    assert source.data["<<"] == 1
    source.override("e.y.0=9")
    assert (source.data["e"]["y"], source.data["a"]["y"], source.data["c"]["y"]) == ([9], [2], [2])


def test_what_is_merged_stands_where_it_is_written() -> None:
    source = Source.parse("a: &a\n  x: 1\n  y: 2\nb:\n  <<: *a\n  y: 3\n", "c.yaml")
    assert source.place(("b", "x")) == "c.yaml:2:6"
    assert source.place(("b", "y")) == "c.yaml:6:6"
    assert source.place(("b",), on_key=True) == "c.yaml:4:1"


def test_what_is_wrong_below_an_anchor_is_told_once() -> None:
    source = Source.parse("a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 2}\n", "c.yaml")
    error = source.explain([Problem((name, key), "bad") for name in "abc" for key in "xy"])
    assert [line for line in error.lines if line.startswith("c.yaml")] == [
        "c.yaml:1:11: a.x: bad",
        "c.yaml:1:17: a.y: bad",
        "c.yaml:3:16: c.y: bad",
    ]


def test_a_byte_order_mark_and_windows_line_ends_are_read_over() -> None:
    source = Source.parse("\ufeffa: 1\r\nb: 2\r\n", "c.yaml")
    assert source.data == {"a": 1, "b": 2}
    assert [source.place((key,), on_key=True) for key in "ab"] == ["c.yaml:1:1", "c.yaml:2:1"]


# ---------------------------------------------------------------------------------------------- refusals

TAGS = "tags are not allowed: a config never runs code"
QUOTE = "put it in quotes if it is meant as text"
MAPPING = "a config is a mapping: lines such as 'name: digits', with a space after the ':'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.yaml: the config is empty; `kdrun init` writes one to start from"),
        ("# nothing\n\n", "c.yaml: the config is empty; `kdrun init` writes one to start from"),
        ("---\n", "c.yaml: the config is empty; `kdrun init` writes one to start from"),
        ("\n- 1\n", f"c.yaml:2:1: the config is a list; {MAPPING}"),
        ("name:digits\n", f"c.yaml:1:1: the config is a single value; {MAPPING}"),
        ("\ta: 1", "c.yaml:1:1: a tab cannot stand here; indent and separate with spaces"),
        ("a:\n\t- 1", "c.yaml:2:1: a tab cannot stand here; indent and separate with spaces"),
        ("a: @x", "c.yaml:1:4: text cannot start with '@'; put it in quotes"),
        (
            "a: 1\nb:2\n",
            "c.yaml:2:1: neither 'KEY: VALUE' nor a list item; the ':' after a key is followed by a space",
        ),
        (
            "a: {b:1, c: 2}",
            "c.yaml:1:5: a: a ':' without a space after it; write 'b: 1'",
        ),
        (
            "a: b: c",
            "c.yaml:1:5: a ':' cannot stand here; indent a key like its neighbours, put a space after each "
            "':', and text that contains ': ' in quotes",
        ),
        ("a: - 1", "c.yaml:1:4: a '-' cannot stand here; start a list on a line of its own"),
        ("a: 'x\nb: 2\n", "c.yaml:1:4: the quote is never closed"),
        (
            "a: [1, 2\nb: 3",
            "c.yaml:1:4: the '[' is not closed; a ',' or ']' is missing before line 2, column 2",
        ),
        ("a: {b: 1", "c.yaml:1:4: the '{' is not closed; a ',' or '}' is missing before line 1, column 9"),
        ("a: ]", "c.yaml:1:4: a value is missing before ']'"),
        (": x", "c.yaml:1:1: a key is missing before the ':'"),
        (
            "a:\n  b: 1\n c: 2",
            "c.yaml:3:2: this does not continue the block that starts in line 1, column 1; "
            "indent it like its neighbours",
        ),
        ("a: 'x' y", "c.yaml:1:8: the value has ended before this; put all of the text in quotes"),
        ('a: "C:\\data"', "c.yaml:1:8: unknown escape; use single quotes, or double each '\\'"),
        ('a: "\\UFFFFFFFF"', "c.yaml:1:7: a number or an escape that is too large"),
        ('a: "\\ud800"', "c.yaml:1:4: a: the character U+D800 cannot stand in a config"),
        ('a: "\\0"', "c.yaml:1:4: a: the character U+0000 cannot stand in a config"),
        ("a: 1\nb: \0", "c.yaml:2:4: the character U+0000 cannot stand in a config"),
        ("a: \ud800", "c.yaml:1:4: the character U+D800 cannot stand in a config"),
        ("a: *x", f"c.yaml:1:4: '*x' names no anchor above; {QUOTE}"),
        ("a: *.py", f"c.yaml:1:4: '*' and '&' are followed by the name of an anchor; {QUOTE}"),
        ("a: &x 1\nb: &x 2", "c.yaml:2:4: the anchor '&x' stands twice; the first is in line 1, column 4"),
        ("a: &x [1, *x]", "c.yaml:1:11: '*x' stands inside of what it names"),
        ("a: 1\n---\nb: 1", "c.yaml:2:1: a second document starts here; a config is one document"),
        (
            "{a: 1}\nb: 2",
            "c.yaml:2:1: this stands outside of the config; "
            "a config is one mapping, without '...' and '%' lines",
        ),
        ("a: 1\nb: 2\na: 3", "c.yaml:3:1: the key 'a' stands twice; the first is in line 1, column 1"),
        (
            "b:\n  - {a: 1, 'a': 2}",
            "c.yaml:2:12: b.0: the key 'a' stands twice; the first is in line 2, column 6",
        ),
        ("1: x", "c.yaml:1:1: the key 1 is not text; write it as text: '1'"),
        ("a: {true: x}", "c.yaml:1:5: a: the key true is not text; write it as text: 'true'"),
        ("[1]: x", "c.yaml:1:1: a list cannot be a key; a key is text"),
        ("? {a: 1}\n: x", "c.yaml:1:3: a mapping cannot be a key; a key is text"),
        ("a: !!python/object/apply:os.system [ls]", f"c.yaml:1:4: a: {TAGS}"),
        ("a: {b: !foo 1}", f"c.yaml:1:8: a.b: {TAGS}"),
        ("a: !x!y 1", f"c.yaml:1:4: {TAGS}"),
        ("!foo a: 1", f"c.yaml:1:1: {TAGS}"),
        ("a: !!binary aGk=", f"c.yaml:1:4: a: {TAGS}"),
        ("a: !!int x", "c.yaml:1:4: a: this is not what its tag says; leave the tag out"),
        ("<<: 1\na: 1", "c.yaml:1:5: '<<' takes a mapping or a list of mappings"),
        ("a: " + "9" * 5000, "c.yaml:1:4: a: a number of more than 400 digits"),
        ("a: 9007199254740992", "c.yaml:1:4: a: a whole number beyond ±9,007,199,254,740,991"),
        ("a: 0x20000000000000", "c.yaml:1:4: a: a whole number beyond ±9,007,199,254,740,991"),
        ("a: " + "[" * 100_000, "c.yaml:1:53: the config is nested deeper than 50 levels"),
        ("a: " + "{x: " * 100_000, "c.yaml:1:197: the config is nested deeper than 50 levels"),
        ("- " * 100_000, "c.yaml:1:101: the config is nested deeper than 50 levels"),
        (
            "a: [" + "1," * 50_000 + "]",
            "c.yaml:1:99999: the config grows too large; at most 50,000 keys and values",
        ),
        ("a: " + "x" * 1_000_000, "c.yaml: larger than 1 MB; a config is small: name data by its path"),
    ],
)
def test_each_refusal_says_where_and_what(text: str, message: str) -> None:
    error = refusal(text)
    assert error.lines[0] == message
    assert len(error.problems) == 1
    assert error.exit_code == 2


def test_aliases_of_aliases_cannot_grow_without_bound() -> None:
    bomb = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 12))
    assert "the config grows too large; at most 50,000 keys and values" in refusal(bomb).lines[0]
    tower = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000))
    assert "nested deeper than 50 levels" in refusal(tower).lines[0]


def test_a_fault_in_a_shared_block_is_told_once_and_several_in_order() -> None:
    error = refusal("z: !foo 1\nb: &b {x: !foo 1}\nc: *b\nd: {<<: *b}\n1: x\n")
    assert error.lines[0] == "3 problems in c.yaml"
    assert [line.split(": ")[0] for line in error.lines if line.startswith("c.")] == [
        "c.yaml:1:4",
        "c.yaml:2:11",
        "c.yaml:5:1",
    ]


# ---------------------------------------------------------------------------------------------- files


def read_error(path: pathlib.Path) -> str:
    with pytest.raises(ConfigError) as caught:
        Source.read(path)
    return str(caught.value).replace(str(path), "FILE")


def test_a_file_is_read_under_the_name_that_was_given(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("é.yaml").write_bytes("a: [é]\n".encode())
    source = Source.read(pathlib.Path("é.yaml"))
    assert source.data == {"a": ["é"]}
    assert source.place(("a", 0)) == "é.yaml:1:5"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "FILE: the config is empty; `kdrun init` writes one to start from"),
        ("a: é\nb: ".encode() + b"\xe9\n", "FILE:2:4: not UTF-8 text; save the file as UTF-8"),
        ("a: 1".encode("utf-16"), "FILE:1:1: not UTF-8 text; save the file as UTF-8"),
        (
            b"a: \0",
            "FILE:1:4: the character U+0000 cannot stand in a config\n   1 | a: \\x00\n     |    ^^^^",
        ),
    ],
)
def test_unreadable_contents(tmp_path: pathlib.Path, raw: bytes, message: str) -> None:
    (tmp_path / "c.yaml").write_bytes(raw)
    assert read_error(tmp_path / "c.yaml") == message


def test_a_huge_file_is_not_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "c.yaml"
    path.touch()
    os.truncate(path, 2**34)
    assert read_error(path) == "FILE: larger than 1 MB; a config is small: name data by its path"


def test_files_that_cannot_be_opened(tmp_path: pathlib.Path) -> None:
    (tmp_path / "digits.yaml").write_text("a: 1")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    assert read_error(tmp_path) == "FILE: a folder, not a file; name the YAML file in it"
    assert read_error(tmp_path / "digit.yml") == "FILE: no such file; did you mean 'digits.yaml'?"
    assert read_error(tmp_path / "no" / "qq") == (
        "FILE: no such file; `kdrun init` writes a config to start from"
    )
    assert read_error(tmp_path / "loop.yaml").startswith("FILE: cannot be read: ")
    assert read_error(tmp_path / "digits.yaml" / "x").startswith("FILE: cannot be read: ")
    assert read_error(tmp_path / ("x" * 5000)).startswith("FILE: cannot be read: ")
    assert "cannot be read" in read_error(pathlib.Path("a\0b"))


def test_a_file_without_permission(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    assert read_error(tmp_path / "c.yaml") == "FILE: cannot be read: permission denied"


# ---------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("path", "on_key", "place"),
    [
        ((), False, "1:1"),
        (("seeds",), True, "2:1"),
        (("seeds",), False, "2:8"),
        (("seeds", 2), False, "2:15"),
        (("training", "epochs"), False, "3:20"),
        (("training", "epochs"), True, "3:12"),
        # what is not there stands where the nearest part around it does, which is shown by its key
        (("nothing",), False, "1:1"),
        (("training", "warmup"), False, "3:1"),
        (("clip", "x", "y"), False, "15:1"),
        (("seeds", 7), False, "2:1"),
        (("seeds", -1), False, "2:1"),
        # union tags
        (("training", "optimizer", "adamw", "lr"), False, "3:53"),
        (("methods", 2, "losses", 1, "kd", "temperture"), True, "13:9"),
        (("methods", 2, "losses", 1, "kd"), False, "12:9"),
        # shorthands
        (("methods", 0, "use"), False, "7:5"),
        (("methods", 2, "losses", 2, "hint", "weight"), False, "14:9"),
        (("optimizer", "adamw", "lr"), False, "16:12"),
        (("teachers", "teacher", "model", "mlp", "hidden", 1), False, "5:36"),
        (("teachers", "teacher", "missing"), False, "4:1"),
        # keys with dots
        (("methods", 1, "set", "kd.temperature"), True, "8:34"),
    ],
)
def test_places(path: tuple[str | int, ...], on_key: bool, place: str) -> None:
    assert digits().place(path, on_key) == f"digits.yaml:{place}"


def test_a_path_as_written_goes_before_its_shorthand() -> None:
    source = Source.parse("teachers: {teacher: {a: 1}}\nteacher: {a: 2, b: 3}\n", "c.yaml")
    source.alias(("teachers", "teacher"), ("teacher",))
    assert source.place(("teachers", "teacher", "a")) == "c.yaml:1:25"
    assert source.place(("teachers", "teacher", "b")) == "c.yaml:2:20"


# ---------------------------------------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("training.epochs=3", ("training", "epochs"), 3),
        ("training.epochs = 1e1", ("training", "epochs"), 10.0),
        ("name=a=b", ("name",), "a=b"),
        ("name='3'", ("name",), "3"),
        ("name=", ("name",), None),
        ("seeds=[4, 5]", ("seeds",), [4, 5]),
        ("seeds.1=9", ("seeds",), [0, 9, 2]),
        ("training.ema.decay=.9", ("training", "ema"), {"decay": 0.9}),
        ("student.model={kind: mlp}", ("student",), {"model": {"kind": "mlp"}}),
        ("clip.norm=1", ("clip",), {"norm": 1}),
        ("training.optimizer.lr=0.1", ("training", "optimizer"), {"kind": "adamw", "lr": 0.1}),
        ("training.optimizer.adamw.lr=0.1", ("training", "optimizer"), {"kind": "adamw", "lr": 0.1}),
        ("training.optimizer.adamw=1", ("training", "optimizer"), {"kind": "adamw", "lr": 2e-3, "adamw": 1}),
        ("optimizer.lr=0.1", ("optimizer",), {"kind": "adamw", "lr": 0.1}),
        ("methods.kd-T2.set.kd.temperature=3", ("methods", 1, "set"), {"kd.temperature": 3}),
        ("methods.1.set.ce.weight=0", ("methods", 1, "set"), {"kd.temperature": 2, "ce.weight": 0}),
        ("methods.kd.set.kd.weight=1", ("methods", 0), {"use": "kd", "set": {"kd.weight": 1}}),
        ("methods.kd=hint", ("methods", 0), "hint"),
        ("methods.mine.losses.kd.weight=2", ("methods", 2, "losses", 1, "weight"), 2),
        ("methods.mine.losses.hint.weight=2", ("methods", 2, "losses", 2), {"kind": "hint", "weight": 2}),
        ("teachers.teacher.model.hidden.0=1", ("teacher", "model", "hidden"), [1, 256]),
        ("teachers.big.seed=1", ("teachers",), {"big": {"seed": 1}}),
    ],
)
def test_set_changes_one_value(assignment: str, path: tuple[str | int, ...], value: object) -> None:
    source = digits()
    source.override(assignment)
    for part in path:
        source.data = source.data[part]
    assert source.data == value
    assert type(source.data) is type(value)


def test_set_finds_what_is_written_long_under_its_short_name_and_names_with_dots() -> None:
    source = Source.parse("teachers: {teacher: {seed: 0}}\nmethods: [{name: kd-0.5, use: kd}]\n")
    source.override("teacher.seed=1", {("teachers", "teacher"): ("teacher",)})
    source.override("methods.kd-0.5.set.kd.temperature=0.5")
    assert source.data == {
        "teachers": {"teacher": {"seed": 1}},
        "methods": [{"name": "kd-0.5", "use": "kd", "set": {"kd.temperature": 0.5}}],
    }


def test_what_was_set_stands_on_the_command_line() -> None:
    source = digits()
    for assignment in ("training.optimizer={kind: sgd, lr: 1}", "training.optimizer.lr=x", "a.b.set.c.d=[1]"):
        source.override(assignment)
    places = {
        ("training",): "digits.yaml:3:11",
        ("training", "optimizer"): "--set training.optimizer={kind: sgd, lr: 1}",
        ("training", "optimizer", "sgd", "kind"): "--set training.optimizer={kind: sgd, lr: 1}",
        ("training", "optimizer", "lr"): "--set training.optimizer.lr=x",
        ("a",): "--set a.b.set.c.d=[1]",
        ("a", "b", "set", "c.d", 0): "--set a.b.set.c.d=[1]",
    }
    assert {path: source.place(path) for path in places} == places
    assert source.place(("training", "optimizer", "lr"), on_key=True) == "--set training.optimizer.lr=x"
    source.override("training=1")
    assert source.place(("training", "optimizer", "lr")) == "--set training=1"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("abc", "no '='; write KEY=VALUE, for instance --set training.epochs=3"),
        ("=3", "the key is empty or has an empty part; write it as in training.epochs"),
        ("a..b=3", "the key is empty or has an empty part; write it as in training.epochs"),
        ("a." * 60 + "a=1", "the key has more than 50 parts"),
        ("seeds=[1, 2", "the '[' is not closed; a ',' or ']' is missing before line 1, column 6"),
        ("name=!foo x", TAGS),
        ("seeds.3=5", "seeds has no item '3'; it has 3, counted from 0"),
        ("seeds.1.x=5", "seeds.1 is 1, which has no 'x'"),
        ("methods.kdd=1", "methods has no item 'kdd'; did you mean 'kd'? known: kd, kd-T2, mine"),
        ("methods.3.name=x", "methods has no item '3'; known: kd, kd-T2, mine"),
        (
            "methods.mine.losses.hnt.weight=1",
            "methods.mine.losses has no item 'hnt'; did you mean 'hint'? known: ce, hint, kd",
        ),
    ],
)
def test_set_errors_repeat_the_option(assignment: str, message: str) -> None:
    assert set_error(assignment) == f"--set {assignment}: {message}"


def test_a_name_that_two_items_have_is_not_guessed() -> None:
    source = Source.parse("losses: [ce, {kind: kd, weight: 1}, {kind: kd, weight: 2}]")
    assert set_error("losses.kd.weight=3", source=source) == (
        "--set losses.kd.weight=3: losses has several items 'kd'; give the index: 1, 2"
    )
    assert (
        source.explain([Problem(("losses", 2, "weight"), "bad")]).lines[0]
        == "<text>:1:56: losses.2.weight: bad"
    )


# ---------------------------------------------------------------------------------------------- telling


def test_one_problem_is_shown_in_its_line() -> None:
    problem = Problem(
        ("methods", 2, "losses", 1, "kd", "temperture"),
        "unknown key 'temperture'",
        "did you mean 'temperature'?",
        on_key=True,
    )
    error = digits().explain([problem])
    assert error.problems == [problem]
    assert str(error) == (
        "digits.yaml:13:9: methods.mine.losses.kd: unknown key 'temperture'; did you mean 'temperature'?\n"
        "  13 |         temperture: 4\n"
        "     |         ^^^^^^^^^^"
    )


def test_all_problems_are_told_in_the_order_of_their_places() -> None:
    source = digits()
    source.override("training.epochs=three")
    error = source.explain(
        [
            Problem(("training", "epochs"), "not a whole number"),
            Problem(("optimizer", "adamw", "lr"), "bad"),
            Problem(("teachers", "teacher", "model", "mlp", "hidden", 1), "too\nsmall \x1b[31m"),
            Problem(("dataset",), "missing"),
            Problem(("student",), "missing"),
        ]
    )
    assert error.lines == [
        "5 problems in digits.yaml",
        "digits.yaml:1:1: dataset: missing",
        "digits.yaml:1:1: student: missing",
        "digits.yaml:5:36: teacher.model.hidden.1: too\\nsmall \\x1b[31m",
        "   5 |   model: {kind: mlp, hidden: [512, 256]}",
        "     |                                    ^^^",
        "digits.yaml:16:12: optimizer.lr: bad",
        "  16 | optimizer: adamw",
        "     |            ^^^^^",
        "--set training.epochs=three: training.epochs: not a whole number",
    ]
    assert [problem.path[0] for problem in error.problems] == [
        "dataset",
        "student",
        "teachers",
        "optimizer",
        "training",
    ]


def test_long_lines_are_cut_around_the_problem_and_carets_stay_below_it() -> None:
    source = Source.parse("a: [" + "1, " * 400 + "]")
    _, line, carets = source.explain([Problem(("a", 200), "bad")]).lines
    assert len(line) < 130
    assert line.startswith("   1 | …")
    assert line.endswith("…")
    assert (line[len(carets) - 1], line[len(carets) :][:1]) == ("1", ",")
    _, line, carets = Source.parse("{'漢\u200b': x, y: bad}").explain([Problem(("y",), "bad")]).lines
    assert line == "   1 | {'漢\\u200b': x, y: bad}"
    assert carets == "     | " + " " * (len("{'__\\u200b': x, y: ")) + "^^^"


def test_a_value_on_several_lines_is_marked_on_its_first() -> None:
    source = Source.parse("a:\n  - b  # why\n  - c\n")
    assert source.explain([Problem(("a",), "bad")]).lines[1:] == [
        "   2 |   - b  # why",
        "     |   ^^^^^^^^^^",
    ]


# ---------------------------------------------------------------------------------------------- any input

SNIPPETS = st.sampled_from(
    [
        *"ab:-[]{},?!&*#|>@`%'\"\\~09 \n\t\r\x85\u2028\ufeffé",
        *(
            "\n  ",
            "\n- ",
            ": ",
            "- ",
            ", ",
            "<<",
            "---",
            "\n--- ",
            "...",
            "1e5",
            "&a ",
            "*a",
            "a: &a [",
            "\n<<: *a",
        ),
        *("!!int ", "!<x>", "|2", ">-", "\\x", "\\U", "%YAML ", "\nb: "),
    ]
)


@settings(max_examples=300, deadline=5000)
@given(st.one_of(st.text(), st.lists(SNIPPETS, max_size=30).map("".join)))
def test_any_text_ends_in_a_config_or_a_config_error(text: str) -> None:
    for config in (text, f"x: 1\n{text}"):
        try:
            source = Source.parse(config)
        except ConfigError as error:
            assert error.lines and all(line.isprintable() for line in error.lines)
        else:
            assert isinstance(source.data, dict)
    for assignment in (text, f"a.b.y={text}"):
        source = Source.parse("a: {b: [x, {name: y}]}")
        try:
            source.override(assignment)
        except ConfigError as error:
            assert all(line.startswith("--set ") and line.isprintable() for line in error.lines)


TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    st.sampled_from(
        ["no", "yes", "1e-3", "12:30:45", "0o17", "089", "~", "null", "true", "<<", "=", ".inf", "1."]
    ),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-MAX_INTEGER, MAX_INTEGER), st.floats(allow_nan=False), TEXT
)


def nested(leaves: st.SearchStrategy) -> st.SearchStrategy:
    items = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
        max_leaves=20,
    )
    return st.dictionaries(TEXT, items, min_size=1, max_size=5)


class Dumper(yaml.SafeDumper):
    """Quotes every text but plain words: PyYAML leaves ``1e-3`` plain, which is text in YAML 1.1 only."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        plain = text.isalpha() and text.lower() not in ("true", "false", "null")
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


Dumper.add_representer(str, Dumper.represent_text)


@settings(max_examples=150, deadline=5000)
@given(nested(SCALARS), st.booleans())
def test_what_was_dumped_is_read_back(data: dict[str, object], flow: bool) -> None:
    assert Source.parse(yaml.dump(data, Dumper=Dumper, default_flow_style=flow)).data == data


@settings(max_examples=150, deadline=5000)
@given(nested(st.just("leaf")), st.sampled_from([True, False, None]))
def test_every_leaf_and_key_is_found_where_it_was_written(data: dict[str, object], flow: bool | None) -> None:
    leaves: dict[tuple[str | int, ...], str] = {}

    def number(node: object, path: tuple[str | int, ...]) -> object:
        if isinstance(node, dict):
            return {f"key{i}": number(child, (*path, f"key{i}")) for i, child in enumerate(node.values())}
        if isinstance(node, list):
            return [number(child, (*path, i)) for i, child in enumerate(node)]
        return leaves.setdefault(path, f"leaf{len(leaves)}.")

    text = yaml.dump(number(data, ()), Dumper=Dumper, default_flow_style=flow)
    source = Source.parse(text, "c")

    def at(place: str) -> str:
        _, line, column = place.split(":")
        return text.split("\n")[int(line) - 1][int(column) - 1 :]

    for path, leaf in leaves.items():
        assert at(source.place(path)).startswith(f'"{leaf}"')
        if isinstance(path[-1], str):
            assert at(source.place(path, on_key=True)).startswith(f'"{path[-1]}": "{leaf}"')


def test_a_large_config_is_read_in_a_moment() -> None:
    start = time.perf_counter()
    Source.parse("".join(f"k{i}: {{a: 1, b: [x, 2.5]}}\n" for i in range(2000)))
    assert time.perf_counter() - start < 5


def test_neither_torch_nor_pydantic_is_loaded() -> None:
    code = "import sys, kdrun.yamlsource; sys.exit(bool({'torch', 'pydantic', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------- writing


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
)
TEXTS = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=20) | st.sampled_from(
    ["1e-3", "no", "12:30:45", "0o17", "~", "true", "- a", "# a", "<<", "", "1_000", ".5", "a: b"]
)


@given(
    st.dictionaries(
        TEXTS,
        st.recursive(
            PLAIN | TEXTS,
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
            max_leaves=12,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_written_reads_back_as_the_same(data):
    assert Source.parse(as_yaml(data)).data == data


def test_what_is_short_is_written_on_a_line():
    data = {"name": "a", "methods": [{"use": "kd", "set": {"kd.weight": 0.5}}], "seeds": list(range(60))}
    head, method, *rest = as_yaml(data).splitlines()
    assert (head, method) == ("name: a", "methods: [{use: kd, set: {kd.weight: 0.5}}]")
    assert rest[:2] == ["seeds:", "- 0"]
