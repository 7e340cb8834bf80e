"""The machine under the process: freed memory is kept, neighbours are seen."""

import subprocess
import sys
import time

import pytest

from kdrun import cli, machine
from kdrun.console import Console
from kdrun.machine import Neighbours


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted where Linux counts them")
def test_freed_memory_is_kept():
    code = """
import resource, sys
from kdrun.machine import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import numpy as np
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(8_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, check=True).stdout)
        for how in ("kept", "given back")
    )
    if given_back < 1000:
        pytest.skip("this C library keeps freed memory by itself")
    assert kept < given_back / 10


def test_other_processes_are_seen():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        seen, began = Neighbours(), time.monotonic()
        while seen.busy_cores < 0.1 and time.monotonic() - began < 20:
            time.sleep(0.1)
        assert seen.busy_cores >= 0.1
    finally:
        busy.kill()


def test_own_work_is_not_a_neighbours(monkeypatch):
    worked = iter([100.0, 103.0])
    monkeypatch.setattr(machine, "_worked", lambda: next(worked))
    monkeypatch.setattr(machine.time, "process_time", iter([5.0, 7.0]).__next__)
    monkeypatch.setattr(machine.time, "monotonic", iter([0.0, 2.0]).__next__)
    assert Neighbours().busy_cores == 0.5


def test_two_threads_beside_others_are_warned_of(monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(cli.os, "cpu_count", lambda: 2)
    cli._tell_of_neighbours(Console(), 0.9)
    told = capsys.readouterr().err
    assert "other processes keep 0.9 of 2 cores busy" in told and "OMP_NUM_THREADS=1" in told
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    cli._tell_of_neighbours(Console(), 0.9)
    assert capsys.readouterr().err == ""
