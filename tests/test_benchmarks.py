"""The benchmarks run, and what they write is consistent; how fast anything is, is not looked at."""

import json
import os
import subprocess
import sys
import types
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
    words = (
        "--work C --variants bare,exact --rounds 2 --steps 3 --warm-up 2 --seconds 0 --retries 0 --lessons 2"
    )
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


class Calm:
    """A contestant that takes its windows at once, and a machine on which others are busy in the first ones."""

    name, trouble, ready = "calm", None, {"seconds_per_step": 0.5}

    def __init__(self, others):
        self.windows, self._others = [], iter(others)

    def window(self, lead, steps):
        return {"steps": steps, "seconds": 0.5 * steps, "samples": 7 * steps}

    def since(self, before):
        return next(self._others), 0.0


@pytest.mark.parametrize(
    ("others", "stands"),
    [([0.02], (0.02, 1, False)), ([0.5, 0.04], (0.04, 2, False)), ([0.5, 0.3, 0.4], (0.3, 3, True))],
)
def test_windows_in_which_others_were_busy_are_taken_again(monkeypatch, others, stands):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import windows

    one = Calm(others)
    monkeypatch.setattr(windows.Usage, "now", lambda *_: one)
    windows.Protocol(rounds=1, seconds=2.0, others=0.1, retries=2).run([one], 3)
    (window,) = one.windows
    assert (window.others, window.attempts, window.disturbed) == stands
    assert window.steps == 4, "about two seconds"


def test_growth_and_crossings_are_those_of_the_points(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import scaling

    taken = [{"size": n, "ms": 3.0 * n**2, "bytes": 100 + 10 * n} for n in (1, 2, 4)]
    growth = scaling._growth(taken)["growth"]
    assert growth["ms"]["exponent"] == pytest.approx(2)
    assert growth["ms"]["worse_than_linear"] == [[1, 2], [2, 4]] and not growth["bytes"]["worse_than_linear"]
    students = [{"size": n, "ms": 8.0 + 2 * n, "bytes": 1} for n in (1, 2, 4)]
    assert scaling._crossing("students", students, 0, None)["students"] == pytest.approx(4)
    limit = types.SimpleNamespace(memory=1.0)
    crossing = scaling._crossing("data", taken, 1 << 20, limit)
    assert crossing["pictures"] == pytest.approx(((1 << 30) - (1 << 20) - 100) / 10)


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


# ------------------------------------------------------------------------------------------------ accuracy


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What the comparison of MNIST's students wrote, of two seeds on made-up pictures."""
    folder = tmp_path_factory.mktemp("accuracy")
    words = "--works mnist --seeds 0,1 --epochs 1 --pictures 256 --test-pictures 100 --threads 1"
    places = [
        "--data",
        str(folder / "nothing"),
        "--out",
        str(folder / "out"),
        "--json",
        str(folder / "a.json"),
    ]
    command = [sys.executable, "-m", "benchmarks.accuracy", *words.split(), *places]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = (folder / "a.json").read_text()
    kept = (folder / "out" / "mnist.md").read_text()
    for text in (written, kept, done.stdout):
        assert str(ROOT) not in text and str(folder) not in text
    found = json.loads(written)["works"]["mnist"]
    assert found["comparison"] in kept and kept in done.stdout
    return found


def test_every_variant_is_compared_with_the_base_seed_by_seed(trained):
    assert trained["data"] == "256 synthetic pictures, 100 test pictures" and trained["base"] == "live"
    assert list(trained["variants"]) == ["live", "bf16", "cached", "bf16-cached", "stacked"]
    base = trained["variants"]["live"]
    assert base["against_base"] is None and trained["bound"] == 0.5
    for name, entry in trained["variants"].items():
        assert f"| student | {name} kd | teacher | 2 |" in trained["comparison"]
        assert list(entry["scores"]) == ["0", "1"]
        assert entry["mean"] == pytest.approx(sum(entry["scores"].values()) / 2)
        if name != "live":
            differences = {s: 100 * (entry["scores"][s] - base["scores"][s]) for s in ("0", "1")}
            against = entry["against_base"]
            assert against["differences"] == pytest.approx(differences)
            low, high = against["interval"]
            assert (low + high) / 2 == pytest.approx(against["mean"], abs=1e-9)
            assert against["verdict"] in ("yes", "no", "not shown")


def test_the_interval_is_that_of_a_paired_t_test(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from scipy.stats import ttest_rel

    from benchmarks.accuracy import paired

    base = {0: 0.912, 1: 0.907, 2: 0.915, 3: 0.909, 4: 0.911}
    scores = {0: 0.914, 1: 0.904, 2: 0.916, 3: 0.912, 4: 0.909}
    found = paired(scores, base)
    test = ttest_rel([100 * s for s in scores.values()], [100 * s for s in base.values()])
    theirs = test.confidence_interval(0.90)
    assert found.interval == pytest.approx((theirs.low, theirs.high)) and found.mean == pytest.approx(0.02)
    assert found.differences == pytest.approx({"0": 0.2, "1": -0.3, "2": 0.1, "3": 0.3, "4": -0.2})
    assert paired(base, base).interval == (0, 0)
    assert paired({0: 0.5}, {0: 0.4, 1: 0.4}).interval is None


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((-0.4, 0.3), "yes"),
        ((-0.4, 0.6), "not shown"),
        ((0.1, 0.5), "not shown"),
        ((-0.9, -0.6), "no"),
        ((0.6, 0.7), "no"),
        (None, "not shown"),
    ],
)
def test_equal_within_bounds_is_said_only_where_it_is_shown(monkeypatch, interval, said):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.accuracy import Paired, verdict

    assert verdict(Paired({}, 0.0, interval), 0.5) == said
    assert verdict(Paired({}, 0.0, interval), None) is None


def test_experiments_differ_in_what_they_compare_alone(monkeypatch):
    """One teacher serves all numbers of copies, and the data, seeds and recipe are the same."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.studies import STUDIES

    copies = STUDIES["copies"].experiments([0, 1])
    assert list(copies) == ["copies-fresh", "copies-K16", "copies-K4", "copies-K1"]
    bare = []
    for experiment in copies.values():
        augmentation = experiment["dataset"]["augmentation"]
        assert augmentation == "standard" or augmentation["parts"] == "standard"
        students = list(experiment["students"].values())
        dataset = {k: v for k, v in experiment["dataset"].items() if k != "augmentation"}
        bare.append(experiment | {"name": "", "dataset": dataset, "students": students})
    assert all(one == bare[0] for one in bare)
    (together,) = STUDIES["mnist"].experiments([0, 1]).values()
    models = [student["model"] for student in together["students"].values()]
    assert models == [models[0]] * 5
