import os
from pathlib import Path

import pytest
import torch


def pytest_configure():
    """One thread: two workers share two cores, and tests compare bits."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        type=Path,
        default=Path(__file__).parent / "golden",
        help="a folder of golden cases: cases.json and its .npz files",
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="tests/reliability with as many kills, mutations and flips as the project promises",
    )


@pytest.fixture
def times(request):
    """How often something is tried: few times, or with ``--long`` many."""
    return lambda few, many: many if request.config.getoption("--long") else few


@pytest.fixture
def figure(record_property):
    """Tell a figure that a test came to; it is printed at the end."""
    return lambda text: record_property("figure", text)


def pytest_terminal_summary(terminalreporter):
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    told = [text for report in reports for name, text in report.user_properties if name == "figure"]
    if told:
        terminalreporter.section("figures")
        for text in told:
            terminalreporter.line(text)
