"""A finished run of one experiment as the teacher of another: the same bits as its file of weights, or one message."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from commands import command, process
from kdrun.errors import ConfigError
from kdrun.store import Store, housekeeping, read_json, write_json
from kdrun.tune import tune
from kdrun.yamlsource import Source
from support import Ears, checked, comparison, count_training, experiment, outcome, problems, results, run

FIRST = """\
name: first
device: cpu
dataset: {kind: digits, validation: 0.1}
seeds: [1]
training: {epochs: 2, batch_size: 64, optimizer: {kind: adamw, lr: 0.005}}
teachers:
  big: {model: {kind: cnn, width: 4, depth: 2, hidden: 16}}
  forest: {model: {kind: forest, trees: 3}}
students:
  small: {model: {kind: mlp, hidden: [24]}}
  tree: {model: {kind: tree, depth: 4, prune: true}}
controls: none
methods: [{use: kd, teacher: big}]
"""
SIMKD = """\
name: simkd
device: cpu
dataset: {kind: synthetic, shape: [1, 8, 8], samples: 64, test_samples: 32}
seeds: [1]
training: {epochs: 1, batch_size: 256}
teacher: {model: resnet8}
student: {model: resnet8}
controls: none
methods: [simkd]
"""
SECOND = """\
name: second
device: cpu
dataset: {kind: digits, validation: 0.1}
seeds: [0]
training: {epochs: 2, batch_size: 64, optimizer: {kind: adamw, lr: 0.005}}
teacher: {run: RUN, expect: 0.2}
student: {model: {kind: mlp, hidden: [8]}}
controls: none
methods: [kd]
"""
SMALL, TREE = (f"runs/first/students/{name}/kd/seed-1" for name in ("small", "tree"))
AGAIN, THIRD = "runs/second/teachers/teacher/seed-0", "other/third/teachers/teacher/seed-0"
BIG, FOREST = (f"runs/first/teachers/{name}/seed-0" for name in ("big", "forest"))


def second(finished=SMALL):
    return SECOND.replace("RUN", str(finished))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder with the runs of the first experiment, which no test changes."""
    folder = tmp_path_factory.mktemp("first")
    for text in (FIRST, SIMKD):
        run(text, folder / "runs")
    return folder


@pytest.fixture
def folder(first, tmp_path, monkeypatch):
    """A copy of it, as the working folder."""
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(text, *options):
    """What ``kdrun check`` says of a config that it refuses, without the config's line."""
    Path("c.yaml").write_text(text)
    told = command("check", "c.yaml", *options, folder=".")
    assert told.code == 2, told
    return [line for line in told.err.splitlines() if " | " not in line]


# ------------------------------------------------------------------------------------- born again


@pytest.mark.parametrize("place", [SMALL, BIG, FOREST, TREE], ids=["student", "teacher", "forest", "tree"])
def test_a_finished_run_is_the_teacher_that_it_was(folder, monkeypatch, place):
    trained = count_training(monkeypatch)
    run(second(place), "runs")
    assert trained == [f"student/{method}/seed 0" for method in ("alone", "kd")]
    was, now = (read_json(Path(at) / "result.json") for at in (place, AGAIN))
    for file in ("weights.safetensors", "predictions.npz"):
        assert now["files"][file] == was["files"][file]
    assert (now["kind"], now["method"], now["train_seconds"]) == ("teacher", None, 0)


def test_it_is_the_same_as_its_model_and_its_file_of_weights(folder):
    """In all that is stored and in the table, so that neither is made anew where the other is finished."""
    model = f"model: {{kind: mlp, hidden: [24]}}, weights: {SMALL}/weights.safetensors"
    by_file = second().replace(f"run: {SMALL}", model)
    planned, same = (experiment(text, "other").plan.runs for text in (by_file, second()))
    assert [one.fingerprint for one in planned] == [one.fingerprint for one in same]
    run(by_file, "by-file")
    run(second(), "by-run")
    assert outcome("by-file") == outcome("by-run")
    assert comparison("by-file", "second") == comparison("by-run", "second")


def test_a_run_that_was_read_teaches_a_third(folder):
    run(second(), "runs", roles=["teacher"])
    run(second(AGAIN).replace("name: second", "name: third"), "other", roles=["teacher"])
    weights = [read_json(Path(at) / "result.json")["files"]["weights.safetensors"] for at in (SMALL, THIRD)]
    assert weights[0] == weights[1]


