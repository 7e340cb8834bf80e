"""The config: what each mistake is told as, what is short for what, and the schema for editors."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from commands import TINY
from kdrun import assembly, config, registry, rehearsal
from kdrun.errors import ConfigError, did_you_mean
from kdrun.plan import plan
from kdrun.yamlsource import Source
from support import said

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))

BASE = {
    "dataset": "{kind: synthetic, shape: [1, 8, 8], classes: 3}",
    "teacher": "{model: {kind: mlp, hidden: [16, 16]}}",
    "student": "{model: {kind: mlp, hidden: [8]}}",
    "methods": "[kd]",
}
"""A config that is right, a key a line."""

MISTAKES = """
datset: {kind: digits}
  c.yaml:5:1: unknown key 'datset'; did you mean 'dataset'? known: …

training: {epoch: 3}
  c.yaml:5:12: training: unknown key 'epoch'; did you mean 'epochs'? known: …

training: {optimizer: {kind: adamw, momentum: 0.9}}
  c.yaml:5:37: training.optimizer: unknown key 'momentum'; known: …

- student
studnet: {model: {kind: mlp}}
  c.yaml:4:1: unknown key 'studnet'; did you mean 'student'? known: …

student: {model: {kidn: mlp, hidden: [8]}}
  c.yaml:3:19: student.model: unknown key 'kidn'; did you mean 'kind'?

student: {model: {kind: [mlp]}}
  c.yaml:3:25: student.model.kind: a list is no known kind; did you mean 'mlp'? known: …

student: {model: {kind: mlp, hiden: [8]}}
  c.yaml:3:30: student.model: unknown key 'hiden'; did you mean 'hidden'? known: …

methods: [{name: x, losses: [{kind: kd, temprature: 2}]}]
  c.yaml:4:41: methods.x.losses.kd: unknown key 'temprature'; did you mean 'temperature'? known: …

dataset: {kind: digit}
  c.yaml:1:17: dataset.kind: unknown kind 'digit'; did you mean 'digits'? known: …

teacher: {model: {kind: mpl}}
  c.yaml:2:25: teacher.model.kind: unknown kind 'mpl'; did you mean 'mlp'? known: …

training: {optimizer: adamx}
  c.yaml:5:23: training.optimizer.kind: unknown kind 'adamx'; did you mean 'adam' or 'adamw'? known: …

methods: [{name: x, losses: [kdd]}]
  c.yaml:4:30: methods.x.losses.kdd.kind: unknown kind 'kdd'; did you mean 'kd' or 'dkd'? known: …

methods: [hitn]
  c.yaml:4:11: methods.hitn.use: there is no published method 'hitn'; did you mean 'hint'? known: …

dataset: {kind: digits, metric: acuracy}
  c.yaml:1:33: dataset.metric: unknown value 'acuracy'; did you mean 'accuracy'? known: …

device: gpu
  c.yaml:5:9: device: unknown value 'gpu'; did you mean 'cuda'? known: …

dataset: {kind: digits, augmentation: standrd}
  c.yaml:1:39: dataset.augmentation: unknown value 'standrd'; did you mean 'standard'? known: …

dataset: {kind: digits, augmentation: {copies: 2, part: crop}}
  c.yaml:1:51: dataset.augmentation: unknown key 'part'; did you mean 'parts'? known: …

dataset: {kind: digits, augmentation: {copies: 0}}
  c.yaml:1:48: dataset.augmentation.copies: 0 is out of range; write a number that is at least 1

dataset: {kind: digits, augmentation: {copies: 2, parts: none}}
  c.yaml:1:58: dataset.augmentation.parts: copies without a part are all alike; write `parts: standard`

dataset: {kind: digits, augmentation: {copies: 2, parts: [crop, flpi]}}
  c.yaml:1:65: dataset.augmentation.parts.flpi.kind: unknown kind 'flpi'; did you mean 'flip'? known: …

dataset: {kind: digits, strong_view: {copies: 2}}
  c.yaml:1:38: dataset.strong_view: a second view has no copies; write a preset's name or a list of parts

dataset: {kind: digits, views: {small: {sise: 4}}}
  c.yaml:1:41: dataset.views.small: unknown key 'sise'; did you mean 'size'? known: …

dataset: {kind: digits, views: {small: {}}}
  c.yaml:1:40: dataset.views.small: it shows all that the default view does; write columns, crop, size or grey

dataset: {kind: digits, views: {small: {size: 4, at: [0, 0]}}}
  c.yaml:1:40: dataset.views.small: 'at' is the place of a crop; write `crop`, too

dataset: {kind: digits, views: {a.b: {size: 4}}}
  c.yaml:1:33: dataset.views: 'a.b' is no name of a view; write letters, digits, '-' and '_'

dataset: {kind: digits, views: {input: {size: 4}}}
  c.yaml:1:40: dataset.views.input: there is another view of that name; choose a new one

dataset: {kind: digits, views: {small: {crop: 9}}}
  c.yaml:1:47: dataset.views.small.crop: 9×9 pixels of 8×8; write no more than there are

