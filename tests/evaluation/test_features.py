import io

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.models import vgg16

from latentae.evaluation.features import InceptionFeatures, VGG16Features, to_rgb


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights and statistics under torch-fidelity's names."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments):
            pass

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    network = Unloaded("inception", ["2048"], feature_extractor_weights_path=empty)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(network.state_dict(), path)
    return path


def images(count, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_inception_is_torch_fidelitys(inception_file):
    theirs = FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=str(inception_file)
    )
    batch = images(3)
    ours = InceptionFeatures(inception_file)
    expected = theirs(batch)[0]
    assert ours.dimensions == expected.shape[1]
    torch.testing.assert_close(ours(batch), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_inception_identity_follows_the_weights(inception_file, tmp_path):
    state = torch.load(inception_file)
    state["fc.bias"] += 1
    other = tmp_path / "other.pth"
    torch.save(state, other)
    assert InceptionFeatures(inception_file).identity != InceptionFeatures(other).identity


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / "else.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"else\.pth does not hold torch-fidelity's InceptionV3"):
        InceptionFeatures(path)
    path.write_bytes(b"no file of torch")
    with pytest.raises(ValueError, match="does not hold"):
        InceptionFeatures(path)


@pytest.fixture
def vgg_trunk(monkeypatch):
    torch.manual_seed(0)
    features = vgg16(weights=None).features
    for name, parameter in features.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    trunk = {f"features.{name}": value for name, value in features.state_dict().items()}
    monkeypatch.setattr("latentae.evaluation.features.load_trunk", lambda name: trunk)
    return features


def test_vgg16_is_torchvisions(vgg_trunk):
    batch = images(2, size=48)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, None, :, None, None]
    with torch.no_grad():
        expected = vgg_trunk[:-1]((batch / 255 - mean) / std).mean(dim=(2, 3))
    torch.testing.assert_close(VGG16Features()(batch), expected, rtol=1e-4, atol=1e-5)


def test_what_is_not_rgb():
    assert torch.equal(to_rgb(torch.ones(1, 1, 2, 2)), torch.ones(1, 3, 2, 2))
    assert to_rgb(torch.ones(1, 4, 2, 2)).shape == (1, 3, 2, 2)
    with pytest.raises(ValueError, match="images have 5 channels"):
        to_rgb(torch.ones(1, 5, 2, 2))


def test_bad_images(vgg_trunk):
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\] uint8"):
        VGG16Features()(torch.ones(1, 3, 32, 32))
