"""The commands. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NoReturn

import typer

import kdrun
from kdrun.errors import (
    Interrupted,
    KdrunError,
    Problem,
    StoreError,
    TrainingError,
    UsageError,
    printable,
    shown,
)
from kdrun.interrupts import leave_on_signals
from kdrun.machine import (
    Neighbours,
    available_memory,
    crowded,
    keep_freed_memory,
    lacks_memory,
    told_lack,
    told_size,
)

if TYPE_CHECKING:
    from kdrun.config import Config
    from kdrun.console import Console
    from kdrun.experiment import Experiment
    from kdrun.store import Result, Store
    from kdrun.store.housekeeping import Entry, Shelved

Format = Literal["text", "md", "csv", "json", "latex"]

NAMED = 3
"""Runs that a message names."""
NEIGHBOURS = Neighbours()
"""What other processes work from the start of this one on, above all while it loads torch."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Runs knowledge-distillation experiments: one YAML file in, a comparison table that can be believed out.",
    epilog="Start with: kdrun init my.yaml && kdrun compare my.yaml",
)

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="The experiment's YAML file.", show_default=False)
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder of all runs.")]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="auto, cpu, cuda, cuda:1 or mps; instead of the config's.", show_default=False
    ),
]
Seeds = Annotated[
    str | None,
    typer.Option(
        "--seeds", metavar="0,1,2", help="The students' seeds; instead of the config's.", show_default=False
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any key of the config, dotted: training.epochs=3. Repeatable.",
        show_default=False,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]
Plugin = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE",
        help="Load a module with components of your own. Repeatable.",
        show_default=False,
    ),
]


class Shown(NamedTuple):
    """What is shown of a comparison, and how."""

    format: Format
    pairs: bool = False
    bootstrap: bool = False
    mixed: bool = False
    plots: Path | None = None
    wide: bool = False