dataset: {kind: digits, views: {small: {crop: 4, size: [5, 2]}}}
  c.yaml:1:56: dataset.views.small.size: 5×2 pixels of 4×4; write no more than there are

dataset: {kind: digits, views: {small: {crop: [4, 8], at: [5, 0]}}}
  c.yaml:1:59: dataset.views.small.at: from there on 4×8 pixels reach out of 8×8; write at most [4, 0]

dataset: {kind: digits, views: {small: {grey: true}}}
  c.yaml:1:47: dataset.views.small.grey: it is made of red, green and blue, and the pictures have 1 channel; leave
      it out

dataset: {kind: digits, views: {small: {columns: [1]}}}
  c.yaml:1:50: dataset.views.small.columns: the samples are pictures of 1×8×8 numbers, and this is for tables; write
      `crop`, `size` or `grey`

dataset: {kind: arrays, path: x.npz, inputs: [photo, photo]}
  c.yaml:1:46: dataset.inputs: 'photo' is there twice; write it once

dataset: {kind: wine, views: {small: {size: 4}}}
  c.yaml:1:45: dataset.views.small.size: the samples are rows of 13 numbers, and this is for pictures; write `columns`

dataset: {kind: wine, views: {small: {columns: [13]}}}
  c.yaml:1:48: dataset.views.small.columns: there is no column 13; they are counted from 0 to 12

dataset: {kind: wine, views: {small: {columns: [1.5, -1]}}}
  c.yaml:1:49: dataset.views.small.columns.0: 1.5 is not a whole number
  c.yaml:1:54: dataset.views.small.columns.1: -1 is out of range; write a number that is at least 0

training: {epochs: 1.5}
  c.yaml:5:20: training.epochs: 1.5 is not a whole number

methods: [{name: x, losses: [{kind: kd, weight: much}]}]
  c.yaml:4:49: methods.x.losses.kd.weight: 'much' is not a number

name: 3
  c.yaml:5:7: name: 3 is not a text

controls: {name: all}
  c.yaml:5:11: controls: a mapping is no known value; known: …

dataset: {kind: digits, metric: null}
  c.yaml:1:33: dataset.metric: nothing is no known value; known: …

training: {epochs: true}
  c.yaml:5:20: training.epochs: true is not a whole number

training: {compile: yes}
  c.yaml:5:21: training.compile: 'yes' is not true or false

seeds: 3
  c.yaml:5:8: seeds: 3 is not a list

training: [3]
  c.yaml:5:11: training: a list is not a mapping

dataset: {kind: digits, root: 3}
  c.yaml:1:31: dataset.root: 3 is not a path

teacher:
  c.yaml:2:9: teacher: nothing is not a mapping

training: {epochs: 0}
  c.yaml:5:20: training.epochs: 0 is out of range; write a number that is at least 1

teacher: {model: {kind: mlp}, expect: 99}
  c.yaml:2:39: teacher.expect: 99 is out of range; write a number that is at most 1.0

training: {optimizer: {kind: sgd, lr: 0}}
  c.yaml:5:39: training.optimizer.lr: 0 is out of range; write a number that is more than 0.0

student: {model: {kind: mlp, hidden: [8, 0]}}
  c.yaml:3:42: student.model.hidden.1: 0 is out of range; write a number that is at least 1

seeds: []
  c.yaml:5:8: seeds: has 0 entries; write 1 or more

training: {optimizer: {kind: adam, betas: [0.9, 1.99]}}
  c.yaml:5:49: training.optimizer.betas.1: 1.99 is out of range; write a number that is less than 1.0

training: {epochs: 1000000}
  c.yaml:5:20: training.epochs: 1000000 is out of range; write a number that is at most 100000

training: {optimizer: {kind: adam, betas: [0.9, 0.99, 0.999]}}
  c.yaml:5:43: training.optimizer.betas: has 3 entries; write 2

dataset: {kind: synthetic, shape: [3, 3]}
  c.yaml:1:35: dataset.shape: write [channels, height, width] for pictures or [columns] for a table

teacher: {expect: 0.5}
  c.yaml:2:10: teacher: the key 'model' is missing

- dataset
  c.yaml:1:1: the key 'dataset' is missing

training: {optimizer: {lr: 0.1}}
  c.yaml:5:23: training.optimizer: the key 'kind' is missing; known: …

methods: [{name: x, losses: [{weight: 1}]}]
  c.yaml:4:30: methods.x.losses.0: the key 'kind' is missing; known: …

methods: [{losses: [kd]}]
  c.yaml:4:11: methods.0: the key 'name' is missing

teachers: {a: {model: {kind: mlp}}}
students: {a: {model: {kind: mlp}}}
  c.yaml:2:1: 'teacher' and 'teachers' are both given; keep one
  c.yaml:3:1: 'student' and 'students' are both given; keep one

name: a/b
  c.yaml:5:7: name: 'a/b' cannot name a folder; use letters, digits, '.', '_' and '-'

