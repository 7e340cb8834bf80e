"""The machine under the process: freed memory is kept, neighbours are seen."""

import os
import signal
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
    orphan = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'while True: pass'], stdout=2).pid)"
    busy = int(subprocess.run([sys.executable, "-c", orphan], stdout=subprocess.PIPE, check=True).stdout)
    try:
        seen, began = Neighbours(), time.monotonic()
        while seen.busy_cores < 0.1 and time.monotonic() - began < 20:
            time.sleep(0.1)
        assert seen.busy_cores >= 0.1
    finally:
        os.kill(busy, signal.SIGKILL)


def test_own_work_is_not_a_neighbours(monkeypatch):
    worked, own = iter([100.0, 103.0]), iter([5.0, 7.0])
    monkeypatch.setattr(machine, "_worked", lambda: next(worked))
    monkeypatch.setattr(machine, "_own_work", lambda: next(own))
    monkeypatch.setattr(machine.time, "monotonic", iter([0.0, 2.0]).__next__)
    assert Neighbours().busy_cores == 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="children are counted where Linux counts them")
def test_what_children_do_is_own_work():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before, began = machine._own_work() - time.process_time(), time.monotonic()
        while machine._own_work() - time.process_time() < before + 0.1 and time.monotonic() - began < 20:
            time.sleep(0.05)
        running = machine._own_work() - time.process_time()
        assert running >= before + 0.1
    finally:
        busy.kill()
        busy.wait()
    assert machine._own_work() - time.process_time() >= running - 0.02, "nor is it lost when they end"


def test_a_container_has_what_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CONTAINER", tmp_path)
    whole = machine.total_memory()
    for name, text in (
        ("memory.max", "3000000\n"),
        ("memory.current", "2500000\n"),
        ("memory.stat", "anon 5\ninactive_file 500000\n"),
    ):
        (tmp_path / name).write_text(text)
    assert machine.total_memory() == 3_000_000 and machine.available_memory() == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.total_memory() == whole and machine.available_memory() > 1 << 24


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


@pytest.mark.skipif(
    sys.platform != "linux", reason="what a parent's end does to its children is asked of Linux"
)
@pytest.mark.parametrize("gone", ["before", "after"], ids=lambda gone: f"gone-{gone}-the-system-is-asked")
def test_a_process_ends_with_its_parent(gone):
    code = """
import multiprocessing, os, sys, time
from kdrun.machine import end_with_parent

def wait(parent):
    while os.getppid() == parent:
        time.sleep(0.01)

def child(gone, ready):
    parent = os.getppid()
    if gone == "after":
        end_with_parent()
    ready.send(True)
    wait(parent)
    if gone == "before":
        end_with_parent()
    print("still here")

here, there = multiprocessing.get_context("fork").Pipe(duplex=False)
multiprocessing.get_context("fork").Process(target=child, args=(sys.argv[1], there)).start()
here.recv()
os._exit(0)
"""
    said = subprocess.run([sys.executable, "-c", code, gone], capture_output=True, check=True, timeout=60)
    assert not said.stdout and not said.stderr