def main() -> NoReturn:
    """Run a command; every failure a user can cause is one message and an exit code."""
    leave_on_signals()
    _have_streams()
    try:
        code = app(prog_name="kdrun", standalone_mode=False) or 0
        sys.stdout.flush()
    except Interrupted as stop:
        code = stop.exit_code
        _tell(str(stop))
    except KdrunError as error:
        code = error.exit_code
        _complain(str(error))
    except typer.Abort:
        code = 130
    except SystemExit as end:  # as typer and rich answer a pipe that was closed, without a word
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        code = 1
        _complain(_of_the_system(end.__context__))
    except OSError as error:
        code = 1
        _complain(_out_of_memory(error) or _of_the_system(error))
    except Exception as error:
        if told := _out_of_memory(error):
            code = 1
            _complain(told)
        elif hasattr(error, "format_message"):
            code = 2
            _complain(error.format_message() or "which command?")
        else:
            raise
    try:
        sys.stdout.flush()
    except OSError:  # Python would say so, at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _have_streams() -> None:
    """Have all three streams, or the next file to be opened would be one; what a terminal cannot show is escaped."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(free)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115  (it stays open)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115  (it stays open)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115  (it stays open)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _of_the_system(error: OSError) -> str:
    """What the system refused, and where."""
    if isinstance(error, BrokenPipeError):
        return "stdout was closed before all was printed; what was finished is stored"
    if error.filename:
        return f"{shown(os.fsdecode(error.filename), 1000)}: {error.strerror or error}"
    if error.errno == errno.ENOENT:
        return "the working folder is gone; change to one that is there"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return f"stdout: {error.strerror}"
    return str(error)


def _out_of_memory(error: Exception) -> str | None:
    """What is said where there was no memory left; None where something else is wrong."""
    if lacks_memory(error):
        return told_lack(error, "machine", available_memory())
    if "torch" in sys.modules:
        from kdrun.memory import ran_out, told

        return told(error) if ran_out(error) else None
    return None


def _complain(text: str) -> None:
    _tell(f"error: {text}" if "\n" not in text else text)


def _tell(text: str) -> None:
    from kdrun.console import if_heard

    with if_heard():
        print(printable(text, lines=True), file=sys.stderr)


# ------------------------------------------------------------------------------------------ training


@app.command(epilog="Example: kdrun train-teacher configs/digits.yaml")
def train_teacher(
    config: ConfigFile,
    out: Out = Path("runs"),
    device: Device = None,
    seeds: Seeds = None,
    set_: Set = None,
    json_: Json = False,
    quiet: Quiet = False,
    plugin: Plugin = None,
) -> None:
    """Train (or load and verify) every teacher, and print their scores."""
    checked = _config(config, device, seeds, set_, plugin)
    if not checked.experiment.teachers:
        raise UsageError(f"{config}: names no teacher; add `teacher:`")
    roles = ["teacher", "ensemble"]
    with (
        _experiment(checked, _store(out), quiet) as experiment,
        _told_after(lambda: _report(experiment, roles, json_)),
    ):
        experiment.run(roles=["teacher"])


@app.command(epilog="Example: kdrun distill configs/digits.yaml --method kd --seeds 0")
def distill(
    config: ConfigFile,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="Only this method (and the control). Repeatable.", show_default=False),
    ] = None,
    out: Out = Path("runs"),
    device: Device = None,
    seeds: Seeds = None,
    set_: Set = None,
    json_: Json = False,
    quiet: Quiet = False,
    plugin: Plugin = None,
) -> None:
    """Make sure of the teachers, then train the students."""
    checked = _config(config, device, seeds, set_, plugin)
    _require_students(checked, config)
    _require_methods(checked, method)
    roles = ["control", "student"]
    with (
        _experiment(checked, _store(out), quiet) as experiment,
        _told_after(lambda: _report(experiment, roles, json_, method)),
    ):
        experiment.run(methods=method)


@app.command(epilog="Example: kdrun compare configs/digits.yaml")
def compare(
    configs: Annotated[
        list[Path],
        typer.Argument(metavar="CONFIG", help="One or several experiments.", show_default=False),
    ],
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Compare what is finished; train nothing.")
    ] = False,
    format_: Annotated[
        Format | None,
        typer.Option("--format", help="How the table is printed on stdout.", show_default=False),
    ] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Also every two methods of a student against each other.")
    ] = False,
    bootstrap: Annotated[
        bool,
        typer.Option(
            "--bootstrap",
            help="Also an interval from resamples of seeds and test samples (episodes) together.",
        ),
    ] = False,
    mixed: Annotated[
        bool,
        typer.Option("--mixed", help="Rows of different protocols in one table; each says how it differs."),
    ] = False,
    wide: Annotated[
        bool, typer.Option("--wide", help="All columns; without it the main ones, all are in the files.")
    ] = False,
    plots: Annotated[
        Path | None,
        typer.Option(
            "--plots",
            metavar="DIR",
            help="Also write each figure of the report there, as PNG and PDF.",
            show_default=False,
        ),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            metavar="METHOD=SCORE",
            help="Exit with 3 where a mean score is lower: kd=0.92, or STUDENT/kd=0.92. Repeatable.",
            show_default=False,
        ),
    ] = None,
    fail_if_worse: Annotated[
        bool, typer.Option("--fail-if-worse", help="Exit with 3 where a method is worse than alone.")
    ] = False,
    out: Out = Path("runs"),
    device: Device = None,
    seeds: Seeds = None,
    set_: Set = None,
    json_: Json = False,
    quiet: Quiet = False,
    plugin: Plugin = None,
) -> None:
    """Make sure of everything that the configs ask for, then print the comparison table."""
    from kdrun.gate import Gate

    if plots is not None and plots.exists() and not plots.is_dir():
        raise UsageError(f"--plots {plots}: is a file; name a folder")
    gate = Gate.read(fail_under or [], fail_if_worse)
    shown = Shown(_format(format_, json_, pairs), pairs, bootstrap, mixed, plots, wide)
    if no_train:
        if device or seeds or set_:
            raise UsageError(
                "--no-train compares what was run; --device, --seeds and --set would change it: remove them"
            )
        names = [_name_without_torch(config, out) for config in configs]
        _require_distinct(names)
        gate.demand(_print_comparison(_store(out), names, None, shown, quiet))
        return
    checked = [_config(config, device, seeds, set_, plugin) for config in configs]
    for one, config in zip(checked, configs, strict=True):
        _require_students(one, config)
    names = [one.experiment.name for one in checked]
    _require_distinct(names)
    gate.require(
        {student for one in checked for student in one.experiment.students},
        {method for one in checked for method in one.methods},
        {one.experiment.dataset.metric for one in checked},
    )
    store, failures = _store(out), []
    with _told_after(lambda: gate.demand(_print_comparison(store, names, None, shown, quiet))):
        for one in checked:
            with _experiment(one, store, quiet) as experiment:
                try:
                    experiment.run()
                except TrainingError as error:  # the other configs go on
                    failures.append(str(error))
        if failures:
            raise TrainingError("\n".join(failures))


@app.command(epilog="Example: kdrun tune configs/digits.yaml --trials 20 --set dataset.validation=0.2")
def tune(
    config: ConfigFile,
    trials: Annotated[
        int, typer.Option("--trials", metavar="N", min=1, help="Of every method, and of every control.")
    ] = 20,
    out: Out = Path("runs"),
    device: Device = None,
    seeds: Seeds = None,
    set_: Set = None,
    json_: Json = False,
    quiet: Quiet = False,
    plugin: Plugin = None,
) -> None:
    """Give every method and its controls the same number of trials on validation data; write a config of the best."""
    from kdrun.terminal import print_table

    try:
        from kdrun.tune import tune as run_trials
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UsageError("kdrun tune needs optuna: pip install 'kdrun[tune]'") from error
    checked = _config(config, device, seeds, set_, plugin)
    _require_students(checked, config)
    with _experiment(checked, _store(out), quiet) as experiment:
        told = run_trials(experiment, trials)
    if json_:
        print(json.dumps(told, indent=1))
        return
    from kdrun.report.table import tuning_cells, tuning_heading

    print_table(tuning_heading(told), *tuning_cells(told["chosen"], told["metric"]), keys=2)
    _note(f"next: kdrun compare {' '.join(told['configs'])}", quiet)


@contextmanager
def _told_after(tell: Callable[[], None]) -> Iterator[None]:
    """Print the results at the end, also where some students failed; the failures come last."""
    try:
        yield
    except TrainingError:
        with suppress(StoreError):
            tell()
        raise
    tell()


def _name_without_torch(config: Path, out: Path) -> str:
    """The name of a config's experiment; says so where the config has changed since it was run."""
    from kdrun.store import read_json
    from kdrun.yamlsource import NAME, NO_NAME, NOT_FREE, RESERVED, Source, default_name

    source = Source.read(config)
    name = str(source.data.get("name", default_name(config)))
    if not NAME.fullmatch(name):
        raise source.explain([Problem(("name",), NO_NAME.format(name))])
    if name in RESERVED:
        raise source.explain([Problem(("name",), NOT_FREE.format(name))])
    ran = out / name / "config.yaml"
    if ran.is_file() and ran.read_text(errors="replace") != source.text:
        _note(f"{config}: has changed since it was run; this compares what was run", quiet=False)
    resolved = out / name / "resolved.json"
    overrides = read_json(resolved).get("overrides") if resolved.is_file() else None
    if overrides:
        _note(f"{config}: was last run with --set {' --set '.join(overrides)}", quiet=False)
    return name


