import os
from pathlib import Path

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
