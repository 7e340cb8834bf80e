"""The commands: streams, exit codes, messages, and what each of them promises."""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from importlib import metadata
from pathlib import Path

import pytest
import torch
import typer

import kdrun
from commands import TINY, command, process, surroundings
from kdrun import checking, cli, config, listing, registry
from kdrun.console import Console
from kdrun.errors import (
    ConfigError,
    DataError,
    DeviceError,
    Interrupted,
    KdrunError,
    StoreError,
    TrainingError,
    UsageError,
    WeightsError,
)
from kdrun.report import table
from kdrun.store import Store
from support import checked

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(typer.main.get_command(cli.app).commands)
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture
def tiny(tmp_path):
    """A folder with a config and nothing that was run."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder in which ``compare`` ran; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "tiny.yaml").write_text(TINY)
    assert command("compare", "tiny.yaml", folder=folder).code == 0
    return folder


@pytest.fixture
def done_again(done, tmp_path):
    """A copy of it, for tests that add to it."""
    return shutil.copytree(done, tmp_path, dirs_exist_ok=True)


def runs(folder):
    """The runs that ``status`` tells of, by their folder."""
    return told_of("run", folder)


def told_of(kind, folder):
    told = json.loads(command("status", "--json", folder=folder).out)
    return {entry["folder"]: entry for entry in told if entry["kind"] == kind}


# ------------------------------------------------------------------------------------ help and options


def test_there_are_the_nine_commands():
    expected = "train-teacher distill compare check init list layers status clean"
    assert set(COMMANDS) >= set(expected.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, tmp_path):
    told = command(name, "--help", folder=tmp_path)
    assert (told.code, told.err) == (0, "")
    assert f"Example: kdrun {name}" in told.out
    assert command(name, "-h", folder=tmp_path).out == told.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name):
    assert f"kdrun {name}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["train-teacher", "distill", "compare"])
def test_commands_that_train_share_their_options(name, tmp_path):
    told = command(name, "--help", folder=tmp_path).out
    for option in ("--out", "--device", "--seeds", "--set", "--json", "--quiet", "--plugin"):
        assert option in told


def test_version(tmp_path):
    assert command("--version", folder=tmp_path) == (0, f"kdrun {kdrun.__version__}\n", "")


def test_no_command_shows_the_commands(tmp_path):
    told = command(folder=tmp_path)
    assert told.code == 2
    assert all(name in told.out + told.err for name in COMMANDS)
    assert told.err.rstrip() != "error:"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["comapre", "x.yaml"], "'compare'"),
        (["compare"], "CONFIG"),
        (["compare", "x.yaml", "--nope"], "--nope"),
        (["compare", "a/gone.yaml"], "a/gone.yaml: no such file; `kdrun init`"),
        (["compare", "tini.yaml"], "did you mean 'tiny.yaml'?"),
        (["compare", "tiny.yaml", "--seeds", "0,one"], "'one' is not a whole number"),
        (["compare", "tiny.yaml", "--device", "gpu"], "known: auto, cpu, cuda, cuda:1, mps"),
        (
            ["distill", "tiny.yaml", "--method", "kdd"],
            "--method kdd: the config has no such method; did you mean 'kd'?",
        ),
        (["list", "lossez"], "list lossez: there is no such list; did you mean 'losses'?"),
        (["init", "--template", "mnits"], "--template mnits: there is no such config; did you mean 'mnist'?"),
        (["init", "tiny.yaml"], "tiny.yaml: is there already; write another name, or --force"),
        (["compare", "tiny.yaml", "tiny.yaml"], "2 of the configs are named 'tiny'"),
        (["compare", "tiny.yaml", "--no-train", "--set", "training.epochs=2"], "--no-train"),
    ],
)
def test_a_wrong_command_line_is_one_message(tiny, arguments, words):
    told = command(*arguments, folder=tiny)
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith("error: ")
    assert len(told.err.splitlines()) == 1
    assert words in told.err
    assert not (tiny / "runs").exists()


@pytest.mark.parametrize(("missing", "name"), [("student", "distill"), ("teacher", "train-teacher")])
def test_a_config_without_what_a_command_is_about(tiny, missing, name):
    text = "\n".join(line for line in TINY.splitlines() if not line.startswith((missing, "methods")))
    (tiny / "tiny.yaml").write_text(text)
    told = command(name, "tiny.yaml", folder=tiny)
    assert (told.code, told.err) == (2, f"error: tiny.yaml: names no {missing}; add `{missing}:`\n")


# ------------------------------------------------------------------------------- exit codes and streams


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KdrunError("it"), 1),
        (DataError("it"), 1),
        (WeightsError("it"), 1),
        (DeviceError("it"), 1),
        (StoreError("it"), 1),
        (TrainingError("it"), 1),
        (UsageError("it"), 2),
        (ConfigError([], ["it"]), 2),
        (Interrupted("it", 130), 130),
        (Interrupted("it", 143), 143),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_every_failure_has_its_exit_code(monkeypatch, tmp_path, error, code):
    def fails(**_):
        raise error

    monkeypatch.setattr(cli, "app", fails)
    asked_for = isinstance(error, Interrupted)
    assert command(folder=tmp_path) == (code, "", "it\n" if asked_for else "error: it\n")


def test_a_programmers_error_is_no_message(monkeypatch, tmp_path):
    def fails(**_):
        raise AssertionError("kdrun is wrong")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(AssertionError):
        command(folder=tmp_path)


def test_an_interrupt_before_training_ends_at_once_with_130(tmp_path):
    """Also where an exception would be caught, or would make torch's import abort."""
    code = (
        "import os, signal; from kdrun import cli; from kdrun.store import housekeeping\n"
        "def entries(_):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    except KeyboardInterrupt: return []\n"
        "housekeeping.entries = entries\n"
        "cli.main()"
    )
    assert process("status", folder=tmp_path, code=code) == (
        130,
        "",
        "\nSIGINT: stopped; what was finished is stored\n",
    )


