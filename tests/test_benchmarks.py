"""The benchmarks run, and what they write is consistent; how fast anything is, is not looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
import torch

from kdrun import models, registry

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What a run of two contestants wrote."""
    folder = tmp_path_factory.mktemp("benchmark")
    words = "--work C --variants bare,exact --rounds 2 --steps 3 --warm-up 2 --seconds 0 --retries 0"
    places = ["--pictures", "256", "--data", str(folder / "nothing"), "--json", str(folder / "out.json")]
    command = [sys.executable, "-m", "benchmarks.throughput", *words.split(), *places]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = (folder / "out.json").read_text()
    assert str(ROOT) not in written + done.stdout and str(folder) not in written + done.stdout
    return json.loads(written)


def test_every_window_is_in_the_file(measured):
    work = measured["works"]["C"]
    assert work["data"] == "256 synthetic pictures" and work["fastest_loop"] == "bare"
    for name in ("bare", "exact"):
        entry = work["contestants"][name]
        assert [window["round"] for window in entry["windows"]] == [0, 1]
        assert [window["steps"] for window in entry["windows"]] == [3, 3]
        assert [window["samples"] for window in entry["windows"]] == [3 * 128, 3 * 128]
        assert entry["students"] == 1 and entry["trouble"] is None
    assert {window["turn"] for window in work["contestants"]["bare"]["windows"]} == {0, 1}


def test_ratios_follow_from_the_times(measured):
    contestants = measured["works"]["C"]["contestants"]
    times = {
        name: [w["seconds"] / w["steps"] for w in contestants[name]["windows"]] for name in ("bare", "exact")
    }
    assert contestants["exact"]["ms_per_step"] == pytest.approx(1000 * median(times["exact"]))
    ratio = contestants["exact"]["against_loop"]
    rounds = [bare / exact for bare, exact in zip(times["bare"], times["exact"], strict=True)]
    assert ratio["against"] == "bare" and ratio["per_round"] == pytest.approx(rounds)
    assert (ratio["min"], ratio["max"]) == pytest.approx((min(rounds), max(rounds)))
    assert contestants["exact"]["against_tricks"] is None


def test_a_folded_teacher_says_the_same(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.plain import fold

    net = models.build(registry.MODELS["resnet8"].Config(kind="resnet8"), (3, 16, 16), 10, seed=0)
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    net(x)  # statistics that are not those of the start
    net.eval()
    with torch.no_grad():
        before = net(x)
        fold(net)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
        torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-5)
