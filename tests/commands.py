"""``kdrun`` commands, in this process and in one of its own, and a config that is done in no time."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import kdrun
from kdrun import cli
from kdrun.interrupts import SIGNALS

TINY = """\
name: tiny
dataset: {kind: synthetic, shape: [8], classes: 3, samples: 48, test_samples: 30}
device: cpu
seeds: [0, 1]
training: {epochs: 1, batch_size: 16}
teacher: {model: {kind: mlp, hidden: [8]}}
student: {model: {kind: mlp, hidden: [4]}}
controls: none
methods: [kd]
"""


class Done(NamedTuple):
    """What a command ended with: its exit code, and what it wrote on stdout and stderr."""

    code: int
    out: str
    err: str


def command(*arguments, folder):
    """Run a command in this process, in a folder."""
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["kdrun", *map(str, arguments)]),
    ):
        try:
            cli.main()
        except SystemExit as end:
            return Done(end.code, out.getvalue(), err.getvalue())
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def process(*arguments, folder, code="from kdrun.cli import main; main()", **environment):
    """Run a command in a process of its own, in a folder; ``code`` is what the process runs."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=folder,
        env=surroundings(**environment),
        capture_output=True,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def surroundings(**environment):
    """The environment of a process that finds kdrun, with changes; None removes a variable."""
    source = str(Path(kdrun.__file__).parents[1])
    wanted = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"} | environment
    return {name: value for name, value in wanted.items() if value is not None}
