import errno
import os

import pytest
import torch

from latentae.data import FolderSource
from latentae.evaluation.blocks import ImageBlocks, protocol_called
from latentae.files import FullDiskError
from latentae.probe.features import (
    Nearest,
    extract_features,
    feature_distance,
    find_nearest,
    measure_memorisation,
    real_distance,
    real_images,
    reconstruct_images,
    reference_features,
)
from tests.probe.conftest import tiny_model


@pytest.fixture
def blocks(image_folder):
    return ImageBlocks(FolderSource(image_folder / "train"), protocol_called("resize-32"), 3)


def test_of_all_images_in_order(blocks, measures):
    found = extract_features(real_images(blocks), measures.features, torch.device("cpu"))["vgg16"]
    assert found.shape == (48, 12)
    image = ((blocks.prepare(40) + 1) * 127.5).round()
    assert found[40, 0].item() == pytest.approx(image[0, :16, :16].mean().item(), abs=1e-3)


def test_of_transparent_images_over_white(measures):
    image = torch.full((1, 4, 4, 4), 100, dtype=torch.uint8)
    image[:, 3, :, :2] = 0
    found = extract_features([image], measures.features, torch.device("cpu"), alpha=True)["vgg16"]
    seen = 100 * 100 / 255 + 155  # at the right, where alpha is 100
    assert found[0, :4].tolist() == pytest.approx([255, seen, 255, seen], abs=0.6)


def test_unreadable_images_are_left_out(blocks, image_folder):
    (image_folder / "train" / "disc" / "004.png").write_bytes(b"no picture")
    indices: list[int] = []
    assert sum(len(batch) for batch in real_images(blocks, indices=indices)) == 47
    assert indices == [0, 1, *range(3, 48)]


def test_reconstructions(blocks):
    model = tiny_model()
    images = next(real_images(blocks))
    (found,) = reconstruct_images(model, [images], torch.device("cpu"))
    with torch.no_grad():
        expected = model(images.float() / 127.5 - 1).sample.clamp(-1, 1)
    assert torch.equal(found, ((expected + 1) * 127.5).round().to(torch.uint8))


def test_distance_by_hand():
    """Of one feature it is the squared difference of the means and of the deviations."""
    first, second = torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.0], [6.0]])
    deviations = 2**0.5, 18**0.5
    assert feature_distance(first, second) == pytest.approx(3**2 + (deviations[0] - deviations[1]) ** 2)


def test_floor_falls_with_more_images():
    features = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    few, many = real_distance(features, 50, seed=0), real_distance(features, 5000, seed=0)
    assert 0 < many < 0.2 * few
    assert real_distance(features, 50, seed=0) == few


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


def test_nearest_by_hand():
    others = torch.tensor([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]])
    found = find_nearest(torch.tensor([[3.0, 0.0], [9.0, 0.0], [3.0, 4.0]]), others)
    assert found.distances.tolist() == [3.0, 1.0, 0.0]
    assert found.positions.tolist() == [0, 2, 1]
    assert find_nearest(torch.zeros(0, 2), others).distances.tolist() == []
    with pytest.raises(ValueError, match="no features"):
        find_nearest(others, torch.zeros(0, 2))


def test_large_features_lose_no_digits():
    others = torch.tensor([[1e4, 0.0], [1e4 + 0.01, 0.0]])
    assert find_nearest(others[1:], others).distances.item() == 0


def of(*distances):
    return Nearest(torch.tensor(distances, dtype=torch.float64), torch.zeros(len(distances)).long())


def test_share_of_samples_nearer_than_new_images_are():
    held_out = of(*[float(value) for value in range(1, 102)])  # its 5 % quantile is 6
    found = measure_memorisation(of(1.0, 5.9, 6.1, 50.0), held_out, of(0.5, 0.7, 0.9))
    assert found.copied_share == 0.5
    assert (found.samples, found.held_out, found.copies) == (5.9, 51.0, 0.7)
