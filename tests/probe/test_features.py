import pytest
import torch

from latentae.data import FolderSource
from latentae.evaluation.blocks import ImageBlocks
from latentae.evaluation.protocol import protocol_called
from latentae.probe.features import distance, features_of, floor, readable, real_images, reconstructed
from tests.probe.conftest import tiny_model


@pytest.fixture
def blocks(image_folder):
    return ImageBlocks(FolderSource(image_folder / "train"), protocol_called("resize-32"), 3)


def test_of_all_images_in_order(blocks, measures):
    found = features_of(real_images(blocks), measures.features, torch.device("cpu"))["vgg16"]
    assert found.shape == (48, 12)
    image = ((blocks.prepare(40) + 1) * 127.5).round()
    assert found[40, 0].item() == pytest.approx(image[0, :16, :16].mean().item(), abs=1e-3)


def test_unreadable_images_are_left_out(blocks, image_folder):
    (image_folder / "train" / "disc" / "004.png").write_bytes(b"no picture")
    indices, pictures = readable(blocks)
    assert sum(len(batch) for batch in pictures) == 47
    assert indices == [0, 1, *range(3, 48)]


def test_reconstructions(blocks):
    model = tiny_model()
    images = next(real_images(blocks))
    (found,) = reconstructed(model, [images], torch.device("cpu"))
    with torch.no_grad():
        expected = model(images.float() / 127.5 - 1).sample.clamp(-1, 1)
    assert torch.equal(found, ((expected + 1) * 127.5).round().to(torch.uint8))


def test_distance_by_hand():
    """Of one feature it is the squared difference of the means and of the deviations."""
    first, second = torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.0], [6.0]])
    deviations = 2**0.5, 18**0.5
    assert distance(first, second) == pytest.approx(3**2 + (deviations[0] - deviations[1]) ** 2)


def test_floor_falls_with_more_images():
    features = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    few, many = floor(features, 50, seed=0), floor(features, 5000, seed=0)
    assert 0 < many < 0.2 * few
    assert floor(features, 50, seed=0) == few