name: index
  c.yaml:5:7: name: 'index' is what a folder of kdrun's own is called; write another `name`

- teacher
teachers: {a/b: {model: {kind: mlp}}}
  c.yaml:4:12: teachers: 'a/b' cannot name a folder; use letters, digits, '.', '_' and '-'

methods: [kd, {name: kd, use: hint}]
  c.yaml:4:22: methods.1.name: a second method is named 'kd'; names are unique

methods: [{name: alone, use: kd}]
  c.yaml:4:18: methods.alone.name: 'alone' is a control's name; `controls:` adds it; take another

methods: [label-smoothing]
  c.yaml:4:11: methods.label-smoothing.name: 'label-smoothing' is a control's name; `controls:` adds it; take another

methods: [{name: x, losses: [{kind: ce, shuffle_teacher: true}]}]
  c.yaml:4:41: methods.x.losses.ce: 'ce' looks at no teacher; remove it

methods: [{name: x, losses: [kd, kd]}]
  c.yaml:4:34: methods.x.losses.1: a second term is named 'kd'; give one of them a `name`

seeds: [1, 0, 1]
  c.yaml:5:8: seeds: a seed stands twice; each seed is one run of each student

- teacher
teachers: {a: {model: {kind: mlp}}, b: {model: {kind: mlp}}, c: {model: {kind: mlp}}}
methods: [{use: kd, teacher: a}]
  c.yaml:4:37: teachers: 'b' is the same teacher as 'a'; give one of them another `seed`
  c.yaml:4:62: teachers: 'c' is the same teacher as 'a'; give one of them another `seed`

methods: [{name: x}]
  c.yaml:4:11: methods.x: neither `use` nor `losses` is given; name a published mix, or write a list of losses

methods: [{name: x, use: kd, losses: [kd]}]
  c.yaml:4:11: methods.x: both `use` and `losses` are given; name a published mix, or write a list of losses

methods: [{name: x, losses: [kd], set: {kd.temperature: 2}}]
  c.yaml:4:35: methods.x: `set` changes a published mix; change the losses themselves

methods: [{use: kd, set: {kdd.temperature: 2}}]
  c.yaml:4:27: methods.kd.set: 'kdd' is no term of this mix; did you mean 'kd'? known: …; write TERM.KEY, for
      instance kd.temperature

methods: [{use: kd, set: {kd: {temperature: 2}}}]
  c.yaml:4:27: methods.kd.set: 'kd' is a term, and none of its keys is named; write TERM.KEY, for instance
      kd.temperature

methods: [{use: kd, set: {kd.temprature: 2}}]
  c.yaml:4:27: methods.kd.set: unknown key 'temprature'; did you mean 'temperature'? known: …

methods: [{use: kd, set: {kd.temperature: -2}}]
  c.yaml:4:43: methods.kd.set.kd.temperature: -2 is out of range; write a number that is more than 0.0

methods: [{use: kd, set: {kd.name: 3, kd.temperature: -2}}]
  c.yaml:4:36: methods.kd.set.kd.name: 3 is not a text
  c.yaml:4:55: methods.kd.set.kd.temperature: -2 is out of range; write a number that is more than 0.0

methods: [{use: kd, set: {kd.temperature: hot}}]
  c.yaml:4:43: methods.kd.set.kd.temperature: 'hot' is not a number

methods: [{use: kd, tune: {training.optmizer.lr: [1, 2]}}]
  c.yaml:4:28: methods.kd.tune: unknown key 'optmizer'; did you mean 'optimizer'? known: …

methods: [{use: kd, set: {kd.teacher: big}}]
  c.yaml:4:39: methods.kd.set.kd.teacher: there is no teacher 'big'; known: …

methods: [{use: kd, teacher: big}]
  c.yaml:4:30: methods.kd.teacher: there is no teacher 'big'; known: …

methods: [{name: x, losses: [{kind: kd, teacher: big}]}]
  c.yaml:4:50: methods.x.losses.kd.teacher: there is no teacher 'big'; known: …

methods: [{use: ce, teacher: teacher}]
  c.yaml:4:21: methods.ce: no term of this method looks at a teacher; remove it

methods: [{name: x, losses: [{kind: ce, teacher: teacher}]}]
  c.yaml:4:41: methods.x.losses.ce: 'ce' looks at no teacher; remove it

methods: [{use: kd, teacher: [teacher, taecher]}]
  c.yaml:4:40: methods.kd.teacher.taecher: there is no teacher 'taecher'; did you mean 'teacher'? known: …

methods: [{use: kd, stages: [{losses: [kd, ce, cd]}]}]
  c.yaml:4:48: methods.kd.stages.0.losses.cd: 'cd' is no term of this method; did you mean 'ce' or 'kd'? known: …

methods: [{use: kd, teacher: [teacher, teacher]}]
  c.yaml:4:30: methods.kd.teacher: a teacher stands twice; name each once