@contextmanager
def _experiment(config: Config, store: Store, quiet: bool) -> Iterator[Experiment]:
    """The experiment of a config, with signals turned into a stop."""
    from kdrun.console import Console
    from kdrun.experiment import Experiment
    from kdrun.interrupts import stop_on_signals
    from kdrun.records import command_line

    console = Console(quiet)
    _tell_of_neighbours(console, NEIGHBOURS.busy_cores)
    with stop_on_signals() as stop:
        yield Experiment(config, store, console, stop, command_line())


def _store(out: Path) -> Store:
    """The folder of runs; what of it is damaged is told on stderr."""
    from kdrun.console import Console
    from kdrun.store import Store

    place = out.absolute()  # an error where the working folder is gone
    if place.exists() and not place.is_dir():
        raise UsageError(f"--out {out}: is a file; name a folder")
    return Store(out, Console().warn)


def _config(
    path: Path,
    device: str | None = None,
    seeds: str | None = None,
    set_: list[str] | None = None,
    plugin: list[str] | None = None,
) -> Config:
    """The config with the command line's changes; YAML that cannot be read is told before torch is loaded."""
    from kdrun.yamlsource import Source

    overrides = list(set_ or [])
    if device is not None:
        overrides.append(f"device={device}")
    if seeds is not None:
        overrides.append(f"seeds=[{seeds}]")
    Source.read(path)
    keep_freed_memory()
    from kdrun import config, registry

    registry.load_plugins(plugin or [])
    return config.read(path, overrides)


