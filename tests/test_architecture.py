"""What keeps the house in order: import rules, file sizes, tested modules, declared libraries, clean text."""

import graphlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.import_rules import PACKAGE, RULES, import_violations, imported_modules

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / PACKAGE).rglob("*.py"))

# Written so that no pattern matches its own text.
UNWANTED_TEXT = {
    "a package registry's host": r"p[y]pi\.(org|python)|p[y]thonhosted\.org|r[e]gistry\.npmjs|a[n]aconda\.org"
    r"|p[y]torch\.org/whl|d[e]b\.debian",
    "an absolute path of one machine": r"(?<![\w.~$}*-])/(?:work|root|home|Users|tmp)/\w",
    "a path outside of the checkout": r"\.\./shared",
}


def test_imports_follow_the_rules() -> None:
    assert import_violations(ROOT) == []


def test_rules_have_no_cycle() -> None:
    sorter = graphlib.TopologicalSorter({part: rule.internal for part, rule in RULES.items()})
    assert set(sorter.static_order()) == set(RULES)  # and no rule names a part that has none


def test_checker_finds_every_kind_of_forbidden_import(tmp_path: Path) -> None:
    files = {
        "__init__.py": "import importlib\n",
        "cli.py": "def main():\n    import torch\n    from latentae.training import Trainer\n",
        "config.py": "import dataclasses\nimport yaml\nimport torch\n",
        "quantizers/lookup.py": "import torch\nfrom . import result\nfrom .. import distributed, models\n",
        "losses/kl.py": "def f():\n    import diffusers.models\n    import accelerate\n",
        "losses/sum.py": "from ..config import Run\nfrom latentae import VQGAN, __version__\n",
        "data/hub.py": "import importlib\nimportlib.import_module('latentae.build')\nimport accelerated\n",
        "training/accelerator.py": "import accelerate\nfrom latentae.build import build\n",
        "training/step.py": "if TYPE_CHECKING:\n    from accelerate import Accelerator\n",
        "plumbing/pipe.py": "import os\n",
    }
    for name, source in files.items():
        (tmp_path / PACKAGE / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / PACKAGE / name).write_text(source, encoding="utf-8")
    assert import_violations(tmp_path) == [
        "latentae/config.py:3: 'config' may not import torch, only pydantic, pydantic_core, yaml",
        "latentae/data/hub.py:2: 'data' may not import latentae.build",
        "latentae/losses/kl.py:2: 'losses' may not import diffusers",
        "latentae/losses/kl.py:3: only training/accelerator.py may import accelerate",
        "latentae/losses/sum.py:1: 'losses' may not import latentae.config.Run",
        "latentae/losses/sum.py:2: 'losses' may not import latentae.VQGAN",
        "latentae/plumbing/pipe.py: 'plumbing' has no rule: add one to RULES in tests/import_rules.py",
        "latentae/quantizers/lookup.py:3: 'quantizers' may not import latentae.models",
        "latentae/training/step.py:2: only training/accelerator.py may import accelerate",
    ]


@pytest.mark.parametrize(
    "module", ["latentae", "latentae.config", "latentae.commands.reports", "latentae.cli"]
)
def test_import_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*{{'torch', 'numpy', 'diffusers', 'accelerate'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_every_imported_library_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {_distribution(re.split(r"[^\w.-]", line)[0]) for group in groups for line in group}
    homes = importlib.metadata.packages_distributions() | {"pydantic_core": ["pydantic"]}  # which pins it
    undeclared = set()
    for file in (path.relative_to(ROOT / PACKAGE) for path in SOURCES):
        libraries = {module.split(".")[0] for _, module in imported_modules(ROOT / PACKAGE, file)}
        for library in libraries - sys.stdlib_module_names - {PACKAGE}:
            if declared.isdisjoint(_distribution(name) for name in homes.get(library, [library])):
                undeclared.add(f"{file} imports {library}")
    assert sorted(undeclared) == []


def _distribution(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_files_stay_small() -> None:
    limits = dict.fromkeys(SOURCES, 500) | dict.fromkeys((ROOT / "scripts").glob("*.py"), 25)
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in limits}
    too_long = {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > limits[path]}
    assert too_long == {}


def test_every_module_is_imported_by_a_test() -> None:
    """By its own import or through the modules that it imports: what no test can reach is dead."""
    modules = {_module(path): path.relative_to(ROOT / PACKAGE) for path in SOURCES}
    tests = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("*.py")]
    waiting = {name for file in tests for _, name in imported_modules(ROOT / "tests", file)}
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        parts = name.split(".")
        for found in {
            ".".join(parts[:length]) for length in range(1, len(parts) + 1)
        } & modules.keys() - reached:
            reached.add(found)
            waiting |= {module for _, module in imported_modules(ROOT / PACKAGE, modules[found])}
    assert modules.keys() - reached == set()


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("text", ["a/work/b", "~/home/x", "/path/to/images", "run/tmp/x", "PyPI", "../share"])
def test_harmless_text_is_let_through(text: str) -> None:
    assert _unwanted_text(text) == []


@pytest.mark.parametrize("text", ["=root=run", "open('=tmp=x')", "download.pytorch,org=whl", "..=shared"])
def test_unwanted_text_is_found(text: str) -> None:
    # spelt with stand-ins, since this file is searched too
    assert len(_unwanted_text(text.replace("=", "/").replace(",", "."))) == 1


def test_files_name_no_registry_and_no_machine() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: git says which files are the project's")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    assert len(files) > 20
    found: set[str] = set()
    for path in files:
        content = path.read_bytes()
        if b"\0" not in content:  # else an image or the like
            found |= {f"{path.relative_to(ROOT)}: {hit}" for hit in _unwanted_text(content.decode())}
    assert sorted(found) == []


def _unwanted_text(text: str) -> list[str]:
    """`what: match` for each kind of text that belongs in no file of the project."""
    matches = {what: re.search(pattern, text) for what, pattern in UNWANTED_TEXT.items()}
    return [f"{what}: {match.group()}" for what, match in matches.items() if match]