- teacher
  c.yaml:3:11: methods.kd: 'kd' needs a teacher and the config has none; add `teacher:`

- teacher
teachers: {a: {model: {kind: mlp}}, b: {model: {kind: mlp}, seed: 1}}
  c.yaml:3:11: methods.kd: 'kd' names none of the 2 teachers; add `teacher: NAME`, or a list of names; known: …

teacher: {model: {kind: mlp}, from: big, method: kd}
  c.yaml:2:37: teacher.from: there is no teacher 'big'; known: …

teacher: {model: {kind: mlp}, from: teacher, method: kd}
  c.yaml:2:37: teacher.from: the teachers are distilled from each other in a circle

- teacher
teachers: {a: {model: {kind: mlp}, from: b, method: kd}, b: {model: {kind: gru}, from: a, method: kd}}
methods: [{use: kd, teacher: a}]
  c.yaml:4:42: teachers.a.from: the teachers are distilled from each other in a circle
  c.yaml:4:88: teachers.b.from: the teachers are distilled from each other in a circle

- teacher
teachers: {a: {model: {kind: mlp}}, b: {model: {kind: gru}, from: a}}
methods: [{use: kd, teacher: a}]
  c.yaml:4:61: teachers.b: `from` needs `method`; a distilled teacher names both

teacher: {model: {kind: mlp}, method: kd}
  c.yaml:2:31: teacher: `method` needs `from`; a distilled teacher names both

- teacher
teachers: {a: {model: {kind: mlp}}, b: {model: {kind: gru}, from: a, method: kdd}}
methods: [{use: kd, teacher: a}]
  c.yaml:4:78: teachers.b.method: there is no method 'kdd'; did you mean 'kd' or 'dkd'? known: …

teacher: {model: {kind: mlp}, weights: gone.pt}
  c.yaml:2:40: teacher.weights: there is no file 'gone.pt'; a path from the working folder

teacher: {run: gone}
  c.yaml:2:16: teacher.run: there is no folder 'gone'; write the folder of one seed, as in
      runs/digits/students/student/kd/seed-0

teacher: {run: tuning/a/kd/trial-3, seed: 1}
  c.yaml:2:16: teacher.run: 'tuning/a/kd/trial-3' is a trial of a tuning, of which nothing but the scores is kept; name
      a run of the config that was tuned
  c.yaml:2:37: teacher: a teacher with `run` is finished, so `seed` says nothing; remove one

teacher: {run: 3, expct: 0.9}
  c.yaml:2:16: teacher.run: 3 is not a path
  c.yaml:2:19: teacher: unknown key 'expct'; did you mean 'expect'? known: …

--set teachers.teacher.run=gone
  c.yaml:2:11: teacher: a teacher with `run` is finished, so `model` says nothing; remove one
  --set teachers.teacher.run=gone: teacher.run: there is no folder 'gone'; write the folder of one seed, as in
      runs/digits/students/student/kd/seed-0

student: {model: {kind: mlp, initial_weights: gone.pt}}
  c.yaml:3:47: student.model.initial_weights: there is no file 'gone.pt'; a path from the working folder

teacher: {model: {kind: mlp}, weights: c.yaml, training: {epochs: 3}}
  c.yaml:2:48: teacher: a teacher with `weights` is finished, so `training` says nothing; remove one

training: {selection: best-on-validation}
  c.yaml:5:23: training.selection: best-on-validation needs a validation share; add `validation: 0.1` to the data
      set

student: {model: {kind: mlp}, training: {selection: best-on-validation}}
  c.yaml:3:53: student.training.selection: best-on-validation needs a validation share; add `validation: 0.1` to the
      data set

plugins: [mine]
  c.yaml:5:11: plugins.mine: the plugin 'mine' is not loaded; add --plugin mine to the command

--set training.epochs=0
  --set training.epochs=0: training.epochs: 0 is out of range; write a number that is at least 1

--set training.epoch=3
  --set training.epoch=3: training: unknown key 'epoch'; did you mean 'epochs'? known: …

--set methods.hint.use=kd
  --set methods.hint.use=kd: methods has no item 'hint'; known: …

--set training.epochs
  --set training.epochs: no '='; write KEY=VALUE, for instance --set training.epochs=3

--set methods.kd.set.kd.temperature=-1
  --set methods.kd.set.kd.temperature=-1: methods.kd.set.kd.temperature: -1 is out of range; write a number that is
      more than 0.0

--set teacher.model.kind=mpl
  --set teacher.model.kind=mpl: teacher.model.kind: unknown kind 'mpl'; did you mean 'mlp'? known: …

device: gpu
--set training.epochs=0
  c.yaml:5:9: device: unknown value 'gpu'; did you mean 'cuda'? known: …
  --set training.epochs=0: training.epochs: 0 is out of range; write a number that is at least 1

methods: [{name: x, losses: [{kind: hint, student_layer: body.9, teacher_layer: body.1}]}]
  c.yaml:4:58: methods.x.losses.hint.student_layer: the student has no layer 'body.9'; did you mean 'body.0'?
      layers: flatten, body.0.0, body.0.1, body.0, body, classifier, pooled, stage1

