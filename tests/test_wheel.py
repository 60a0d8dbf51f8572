"""The release: the wheel, built by way of the sdist, is complete and works away from the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Release:
    """What `python -m build` makes, and a folder that holds the wheel installed, without its dependencies."""

    sdist_names: list[str]
    wheel_names: list[str]
    site: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs Python with this wheel, in a folder outside of the checkout."""
        # -S reads no .pth file, so an editable install cannot bring the checkout back
        libraries = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(self.site), *libraries])}
        command = [sys.executable, "-S", *arguments]
        return subprocess.run(command, cwd=self.site.parent, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("release")
    # without isolation, so without a network: the dev extra brings hatchling
    _python("-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    site = folder / "site"
    _python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    with tarfile.open(sdist) as archive, zipfile.ZipFile(wheel) as contents:
        names = [name.partition("/")[2] for name in archive.getnames()]
        return Release(sdist_names=names, wheel_names=contents.namelist(), site=site)


def _python(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_wheel_holds_the_package_its_configs_and_nothing_else(release: Release) -> None:
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "latentae").rglob("*.py")}
    configs = {f"latentae/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert "latentae/configs/quickstart.yaml" in configs
    files = {name for name in release.wheel_names if ".dist-info/" not in name}
    assets = {path.relative_to(ROOT).as_posix() for path in (ROOT / "latentae/report/templates").iterdir()}
    assert {"latentae/report/templates/report.css", "latentae/report/templates/base.html"} <= assets
    assert files == code | configs | assets | {"latentae/py.typed"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in release.wheel_names)


def test_sdist_holds_what_a_contributor_needs(release: Release) -> None:
    wanted = {"pyproject.toml", "Makefile", "README.md", "CONTRIBUTING.md", "LICENSE", "tests/test_wheel.py"}
    assert wanted <= set(release.sdist_names)


def test_wheel_is_what_runs(release: Release) -> None:
    done = release.run("-c", "import latentae; print(*latentae.__path__)")
    assert done.stdout.split() == [str(release.site / "latentae")], done.stderr


def test_help_lists_the_keys(release: Release) -> None:
    done = release.run("-m", "latentae.cli", "train", "vqgan", "--help")
    assert done.returncode == 0, done.stderr
    assert "data.image_size" in done.stdout


def test_a_mistake_in_a_shipped_config_is_answered_before_torch_is_imported(release: Release) -> None:
    arguments = ("train", "vqgan", "--config", "quickstart", "max_steps=soon")
    done = release.run("-X", "importtime", "-m", "latentae.cli", *arguments)
    lines = done.stderr.splitlines()
    message = "\n".join(line for line in lines if not line.startswith("import time:"))
    assert (done.returncode, "max_steps" in message) == (2, True), message
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "latentae.config" in imported
    assert "torch" not in imported


def test_command_is_installed(release: Release) -> None:
    done = release.run(str(release.site / "bin" / "latentae"), "--help")
    assert done.returncode == 0, done.stderr
    assert "latentae train" in done.stdout
