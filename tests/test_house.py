"""The house: floors, lazy imports, names that are said once."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kdrun

PACKAGE = Path(kdrun.__file__).parent

FLOORS = [
    {"errors", "schema", "controls", "machine", "statistics"},
    {
        "eager",
        "yamlsource",
        "registry",
        "taps",
        "randomness",
        "interrupts",
        "console",
        "terminal",
        "schedules",
    },
    {"memory"},
    {"contracts"},
    {"losses", "data", "models", "optimization", "store"},
    {"report"},
    {"config", "objective", "evaluate"},
    {"student", "plan"},
    {"stack", "trees", "ensembles", "agents"},
    {"assembly", "cache"},
    {"train", "rehearsal"},
    {"split"},
    {"room"},
    {"bookkeeping", "records", "listing", "advice"},
    {"experiment", "compare", "gate", "checking", "profiling"},
    {"evidence", "tune"},
    {"cli"},
    {"__main__"},
]
"""The house as docs/architecture.md draws it, from the ground up."""

LIGHT = {
    "errors",
    "machine",
    "yamlsource",
    "registry",
    "interrupts",
    "console",
    "terminal",
    "controls",
    "statistics",
    "report",
    "store",
    "compare",
    "gate",
    "evidence",
    "cli",
}
"""What must not import torch, not even through what it imports."""

FILES = sorted(PACKAGE.rglob("*.py"))


def unit(path: Path) -> str:
    """The part of the house that a file belongs to: a module, or a package of its own."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if name in floor)


def imports(path: Path) -> set[str]:
    """The parts of kdrun that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kdrun":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("kdrun.")}
    return found - {"__version__"}


def test_every_file_has_a_floor():
    units = {unit(path) for path in FILES} - {"__init__"}
    assert units == set().union(*FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_imports_from_lower_floors_only(path):
    own = unit(path)
    if own == "__init__":
        assert not imports(path)
        return
    for name in imports(path) - {own}:
        assert floor(name) < floor(own), (
            f"{path.name} (floor {floor(own)}) imports {name} (floor {floor(name)})"
        )


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_light_parts_do_not_load_torch(name):
    code = f"import sys, kdrun.{name}; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['kdrun', '--help']\n"
        "from kdrun.cli import app\n"
        "try: app(standalone_mode=False)\n"
        "finally: assert not {'torch', 'sklearn', 'numpy', 'pydantic'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout


def test_the_story_is_short():
    assert len((PACKAGE / "experiment.py").read_text().splitlines()) < 100


def test_one_gradient_loop():
    """``backward`` is called for a student, and for a stack of them, and nowhere else."""
    assert [p.name for p in FILES if ".backward(" in p.read_text()] == ["stack.py", "student.py"]


def test_the_architecture_page_draws_these_floors():
    page = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text()
    for names in FLOORS:
        for name in names:
            assert name in page, f"docs/architecture.md does not mention {name}"