methods: [{use: hint, set: {hint.student_layer: pooled, hint.teacher_layer: stage9}}]
  c.yaml:4:77: methods.hint.set.hint.teacher_layer: the teacher 'teacher' has no layer 'stage9'; did you mean
      'stage1' or 'stage2'? layers: flatten, body.0.0, body.0.1, body.0, body.1.0, body.1.1, body.1, body, classifier,
      pooled, stage1, stage2

--set methods=[{use: sp, set: {sp.student_layer: bod, sp.teacher_layer: body}}]
  --set methods=[{use: sp, set: {sp.student_layer: bod, sp.teacher_layer: body}}]: methods.sp.set.sp.student_layer:
      the student has no layer 'bod'; did you mean 'body'? layers: flatten, body.0.0, body.0.1, body.0, body,
      classifier, pooled, stage1

methods: [{name: x, losses: [{kind: hint, student_layer: body.0}]}]
  c.yaml:4:30: methods.x.losses.hint: name both 'student_layer' and 'teacher_layer', or neither

methods: [at]
  c.yaml:4:11: methods.at.layers: 'at' compares maps (D, H, W), and layer 'body.0' of the student gives (8,), layer
      'body.1' of the teacher 'teacher' gives (16,); use hint, rkd or sp, which compare vectors too, or name
      layers that give maps

methods: [{name: x, losses: [{kind: hint, adapter: none}]}]
  c.yaml:4:52: methods.x.losses.hint.adapter: without an adapter the shapes must agree, and layer 'body.0' of the
      student gives (8,), layer 'body.1' of the teacher 'teacher' gives (16,); write adapter: auto, or name layers of
      one shape

student: {model: {kind: mlp}, view: grey}
  c.yaml:3:37: student.view: the data set has no view 'grey'; known: …

dataset: {kind: synthetic, shape: [4]}
student: {model: {kind: cnn}}
  c.yaml:3:25: student.model.kind: 'cnn' reads pictures (channels, height, width), and these inputs are 4; use mlp
      or gru, which read any input

student: {model: {kind: vit, patch: 3}}
  c.yaml:3:37: student.model.patch: patches of 3 pixels do not tile pictures of 8×8; write one of 1, 2, 4, 8

dataset: {kind: synthetic, classes: 10, samples: 5}
  c.yaml:1:50: dataset.samples: 5 samples cannot show 10 classes; write at least 10

dataset: {kind: arrays, path: gone.npz}
  c.yaml:1:31: dataset.path: there is no file gone.npz; write the path of a .npz or .csv file

dataset: {kind: image-folder, root: gone}
  c.yaml:1:37: dataset.root: there is no folder gone; write the folder of the pictures
"""
"""What is written instead of a line of ``BASE`` or after it (``- key``: left out), and all that is said of it.

