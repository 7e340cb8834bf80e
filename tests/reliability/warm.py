"""Loaded by the process from which others are forked: one command is run in it, so that theirs are quick."""

import atexit
import gc
import os
import tempfile
from pathlib import Path

import kdrun.tune  # noqa: F401
from commands import TINY, command

with tempfile.TemporaryDirectory() as folder:
    Path(folder, "tiny.yaml").write_text(TINY)
    assert command("compare", "tiny.yaml", folder=folder).code == 0
assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked"
gc.collect()
gc.freeze()  # or every process copied what its collector looks at
atexit.register(gc.unfreeze)
