"""Where the weights of FID's Inception network come from. Never random ones."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import torch

from latentae.weights import WeightsNotFoundError

FILE = "weights-inception-2015-12-05-6726825d.pth"
"""torch-fidelity's name for the file; it ends in the first eight digits of its SHA-256."""
_HASH = "6726825d"
_SILENCE = 30.0  # seconds


def find_inception_weights(path: Path | None = None) -> Path:
    """The file of weights: ``path``, or torch-fidelity's in torch's hub cache, downloaded there if need be.

    A file that is found or downloaded must have the published hash; one that is given need not, for
    networks of one's own.

    Raises:
        WeightsNotFoundError: there is none, and it could not be downloaded.
    """
    if path is not None:
        if not path.is_file():
            raise WeightsNotFoundError(f"{path} is not there: give the path of {FILE}")
        return path
    cached = Path(torch.hub.get_dir(), "checkpoints", FILE)
    if cached.is_file():
        if _digest(cached).startswith(_HASH):
            return cached
        reason = f"{cached} is damaged: its SHA-256 does not begin with {_HASH}; remove it"
    else:
        reason = _download(cached)
        if not reason:
            return cached
    raise WeightsNotFoundError(
        f"FID's Inception weights are not on this machine ({reason}); copy {FILE}, which torch-fidelity "
        f"releases, to {cached} or give its path"
    )


def _download(target: Path) -> str:
    """Why torch-fidelity's file could not be downloaded; "" where it was."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set, so nothing was downloaded"
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError:
        return "torch-fidelity, which knows where they are, is not installed: pip install torch-fidelity"
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE)  # torch.hub waits forever for a host that does not answer
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(target), hash_prefix=_HASH, progress=False)
    except (OSError, RuntimeError) as error:
        return f"the download failed: {error}"
    finally:
        socket.setdefaulttimeout(patience)
    return ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