def _tell_of_neighbours(console: Console, busy: float) -> None:
    """A word where other processes would slow the threads of a step down."""
    import torch

    if told := crowded(busy, torch.get_num_threads()):
        console.say(told)


def _require_students(config: Config, path: Path) -> None:
    if not config.experiment.students:
        raise UsageError(f"{path}: names no student; add `student:`")


def _require_distinct(names: list[str]) -> None:
    """Experiments of one name would be one folder, and one would be shown in place of the other."""
    for name in set(names):
        if names.count(name) > 1:
            raise UsageError(
                f"{names.count(name)} of the configs are named '{name}'; give each its own `name:`"
            )


def _require_methods(config: Config, wanted: list[str] | None) -> None:
    from kdrun.errors import did_you_mean

    for name in wanted or []:
        if name not in config.methods:
            raise UsageError(
                f"--method {name}: the config has no such method; {did_you_mean(name, config.methods)}"
            )


# ----------------------------------------------------------------------------------------- reporting


def _format(format_: Format | None, json_: bool, pairs: bool = False) -> Format:
    """``--json`` is short for ``--format json``."""
    if pairs and format_ == "csv":
        raise UsageError("--pairs has no place in the rows of --format csv; take json")
    if json_ and format_ not in (None, "json"):
        raise UsageError(f"--json and --format {format_} exclude each other; keep one of them")
    return "json" if json_ else format_ or "text"


def _report(experiment: Experiment, roles: list[str], json_: bool, methods: list[str] | None = None) -> None:
    from kdrun.controls import CONTROLS

    def wanted(row: dict[str, Any]) -> bool:
        return row["role"] in roles and (methods is None or row["method"] in {*methods, *CONTROLS})

    name, shown = experiment.config.experiment.name, Shown(_format(None, json_))
    _print_comparison(experiment.store, [name], wanted, shown, experiment.console.quiet, demand=False)


def _print_comparison(
    store: Store,
    names: list[str],
    wanted: Callable[[dict[str, Any]], bool] | None,
    shown: Shown,
    quiet: bool,
    demand: bool = True,
) -> dict[str, Any]:
    """Print the rows on stdout, where they are also written; with ``demand``, a missing run is a failure."""
    from kdrun import compare as comparing

    parts = comparing.materials(store, names)
    extras = comparing.Extras(shown.bootstrap, shown.pairs)
    compared = comparing.comparison(parts, extras, wanted) if wanted else comparing.comparison(parts, extras)
    missing = [run for part in parts for run in part.missing]
    try:
        if demand:
            from kdrun.evidence import write_report

            folder = comparing.write(store, compared, several=len(names) > 1, mixed=shown.mixed)
            write_report(folder, compared, parts, shown.mixed, shown.plots)
            _note(f"written to {folder}/report.html, comparison.json, .md and .csv", quiet)
    finally:  # what cannot be written can be read all the same
        _print(compared, shown)
    if demand and missing:
        which = ", ".join(sorted({f"{run['name']}/{run['method'] or 'teacher'}" for run in missing}))
        raise StoreError(
            f"{len(missing)} runs are not finished: {which}; run kdrun compare without --no-train"
        )
    return compared