def test_a_missing_gpu_is_one_message(monkeypatch, tiny):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("compare", "check"):
        assert command(name, "tiny.yaml", "--device", "cuda", folder=tiny) == (
            1,
            "",
            "error: device 'cuda': this machine has no GPU that torch can use; "
            "write --device cpu, or --device auto\n",
        )


def test_a_gpu_that_is_not_there_is_one_message(monkeypatch, tiny):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    told = command("compare", "tiny.yaml", "--device", "cuda:1", folder=tiny)
    assert (told.code, told.out) == (1, "")
    assert told.err.startswith("error: device 'cuda:1': this machine has 1 GPU(s)")


def test_a_folder_that_cannot_be_written_is_one_message(tiny):
    (tiny / "taken").write_text("a file, no folder")
    told = command("init", "taken/my.yaml", folder=tiny)
    assert told.code == 1
    assert told.err.startswith("error: taken/my.yaml: cannot be written: taken is a file; it needs ")


def test_runs_that_cannot_be_written_are_one_message(tiny):
    (tiny / "taken").write_text("a file, no folder")
    told = command("compare", "tiny.yaml", "--quiet", "--out", "taken/runs", folder=tiny)
    assert (told.code, len(told.err.splitlines())) == (1, 1)
    assert "cannot be written" in told.err
    told = command("compare", "tiny.yaml", "--quiet", "--out", "taken", folder=tiny)
    assert (told.code, told.err) == (2, "error: --out taken: is a file; name a folder\n")


def test_what_cannot_be_written_can_be_read(tiny):
    assert command("compare", "tiny.yaml", "--quiet", "--seeds", "0", folder=tiny).code == 0
    whole = command("compare", "tiny.yaml", "--no-train", folder=tiny).out
    (tiny / "runs/tiny/comparison.json").unlink()
    (tiny / "runs/tiny/comparison.json").mkdir()
    told = command("compare", "tiny.yaml", "--no-train", folder=tiny)
    assert (told.code, told.out) == (1, whole)
    assert "comparison.json: cannot be written: " in told.err


def test_a_comparison_needs_no_costs_and_no_provenance(tiny):
    assert command("compare", "tiny.yaml", "--quiet", "--seeds", "0", folder=tiny).code == 0
    for name in ("costs", "provenance"):
        (tiny / f"runs/tiny/{name}.json").write_text("{")
    told = command("compare", "tiny.yaml", "--no-train", "--json", folder=tiny)
    assert told.code == 0 and len(json.loads(told.out)["rows"]) == 3
    assert all(f"{name}.json: is damaged" in told.err for name in ("costs", "provenance"))


def test_provenance_tells_of_the_command_that_trained(tiny):
    def origin():
        return json.loads((tiny / "runs/tiny/provenance.json").read_text())["command"]

    for words in (["--seeds", "0"], ["--seeds", "0", "--quiet"], ["--seeds", "0,1"]):
        assert command("compare", "tiny.yaml", *words, folder=tiny).code == 0
        assert origin()[3:] == (["--seeds", "0,1"] if "0,1" in words else ["--seeds", "0"])


def test_the_config_as_it_is_comes_last(tiny):
    """Or a process that is killed in between leaves it beside the runs of another."""
    assert command("compare", "tiny.yaml", "--quiet", "--seeds", "0", folder=tiny).code == 0
    (tiny / "tiny.yaml").write_text((tiny / "tiny.yaml").read_text() + "# changed\n")
    words = ["distill", "tiny.yaml", "--quiet", "--seeds", "0,1"]
    assert process(*words, folder=tiny, KDRUN_KILL_AT="resolved.json/opened").code == -signal.SIGKILL
    told = command("compare", "tiny.yaml", "--no-train", folder=tiny)
    assert told.code == 0 and "has changed since it was run" in told.err


def test_matplotlib_draws_reports_as_it_comes(tiny):
    (tiny / "matplotlibrc").write_text("text.usetex: True\nsvg.fonttype: path\n")
    assert command("compare", "tiny.yaml", "--quiet", "--seeds", "0", folder=tiny).code == 0
    report = (tiny / "runs/tiny/report.html").read_bytes()
    told = process("compare", "tiny.yaml", "--no-train", folder=tiny)
    assert told.code == 0, told.err
    assert (tiny / "runs/tiny/report.html").read_bytes() == report


