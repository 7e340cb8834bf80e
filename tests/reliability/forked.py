"""``kdrun`` as processes that can be killed: forked from one that has all imported, so that each starts at once."""

import functools
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

PRELOADED = [
    "torch",
    "kdrun.cli",
    "kdrun.bookkeeping",
    "kdrun.compare",
    "kdrun.data.files",
    "kdrun.experiment",
]


@functools.cache
def forge():
    """Where processes are forked from: one with a single thread, and warm."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    first = context.Process(target=len, args=("",))
    first.start()
    first.join()
    return context


class Command:
    """A command at work in a folder, leader of a process group; its words go to ``told``.

    ``every`` is the time between two checkpoints in seconds; ``moment``, a call of a function, is when it tells its
    starter that it is there, and waits for about ``pause`` seconds.
    """

    def __init__(
        self, arguments, told, *, threads=1, every=0.0, stream=False, moment=None, pause=0.01, **environment
    ):
        self.told = Path(told)
        here, there = multiprocessing.Pipe(duplex=False)
        options = (threads, every, stream, moment, pause, environment)
        self.process = forge().Process(
            target=_run, args=(list(map(str, arguments)), str(told), there, options)
        )
        self.process.start()
        there.close()
        self.at_the_moment: Connection = here

    def kill_after(self, seconds):
        """Let it work for so long; whether it had to be killed, and did not end by itself before."""
        self.process.join(seconds)
        self.process.kill()
        return self.code == -signal.SIGKILL

    @property
    def code(self):
        """What it ends with; None of its children outlives it for long."""
        self.process.join(120)
        assert self.process.exitcode is not None, f"it hangs: {self.words}"
        return self.process.exitcode

    @property
    def words(self):
        """What it said so far, on stdout and stderr."""
        return self.told.read_text()

    def survivors(self, patience=5.0):
        """Whether any process of its group is alive after that many seconds."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.02)
        return True


def _run(arguments, told, there, options):
    """What the forked process does."""
    import torch

    from kdrun import bookkeeping, cli

    threads, every, stream, moment, pause, environment = options
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # for its own workers, as in a process of its own
    for number in (1, 2):
        os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.update(environment)
    os.fsync = lambda descriptor: (
        None
    )  # what a process wrote survives its end, and nothing here cuts the power
    torch.set_num_threads(threads)
    bookkeeping.Keeper.__init__.__defaults__ = (every,)
    if stream:
        _stream_pictures()
    if moment is not None:
        _tell_of(*moment, there, pause)
    sys.argv = ["kdrun", *arguments]
    cli.main()


def _stream_pictures():
    """Have pictures decoded by worker processes while they are used, as if they fitted nowhere."""
    from kdrun.data import files, sources
    from kdrun.store import shelf

    files.room_for_data = lambda device: 0
    shelf.SPARE = 1e18
    sources.WORKERS = 2


def _tell_of(place, name, number, there, pause):
    """Tell the starter when a function of a module is called for so many times, and let it act while it is at work."""
    import importlib

    owner = importlib.import_module(place)
    *classes, name = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), 0

    def noted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == number:
            there.send(name)
            time.sleep(pause * random.random() if pause < 1 else pause)
        return original(*arguments, **options)

    setattr(owner, name, noted)
