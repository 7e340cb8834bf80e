"""Groups that do not fit the memory are split, before they are trained or when it runs out; no bit changes."""

import gc
import weakref

import numpy as np
import pytest
import torch

from commands import TINY, command
from kdrun import assembly, cache, evaluate, machine, memory, models, rehearsal, split
from kdrun.errors import OutOfMemory, TrainingError
from kdrun.plan import plan
from kdrun.store import Store
from kdrun.store.lock import locked
from kdrun.student import Student
from kdrun.train import fit
from support import Ears, checked, checkpoint_always, experiment, outcome, results, run
from test_stack import learnt
from test_stack import text as stacked_text

TEXT = """
name: split
device: cpu
dataset: {kind: synthetic, shape: [1, 8, 8], classes: 4, samples: 64, test_samples: 24, augmentation: strong}
seeds: [3]
training: {epochs: 2, batch_size: 16, optimizer: {kind: sgd, lr: 0.02}, mixup: 0.3, ema: 0.8}
teacher: {model: {kind: cnn, width: 4, hidden: 8}}
student: {model: {kind: cnn, width: 3, hidden: 8, dropout: 0.3}}
controls: none
methods: [kd, hint, rkd]
"""
"""Four students and a control among them, eight steps each."""
FOUR = ["alone", "kd", "hint", "rkd"]
CPU = torch.device("cpu")
GPU = "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 9.00 GiB"
HOST = "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 3000000 bytes."