Lists of known names are cut; what is told further on is indented by six.
"""


def blocks():
    for block in MISTAKES.strip().split("\n\n"):
        given = [line for line in block.splitlines() if not line.startswith("  ")]
        told = re.sub(r"\n {6}", " ", block).splitlines()[len(given) :]
        yield pytest.param(given, [line.strip() for line in told], id="; ".join(given)[:90])


def written(given):
    """The text of a config and its ``--set`` options."""
    lines, options = dict(BASE), []
    for line in given:
        key, _, value = line.partition(": ")
        if line.startswith("--set "):
            options.append(line.removeprefix("--set "))
        elif line.startswith("- "):
            del lines[line.removeprefix("- ")]
        else:
            lines[key.removesuffix(":")] = value
    return "".join(f"{key}: {value}\n" for key, value in lines.items()), options


def rehearsed(folder, text, *options):
    """All that is checked before anything is trained."""
    (folder / "c.yaml").write_text(text)
    checked = config.read(Path("c.yaml"), options)
    dataset = assembly.open_dataset(checked)
    rehearsal.rehearse(plan(checked, dataset), dataset, torch.device("cpu"))
    return checked


def refusal(folder, text, *options):
    with pytest.raises(ConfigError) as caught:
        rehearsed(folder, text, *options)
    return caught.value


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolved(text, *options):
    """The experiment that a text means, and all terms of its methods."""
    source = Source.parse(text)
    for option in options:
        source.override(option)
    checked = config.validate(source)
    terms = {name: [loss.model_dump() for loss in method.losses] for name, method in checked.methods.items()}
    return checked.experiment.model_dump(), terms


def terms(text, *options):
    return resolved(text, *options)[1]


# --------------------------------------------------------------------------------------------- mistakes


def test_the_base_is_right(folder):
    rehearsed(folder, written([])[0])


@pytest.mark.parametrize(("given", "told"), list(blocks()))
def test_every_mistake_is_told(folder, given, told):
    text, options = written(given)
    error = refusal(folder, text, *options)
    assert error.exit_code == 2
    assert [re.sub(r"known: [^;]*", "known: …", line) for line in said(error)] == told


@pytest.mark.parametrize(
    ("name", "known", "told"),
    [
        ("hitn", ["hint", "kd"], "did you mean 'hint'?"),
        ("temperatur", ["temperature", "temperatures"], "did you mean 'temperature'?"),
        ("cd", ["ce", "cc", "kd", "crd", "at"], "did you mean 'crd', 'cc', 'ce' or 'kd'?"),
        (
            "logit",
            ["logit-mse", "logit-standardization", "kd"],
            "did you mean 'logit-mse' or 'logit-standardization'?",
        ),
        ("Batch-Size", ["batch_size"], "did you mean 'batch_size'?"),
        ("kd-T2", ["kd", "wkd-logit"], "did you mean 'kd'?"),
        ("standard-augmentation", ["augmentation", "root"], "did you mean 'augmentation'?"),
        ("kd", ["KD", "Kd", "hint"], "did you mean 'KD' or 'Kd'?"),
        ("quite-another", ["kd", "hint"], ""),
        ("", ["a", "kd"], ""),
    ],
)
def test_the_nearest_names_are_suggested(name, known, told):
    assert did_you_mean(name, known, list_all=False) == told
    assert did_you_mean(name, known) == f"{told} known: {', '.join(sorted(known))}".strip()


@pytest.mark.parametrize(
    ("given", "family"),
    [
        (["dataset: {kind: nothing-like-it}"], registry.DATASETS),
        (["teacher: {model: {kind: nothing-like-it}}"], registry.MODELS),
        (["methods: [{name: x, losses: [nothing-like-it]}]"], registry.LOSSES),
    ],
)
def test_an_unknown_kind_is_answered_with_the_list(folder, given, family):
    assert said(refusal(folder, written(given)[0]))[0].endswith("known: " + ", ".join(family))


def test_the_line_is_shown_with_carets(folder):
    error = refusal(folder, "dataset: {kind: synthetic}\ntraining:\n  epochs: none\n")
    assert error.lines == [
        "c.yaml:3:11: training.epochs: 'none' is not a whole number",
        "   3 |   epochs: none",
        "     |           ^^^^",
    ]


def test_all_mistakes_of_a_file_are_told_at_once(folder):
    """Whether the schema sees them or only a look at two places together."""
    text = """\
datset: {kind: digits}
dataset: {kind: synthetic, labels_per_class: 0}
seeds: [0, 0]
training: {epochs: 1.5, batch_size: 0}
teachers:
  big: {model: {kind: mpl}}
  small: {model: {kind: mlp}, from: bigg, method: kd}
  ready: {model: {kind: mlp}, weights: gone.pt}
students:
  a: {model: {kind: mlp, hiden: [3]}}
  b: {model: {kind: mlp}, training: {selection: best-on-validation}}
methods:
  - kdd
  - {use: kd, teacher: big, set: {kd.temprature: 2}}
  - {name: x, losses: [{kind: hint, weight: -1}]}
  - {name: y, losses: [{kind: hint, teacher: smal}, {kind: at}]}