def _print(compared: dict[str, Any], shown: Shown) -> None:
    """A comparison in the format that is asked for."""
    from kdrun.report import table
    from kdrun.terminal import print_sentences, print_table

    match shown.format:
        case "json":
            print(json.dumps(compared, indent=1))
        case "md":
            print(table.markdown(compared, shown.mixed), end="")
        case "csv":
            print(table.csv_text(compared), end="")
        case "latex":
            print(table.latex(compared, shown.mixed), end="")
        case "text":
            for one in table.tables(compared, shown.mixed):
                head, lines = table.cells(one.rows, shown.wide)
                print_table(one.heading, head, lines, keys=3 if "experiment" in head else 2)
                print()
            if compared.get("pairs"):
                print_table("every two methods", *table.pair_cells(compared["pairs"]), keys=3)
                print()
            print_sentences(compared["remarks"])


def _note(text: str, quiet: bool) -> None:
    from kdrun.console import Console

    Console(quiet).say(text)


# ----------------------------------------------------------------------------------------- looking at


@app.command(epilog="Example: kdrun check configs/mnist.yaml --set training.batch_size=256")
def check(
    config: ConfigFile,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Also where the time of a step goes, and what would help."),
    ] = False,
    out: Out = Path("runs"),
    device: Device = None,
    seeds: Seeds = None,
    set_: Set = None,
    json_: Json = False,
    quiet: Quiet = False,
    plugin: Plugin = None,
) -> None:
    """Everything short of training: models, taps, adapters, one batch through every loss; size and time estimated."""
    from kdrun import checking, profiling
    from kdrun.console import Console
    from kdrun.terminal import print_table

    read, store = _config(config, device, seeds, set_, plugin), _store(out)
    told = checking.check(read, store, Console(quiet), on_device=profile)
    profiles = profiling.profile(told.plan, told.dataset, store, told.device) if profile else []
    if json_:
        profiled = {"profile": [one.as_json() for one in profiles]} if profile else {}
        print(json.dumps(told.as_json() | profiled, indent=1))
        return
    print_table(f"{config}: everything fits", *told.table(), keys=2)
    for line in told.remarks():
        print(line)
    for one in profiles:
        print()
        print_table(one.heading, *one.table(), keys=1)
        for line in [*one.notes, *one.advice]:
            print(line)
    _note(f"next: kdrun compare {config}", quiet)


@app.command(epilog="Example: kdrun init my.yaml")
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")] = Path("kdrun.yaml"),
    template: Annotated[
        str | None,
        typer.Option(
            "--template", help="One of the shipped configs, for instance mnist.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a commented starter config that runs as it is."""
    from kdrun.errors import did_you_mean
    from kdrun.store.files import write_text

    shipped = {path.stem: path for path in shipped_configs()}
    if template is not None and template not in shipped:
        raise UsageError(f"--template {template}: there is no such config; {did_you_mean(template, shipped)}")
    if file.exists() and not force:
        raise UsageError(f"{file}: is there already; write another name, or --force")
    source = shipped[template] if template else Path(kdrun.__file__).with_name("starter.yaml")
    if file.exists() and not file.is_file():  # a pipe, or a terminal
        file.write_text(source.read_text())
    else:
        write_text(file.resolve() if file.is_symlink() else file, source.read_text())
    _note(f"{file} is written; next: kdrun compare {file}", quiet=False)


def shipped_configs() -> list[Path]:
    """The configs that come with kdrun: in the package, or beside it in a checkout."""
    package = Path(kdrun.__file__).parent
    folders = (package / "configs", package.parents[1] / "configs")
    return sorted(next((f for f in folders if f.is_dir()), folders[0]).glob("*.yaml"))


@app.command("list", epilog="Example: kdrun list losses")
def list_(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="losses, models, datasets or methods; else all.", show_default=False
        ),
    ] = "",
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the config's JSON schema, for editors.")
    ] = False,
    json_: Json = False,
    plugin: Plugin = None,
) -> None:
    """What a config may name, with options, defaults and the paper."""
    families = {"losses": "loss", "models": "model", "datasets": "dataset", "methods": "method"}
    if what and what not in families:
        from kdrun.errors import did_you_mean

        raise UsageError(f"list {what}: there is no such list; {did_you_mean(what, families)}")
    from kdrun import config, listing, registry

    registry.load_plugins(plugin or [])
    if schema:
        print(json.dumps(config.json_schema(), indent=1))
        return
    chosen = [what] if what else list(families)
    found = {
        name: listing.methods() if name == "methods" else listing.components(families[name])
        for name in chosen
    }
    if json_:
        print(
            json.dumps(
                {name: [vars(entry) for entry in entries] for name, entries in found.items()}, indent=1
            )
        )
        return
    for name, entries in found.items():
        print(f"{name}\n")
        for entry in entries:
            print(f"  {', '.join(entry.names)}\n{textwrap.indent(entry.about, ' ' * 6)}")
            for option, default, meaning in entry.options:
                shown = f" ({default})" if default else ""
                print(f"        {option}{shown}{': ' + meaning if meaning else ''}")
        if name != "methods":
            names = ", ".join(option for option, _, _ in listing.shared_options(families[name]))
            print(f"\n  each of them also has: {names}")
        print()


