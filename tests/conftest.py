"""What every test file may use."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one method on one architecture share an edited model: they are one worker's, with `--dist loadgroup`."""
    for item in items:
        asked = getattr(getattr(item, "callspec", None), "params", {})
        if "method" in asked and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(f"{asked['method']}-{asked.get('kind', 'llama')}"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture
def script(root: Path) -> Callable[[str], ModuleType]:
    """A script under `benchmarks/`, by its name, as a module of its own: what it calls may be replaced."""

    def loaded(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"{name}_script", root / "benchmarks" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return loaded


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real benchmark files, of which none is in the repository; skips the test where it is absent."""
    folder = Path(os.environ.get("ERRATA_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set ERRATA_DATA")
    return folder