def test_a_folder_whose_name_is_no_text(tiny):
    told = process(
        "compare", "tiny.yaml", "--quiet", "--seeds", "0", "--out", os.fsdecode(b"r\xff"), folder=tiny
    )
    assert told.code == 0, told.err
    assert (tiny / os.fsdecode(b"r\xff") / "tiny/report.html").is_file()


@pytest.mark.parametrize("said", ["30s", "-1", "nan", ""])
def test_the_time_between_checkpoints_is_a_number(tiny, said, monkeypatch):
    monkeypatch.setenv("KDRUN_CHECKPOINT_SECONDS", said)
    told = command("train-teacher", "tiny.yaml", "--quiet", folder=tiny)
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith(f"error: KDRUN_CHECKPOINT_SECONDS={said}: is no number of seconds; write 30, ")


def test_nothing_of_a_repository_is_run_for_its_revision(tiny):
    """Neither what watches its files nor what its files go through; git runs both to see whether something changed."""
    for words in (
        ["init", "-q"],
        ["config", "core.fsmonitor", "touch ran; :"],
        ["config", "filter.x.clean", "touch ran; cat"],
        ["config", "user.email", "a@b.c"],
        ["config", "user.name", "a"],
        ["-c", "core.fsmonitor=", "commit", "-q", "--allow-empty", "-m", "a"],
    ):
        subprocess.run(["git", *words], cwd=tiny, check=True)
    (tiny / ".gitattributes").write_text("* filter=x\n")
    subprocess.run(["git", "-c", "core.fsmonitor=", "add", "tiny.yaml"], cwd=tiny, check=True)
    (tiny / "ran").unlink(missing_ok=True)
    os.utime(tiny / "tiny.yaml", (0, 0))
    assert process("train-teacher", "tiny.yaml", "--quiet", folder=tiny).code == 0
    assert not (tiny / "ran").exists()
    origin = json.loads((tiny / "runs/tiny/provenance.json").read_text())
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tiny, check=True, capture_output=True, text=True
    )
    assert revision.stdout.startswith(origin["git"])


def test_a_student_that_is_not_finite_is_told_and_the_others_go_on(tiny):
    wild = "students.wild={model: mlp, training: {optimizer: {kind: sgd, lr: 1e30, momentum: 0}}}"
    text = TINY.replace("student: {", "students:\n  student: {")
    (tiny / "tiny.yaml").write_text(text)
    told = command("compare", "tiny.yaml", "--quiet", "--seeds", "0", "--set", wild, folder=tiny)
    assert told.code == 1
    assert re.search(r"^wild/kd/seed 0: stopped: the term '(kd|ce)' is not finite in epoch 1", told.err, re.M)
    assert "wild kd" in told.out and "failed" in told.out
    states = {name: entry["state"] for name, entry in runs(tiny).items()}
    assert states["runs/tiny/students/wild/kd/seed-0"] == "failed"
    assert states["runs/tiny/students/student/kd/seed-0"] == "finished"
    assert "not finite" in command("status", folder=tiny).out


def test_stdout_is_the_table_and_stderr_the_progress(tiny):
    told = command("compare", "tiny.yaml", folder=tiny)
    assert told.code == 0
    heading, head, *lines = told.out.partition("\n\n")[0].splitlines()
    assert heading.startswith("tiny: accuracy on 30 test samples")
    assert head.split()[:3] == ["role", "model", "teacher"]
    assert [line.split()[0] for line in lines] == ["teacher", "control", "student"]
    assert "teacher/seed 0: epoch 1/1" in told.err, "a plain line an epoch where there is no terminal"
    assert "written to runs/tiny/report.html" in told.err


@pytest.mark.parametrize("name", ["train-teacher", "distill", "compare", "check", "layers"])
def test_json_is_all_that_is_on_stdout(done, name):
    told = command(name, "tiny.yaml", "--json", folder=done)
    assert told.code == 0
    assert json.loads(told.out)


@pytest.mark.parametrize("name", ["train-teacher", "distill", "compare", "check"])
def test_quiet_leaves_stderr_empty(tiny, name):
    told = command(name, "tiny.yaml", "--quiet", "--seeds", "0", folder=tiny)
    assert (told.code, told.err) == (0, "")
    assert told.out


def test_json_holds_the_rows_that_the_command_is_about(done):
    def roles(*arguments):
        rows = json.loads(command(*arguments, "--json", folder=done).out)["rows"]
        return [(row["role"], row["method"]) for row in rows]

    assert roles("train-teacher", "tiny.yaml") == [("teacher", None)]
    assert roles("distill", "tiny.yaml") == [("control", "alone"), ("student", "kd")]
    assert roles("compare", "tiny.yaml") == [("teacher", None), ("control", "alone"), ("student", "kd")]


def test_distill_trains_the_methods_that_are_named_and_the_control(tiny):
    (tiny / "tiny.yaml").write_text(TINY.replace("[kd]", "[kd, logit-mse, rkd]"))
    arguments = ("distill", "tiny.yaml", "--seeds", "1", "--method", "rkd", "--method", "kd")
    rows = json.loads(command(*arguments, "--json", folder=tiny).out)["rows"]
    assert [row["method"] for row in rows] == ["alone", "kd", "rkd"]
    assert sorted(folder.removeprefix("runs/tiny/") for folder in runs(tiny)) == [
        "students/student/alone/seed-1",
        "students/student/kd/seed-1",
        "students/student/rkd/seed-1",
        "teachers/teacher/seed-0",
    ]