@app.command(epilog="Example: kdrun layers configs/digits.yaml")
def layers(
    config: ConfigFile,
    device: Device = None,
    seeds: Seeds = None,
    set_: Set = None,
    json_: Json = False,
    plugin: Plugin = None,
) -> None:
    """Every layer that a loss may tap, teachers and students side by side, with shapes."""
    from kdrun.assembly import open_dataset
    from kdrun.plan import plan
    from kdrun.rehearsal import layer_tables
    from kdrun.terminal import print_table

    checked = _config(config, device, seeds, set_, plugin)
    dataset = open_dataset(checked)
    tables = layer_tables(plan(checked, dataset), dataset.spec)
    if json_:
        shown = {
            f"{role} {name}": {k: list(v) for k, v in table.shapes.items()}
            for (role, name), table in tables.items()
        }
        print(json.dumps(shown, indent=1))
        return
    columns = [_layer_lines(table) for table in tables.values()]
    height = max(len(column) for column in columns)
    padded = [column + [""] * (height - len(column)) for column in columns]
    head = [f"{role} {name}" for role, name in tables]
    print_table(
        "layer: shape without the batch (* stage, + pooled); LAYER:map is its tokens as a map, LAYER:mean its mean",
        head,
        [list(line) for line in zip(*padded, strict=True)],
        keys=0,
    )


def _layer_lines(table: Any) -> list[str]:
    marks = dict.fromkeys(table.stages, "*")
    marks[table.pooled] = marks.get(table.pooled, "") + "+"
    return [
        f"{name}{marks.get(name, '')}: {'×'.join(map(str, shape))}" for name, shape in table.shapes.items()
    ]


@app.command(epilog="Example: kdrun rules runs/trees/students/tree/kd/seed-0 --format python")
def rules(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="The folder of a finished run of a tree, or its place under --out."
        ),
    ],
    format_: Annotated[
        Literal["text", "json", "python"],
        typer.Option("--format", help="Text, JSON, or a Python function that needs nothing installed."),
    ] = "text",
    out: Out = Path("runs"),
    json_: Json = False,
) -> None:
    """A student tree (or a teacher's) as if-then rules, in the data's own units and names."""
    from kdrun.report import rules as printed

    if json_ and format_ == "python":
        raise UsageError("--json and --format python exclude each other; keep one of them")
    store = _store(out)
    result = store.result(run, prove=True) or store.result(out / run, prove=True)
    found = result.rules() if result is not None else None
    if result is None or found is None:
        raise UsageError(_without_rules(run, result, store))
    about = printed.about(result.folder, result.manifest, found)
    if json_ or format_ == "json":
        print(json.dumps(about | found, indent=1))
    elif format_ == "python":
        print(printed.python(found, printed.sentence(about)), end="")
    else:
        print(printable(printed.sentence(about)))
        for line in printed.text(found):
            print(line)