def test_its_view_comes_with_it(folder):
    dataset = "dataset={kind: digits, strong_view: strong}"
    run(FIRST.replace(", prune: true", ""), "viewed", dataset, "students.small.view=strong")
    place = "viewed/first/students/small/kd/seed-1"
    [teacher, *_] = experiment(second(place), "runs", dataset).plan.runs
    assert teacher.view == "strong"
    assert refusal(second(place)) == [
        "c.yaml:6:16: teacher.run: the data set has no view 'strong'; known: input"
    ]
    named = second(place).replace("teacher: {run", "teachers: {student: {run").replace("0.2}", "0.2}}")
    assert refusal(named) == [
        "c.yaml:6:27: teachers.student.run: the data set has no view 'strong'; known: input"
    ]


def test_a_forest_s_folds_do_not_come_with_it(folder):
    ears = Ears()
    experiment(second(FOREST), "runs", console=ears).run()
    assert "the teacher 'teacher' is not cross-fitted" in " ".join(ears.heard)


def test_a_pruned_tree_needs_no_validation_share_to_teach(folder):
    run(second(TREE), "runs", "dataset.validation=0", roles=["teacher"])


def test_all_commands_take_it(folder):
    Path("c.yaml").write_text(second("nowhere"))
    option = ("--set", f"teachers.teacher.run={SMALL}", "--quiet", "--json")
    for name in ("check", "layers", "train-teacher", "distill", "compare"):
        options = option[:2] if name == "layers" else option
        assert command(name, "c.yaml", *options, folder=".").code == 0, name
    shutil.rmtree("runs/first")
    rows = json.loads(command("compare", "c.yaml", "--no-train", "--json", folder=".").out)["rows"]
    assert [row["train_seconds"] for row in rows if row["role"] == "teacher"] == [0]


def test_a_tuned_config_names_the_run_and_nothing_that_came_from_it(folder):
    tune(experiment(second(), "runs"), 1)
    [file] = Path("runs/second").glob("*-tuned.yaml")
    assert Source.read(file).data["teachers"] == {"teacher": {"run": SMALL, "expect": 0.2}}


# --------------------------------------------------------------------------------------------- refusals


RUNS = ", ".join(
    f"runs/first/students/{name}/{method}/seed-1" for name in ("small", "tree") for method in ("alone", "kd")
)
REFUSED = {
    "runs/first/students/small/kd": (
        "'runs/first/students/small/kd' is no finished run; "
        f"did you mean 'runs/first/students/small/kd/seed-1'? known: {SMALL}"
    ),
    "runs/first/students/small/kd/seed-7": (
        "there is no folder 'runs/first/students/small/kd/seed-7'; "
        f"did you mean 'runs/first/students/small/kd/seed-1'? known: {SMALL}"
    ),
    "runs/first": (
        "'runs/first' is no finished run; known: "
        f"{RUNS}, runs/first/teachers/big/seed-0, runs/first/teachers/forest/seed-0"
    ),
    f"{SMALL}/weights.safetensors": (
        f"there is no folder '{SMALL}/weights.safetensors'; did you mean '{SMALL}'? known: {SMALL}"
    ),
    "nowhere": (
        "there is no folder 'nowhere'; write the folder of one seed, as in runs/digits/students/student/kd/seed-0"
    ),
    "runs/simkd/students/student/simkd/seed-1": (
        "the run predicts by parts of its loss 'simkd', and a teacher by its model alone; "
        "name a run of another method"
    ),
}


@pytest.mark.parametrize("place", REFUSED)
def test_what_is_no_teacher_is_refused(folder, place):
    assert refusal(second(place)) == [f"c.yaml:6:16: teacher.run: {REFUSED[place]}"]


def test_a_run_that_is_not_finished_is_refused(folder):
    (folder / SMALL / "result.json").rename(folder / SMALL / "begun.json")
    assert refusal(second()) == [
        f"c.yaml:6:16: teacher.run: the run in '{SMALL}' is not finished; the command that began it goes on with it"
    ]


def test_a_run_that_is_made_of_others_is_refused(folder):
    text = "teachers:\n  other: {model: {kind: mlp, hidden: [4]}}\n  teacher: {run: RUN, expect: 0.2}\n"
    text = SECOND.replace("teacher: {run: RUN, expect: 0.2}\n", text).replace("RUN", SMALL)
    run(
        text.replace("student:", "  both: {model: ensemble, from: [teacher, other]}\nstudent:"),
        "runs",
        "methods=[]",
    )
    assert refusal(second("runs/second/teachers/both/seed-0")) == [
        "c.yaml:6:16: teacher.run: the run is made of several others ('ensemble'); name its members, and combine them "
        "here"
    ]


