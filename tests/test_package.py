"""What is installed: the wheel carries the configs, and nothing that is not kdrun's."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_carries_the_configs(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    shipped = {f"kdrun/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert shipped and shipped | {"kdrun/starter.yaml", "kdrun/cli.py"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"kdrun"}
    assert not any("test" in name for name in names)
