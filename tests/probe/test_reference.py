import errno
import os

import pytest
import torch

from latentae.data import FolderSource
from latentae.evaluation.blocks import ImageBlocks
from latentae.evaluation.protocol import protocol_called
from latentae.files import FullDiskError
from latentae.probe.reference import reference_features


def test_computed_once_and_kept(image_folder, measures, tmp_path):
    (image_folder / "train" / "disc" / "000.png").write_bytes(b"no picture")
    blocks = ImageBlocks(FolderSource(image_folder / "train"), protocol_called("resize-32"), 3)
    file, device = tmp_path / "reference.safetensors", torch.device("cpu")
    features, indices = reference_features(blocks, measures.features, file, device)
    assert (len(features["vgg16"]), indices) == (47, list(range(1, 48)))
    kept, again = reference_features(blocks, {}, file, device)
    assert torch.equal(kept["vgg16"], features["vgg16"])
    assert again == indices
    file.write_bytes(file.read_bytes()[:100])
    anew, _ = reference_features(blocks, measures.features, file, device)
    assert torch.equal(anew["vgg16"], features["vgg16"])


def test_a_full_disk_is_named(image_folder, measures, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    blocks = ImageBlocks(FolderSource(image_folder / "train"), protocol_called("resize-32"), 3)
    file = tmp_path / "reference.safetensors"
    with pytest.raises(FullDiskError, match=r"no space left to write .*reference\.safetensors"):
        reference_features(blocks, measures.features, file, torch.device("cpu"))
    assert not list(tmp_path.glob("*reference*"))
