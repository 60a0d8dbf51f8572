import io
import sys

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from latentae.evaluation.inception import InceptionFeatures, stretch
from latentae.weights import WeightsNotFoundError


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


def test_without_torch_fidelity(inception_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(WeightsNotFoundError, match="pip install torch-fidelity"):
        InceptionFeatures(inception_file)


@pytest.mark.parametrize("size", [(256, 256), (64, 100), (299, 299), (500, 333), (1, 7)])
def test_stretched_as_the_network_was_trained_to_see(size):
    pixels = torch.randint(256, (2, 3, *size), generator=torch.Generator().manual_seed(0)).float()
    expected = interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(299, 299), align_corners=False)
    assert torch.equal(stretch(pixels, 299), expected)


def test_positions_by_hand():
    row = torch.tensor([0.0, 3.0, 6.0])
    # 0, 0.75, 1.5, 2.25 of the input's columns, the last of which is repeated
    assert stretch(row.expand(1, 1, 3, 3), 4)[0, 0, 0].tolist() == [0.0, 2.25, 4.5, 6.0]
