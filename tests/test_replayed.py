"""A pass that is recorded and replayed: where that can be done, and where it cannot."""

import pytest
import torch

from kdrun.contracts import Outputs
from kdrun.models import Prepared, recipe, replayed
from kdrun.models.replayed import CALLS, Replayed
from test_prepared import near, teacher

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU, and here is none")


class Recording:
    """Stands for a graph on a machine without a GPU: a recorded pass that notes its calls."""

    made, calls, wrong = 0, 0, 0.0

    def __init__(self, look, x):
        type(self).made += 1
        self.look = look

    def __call__(self, x):
        type(self).calls += 1
        said = self.look(x)
        return Outputs(said.logits + self.wrong, said.features)


class Impossible(Recording):
    def __init__(self, look, x):
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture
def look():
    seen = []

    def look(x):
        seen.append(x)
        return Outputs(2 * x, {"layer": x + 1})

    look.seen = seen
    return look


def recorded(monkeypatch, kind, **options):
    graph = type("Graph", (kind,), options)
    monkeypatch.setattr(replayed, "Graph", graph)
    return graph


def test_what_comes_again_and_again_is_recorded_once(monkeypatch, look):
    graph, replay = recorded(monkeypatch, Recording), Replayed(look)
    x = torch.randn(4, 3)
    for number in range(CALLS + 2):
        assert graph.made == (number >= CALLS)
        assert torch.equal(replay(x).logits, 2 * x)
    assert (graph.made, graph.calls) == (1, 1 + 3), "one to compare, and one a call from then on"


def test_every_form_is_recorded_by_itself(monkeypatch, look):
    graph, replay = recorded(monkeypatch, Recording), Replayed(look)
    whole = torch.randn(4, 6)
    for x in (whole, whole[:2], whole[:, ::2], whole.bfloat16()):
        for _ in range(CALLS):
            replay(x)
    assert graph.made == 4


@pytest.mark.parametrize(
    ("kind", "options"), [(Impossible, {}), (Recording, {"wrong": 0.1})], ids=["impossible", "wrong"]
)
def test_the_network_runs_as_it_is_where_recording_fails(monkeypatch, look, kind, options):
    graph, replay = recorded(monkeypatch, kind, **options), Replayed(look)
    x = torch.randn(4, 3)
    for _ in range(CALLS + 2):
        said = replay(x)
        assert torch.equal(said.logits, 2 * x) and torch.equal(said.features["layer"], x + 1)
    assert graph.calls <= 1


@GPU
@pytest.mark.parametrize("bf16", [False, True])
def test_a_replayed_teacher_says_the_same(bf16):
    frozen, batch = teacher("resnet8")
    frozen, batch = type(frozen)(frozen.model, "input", torch.device("cuda")), batch.to("cuda")
    fast = Prepared(frozen, recipe(frozen, ["layer1"], bf16, batch), ["layer1"])
    plain = fast(batch)
    kept = [fast(batch) for _ in range(CALLS + 1)]
    other = fast(type(batch)({"input": batch.views["input"] * 2}, batch.labels, batch.index))
    assert any(graph is not None for graph in fast._pass._graphs.values())
    assert all(near(said.logits, plain.logits, 1e-3) for said in kept)
    assert all(near(said.features["layer1"], plain.features["layer1"], 1e-3) for said in kept)
    assert not near(other.logits, plain.logits, 1e-3)
