"""A signal at any moment ends the process in time, saved, with its exit code, and leaves nobody behind."""

import os
import random
import signal
import time

import pytest
from forked import Command, forge
from works import WORKS, write

from support import comparison, outcome

WORK = WORKS["adamw-cosine-warmup-mixup-ema-best"]
MOMENTS = {
    "loading": ("kdrun.assembly", "load", 2),
    "in the forward pass": ("kdrun.models", "Network.__call__", 250),
    "saving": ("kdrun.store.files", "_write", 250),
    "validating": ("kdrun.train", "score", 15),
    "scoring": ("kdrun.bookkeeping", "answers", 5),
}
"""A function that is called at the moment; in some more than so many calls of a whole run."""
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}
PATIENCE = 10.0
"""Seconds, and a step, in which a process has to end."""


def stopped(command, number):
    """Send a signal when the command says that it is at the moment; the seconds until its end, None if it never was."""
    try:
        command.at_the_moment.recv()
    except EOFError:  # it came to its end
        return None
    os.kill(command.process.pid, number)
    began = time.monotonic()
    assert command.code is not None
    return time.monotonic() - began


@pytest.mark.parametrize("moment", MOMENTS)
def test_signals(tmp_path, moment, times, figure):
    draw, arguments, told = random.Random(moment), write(tmp_path, WORK), tmp_path / "told"
    place, name, last = MOMENTS[moment]
    forge()
    assert Command([*arguments, "--out", tmp_path / "whole"], told, every=1e9).code == 0
    whole = outcome(tmp_path / "whole"), comparison(tmp_path / "whole", "resume")
    sent, wanted, finished, longest = 0, times(2, 50), 0, 0.0
    while sent < wanted:
        out, done = tmp_path / f"stopped-{finished}", False
        while not done:
            told.unlink(missing_ok=True)
            number, at = draw.choice(list(SIGNALS)), (place, name, draw.randint(1, last))
            every = 0.0 if moment == "saving" else 1e9
            command = Command([*arguments, "--out", out], told, every=every, moment=at)
            took, done = stopped(command, number), command.code == 0
            assert not command.survivors() and "Traceback" not in command.words, command.words
            if not done:
                assert command.code == SIGNALS[number] and took < PATIENCE, (
                    command.code,
                    took,
                    command.words,
                )
                assert number.name in command.words
                sent, longest = sent + 1, max(longest, took)
        finished += 1
        assert (outcome(out), comparison(out, "resume")) == whole
    figure(
        f"{sent} signals {'while ' * (' ' not in moment)}{moment}: right exit codes, {longest:.1f} s at most until the "
        f"end, {finished} runs to their end, 0 differing bits"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_process_that_trains(tmp_path, number):
    work, told = WORKS["workers"], tmp_path / "told"
    arguments = [*write(tmp_path, work), "--out", tmp_path / "runs", "--set", "training.epochs=50"]
    command = Command(arguments, told, every=1e9, moment=("kdrun.student", "Student.step", 6), **work.how)
    assert command.at_the_moment.recv(), command.words
    os.kill(command.process.pid, number)
    assert command.code == SIGNALS.get(number, -number) and not command.survivors(patience=2.0)


def test_a_second_interrupt_ends_the_process_at_once(tmp_path):
    arguments = [*write(tmp_path, WORK), "--out", tmp_path / "runs"]
    moment = ("kdrun.bookkeeping", "Seat.save", 1)
    command = Command(arguments, tmp_path / "told", every=0.0, moment=moment, pause=60)
    assert command.at_the_moment.recv(), command.words
    os.kill(command.process.pid, signal.SIGINT)
    while "saving after this step" not in command.words:
        time.sleep(0.01)
    os.kill(command.process.pid, signal.SIGINT)
    began = time.monotonic()
    assert command.code == 130 and time.monotonic() - began < 1.0