def test_train_teacher_trains_no_student(tiny):
    assert command("train-teacher", "tiny.yaml", "--quiet", folder=tiny).code == 0
    assert list(runs(tiny)) == ["runs/tiny/teachers/teacher/seed-0"]


# -------------------------------------------------------------------------------------------- terminals


def on_terminal(*arguments, folder, columns, code="from kdrun.cli import main; main()", **environment):
    """What a command shows on a terminal of so many columns, with its escapes."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    wanted = surroundings(COLUMNS=None, LINES=None, NO_COLOR=None, TERM="xterm") | environment
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=wanted,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    ) as running:
        os.close(slave)
        shown = b""
        while part := _read(master):
            shown += part
    os.close(master)
    assert running.returncode == 0, shown.decode()
    return shown.decode().replace("\r\n", "\n")


def _read(master):
    try:
        return os.read(master, 65536)
    except OSError:  # Linux says so where the other side is closed
        return b""


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def cells(line):
    return re.split(" {2,}", line.strip())


@pytest.mark.parametrize("columns", [60, 100])
def test_a_narrow_terminal_breaks_no_cell(done, columns):
    wide = command("compare", "tiny.yaml", "--no-train", folder=done).out.splitlines()
    shown = plain(
        on_terminal("compare", "tiny.yaml", "--no-train", folder=done, columns=columns)
    ).splitlines()
    table = [line for line in shown[: shown.index("")] if not line.startswith(("written", "tiny:"))]
    wide = wide[: wide.index("")]
    assert max(map(len, table)) <= columns
    assert {cell for line in wide[1:] for cell in cells(line)} == {c for line in table for c in cells(line)}
    pieces = sum(line.startswith("role") for line in table)
    assert pieces == sum("student kd" in line for line in table) > 1


@pytest.mark.parametrize("columns", ["60", "200"])
def test_a_table_that_is_piped_is_as_wide_as_it_needs_to_be(done, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    wide = [f"{{kind: ce, name: a-term-with-quite-a-long-name-{n}}}" for n in range(12)]
    mix = f"methods=[{{name: long, losses: [{', '.join(wide)}]}}]"
    told = command("check", "tiny.yaml", "--set", mix, folder=done).out
    line = next(line for line in told.splitlines() if " long " in line)
    assert line.count("a-term-with-quite-a-long-name") == 12
    assert "…" not in told


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_progress_on_a_narrow_terminal_cuts_no_figure(monkeypatch, capsys, columns):
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": columns}.items():
        monkeypatch.setenv(name, value)
    console = Console()
    with console.training(
        "student: 13 students in lock step, seed 12", steps=123_456, done=98_765, epochs=30
    ):
        console.step(128 * 13)
    last = re.split(r"[\r\n]+", plain(capsys.readouterr().err).strip())[-2].rstrip()
    assert len(last) <= int(columns)
    assert re.search(r" 98766/123456 [\d,]+ samples/s \S+:\S\S$", last), last
    assert last.startswith(
        "student: 13 students in lock step, seed 12" if columns == "120" else ("student", "…")
    )


@pytest.mark.parametrize(("variable", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_respected(monkeypatch, capsys, variable, coloured):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    Console().warn("look here")
    said = capsys.readouterr().err
    assert "look here" in said
    assert bool(re.search(r"\x1b\[[0-9;]*3\d", said)) == coloured


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["compare", "tiny.yaml", "--no-train"], ["status", "--json"]],
)
def test_a_reader_that_has_left_is_no_traceback(done, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-c", "from kdrun.cli import main; main()", *arguments],
        cwd=done,
        env=surroundings(PYTHONUNBUFFERED=None),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert ended.returncode == 1
    assert not re.search("Traceback|Exception|BrokenPipe", ended.stderr)


# ------------------------------------------------------------------------------------------------- init


def test_init_writes_a_config_that_fits_as_it_is(tmp_path):
    told = command("init", "my.yaml", folder=tmp_path)
    assert (told.code, told.out) == (0, "")
    assert told.err == "my.yaml is written; next: kdrun compare my.yaml\n"
    assert "everything fits" in command("check", "my.yaml", folder=tmp_path).out
    assert (tmp_path / "my.yaml").read_text().count("#") > 10, "the starter is commented"


def test_init_has_a_name_of_its_own(tmp_path):
    assert command("init", folder=tmp_path).code == 0
    assert (tmp_path / "kdrun.yaml").is_file()


def test_init_never_overwrites_unless_told_to(tiny):
    assert command("init", "tiny.yaml", folder=tiny).code == 2
    assert (tiny / "tiny.yaml").read_text() == TINY
    assert command("init", "tiny.yaml", "--force", folder=tiny).code == 0
    assert (tiny / "tiny.yaml").read_text() != TINY


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.stem)
def test_init_writes_every_shipped_config(tmp_path, shipped):
    assert command("init", "my.yaml", "--template", shipped.stem, folder=tmp_path).code == 0
    assert (tmp_path / "my.yaml").read_text() == shipped.read_text()


# ------------------------------------------------------------------------------------ list, layers, check


FAMILIES = {"losses": "loss", "models": "model", "datasets": "dataset"}


@pytest.mark.parametrize("what", FAMILIES)
def test_list_shows_every_kind_with_its_options(tmp_path, what):
    told = command("list", what, folder=tmp_path).out
    family = registry.FAMILIES[FAMILIES[what]]
    for kind in family:
        assert re.search(rf"(^|[ ,]){re.escape(kind)}(,|$)", told, re.M), kind
        for option, *_ in listing.options(family[kind].Config, leave_out=set()):
            assert option in told, f"{kind}.{option}"


def test_list_losses_names_the_papers(tmp_path):
    told = " ".join(command("list", "losses", folder=tmp_path).out.split())
    for component in registry.LOSSES.classes():
        assert re.search(r"(19|20)\d\d", component.__doc__), component
        source = re.search(r"(Source|Sources): (.{20})", " ".join(component.__doc__.split()))
        assert source[2] in told, component


def test_list_methods_shows_the_mix_and_the_paper(tmp_path):
    told = command("list", "methods", folder=tmp_path).out
    for name, published in config.published_methods().items():
        assert re.search(rf"^  {re.escape(name)}$", told, re.M)
        assert published.source in told
    assert "{kind: kd, weight: 0.9, temperature: 4}" in told


def test_list_without_a_family_shows_all_of_them(tmp_path):
    told = command("list", folder=tmp_path).out
    parts = [command("list", what, folder=tmp_path).out for what in (*FAMILIES, "methods")]
    assert told == "".join(parts)


def test_list_as_json(tmp_path):
    told = json.loads(command("list", "--json", folder=tmp_path).out)
    assert set(told) == {*FAMILIES, "methods"}
    names = [name for entry in told["models"] for name in entry["names"]]
    assert sorted(names) == list(registry.MODELS)


def test_list_schema_is_the_configs(tmp_path):
    schema = json.loads(command("list", "--schema", folder=tmp_path).out)
    assert {"teacher", "student", "methods", "dataset"} <= set(schema["properties"])


def test_layers_shows_teacher_and_student_side_by_side(tiny):
    told = command("layers", "tiny.yaml", folder=tiny).out.splitlines()
    assert cells(told[1]) == ["teacher teacher", "student student"]
    assert ["classifier: 3", "classifier: 3"] in [cells(line) for line in told]
    tables = json.loads(command("layers", "tiny.yaml", "--json", folder=tiny).out)
    assert tables["teacher teacher"]["body.0"] == [8]
    assert tables["student student"]["body.0"] == [4]


def test_check_says_what_is_large_and_what_is_to_do(done_again):
    (done_again / "more.yaml").write_text(TINY.replace("[kd]", "[kd, hint]"))
    told = json.loads(command("check", "more.yaml", "--json", folder=done_again).out)
    rows = {row["method"]: row for row in told["rows"]}
    assert {method: row["to_train"] for method, row in rows.items()} == {
        None: 0,
        "alone": 0,
        "kd": 0,
        "hint": 2,
    }
    assert rows["alone"]["parameters"] == 8 * 4 + 4 + 4 * 3 + 3
    assert rows["hint"]["adapter_parameters"] > 0 == rows["kd"]["adapter_parameters"]
    assert set(rows["hint"]["terms"]) == {"ce", "hint"}
    assert rows["kd"]["steps"] == 3
    assert told["seconds"] == pytest.approx(rows["hint"]["seconds"])
    assert 0.5 < rows["alone"]["terms"]["ce"] < 3, "of one step, near ln 3"


@pytest.mark.parametrize("cache, passes", [("true", 1), ("false", 3 * 2)])
def test_check_counts_a_teacher_that_is_looked_up_once(tmp_path, cache, passes):
    """And one that is asked live in each epoch of each seed."""
    overrides = ["training.epochs=3", "seeds=[0, 1]", f"training.cache={cache}"]
    told = checking.check(checked(TINY, *overrides), Store(tmp_path), Console(quiet=True))
    (kd,) = [one for one in told.rehearsed if one.run.method == "kd"]
    steps = told.steps[kd.run.kin]
    assert told._asked(kd) == passes * steps / 3
    company = 2  # the control counts as one that shares the teacher
    own = kd.step_seconds * steps * 2
    assert told.seconds(kd) == pytest.approx(own + kd.teacher_seconds * told._asked(kd) / company)


def test_check_estimates_memory_with_the_activations(tiny):
    small, large = (
        json.loads(
            command("check", "tiny.yaml", "--json", "--set", f"training.batch_size={n}", folder=tiny).out
        )
        for n in (10, 100)
    )
    weights = small["memory_bytes"] - (large["memory_bytes"] - small["memory_bytes"]) / 9
    assert large["memory_bytes"] - small["memory_bytes"] >= 90 * (4 + 8) * 4, (
        "a batch's inputs and hidden values"
    )
    assert weights > 0


def test_check_writes_nothing(tiny):
    assert command("check", "tiny.yaml", folder=tiny).code == 0
    assert [path.name for path in tiny.iterdir()] == ["tiny.yaml"]


# ------------------------------------------------------------------------------------- status and clean


def test_status_tells_every_run(done):
    found = runs(done)
    assert len(found) == 1 + 2 * 2
    for folder, entry in found.items():
        assert entry["state"] == "finished"
        assert entry["progress"] == 1
        files = [path for path in (done / folder).rglob("*") if path.is_file()]
        assert entry["bytes"] == sum(path.stat().st_size for path in files)
    assert command("status", folder=done).out.splitlines()[0] == "5 runs under runs"


def test_status_of_nothing(tmp_path):
    assert runs(tmp_path) == {}
    assert command("status", folder=tmp_path).out.startswith("0 runs under runs")


def unfinished(folder, name, fingerprint):
    """A run that was begun and has a checkpoint, as a killed process leaves it."""
    place = folder / "runs" / "tiny" / "students" / "student" / name / "seed-0"
    (place / "checkpoint-30").mkdir(parents=True)
    begun = {"fingerprint": fingerprint, "inputs": {}, "total_steps": 40}
    (place / "begun.json").write_text(json.dumps(begun))
    return place


@pytest.fixture
def littered(tiny):
    """Finished runs that the config asks for, one that it asks for no more, and one that never finished."""
    assert command("compare", "tiny.yaml", "--quiet", "--seeds", "0", folder=tiny).code == 0
    (tiny / "tiny.yaml").write_text(TINY.replace("[kd]", "[logit-mse]"))
    assert command("compare", "tiny.yaml", "--quiet", "--seeds", "0", folder=tiny).code == 0
    unfinished(tiny, "slow", "f" * 64)
    return tiny


def test_status_tells_how_far_an_unfinished_run_is(littered):
    entry = runs(littered)["runs/tiny/students/student/slow/seed-0"]
    assert (entry["state"], entry["progress"]) == ("unfinished", 0.75)


def test_clean_shows_what_it_would_delete_and_deletes_nothing(littered):
    before = runs(littered)
    told = command("clean", folder=littered)
    assert told.code == 2
    assert "add --yes" in told.err
    assert [line.split()[0] for line in told.out.splitlines()] == [
        "runs/tiny/students/student/kd/seed-0",
        "runs/tiny/students/student/slow/seed-0",
    ]
    assert runs(littered) == before


def test_clean_deletes_what_nobody_needs_and_nothing_else(littered):
    before = runs(littered)
    assert command("clean", "--yes", folder=littered).code == 0
    gone = {"runs/tiny/students/student/kd/seed-0", "runs/tiny/students/student/slow/seed-0"}
    assert runs(littered) == {folder: entry for folder, entry in before.items() if folder not in gone}
    assert not (littered / "runs/tiny/students/student/slow").exists()
    assert command("compare", "tiny.yaml", "--no-train", folder=littered).code == 0
    assert command("clean", "--yes", folder=littered).err == "nothing to delete under runs\n"


def test_the_cache_is_listed_and_cleaned_only_when_asked_for(tiny):
    assert command("compare", "tiny.yaml", "--quiet", "--seeds", "0", folder=tiny).code == 0
    ((folder, entry),) = told_of("cache", tiny).items()
    assert entry["state"] == "kept" and entry["detail"] == "logits of the teacher 'teacher'"
    (tiny / "runs/cache/.left.x.making").mkdir()
    (tiny / "runs/cache/.left.x.making/lock").touch()
    (tiny / "runs/cache/notes.txt").write_text("mine")
    lines = command("status", folder=tiny).out.splitlines()
    assert any(line.startswith("3 in runs/cache, to be read again") for line in lines)
    assert [line.split()[:2] for line in lines[-3:]] == [
        [".left.x.making", "unfinished"],
        [folder.rpartition("/")[2], "kept"],
        ["notes.txt", "foreign"],
    ]
    assert command("clean", "--yes", folder=tiny).out == "runs/cache/.left.x.making (unfinished, 0 B)\n"
    before = runs(tiny)
    told = command("clean", "--cache", folder=tiny)
    assert told.code == 2 and "add --yes" in told.err and told.out.startswith(f"{folder} (kept, ")
    assert command("clean", "--cache", "--yes", folder=tiny).err.startswith("deleted 1 of the cache (")
    assert [path.name for path in (tiny / "runs/cache").iterdir()] == ["notes.txt"]
    assert runs(tiny) == before


def test_clean_leaves_the_way_to_a_run_that_is_finished_elsewhere(tiny):
    """A run was killed here and finished under another config: the other one stays findable."""
    assert command("compare", "tiny.yaml", "--quiet", "--seeds", "0", folder=tiny).code == 0
    finished = next(entry for folder, entry in runs(tiny).items() if "/kd/" in folder)
    unfinished(tiny, "begun-twice", finished["fingerprint"])
    assert command("clean", "--yes", folder=tiny).code == 0
    (tiny / "other.yaml").write_text(TINY.replace("name: tiny", "name: other"))
    told = command("check", "other.yaml", "--seeds", "0", "--json", folder=tiny)
    assert {row["to_train"] for row in json.loads(told.out)["rows"]} == {0}


# ---------------------------------------------------------------------------------------------- compare


NO_TORCH = """\
import sys
from kdrun import cli
try:
    cli.main()