"""
    wrong = [
        (1, "datset"),
        (2, "0}"),
        (3, "[0, 0]"),
        (4, "1.5"),
        (4, "0}"),
        (6, "mpl"),
        (7, "bigg"),
        (8, "gone.pt"),
        (10, "hiden"),
        (13, "kdd"),
        (14, "kd.temprature"),
        (15, "-1"),
        (16, "smal}"),
        (16, "{kind: at}"),
    ]
    places = [f"c.yaml:{line}:{text.splitlines()[line - 1].index(part) + 1}:" for line, part in wrong]
    assert [line.split(" ")[0] for line in said(refusal(folder, text))] == places


def test_all_layers_that_do_not_exist_are_told_at_once(folder):
    hint = "{kind: hint, student_layer: nowhere, teacher_layer: pooled}"
    text, _ = written([f"methods: [{{name: a, losses: [{hint}]}}, {{name: b, losses: [{hint}]}}, at]"])
    assert len(said(refusal(folder, text))) == 3


def test_numbers_are_finite(folder):
    error = refusal(folder, written(["training: {mixup: .inf}"])[0])
    assert said(error) == ["c.yaml:5:19: training.mixup: inf is not a finite number"]


# ------------------------------------------------------------------------------------------- shorthands


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (
            "teacher: {model: {kind: mlp}}",
            "teachers: {teacher: {model: {kind: mlp}}}",
        ),
        (
            "students: {student: {model: {kind: mlp}}}",
            "student: {model: {kind: mlp}}",
        ),
        ("methods: [ce]", "methods: [{name: ce, use: ce}]"),
        ("methods: [{use: ce}]", "methods: [{name: ce, use: ce}]"),
        (
            "methods: [{name: x, losses: [ce]}]",
            "methods: [{name: x, losses: [{kind: ce, weight: 1.0}]}]",
        ),
        ("training: {optimizer: sgd}", "training: {optimizer: {kind: sgd}}"),
        ("training: {schedule: constant}", "training: {schedule: {kind: constant}}"),
        ("dataset: wine", "dataset: {kind: wine}"),
        ("student: {model: cnn}", "student: {model: {kind: cnn}}"),
        ("training: {label_smoothing: 0}", "training: {label_smoothing: 0.0}"),
    ],
)
def test_what_is_short_for_what(short, long):
    base = "" if short.startswith("dataset") else "dataset: {kind: digits}\n"
    assert resolved(base + short) == resolved(base + long)


def test_an_option_may_use_shorthands_too(folder):
    (folder / "c.yaml").write_text(TINY)
    by_short, by_long = (
        config.read(Path("c.yaml"), [option]).experiment.teachers["teacher"].model
        for option in ("teacher.model=gru", "teachers.teacher.model={kind: gru}")
    )
    assert by_short == by_long
    assert by_short.kind == "gru"


def test_the_name_is_the_files_where_nothing_is_said(folder):
    (folder / "my first config.yaml").write_text("dataset: digits\n")
    assert config.read(Path("my first config.yaml")).experiment.name == "my-first-config"


# ---------------------------------------------------------------------------------------------- methods


TAUGHT = """
dataset: digits
teachers: {a: {model: mlp}, b: {model: mlp, seed: 1}}
student: {model: mlp}
"""


@pytest.mark.parametrize(
    ("controls", "names"),
    {
        "default": ["alone", "label-smoothing"],
        "none": ["alone"],
        "all": ["alone", "label-smoothing", "shuffled-teacher", "matched-cost"],
        "[matched-cost, alone]": ["alone", "matched-cost"],
    }.items(),
)
def test_the_controls_are_added_by_themselves(controls, names):
    assert list(terms(f"{TAUGHT}\ncontrols: {controls}")) == names


def test_what_the_controls_are():
    control = terms(f"{TAUGHT}\ncontrols: all")
    for name, smoothing in (("alone", None), ("label-smoothing", 0.1), ("matched-cost", None)):
        [term] = control[name]
        assert (term["kind"], term["weight"], term["label_smoothing"]) == ("ce", 1.0, smoothing)
    ce, kd = control["shuffled-teacher"]
    assert (ce["kind"], ce["weight"], kd["kind"], kd["weight"]) == ("ce", 0.1, "kd", 0.9)
    assert kd["shuffle_teacher"] and not ce["shuffle_teacher"] and kd["teacher"] == ["a", "b"]


def test_without_a_teacher_there_are_no_controls_that_need_one():
    assert list(terms("dataset: digits\ncontrols: all")) == ["alone", "label-smoothing"]


def test_a_published_mix_is_written_out():
    published = config.published_methods()["kd"].losses
    for term, given in zip(terms(TINY)["kd"], published, strict=True):
        assert given.items() <= term.items()


def test_set_changes_the_keys_that_it_names_and_nothing_else():
    plain = terms(TINY)["kd"]
    ce, kd = terms(TINY, "methods=[{use: kd, set: {kd.temperature: 2, ce.weight: 0.5}}]")["kd"]
    assert ce == plain[0] | {"weight": 0.5}
    assert kd == plain[1] | {"temperature": 2.0}
    assert terms(TINY)["kd"] == plain, "the published mix itself was changed"


def test_one_option_changes_one_key_of_a_method():
    assert terms(TINY, "methods.kd.set.kd.temperature=2") == terms(
        TINY, "methods=[{use: kd, set: {kd.temperature: 2}}]"
    )


TEACHERS = """\
dataset: {kind: digits}
teachers: {a: {model: mlp}, b: {model: cnn}}
student: {model: mlp}
methods:
"""


def test_a_term_without_a_teacher_looks_at_the_only_one():
    assert [term["teacher"] for term in terms(TINY)["kd"]] == [None, "teacher"]


def test_the_methods_teacher_is_for_the_terms_that_name_none():
    mix = "  - {name: x, teacher: a, losses: [ce, kd, {kind: hint, teacher: b}]}"
    assert [term["teacher"] for term in terms(TEACHERS + mix)["x"]] == [None, "a", "b"]


def test_the_methods_combine_is_for_the_terms_that_do_not_say():
    kinds = "ce, kd, {kind: kd, name: other, combine: mean}"
    mix = f"  - {{name: x, teacher: [a, b], combine: mean-logits, losses: [{kinds}]}}"
    found = terms(TEACHERS + mix)["x"]
    assert [term["combine"] for term in found[1:]] == ["mean-logits", "mean"]
    assert [term["teacher"] for term in found] == [None, ["a", "b"], ["a", "b"]]


def test_a_models_training_changes_single_keys():
    checked = config.validate(
        Source.parse(
            "dataset: digits\ntraining: {epochs: 7, optimizer: {kind: sgd, lr: 0.3, momentum: 0.5}}\n"
            "teacher: {model: mlp, training: {batch_size: 9, optimizer: {kind: sgd, lr: 0.1}}}"
        )
    )
    teacher = checked.experiment.teachers["teacher"]
    own = checked.training_of(teacher, checked.teaching(teacher, ()))
    assert (own.epochs, own.batch_size, own.optimizer.lr, own.optimizer.momentum) == (7, 9, 0.1, 0.5)


# ----------------------------------------------------------------------------------------------- schema


def accepts(schema, value, root):
    """Whether a JSON schema accepts a value: the part of the language that pydantic writes."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        schema = root["$defs"][name] | {key: part for key, part in schema.items() if key != "$ref"}
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    numbers = {"integer": int, "number": (int, float)}
    kind = schema.get("type")
    if kind in types and not isinstance(value, types[kind]):
        return False
    if kind in numbers and (not isinstance(value, numbers[kind]) or isinstance(value, bool)):
        return False
    if "anyOf" in schema and not any(accepts(part, value, root) for part in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(accepts(part, value, root) for part in schema["oneOf"]) != 1:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, dict):
        known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        if not set(schema.get("required", ())) <= set(value) or (
            more is False and not set(value) <= set(known)
        ):
            return False
        rest = more if isinstance(more, dict) else {}
        return all(accepts(known.get(key, rest), part, root) for key, part in value.items())
    if isinstance(value, list):
        return all(accepts(schema.get("items", {}), part, root) for part in value)
    return True


