"""Numbers in prose come from committed result files."""

import json
import re
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from errata import methods
from errata.cli import app


def test_tables_in_the_pages_are_those_of_the_results(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check"], cwd=root, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_a_script_for_easyedit_becomes_runs(root: Path, tmp_path: Path) -> None:
    """The page's lists, as its script and as a file of them on the command line."""
    page = (root / "docs" / "easyedit.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("['Perth', 'Madrid']\n"), done.stderr
    assert (tmp_path / "edited").is_dir()
    lists: dict[str, list[str]] = {}
    exec(script[script.index("prompts") : script.index("edits =")], lists)
    fields = {name: lists[name] for name in ("prompts", "target_new", "subject", "rephrase_prompts")}
    (tmp_path / "lists.json").write_text(json.dumps(fields), encoding="utf-8")
    told = ["--method", "ft_l", "--edits", f"easyedit:{tmp_path / 'lists.json'}", "--output", str(tmp_path / "stored")]
    result = CliRunner().invoke(app, ["edit", "--model", "atlas", *told])
    assert result.exit_code == 0, result.output


def test_options_that_the_page_for_easyedit_names_are_those_of_wise(root: Path) -> None:
    page = (root / "docs" / "easyedit.md").read_text(encoding="utf-8")
    table = page[page.index("## Options of WISE") : page.index("## Why")]
    rows = re.findall(r"^\| `.*\|(.*)\|$", table, re.MULTILINE)
    named = [re.findall(r"`(\w+)(?:=(\w+))?`", row) for row in rows]
    assert len(rows) >= 10
    assert all(named)
    wise = methods.make("wise")
    for name, value in [pair for row in named for pair in row]:
        assert hasattr(wise, name), name
        methods.make("wise", **({name: value} if value else {}))