def _without_rules(run: Path, result: Result | None, store: Store) -> str:
    """What is said of a run that has no rules, and which ones have: those below it, or its nearest."""
    if result is not None:
        kind = result.manifest["inputs"]["model"]["kind"]
        what = f"is of '{kind}', and rules are of one tree: a student `model: tree` that it teaches has some"
    else:
        places = [place for place in (run, store.root / run) if place.is_dir()]
        unfinished = any((place / "begun.json").is_file() for place in places)
        what = "is not finished; the command that began it goes on with it" if unfinished else "is no run"
        what = what if places else "there is no such folder"

    def near(folder: Path) -> int:
        return -max(_shared(folder, run), _shared(folder, store.root / run))

    having = [
        folder
        for folder in sorted(store.folders(), key=near)
        if (other := store.result(folder)) is not None and other.rules() is not None
    ]
    some = ", ".join(map(str, having[:NAMED])) + f" and {len(having) - NAMED} more" * (len(having) > NAMED)
    return f"{run}: {what}; {f'runs with rules: {some}' if having else f'no run under {store.root} has any'}"


def _shared(one: Path, other: Path) -> int:
    """How many folders from the top two places have in common."""
    both = zip(one.parts, other.parts, strict=False)
    return sum(1 for _ in takewhile(lambda parts: parts[0] == parts[1], both))


@app.command(epilog="Example: kdrun status")
def status(out: Out = Path("runs"), json_: Json = False) -> None:
    """The runs under --out, with progress, failures and sizes, and what is kept there to be read again."""
    from kdrun.store.housekeeping import entries, shelved
    from kdrun.terminal import print_table

    store = _store(out)
    runs, kept = entries(store), shelved(store)
    if json_:
        found = [{"kind": "run", **vars(e)} for e in runs] + [{"kind": "cache", **vars(e)} for e in kept]
        print(json.dumps([e | {"folder": str(e["folder"])} for e in found], indent=1))
        return
    lines = [
        [str(e.folder.relative_to(out)), e.state, f"{100 * e.progress:.0f}", told_size(e.bytes), e.detail]
        for e in runs
    ]
    head = ["run", "state", "%", "size", "note"]
    print_table(f"{len(runs)} runs under {out}", head, lines, keys=1)
    if kept:
        total = told_size(sum(e.bytes for e in kept))
        lines = [[e.folder.name, e.state, told_size(e.bytes), e.detail] for e in kept]
        title = f"\n{len(kept)} in {store.shelf.folder}, to be read again ({total})"
        print_table(title, ["key", "state", "size", "what"], lines, keys=1)


@app.command(epilog="Example: kdrun clean --yes")
def clean(
    out: Out = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    cache: Annotated[
        bool,
        typer.Option("--cache", help="Instead, all that is kept to be read again and can be computed anew."),
    ] = False,
) -> None:
    """Delete runs that are unfinished, or that no config asks for any more, after a preview."""
    from kdrun.store.housekeeping import (
        disposable,
        disposable_of_shelf,
        entries,
        remove,
        remove_shelved,
        shelved,
    )

    store = _store(out)
    runs = [] if cache else disposable(entries(store))
    kept = disposable_of_shelf(shelved(store), all_=cache)
    useless: list[Entry | Shelved] = [*runs, *kept]
    if not useless:
        _note(f"nothing to delete under {out}", quiet=False)
        return
    for entry in useless:
        print(printable(f"{entry.folder} ({entry.state}, {told_size(entry.bytes)})"))
    question = f"delete these {_count_of(runs, kept)}?"
    if not yes and not (sys.stdin.isatty() and typer.confirm(question, err=True)):
        raise UsageError("nothing was deleted; add --yes to delete them")
    gone = [run for run in runs if remove(store, run)]
    for entry in kept:
        remove_shelved(entry)
    _note(f"deleted {_count_of(gone, kept)}", quiet=False)


def _count_of(runs: list[Entry], kept: list[Shelved]) -> str:
    """So many runs and entries of the cache, with their size."""
    numbers = [f"{len(runs)} runs"] * bool(runs or not kept) + [f"{len(kept)} of the cache"] * bool(kept)
    size = sum(run.bytes for run in runs) + sum(entry.bytes for entry in kept)
    return f"{' and '.join(numbers)} ({told_size(size)})"


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kdrun {kdrun.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of kdrun itself."""
