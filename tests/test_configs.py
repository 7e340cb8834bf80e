"""The shipped configs: every one of them is right, says what it shows, and trains."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import kdrun
from commands import command
from kdrun import assembly, config, evaluate, models, registry, rehearsal
from kdrun.controls import CONTROLS
from kdrun.plan import plan
from kdrun.yamlsource import Source

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
STARTER = Path(kdrun.__file__).with_name("starter.yaml")

SHAPES = {
    "digits": [1, 8, 8],
    "mnist": [1, 28, 28],
    "cifar10": [3, 32, 32],
    "cifar100": [3, 32, 32],
    "image-folder": [3, 32, 32],
    "arrays": [1, 8, 8],
    "wine": [13],
    "breast_cancer": [30],
}
CLASSES, BATCH, STEPS = 2, 4, 2
PUSHES = {
    "pole": [[0.0] * 4, [0.1, 0.3, 1.0, 1.0]],
    "acrobot": [[0.0] * 4 + [1.0, 0.0], [0.0] * 6, [0.0] * 4 + [-1.0, 0.0]],
}
"""Linear policies that do well in an environment, by what configs call it."""

every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    """The large networks of the literature are here as well."""
    monkeypatch.setattr(assembly, "DRY_SAMPLES", BATCH)
    monkeypatch.setattr(evaluate, "WARM_UP", 1)
    monkeypatch.setattr(evaluate, "ROUNDS", 2)


def pictures(folder):
    """A folder of pictures: two classes, three pictures of each to train on and one to test on."""
    for split, count in (("train", 3), ("test", 1)):
        for name in ("cats", "dogs"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                noise = np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / split / name / f"{number}.png")
    return folder


def files(path, folder):
    """What a config names in its working folder: pictures, arrays, and weights of the teacher that they come from."""
    data = Source.read(path).data
    if data["dataset"]["kind"] == "image-folder":
        pictures(folder / data["dataset"]["root"])
    if data["dataset"]["kind"] == "arrays":
        x, y = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8), np.arange(24) % CLASSES
        (folder / "data").mkdir()
        np.savez(folder / data["dataset"]["path"], x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
        np.savez(folder / data["dataset"]["transfer_set"]["path"], x=255 - x)
    for name in data["dataset"].get("environments", ()):
        weight = torch.tensor(PUSHES[name])
        bias = torch.zeros(len(weight))
        save_file({"classifier.weight": weight, "classifier.bias": bias}, folder / f"{name}.safetensors")
    for teacher in teachers_of(data).values():
        model = teacher.get("model")
        if isinstance(model, dict) and (file := model.get("initial_weights")):
            _, name, _, finished, *_ = Path(file).parts
            source = config.read(CONFIGS[0].with_name(f"{name}.yaml")).experiment
            dataset = registry.DATASETS[source.dataset.kind](source.dataset)
            shape, classes = dataset.spec.shapes[dataset.spec.default_view], dataset.spec.classes
            (folder / file).parent.mkdir(parents=True)
            save_file(
                models.build(source.teachers[finished].model, shape, classes, 0).state_dict(), folder / file
            )


def teachers_of(data):
    """The teachers of a config as it is written."""
    return {"teacher": data["teacher"]} if "teacher" in data else data["teachers"]


def short(path):
    """The options with which a config takes two steps, and trains teachers of any score."""
    data = Source.read(path).data
    return [part for option in short_options(data) for part in ("--set", option)]


def short_options(data):
    """For each key of a config what is written instead."""
    if registry.DATASETS[data["dataset"]["kind"]].plays:
        return short_acting(data)
    few = data["dataset"].get("labels_per_class") and 1
    dataset = {"kind": "synthetic", "classes": CLASSES, "samples": BATCH * STEPS, "test_samples": 4}
    dataset |= {"shape": SHAPES[data["dataset"]["kind"]], "labels_per_class": few}
    dataset |= {"validation": data["dataset"].get("validation", 0), "views": data["dataset"].get("views", {})}
    dataset["metric"] = data["dataset"].get("metric", "accuracy")
    options = [
        f"dataset={json.dumps(dataset)}",
        "training.epochs=1",
        f"training.batch_size={BATCH}",
        "seeds=[0]",
    ]
    for name, teacher in teachers_of(data).items():
        options += [f"teachers.{name}.{key}=null" for key in ("expect", "training") if key in teacher]
    return options


def short_acting(data):
    """Agents that hardly learn, and students that hardly act."""
    options = ["training.epochs=2", "seeds=[0]", "training.batch_size=8"]
    options += [f"dataset.{key}=4" for key in ("episodes", "validation_episodes")]
    options += ["dataset.states=32"]
    for name, teacher in teachers_of(data).items():
        if "environment" in teacher:  # an agent that hardly learns is no measure of others
            known = {
                "model": {"kind": "mlp", "hidden": []},
                "weights": f"{teacher['environment']}.safetensors",
            }
            known["environment"] = teacher["environment"]
            options.append(f"teachers.{name}={json.dumps(known)}")
            continue
        options += [f"teachers.{name}.{key}=null" for key in ("expect", "training") if key in teacher]
        if kind_of(teacher) in ("dqn", "ppo"):
            few = {"steps": 64, "looks": 1, "look_episodes": 1}
            few |= {"learning_starts": 8, "batch_size": 8} if kind_of(teacher) == "dqn" else {}
            options += [f"teachers.{name}.model.{key}={value}" for key, value in few.items()]
    own = [
        ("", data),
        *((f"methods.{one['name']}.", one) for one in data["methods"] if isinstance(one, dict)),
    ]
    own += [(f"students.{name}.", one) for name, one in data.get("students", {}).items()]
    for place, written in own:
        training = written.get("training", {})
        options += [
            f"{place}training.{key}=2" for key in ("epochs", "batch_size") if place and key in training
        ]
        if "rollouts" in training:
            options += [f"{place}training.rollouts.states=16"]
            options += [f"{place}training.rollouts.start=16"] * ("start" in training["rollouts"])
    return options


def kind_of(teacher):
    """Of a model that is told by its kind alone, or with options."""
    return teacher["model"] if isinstance(teacher["model"], str) else teacher["model"]["kind"]


def test_all_configs_are_found():
    assert len(CONFIGS) == 34


@every_config
def test_a_config_says_what_it_shows_and_how_to_run_it(path):
    head = path.read_text().split("\nname:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"kdrun compare configs/{path.name}" in head


@every_config
def test_a_config_has_the_name_of_its_file(path):
    assert Source.read(path).data["name"] == path.stem


@every_config
def test_a_config_fits_its_data(path, tmp_path, monkeypatch):
    """On the data set that it names, of which no file is read but one's own: models, layers and one step of each."""
    files(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    checked = config.read(path, ["seeds=[0]"])
    dataset = assembly.open_dataset(checked)
    shown = rehearsal.rehearse(plan(checked, dataset), dataset, torch.device("cpu"))
    experiment = checked.experiment
    students = len(experiment.students) * len(checked.methods)
    combined = [one for one in experiment.teachers.values() if registry.MODELS[one.model.kind].combines]
    assert len(shown) == len(experiment.teachers) - len(combined) + students
    assert all(np.isfinite(list(one.terms.values())).all() for one in shown)


@every_config
def test_a_config_trains(path, tmp_path, monkeypatch):
    files(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    told = command("compare", path, *short(path), "--quiet", "--json", folder=tmp_path)
    assert told.code == 0, told.err
    checked = config.read(path)
    rows = json.loads(told.out)["rows"]
    assert {row["status"] for row in rows} == {"finished"}
    scored_in = [len(row["returns"] or ["one"]) for row in rows]
    assert [row["protocol"]["test_samples"] for row in rows] == [
        4 * environments for environments in scored_in
    ]
    assert {row["method"] for row in rows if row["role"] == "student"} == set(checked.methods) - {*CONTROLS}
    taught = {row["model"] for row in rows if row["role"] in ("teacher", "ensemble")}
    assert taught >= set(checked.experiment.teachers)


def test_a_folder_of_pictures_trains(tmp_path):
    path = next(path for path in CONFIGS if path.stem == "image-folder")
    folder = pictures(tmp_path / "pictures")
    options = [f"dataset.root={folder}", "dataset.labels_per_class=2", "training.epochs=1", "seeds=[0]"]
    sets = [part for option in options for part in ("--set", option)]
    told = command("compare", path, *sets, "--quiet", "--json", folder=tmp_path)
    assert told.code == 0, told.err
    rows = json.loads(told.out)["rows"]
    assert {row["status"] for row in rows} == {"finished"}
    assert {row["protocol"]["test_samples"] for row in rows} == {2}


def test_the_starter_trains_on_its_own_data(tmp_path):
    options = ["--set", "training.epochs=1", "--seeds", "0"]
    told = command("compare", STARTER, *options, "--quiet", "--json", folder=tmp_path)
    assert told.code == 0, told.err
    rows = json.loads(told.out)["rows"]
    assert {row["status"] for row in rows} == {"finished"}
    assert rows[0]["protocol"]["dataset"] == "digits"
