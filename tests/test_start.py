"""The start: nothing is loaded that the first step can do without."""

import subprocess
import sys
import textwrap

import numpy as np

from kdrun.data import bundled
from test_data import loaded

HEAVY = ["torch._dynamo", "torchvision", "sklearn", "scipy", "sympy", "matplotlib", "timm"]


def test_a_first_step_loads_no_compiler_and_no_other_library(tmp_path):
    config = tmp_path / "digits.yaml"
    config.write_text(
        textwrap.dedent("""
        name: digits
        dataset: digits
        training: {epochs: 1, batch_size: 512}
        teacher: {model: {kind: mlp, hidden: [16]}}
        student: {model: {kind: cnn, width: 4}}
        controls: none
        methods: [kd, rkd]
        """)
    )
    code = f"""
import sys
from kdrun import cli, student
def told(*_):
    print([name for name in {HEAVY!r} if name in sys.modules])
    raise SystemExit
original = student.Student.step
def step(self, *lesson):
    original(self, *lesson)
    if "kdrun.train" in sys.modules and sys._getframe(1).f_code.co_filename.endswith("stack.py"):
        told()
student.Student.step = step
sys.argv = ["kdrun", "compare", {str(config)!r}, "--seeds", "0", "--out", {str(tmp_path)!r}]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_wrong_yaml_is_told_before_torch_is_loaded(tmp_path):
    (tmp_path / "wrong.yaml").write_text("name: [")
    code = f"""
import sys
from kdrun import cli
sys.argv = ["kdrun", "compare", {str(tmp_path / "wrong.yaml")!r}]
try:
    cli.main()
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "wrong.yaml:1" in done.stderr and "Assertion" not in done.stderr


def test_digits_are_the_same_without_their_file(monkeypatch):
    first = loaded("digits")
    monkeypatch.setattr(bundled, "find_spec", lambda name: None)
    second = loaded("digits")
    assert first.test_hash() == second.test_hash()
    assert np.array_equal(first.labels("train"), second.labels("train"))
