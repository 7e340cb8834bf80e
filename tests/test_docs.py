"""The README's examples run as they stand, and generated pages are up to date."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdrun import listing
from kdrun.contracts import Queries, Rollouts
from kdrun.report import table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(mark: str) -> str:
    """The code block below a comment of the README."""
    return re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", README, re.DOTALL)[1]


def kdrun(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kdrun", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_own_data_set_loss_and_model(tmp_path):
    (tmp_path / "mine.py").write_text(block("plugin"))
    (tmp_path / "mine.yaml").write_text(block("plugin-config"))
    done = kdrun("compare", "mine.yaml", "--plugin", "mine", "--seeds", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"student\s+student by-angle\s+teacher\s+1\s+\d", done.stdout), done.stdout
    refused = kdrun("check", "mine.yaml", cwd=tmp_path)
    assert refused.returncode == 2
    assert "unknown kind 'spirals'" in refused.stderr


def test_the_example_config_fits(tmp_path):
    example = next(
        text for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "name: digits" in text
    )
    (tmp_path / "digits.yaml").write_text(example)
    done = kdrun("check", "digits.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_plugs_fit(tmp_path):
    head = (
        "dataset: digits\ntraining: {optimizer: sgd}\nteacher: {model: resnet8}\nstudent: {model: resnet8}\n"
    )
    (tmp_path / "plugs.yaml").write_text(head + block("plugs"))
    done = kdrun("check", "plugs.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_install_lines_are_complete():
    assert block("main").strip().endswith("kdrun compare configs/digits.yaml")
    assert block("test").strip().endswith("-m pytest")
    assert (ROOT / "configs" / "digits.yaml").is_file()


def test_the_readme_shows_the_table_s_columns():
    head = next(line for line in README.splitlines() if line.startswith("| role | model |"))
    shown = [cell.strip() for cell in head.strip("| ").split("|")]
    not_there = {
        "made of",
        "experiment",
        "trials",
        "resampled",
        "seeds needed",
        "left out %",
        "scaled",
        table.RETURN_COLUMN,
        f"{table.RETURN_COLUMN}, 95%",
        table.OWN_STATES,
        table.NORMALISED_COLUMN,
        f"{table.NORMALISED_COLUMN}, 95%",
    }  # on request, or where there is a reason
    assert shown == [name for name in table.COLUMNS if name not in not_there]


def test_the_reference_is_generated():
    assert (ROOT / "docs" / "reference.md").read_text() == listing.markdown(), (
        "run: python -m kdrun.listing > docs/reference.md"
    )


def test_the_reference_has_what_a_training_may_hold():
    shown = {schema for _, _, schema in listing.PARTS}
    assert {Queries, Rollouts} <= shown


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)h][^)]*)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