def test_a_trial_is_refused(folder):
    tune(experiment(second(), "runs"), 1)
    place = "runs/second/tuning/student/kd/trial-0"
    assert (folder / place / "result.json").is_file()
    assert refusal(second(place)) == [
        f"c.yaml:6:16: teacher.run: '{place}' is a trial of a tuning, of which nothing but the scores is kept; "
        "name a run of the config that was tuned"
    ]


DAMAGE = {
    "a bit": ("weights.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    "its end": ("weights.safetensors", lambda data: data[:-1]),
    "another file": ("weights.safetensors", lambda data: b""),
    "its manifest": ("result.json", lambda data: data.replace(b"accuracy", b"bccuracy", 1)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_refused(folder, damage):
    file, change = DAMAGE[damage]
    path = Path(SMALL) / file
    path.write_bytes(change(path.read_bytes()))
    assert refusal(second()) == [
        f"c.yaml:6:16: teacher.run: {path}: its bytes are not those that were written; "
        "the command that made it makes it anew"
    ]
    path.unlink()
    [told] = refusal(second())
    assert told.startswith("c.yaml:6:16: teacher.run: ")


FOREIGN = {
    "no model": (
        lambda inputs: inputs.pop("model"),
        "result.json: is not what kdrun writes: model: Field required",
    ),
    "a model of another kdrun": (
        lambda inputs: inputs["model"].update(hiden=[3]),
        "teacher.run: unknown key 'hiden'; did you mean 'hidden'?",
    ),
    "a model of a plugin": (
        lambda inputs: inputs.update(model={"kind": "mine"}, plugins={"theirs": "0"}),
        "teacher.run: the run's model 'mine' is none that is loaded; add --plugin theirs to the command",
    ),
    "a loss of a plugin": (
        lambda inputs: inputs.update(losses=[{"kind": "mine"}], plugins={"theirs": "0"}),
        "teacher.run: the run's loss 'mine' is none that is loaded; add --plugin theirs to the command",
    ),
    "weights of another model": (
        lambda inputs: inputs["model"].update(hidden=[23]),
        "these are not the weights of this model",
    ),
}


@pytest.mark.parametrize("change", FOREIGN)
def test_a_run_that_this_kdrun_cannot_have_made_is_refused(folder, change):
    apply, words = FOREIGN[change]
    file = Path(SMALL) / "result.json"
    result = read_json(file)
    apply(result["inputs"])
    write_json(file, result)
    [told] = refusal(second())
    assert told.startswith(("c.yaml:6:11: teacher.run: ", "c.yaml:6:16: teacher.run: ")) and words in told


PLUGIN = """
from typing import Literal
from torch import nn
from kdrun.contracts import Model, ModelConfig
class Mine(Model):
    "A layer."
    class Config(ModelConfig):
        "None."
        kind: Literal["mine"]
    stages, pooled, head = (), "flatten", "classifier"
    def __init__(self, config, shape, classes):
        super().__init__()
        self.flatten, self.classifier = nn.Flatten(), nn.Linear(64, classes)
    def forward(self, x):
        return self.classifier(self.flatten(x))
"""


def test_a_plugin_s_model_teaches_where_the_plugin_is_loaded(folder):
    Path("theirs.py").write_text(PLUGIN)
    Path("a.yaml").write_text(second().replace(f"run: {SMALL}", "model: mine"))
    Path("c.yaml").write_text(second(AGAIN))
    commands = [["train-teacher", "a.yaml"], ["check", "c.yaml"]]
    code = (
        "import sys; from contextlib import suppress; from kdrun.cli import main\n"
        f"for words in {commands}:\n"
        "    sys.argv = ['kdrun', *words, '--plugin', 'theirs', '--quiet']\n"
        "    with suppress(SystemExit): main()"
    )
    done = process(folder=folder, code=code)
    assert "c.yaml: everything fits" in done.out and not done.err
    [told] = refusal(second(AGAIN))
    assert "the run's model 'mine' is none that is loaded; add --plugin theirs to the command" in told


def test_nothing_that_a_run_says_is_said_beside_it(folder):
    beside = {"model": "mlp", "weights": "w.pt", "training": "{epochs: 1}", "seed": "0", "seeds": "each"}
    beside |= {"view": "input", "cross_fit": "0", "from": "teacher", "method": "kd"}
    written = ", ".join(f"{key}: {value}" for key, value in beside.items())
    with pytest.raises(ConfigError) as caught:
        checked(second().replace("expect: 0.2", written))
    assert {(one.path, one.message) for one in caught.value.problems} == {
        (("teachers", "teacher", key), f"a teacher with `run` is finished, so `{key}` says nothing")
        for key in beside
    }


def test_a_run_is_one_teacher_once(folder):
    both = f"teachers: {{a: {{run: {SMALL}}}, b: {{run: {SMALL}}}}}"
    text = second().replace(f"teacher: {{run: {SMALL}, expect: 0.2}}", both)
    assert "'b' is the same teacher as 'a'; keep one" in problems(text)


# ------------------------------------------------------------------------------- samples that it has seen


@pytest.mark.parametrize(
    ("option", "there"),
    {
        "dataset.seed=1": "`seed: 0`",
        "dataset.test=0.2": "`test: 0.3`",
        "dataset={kind: digits, seed: 2, test: 0.5}": "`seed: 0, test: 0.3`",
    }.items(),
)
def test_a_run_that_learnt_from_what_are_test_samples_here_is_refused(folder, option, there):
    told = (
        "c.yaml:6:16: teacher.run: this run has other test samples of the same data set, and may have learnt from the "
        f"ones here; write {there} for the data set, as there"
    )
    assert refusal(second(), "--set", option) == [told]
    with pytest.raises(ConfigError, match="may have learnt from the ones here"):
        run(second(), "other", option)
    assert not results("other")


@pytest.mark.parametrize(
    "option",
    ["dataset.validation=0", "dataset.labels_per_class=3", "dataset.augmentation=strong", "seeds=[5]"],
)
def test_nothing_is_said_of_a_run_with_the_same_test_samples(folder, option):
    ears = Ears()
    experiment(second(), "other", option, console=ears).run(roles=["teacher"])
    assert "learnt" not in " ".join(ears.heard)


def test_a_run_with_other_validation_samples_may_know_those_here_which_is_told(folder):
    ears = Ears()
    experiment(second(), "other", "dataset.validation=0.2", console=ears).run(roles=["teacher"])
    assert "the teacher 'teacher' is of a run that held out other validation samples" in " ".join(ears.heard)


def test_a_run_that_teaches_elsewhere_is_not_cleaned_away(folder):
    run(second(), "runs", roles=["teacher"])
    shutil.rmtree("runs/first/students/small/alone")
    for path in Path("runs/first").glob("*.json"):
        path.unlink()
    kept = {str(entry.folder): entry.referenced for entry in housekeeping.entries(Store(Path("runs")))}
    assert kept[SMALL] and not kept[TREE]


def test_of_a_run_on_other_data_nobody_can_tell_which_is_told(folder):
    Path("c.yaml").write_text(second().replace("expect: 0.2", "expect: 0"))
    data = "dataset={kind: synthetic, shape: [1, 8, 8]}"
    for name in ("check", "train-teacher"):
        done = command(name, "c.yaml", "--quiet", "--set", data, folder=".")
        assert done.code == 0
        assert done.err.splitlines() == [
            "the teacher 'teacher' is of a run on other data (digits): if it learnt from any of the test samples here, "
            "it and its students score too high; it sees inputs normalised as they are here"
        ]


def test_another_number_of_classes_is_refused(folder):
    for place in (SMALL, FOREST):
        assert refusal(second(place), "--set", "dataset=wine") == [
            "c.yaml:6:16: teacher.run: this run tells 10 classes apart, and the data set has 3; "
            "name a run on these classes"
        ]


def test_classes_in_another_order_are_refused(folder):
    for name, classes in {"a": ("cat", "dog"), "b": ("dog", "eel")}.items():
        with open(f"{name}.csv", "w", newline="") as file:
            rows = [(number, number % 5, classes[number % 2]) for number in range(60)]
            csv.writer(file).writerows([("x", "y", "label"), *rows])
    data = "dataset={{kind: arrays, path: {}.csv, label: label}}"
    run(
        second(BIG).replace(f"run: {BIG}, expect: 0.2", "model: mlp"),
        "runs",
        data.format("a"),
        roles=["teacher"],
    )
    assert refusal(second(AGAIN), "--set", data.format("b")) == [
        "c.yaml:6:16: teacher.run: class 0 is 'cat' in this run, and 'dog' here; "
        "name a run on the same classes in the same order"
    ]
