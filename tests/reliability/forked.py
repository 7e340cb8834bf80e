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
from unittest import mock

HERE = Path(__file__).parent


@functools.cache
def forge():
    """Where processes are forked from: one with a single thread, and warm."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, [HERE, HERE.parent, *sys.path]))):
        first = context.Process(target=len, args=("",))
        first.start()
    first.join()
    return context


class Command:
    """A command at work, leader of a process group; its words go to ``told``, or to the last two of three ``streams``.

    It is given in a ``folder``, after some code is run ``first``.
    ``every`` is the time between two checkpoints in seconds; ``moment``, a call of a function, is when it tells its
    starter that it is there, and waits for about ``pause`` seconds.
    """

    def __init__(
        self,
        arguments,
        told,
        *,
        threads=1,
        every=0.0,
        stream=False,
        moment=None,
        pause=0.01,
        folder=".",
        streams=None,
        first="",
        **environment,
    ):
        self.told = Path(told)
        here, there = multiprocessing.Pipe(duplex=False)
        options = (threads, every, stream, moment, pause, environment)
        place = (str(folder), [*map(str, streams or (os.devnull, told, told))], first)
        self.process = forge().Process(target=_run, args=(list(map(str, arguments)), place, there, options))
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


def _run(arguments, place, there, options):
    """What the forked process does."""
    import torch

    from kdrun import bookkeeping, cli

    threads, every, stream, moment, pause, environment = options
    folder, streams, first = place
    os.setsid()
    os.chdir(folder)
    multiprocessing.set_start_method("fork", force=True)  # for its own workers, as in a process of its own
    for number, path in enumerate(streams):
        os.dup2(os.open(path, (os.O_WRONLY if number else os.O_RDONLY) | os.O_CREAT | os.O_APPEND), number)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
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
    exec(first, {})
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
