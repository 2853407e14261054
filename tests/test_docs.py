"""Numbers in prose come from committed result files."""

import subprocess
import sys
from pathlib import Path


def test_tables_in_the_pages_are_those_of_the_results(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check"], cwd=root, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
