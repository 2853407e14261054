"""The rules of the house: where a thing lies, what it may import, and what no file may contain."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "errata"
TESTS = ROOT / "tests"
MODULES = sorted(SRC.rglob("*.py"))
METHODS = sorted(path for path in (SRC / "methods").glob("*.py") if path.name != "__init__.py")

BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
UNTESTED = {
    "atlas.geography": "run by developers only, to write geography.json anew",
    "atlas.train": "trains for minutes; what it made is tested",
    "bench.plan": "what a plan says is tested through test_bench_stream.py",
    "bench.provenance": "what a row says of its making is tested through test_bench_stream.py",
}
"""Modules that no test names, each with the reason."""
LONGEST_METHOD = 300
ARXIV = re.compile(r"arXiv[: ]\d{4}\.\d{4,5}")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def dotted(path: Path) -> str:
    """`bench.stream` for src/errata/bench/stream.py; a package by its own name."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def calls(path: Path) -> set[str]:
    """What is called in a file, as written: `print`, `torch.load`."""
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}


def imports(path: Path) -> set[str]:
    """The top-level packages that a file imports; the name of an exception, to catch it, is not counted."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not all(a.name.endswith("Error") for a in node.names):
            found.add(node.module.partition(".")[0])
    return found


def python(code: str) -> str:
    """What a fresh interpreter prints for this code."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_one_file_one_noun():
    banned = [relative(p) for p in (*SRC.rglob("*"), *TESTS.rglob("*")) if p.stem.lower() in BANNED_NAMES]
    assert not banned, "name the file by what is in it"


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_is_one_short_file_that_names_its_paper(path):
    text = path.read_text()
    assert len(text.splitlines()) < LONGEST_METHOD
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert ARXIV.search(docstring), "the docstring of the file gives title, authors, year and arXiv id"


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_a_method_is_called_like_its_file(path):
    methods = importlib.import_module("errata.methods")
    assert path.stem in methods.names()
    assert methods.find(path.stem).name == path.stem


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_file_prints_unpickles_or_runs_remote_code(path):
    found = calls(path)
    assert not found & {"print", "torch.load", "torch.save", "eval", "exec", "os.system"}
    assert not imports(path) & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg in {"trust_remote_code", "allow_pickle"}:
            assert ast.unparse(node.value) == "False"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_file_opens_with_a_docstring_and_evaluates_its_annotations(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert "from __future__ import annotations" not in text


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_every_module_has_a_test(path):
    """By the name of the test file (test_bench.py is for all of bench/), or because a test imports it."""
    name = dotted(path)
    if name in UNTESTED or not name:
        return
    package, _, last = name.rpartition(".")
    own = [f"test_{last}.py", f"test_{name.replace('.', '_')}.py"]
    own += (
        ["test_every_method.py"] if package == "methods" else [f"test_{part}.py" for part in package.split(".") if part]
    )
    if any((TESTS / file).exists() for file in own):
        return
    inside = f"errata.{package}" if package else "errata"
    imported = re.compile(rf"errata\.{re.escape(name)}\b|from {re.escape(inside)} import [^\n]*\b{last}\b")
    assert any(imported.search(test.read_text()) for test in TESTS.rglob("test_*.py")), (
        f"write tests/{own[0]}, or say in UNTESTED why not"
    )


def test_no_reason_is_given_for_a_module_that_is_gone():
    assert set(UNTESTED) <= {dotted(path) for path in MODULES}


@pytest.mark.parametrize("module", ["errata", "errata.edit", "errata.errors", "errata.data", "errata.methods"])
def test_importing_what_needs_no_torch_does_not_import_it(module):
    heavy = "{'torch', 'transformers', 'numpy', 'matplotlib', 'numba', 'peft', 'lm_eval', 'ray'}"
    assert python(f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_every_public_name_exists():
    errata = importlib.import_module("errata")
    assert list(errata.__all__) == sorted(errata.__all__, key=str)
    assert [name for name in errata.__all__ if getattr(errata, name, None) is None] == []


def test_the_package_is_typed_and_carries_its_data():
    assert (SRC / "py.typed").exists()
    assert (SRC / "data" / "edit.schema.json").exists()
