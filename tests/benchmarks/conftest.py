import importlib
from pathlib import Path

import pytest

import benchmarks


@pytest.fixture
def script(monkeypatch):
    """Imports a script by its name; scripts import each other as neighbours."""
    monkeypatch.syspath_prepend(str(Path(benchmarks.__path__[0])))
    return importlib.import_module