@pytest.fixture(autouse=True)
def nine_gigabytes(monkeypatch):
    """What is said to be free."""
    monkeypatch.setattr(memory, "available_memory", lambda: int(9e9))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What came of four students that were trained together."""
    root = tmp_path_factory.mktemp("whole")
    run(TEXT, root)
    return outcome(root)


@pytest.fixture
def groups(monkeypatch):
    """The methods of each group that is trained, as it begins."""
    found = []

    def noted(pupils, *rest):
        found.append([student.title.split("/")[1] for student in pupils])
        return fit(pupils, *rest)

    monkeypatch.setattr("kdrun.experiment.fit", noted)
    return found


@pytest.fixture
def narrow(monkeypatch):
    """Memory for steps of so many students at once; another one runs out of it at a step, however often."""

    def narrowed(most, at, error):
        def noted(self, batch, taught):
            alive = sum(other.title.startswith("student/") for other in students if other is not self) + 1
            if self.title.startswith("student/") and alive > most and self.position == at:
                raise error
            step(self, batch, taught)

        def made(*arguments):
            student = make(*arguments)
            students.add(student)
            return student

        students, step, make = weakref.WeakSet(), Student.step, assembly.make_student
        monkeypatch.setattr(Student, "step", noted)
        monkeypatch.setattr("kdrun.bookkeeping.make_student", made)

    return narrowed


def figures_of(text, *overrides):
    config = checked(text, *overrides)
    dataset = assembly.open_dataset(config)
    planned = plan(config, dataset)
    shown = rehearsal.rehearse(planned, dataset, CPU)
    return planned, shown, split.figures(shown)


def test_no_step_that_is_timed_looks_at_gradients(monkeypatch):
    looks, original = [], Student._looks
    monkeypatch.setattr(Student, "_looks", lambda self: looks.append(original(self)) or looks[-1])
    figures_of(TEXT)
    several_terms = 3  # of kd, hint and rkd
    assert looks == [True, False] * several_terms


def students_of(planned):
    return [run_ for run_ in planned.runs if run_.role == "student"]


def unlocked(root, planned):
    """Fails where a lock is still held."""
    for run_ in planned.runs:
        with locked(Store(root).lock_file(run_.fingerprint), run_.title):
            pass


# ------------------------------------------------------------------------------------------ the estimate


def test_what_a_group_takes():
    planned, _, figures = figures_of(TEXT)
    teacher, (alone, kd, hint, rkd) = planned.runs[0], students_of(planned)
    own, taught = figures[alone.kin], figures[kd.kin]
    weights = 4 * 5 * own.parameters
    assert split.needed([alone], figures) == weights + own.activation_bytes * 16 // 8
    assert split.needed([kd, rkd], figures) == (
        2 * weights
        + 4 * 2 * taught.teacher_parameters["teacher"]
        + 2 * max(taught.activation_bytes, figures[rkd.kin].activation_bytes)
    ), "the teacher counts once, and so does a step"
    assert taught.teacher_parameters == {"teacher": figures[teacher.kin].parameters}
    assert split.needed([hint], figures) - split.needed([kd], figures) >= (
        4 * 5 * figures[hint.kin].adapter_parameters
    )


def test_stacked_students_keep_all_that_their_step_needs():
    planned, _, figures = figures_of(stacked_text("[kd]"))
    alone, kd = students_of(planned)[:2]
    both = split.needed([alone, kd], figures)
    assert figures[kd.kin].stackable
    kept = figures[alone.kin].activation_bytes + figures[kd.kin].activation_bytes
    _, _, single = figures_of(stacked_text("[kd]"), "training.stack=false")
    assert both - split.needed([alone, kd], single) == kept * 2 - 2 * max(
        figures[run_.kin].activation_bytes for run_ in (alone, kd)
    )


@pytest.mark.parametrize(("free", "sizes"), [(6e9, [4]), (5e9, [2, 2]), (4e9, [2, 2]), (3e9, [1] * 4)])
def test_the_fewest_parts_that_fit(monkeypatch, free, sizes):
    planned, shown, _ = figures_of(TEXT)
    group, told = students_of(planned), []
    monkeypatch.setattr(split, "needed", lambda part, figures: 1e9 * (2 + len(part)))
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    parts = list(split.fitting(group, shown, CPU, told.append))
    assert [len(part) for part in parts] == sizes
    assert [run_ for part in parts for run_ in part] == group
    line = f"4 students in {len(sizes)} groups: together they need about 6.0 GB, and {free / 1e9:.1f} GB are free"
    assert told == ([line] if len(sizes) > 1 else [])


def test_one_that_does_not_fit_even_alone_is_tried_anyway_after_the_others(monkeypatch):
    planned, shown, _ = figures_of(TEXT)
    group, told = students_of(planned), []
    sizes = {"alone": 1, "kd": 9, "hint": 1, "rkd": 1}
    monkeypatch.setattr(split, "needed", lambda part, _: 1e9 * sum(sizes[run_.method] for run_ in part))
    monkeypatch.setattr(memory, "free_memory", lambda device: 4e9)
    parts = list(split.fitting(group, shown, CPU, told.append))
    assert [[run_.method for run_ in part] for part in parts] == [["alone", "hint", "rkd"], ["kd"]]
    assert told == [
        "4 students in 2 groups: together they need about 12 GB, and 4.0 GB are free",
        "student/kd/seed 3: needs about 9.0 GB even alone, and 4.0 GB are free; it is tried anyway, "
        "since this is an estimate",
    ]


def test_what_is_free():
    assert (
        memory.free_memory(CPU) == pytest.approx((1 - memory.RESERVE) * 9e9)
        and machine.available_memory() > 0
    )


def test_where_nobody_says_what_is_available_all_that_there_is_counts(monkeypatch):
    def nothing(*_):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", nothing)
    assert machine.available_memory() > 1 << 28


# ------------------------------------------------------------------------------------------- split before


@pytest.mark.parametrize("most", [1, 2])
def test_a_group_that_is_split_has_the_bits_of_the_whole(whole, tmp_path, monkeypatch, groups, most):
    console = Ears()
    monkeypatch.setattr(memory, "free_memory", lambda device: 4e9)
    monkeypatch.setattr(split, "needed", lambda part, _: 1e9 * (4 + len(part) - most))
    planned = experiment(TEXT, tmp_path / "split", console=console).run()
    assert groups[1:] == ([FOUR[:2], FOUR[2:]] if most == 2 else [[method] for method in FOUR])
    assert outcome(tmp_path / "split") == whole
    total = 4 + 4 - most
    assert [line for line in console.heard if "together they need" in line] == [
        f"4 students in {4 // most} groups: together they need about {total:.1f} GB, and 4.0 GB are free"
    ]
    unlocked(tmp_path / "split", planned)


def test_stacked_students_that_are_split_learn_the_same_up_to_rounding(tmp_path, monkeypatch, groups):
    run(stacked_text("[kd, dkd]"), tmp_path / "whole")
    monkeypatch.setattr(memory, "free_memory", lambda device: 4e9)
    monkeypatch.setattr(split, "needed", lambda part, _: 1e9 * len(part))
    groups.clear()
    run(stacked_text("[kd, dkd]"), tmp_path / "split")
    assert [len(group) for group in groups] == [1, 3, 3]
    whole, parts = learnt(tmp_path / "whole"), learnt(tmp_path / "split")
    assert whole.keys() == parts.keys()
    for place, arrays in whole.items():
        for name, array in arrays.items():
            np.testing.assert_allclose(parts[place][name], array, rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------------------- when it runs out


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(GPU), RuntimeError(HOST)], ids=["gpu", "cpu"])
@pytest.mark.parametrize("saved", [True, False], ids=["checkpoints", "none"])
def test_halves_have_the_bits_of_the_whole(whole, tmp_path, monkeypatch, groups, narrow, saved, error):
    if saved:
        checkpoint_always(monkeypatch)
    narrow(2, 5, error)
    console = Ears()
    asked = experiment(TEXT, tmp_path / "halves", console=console)
    planned = asked.run()
    assert groups[1:] == [FOUR, FOUR[:2], FOUR[2:]]
    assert outcome(tmp_path / "halves") == whole
    what = "machine ran out where 3.0 MB" if "Default" in str(error) else "GPU ran out where 1.6 GB"
    assert [line for line in console.heard if "two halves" in line] == [
        f"the memory of the {what} more were asked for (9.0 GB are free); the 4 students that were trained together "
        "are trained in two halves, from their newest checkpoints"
    ]
    begun = [line for line in console.heard if "2 students in lock step" in line and " of 8 steps" in line]
    assert len(begun) == 2 and all(("going on at step 5" if saved else "from the start") in b for b in begun)
    unlocked(tmp_path / "halves", planned)
    assert not asked.stop.waits


def test_nothing_of_the_attempt_is_left_when_its_halves_begin(tmp_path, monkeypatch, narrow):
    """Students, teachers and tables: what ran out once would run out again beside them."""
    left = []

    def noted(pupils, *rest):
        kinds = [(type(o), o) for o in gc.get_objects()]
        left.append(len([o for kind, o in kinds if kind is Student and o not in pupils]))
        left.append(len([o for kind, o in kinds if kind is models.Prepared]))
        return fit(pupils, *rest)

    gc.collect()
    narrow(2, 5, torch.OutOfMemoryError(GPU))
    monkeypatch.setattr("kdrun.experiment.fit", noted)
    run(TEXT, tmp_path)
    assert left[4:] == [0, 1, 0, 1], "of the teacher there is one copy, which is new"


def test_one_that_runs_out_alone_is_one_failure_and_the_others_go_on(whole, tmp_path, monkeypatch, groups):
    def noted(self, batch, taught):
        if self.title == "student/hint/seed 3" and self.position == 5:
            raise torch.OutOfMemoryError(GPU)
        step(self, batch, taught)

    step = Student.step
    with monkeypatch.context() as patch, pytest.raises(TrainingError) as caught:
        patch.setattr(Student, "step", noted)
        run(TEXT, tmp_path / "rest")
    assert groups[1:] == [FOUR, FOUR[:2], FOUR[2:], ["hint"], ["rkd"]]
    assert str(caught.value) == (
        "student/hint/seed 3: the memory of the GPU ran out where 1.6 GB more were asked for (9.0 GB are free), and it "
        "was trained alone; write `training.batch_size: 8` instead of 16 or `training.precision: bf16`, or leave more "
        "memory free"
    )
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    place = "students/student/hint/seed-3"
    assert outcome(tmp_path / "rest") == {key: value for key, value in whole.items() if key != place}
    planned = run(TEXT, tmp_path / "rest")
    unlocked(tmp_path / "rest", planned)
    assert outcome(tmp_path / "rest") == whole


def test_a_teacher_that_runs_out_ends_the_run(tmp_path, monkeypatch):
    def out(*_):
        raise torch.OutOfMemoryError(GPU)

    monkeypatch.setattr("kdrun.experiment.fit", out)
    with pytest.raises(OutOfMemory, match="teacher/seed 0: the memory of the GPU ran out"):
        run(TEXT, tmp_path)
    assert results(tmp_path) == {}


def once(original, when=lambda *_: True):
    """A function that runs out of memory the first time."""
    times = []

    def narrowed(*arguments):
        if when(*arguments) and not times:
            times.append(1)
            raise RuntimeError(HOST)
        return original(*arguments)

    return narrowed


def test_it_may_run_out_while_a_teacher_is_asked_or_a_student_scored(tmp_path, monkeypatch, groups):
    tables = ["dataset.augmentation=none", "training.mixup=0"]
    run(TEXT, tmp_path / "whole", *tables)
    groups.clear()
    monkeypatch.setattr(cache.Faculty, "_compute", once(cache.Faculty._compute))
    score = once(evaluate.answers, lambda *_: len(results(tmp_path / "halves")) == 2)
    monkeypatch.setattr("kdrun.bookkeeping.answers", score)
    run(TEXT, tmp_path / "halves", *tables)
    assert groups[1:] == [FOUR[:2], ["kd"], FOUR[2:]], "what was scored before is not trained again"
    assert outcome(tmp_path / "halves") == outcome(tmp_path / "whole")


def test_other_errors_stay_what_they_are(tmp_path, monkeypatch):
    def wrong(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("kdrun.experiment.fit", wrong)
    with pytest.raises(RuntimeError, match="mat1"):
        run(TEXT, tmp_path)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("no figures"), "the memory of the GPU ran out"),
        (torch.OutOfMemoryError(GPU), "the memory of the GPU ran out where 1.6 GB more were asked for"),
        (RuntimeError("CUDA error: out of memory"), "the memory of the GPU ran out"),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), "the memory of the GPU ran out"),
        (RuntimeError(HOST), "the memory of the machine ran out where 3.0 MB more were asked for"),
        (MemoryError(), "the memory of the machine ran out"),
    ],
)
def test_what_is_said_of_an_error(error, told):
    with pytest.raises(OutOfMemory) as caught, memory.watched():
        raise error
    assert str(caught.value) == f"{told} (9.0 GB are free)" and caught.value.__cause__ is error


def test_this_torch_says_it_in_these_words():
    told = "the memory of the machine ran out where 1152921505 GB more"
    with pytest.raises(OutOfMemory, match=told), memory.watched():
        torch.empty(1 << 60, dtype=torch.uint8)


def test_a_teacher_is_not_asked_in_other_arithmetic_for_want_of_memory(tmp_path, monkeypatch):
    planned, _, _ = figures_of(TEXT)
    dataset = assembly.open_dataset(checked(TEXT))
    dataset.load(CPU)
    network = assembly.fresh_network(planned.runs[0], dataset.spec, CPU)
    teacher = models.Frozen(network.model, network.view, CPU)
    original = models.prepared._predicted

    def runs_out(model, x):
        if x.dtype == torch.bfloat16:
            raise RuntimeError(HOST)
        return original(model, x)

    monkeypatch.setattr(models.prepared, "_predicted", runs_out)
    with pytest.raises(RuntimeError, match="not enough memory"):
        models.recipe(teacher, [], True, next(iter(dataset.split("train"))))


# ------------------------------------------------------------------------------------------------ check


def test_check_says_into_how_many_groups_it_would_be_split(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY)
    told = command("check", "tiny.yaml", folder=tmp_path)
    assert told.code == 0 and "groups to train one after the other: 3\n" in told.out
    planned, _, figures = figures_of(TINY)
    most = max(split.needed([run_], figures) for run_ in planned.runs)
    monkeypatch.setattr(memory, "free_memory", lambda device: most)
    told = command("check", "tiny.yaml", folder=tmp_path)
    assert "groups to train one after the other: 3, split into 5 here\n" in told.out
    assert told.out.count("2 students in 2 groups: together they need about ") == 2


def test_a_step_too_large_to_be_rehearsed_is_one_message(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.setattr(Student, "step", once(Student.step))
    told = command("check", "tiny.yaml", folder=tmp_path)
    assert told.code == 1
    assert told.err.endswith(
        "error: teacher/seed 0: the memory of the machine ran out where 3.0 MB more were asked for (9.0 GB are free) "
        "in a step of 16 samples; write a smaller `training.batch_size`\n"
    )