@pytest.fixture(scope="module")
def schema():
    return json.loads(json.dumps(config.json_schema()))


def keywords(node):
    """Every keyword of a schema, names of properties and definitions left out."""
    if isinstance(node, list):
        return set().union(*map(keywords, node))
    if not isinstance(node, dict):
        return set()
    below = {
        key: list(part.values()) if key in ("properties", "$defs") else part
        for key, part in node.items()
        if key not in ("default", "enum", "const", "required")
    }
    return set(node) | set().union(*map(keywords, below.values()))


def test_the_schema_speaks_no_more_than_the_validator_above_knows(schema):
    annotations = {"title", "description", "default", "format"}
    bounds = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
    lengths = {"minItems", "maxItems", "minProperties", "maxProperties", "pattern"}
    understood = {"$ref", "$defs", "type", "anyOf", "oneOf", "const", "enum", "properties", "required"}
    understood |= {"additionalProperties", "items"}
    assert keywords(schema) <= annotations | bounds | lengths | understood


def test_of_many_problems_the_first_are_told():
    wrong = "dataset: digits\n" + "".join(f"wrong{number}: 1\n" for number in range(250))
    with pytest.raises(ConfigError) as caught:
        config.validate(Source("c.yaml", wrong))
    *_, last = caught.value.lines
    assert len(said(caught.value)) == 100 and last == f"and {len(caught.value.problems) - 100} more"


def test_an_experiment_has_no_thousand_teachers():
    many = ", ".join(f"t{number}: {{model: mlp, from: t{number - 1}, method: kd}}" for number in range(1000))
    with pytest.raises(ConfigError, match=r"c.yaml:2:11: teachers: has 1000 entries; write 500 or fewer"):
        config.validate(Source("c.yaml", f"dataset: digits\nteachers: {{{many}}}\n"))


def test_every_reference_of_the_schema_leads_somewhere(schema):
    text = json.dumps(schema)
    assert set(re.findall(r'"#/\$defs/([^"]+)"', text)) <= set(schema["$defs"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_accepts_every_shipped_config(schema, path):
    assert accepts(schema, Source.read(path).data, schema)


@pytest.mark.parametrize(
    "short",
    [
        "training: {optimizer: sgd}",
        "methods: [kd, {use: hint, tune: {hint.weight: {low: 1, high: 9}, training.clip: [1, 2]}}]",
        "student: {model: mlp}",
        "teachers: {a: {run: runs/digits/teachers/teacher/seed-0, expect: 0.9}, b: {model: mlp}}",
        "controls: [alone, {name: label-smoothing, set: {ce.label_smoothing: 0.2}}]",
        "controls: all",
    ],
)
def test_the_schema_accepts_shorthands(schema, short):
    assert accepts(schema, yaml.safe_load(f"dataset: digits\n{short}"), schema)


@pytest.mark.parametrize(
    "wrong",
    [
        "{}",
        "{dataset: digit}",
        "{dataset: digits, nope: 1}",
        "{dataset: digits, methods: [kdd]}",
        "{dataset: digits, methods: [{losses: [kd]}]}",
        "{dataset: digits, teacher: {expect: 0.9}}",
        "{dataset: {kind: digits, labels_per_clas: 3}}",
        "{dataset: digits, training: {epochs: '3'}}",
        "{dataset: digits, student: {model: {kind: mlp, hiden: [3]}}}",
    ],
)
def test_the_schema_refuses(schema, wrong):
    assert not accepts(schema, yaml.safe_load(wrong), schema)


def test_the_schema_describes_every_key(schema):
    silent = [
        key for key, part in schema["properties"].items() if "description" not in part and "$ref" not in part
    ]
    assert silent == []