finally:
    heavy = {"torch", "sklearn", "torchvision", "scipy.stats"} & set(sys.modules)
    assert not heavy, heavy
"""


def test_compare_without_training_loads_no_torch(done):
    told = process("compare", "tiny.yaml", "--no-train", folder=done, code=NO_TORCH)
    assert told.code == 0, told.err
    assert told.out == command("compare", "tiny.yaml", folder=done).out


def test_compare_without_training_names_what_is_missing(tiny):
    assert command("distill", "tiny.yaml", "--quiet", "--method", "alone", folder=tiny).code == 0
    told = command("compare", "tiny.yaml", "--no-train", folder=tiny)
    assert told.code == 1
    assert told.err.splitlines()[-1].startswith("error: 2 runs are not finished: student/kd;")
    assert re.search(r"student +student kd +teacher +0 +unfinished", told.out)


def test_compare_without_training_of_what_was_never_begun(tiny):
    told = command("compare", "tiny.yaml", "--no-train", folder=tiny)
    assert (told.code, told.out) == (1, "")
    assert "'tiny' was never begun here" in told.err


def test_compare_without_training_says_that_the_config_has_changed(done_again):
    (done_again / "changed.yaml").write_text(TINY + "# a word more\n")
    told = command("compare", "changed.yaml", "--no-train", folder=done_again)
    assert told.code == 0
    assert "changed.yaml: has changed since it was run" in told.err


def test_compare_without_training_finds_the_name_of_the_file(tiny):
    (tiny / "my own.yaml").write_text(TINY.replace("name: tiny\n", ""))
    assert command("compare", "my own.yaml", "--quiet", "--seeds", "0", folder=tiny).code == 0
    assert command("compare", "my own.yaml", "--no-train", folder=tiny).code == 0
    assert (tiny / "runs" / "my-own" / "comparison.json").is_file()


def test_several_configs_are_one_comparison(done_again):
    (done_again / "other.yaml").write_text(TINY.replace("name: tiny", "name: other").replace("[4]", "[5]"))
    told = command("compare", "tiny.yaml", "other.yaml", "--json", folder=done_again)
    assert told.code == 0
    folder = done_again / "runs" / "compare-tiny+other"
    assert sorted(path.name for path in folder.iterdir()) == [
        "comparison.csv",
        "comparison.json",
        "comparison.md",
        "report.html",
    ]
    compared = json.loads((folder / "comparison.json").read_text())
    assert compared == json.loads(told.out)
    assert compared["name"] == "tiny+other"
    assert [row["role"] for row in compared["rows"]] == ["teacher", "control", "student"] * 2
    assert "tiny" in (written := (folder / "comparison.md").read_text()) and "other" in written
    again = command("compare", "tiny.yaml", "other.yaml", "--no-train", "--json", folder=done_again)
    assert again.out == told.out


def test_every_config_is_checked_before_one_is_trained(tiny):
    (tiny / "wrong.yaml").write_text(TINY + "nonsense: 1\n")
    told = command("compare", "tiny.yaml", "wrong.yaml", folder=tiny)
    assert told.code == 2
    assert "unknown key 'nonsense'" in told.err
    assert not (tiny / "runs").exists()


ROW = {
    "experiment", "role", "model", "method", "teacher", "environment", "seeds", "metric", "values",
    "returns", "mean", "std", "interval", "gain", "gain_interval", "gain_covers", "gain_seeds",
    "gap_closed", "gap_interval", "verdict", "p_value", "seeds_needed", "detectable", "against",
    "agreement", "agreement_train", "agreement_own", "copied_errors", "left_out_recall",
    "kl_to_teacher", "nll", "brier", "ece", "ece_scaled", "parameters", "macs", "bytes", "zeros",
    "origin", "latency_ms", "throughput", "peak_memory_bytes", "curve", "steps_to_target",
    "train_seconds", "train_seconds_all", "protocol", "tuning_trials", "status",
}  # fmt: skip
"""The keys of a row, as the format of ``comparison.json`` fixes them."""


def test_comparison_json_has_the_keys_of_the_format(done):
    compared = json.loads((done / "runs" / "tiny" / "comparison.json").read_text())
    assert set(compared) == {"name", "protocol", "rows", "remarks"}
    for row in compared["rows"]:
        assert set(row) == ROW
        assert set(row["latency_ms"]) == {"p50", "p95"}
        assert row["status"] == "finished"
        assert row["metric"] == "accuracy"
        assert row["mean"] == pytest.approx(sum(row["values"]) / len(row["values"]))
        assert 0 <= row["mean"] <= 1, "fractions, not percent"
        assert row["tuning_trials"] is None
        assert (row["verdict"] is not None) == (row["p_value"] is not None) == (row["role"] == "student")
        assert (row["gain_interval"] is not None) == (row["role"] == "student")
    assert {row["role"]: row["seeds"] for row in compared["rows"]} == {
        "teacher": [0],
        "control": [0, 1],
        "student": [0, 1],
    }


def test_the_table_is_written_as_markdown_and_csv(done):
    import csv

    folder = done / "runs" / "tiny"
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    written = (folder / "comparison.md").read_text()
    head, lines = table.cells(rows)
    for line in [head, *lines]:
        assert f"| {' | '.join(line)} |" in written.splitlines()
    with open(folder / "comparison.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["role"] for row in found] == [row["role"] for row in rows]
    assert [float(row["mean"]) for row in found] == [row["mean"] for row in rows]
    assert {key.partition(".")[0] for key in found[0]} == ROW
    assert found[0]["latency_ms.p50"] and found[0]["protocol.dataset"] == "synthetic"


# ---------------------------------------------------------------------------------------------- plugins

PLUGIN = '''\
from typing import Literal

import numpy as np
import torch
from torch import nn

from kdrun.contracts import DatasetConfig, Loss, LossConfig, Model, ModelConfig, Spec
from kdrun.data import Raw, SampleSet


class Cosine(Loss):
    """One minus the cosine of the logits."""

    class Config(LossConfig):
        kind: Literal["my-cosine"]
        scale: float = 2.0
        """factor of the term"""

    def forward(self, student, teacher, batch):
        return self.config.scale * (1 - torch.cosine_similarity(student.logits, teacher.logits)).mean()


class Linear(Model):
    """A linear classifier."""

    class Config(ModelConfig):
        kind: Literal["my-linear"]

    stages, pooled, head = ("flat",), "flat", "classifier"

    def __init__(self, config, shape, classes):
        super().__init__()
        self.flat = nn.Flatten()
        self.classifier = nn.Linear(int(np.prod(shape)), classes)

    def forward(self, x):
        return self.classifier(self.flat(x))


class Corners(SampleSet):
    """Points about two corners."""

    class Config(DatasetConfig):
        kind: Literal["my-corners"]

    spec, samples = Spec({"input": (2,)}, classes=2), 64

    def read(self):
        labels = np.arange(96) % 2
        points = np.random.default_rng(0).normal(labels[:, None], 0.3, (96, 2)).astype(np.float32)
        return Raw(points[:64], labels[:64], points[64:], labels[64:])
'''
PLUGIN_CONFIG = """\
name: own
plugins: [mine]
dataset: {kind: my-corners}
device: cpu
seeds: [0]
training: {epochs: 1, batch_size: 16}
teacher: {model: {kind: mlp, hidden: [8]}}
student: {model: {kind: my-linear}}
methods: [{name: cosine, losses: [ce, {kind: my-cosine, scale: 3}]}]
"""


def test_a_plugin_brings_a_loss_a_model_and_a_data_set(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    (tmp_path / "own.yaml").write_text(PLUGIN_CONFIG)
    told = process("compare", "own.yaml", "--plugin", "mine", "--json", folder=tmp_path)
    assert told.code == 0, told.err
    rows = {row["method"]: row for row in json.loads(told.out)["rows"]}
    assert rows["cosine"]["status"] == "finished"
    assert rows["cosine"]["parameters"] == 2 * 2 + 2


def test_a_plugin_is_listed(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    told = process("list", "losses", "--plugin", "mine", folder=tmp_path)
    assert "my-cosine\n      One minus the cosine of the logits." in told.out
    assert "scale (2.0): factor of the term" in told.out


def test_a_config_loads_no_plugin_by_itself(tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit('this must never run')")
    (tmp_path / "own.yaml").write_text(PLUGIN_CONFIG)
    told = command("compare", "own.yaml", folder=tmp_path)
    assert told.code == 2
    assert told.err.splitlines()[0] == (
        "own.yaml:2:11: plugins.mine: the plugin 'mine' is not loaded; add --plugin mine to the command"
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ValueError('boom')", "ValueError: boom"),
        ("import nothing_like_it", "No module named 'nothing_like_it'"),
        ("def f(:", "SyntaxError"),
        (PLUGIN.replace('"my-cosine"', '"kd"'), "the loss 'kd' is defined twice"),
        (None, "No module named 'broken_plugin'"),
    ],
)
def test_a_plugin_that_fails_is_one_message(tiny, code, words):
    sys.path_importer_cache.pop(".", None)  # it remembers the folder that another test stood in
    if code is not None:
        (tiny / "broken_plugin.py").write_text(code)
    told = command("compare", "tiny.yaml", "--plugin", "broken_plugin", folder=tiny)
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith("error: --plugin broken_plugin cannot be imported: ")
    assert words in told.err
    assert len(told.err.splitlines()) == 1


def test_an_installed_plugin_that_fails_is_one_message(monkeypatch, tiny):
    def installed(group):
        assert group == "kdrun.plugins"
        return [metadata.EntryPoint("theirs", "nothing_like_it:plugin", group)]

    monkeypatch.setattr(metadata, "entry_points", installed)
    told = command("check", "tiny.yaml", folder=tiny)
    assert (told.code, told.out) == (2, "")
    assert told.err == (
        "error: the installed plugin 'theirs' cannot be imported: ModuleNotFoundError: "
        "No module named 'nothing_like_it'; update it, or uninstall it\n"
    )
