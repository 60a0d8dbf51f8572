import hashlib
import io
import sys

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchvision.models.vgg import cfgs, make_layers

from latentae.evaluation import features as module
from latentae.evaluation.features import (
    FILE,
    InceptionFeatures,
    Measures,
    VGG16Features,
    find_inception_weights,
    stretch,
    to_rgb,
)
from latentae.losses.perceptual import LPIPS
from latentae.weights import WeightsNotFoundError


def images(count, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.fixture
def vgg_trunk(monkeypatch):
    torch.manual_seed(0)
    features = make_layers(cfgs["D"])
    for name, parameter in features.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    # In the order in which files keep them: 10 before 2.
    trunk = {f"features.{name}": value for name, value in sorted(features.state_dict().items())}
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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's hub cache, empty; nothing can be downloaded."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "checkpoints"


def test_a_path_is_taken_as_it_is(tmp_path):
    file = tmp_path / "mine.pth"
    file.write_bytes(b"x")
    assert find_inception_weights(file) == file
    with pytest.raises(WeightsNotFoundError, match=r"gone\.pth is not there"):
        find_inception_weights(tmp_path / "gone.pth")


def test_offline_says_what_to_do(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsNotFoundError, match=f"HF_HUB_OFFLINE is set(?s:.*)copy {FILE}"):
        find_inception_weights()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(WeightsNotFoundError, match="the download failed: no network"):
        find_inception_weights()


def test_the_cache_is_checked(hub, monkeypatch):
    hub.mkdir()
    (hub / FILE).write_bytes(b"weights")
    with pytest.raises(WeightsNotFoundError, match="damaged"):
        find_inception_weights()
    monkeypatch.setattr(module, "_HASH", hashlib.sha256(b"weights").hexdigest()[:8])
    assert find_inception_weights() == hub / FILE


def test_it_is_downloaded_with_its_hash(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    asked = {}

    def download(url, target, hash_prefix, progress):
        asked.update(url=url, hash=hash_prefix)
        (hub / FILE).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert find_inception_weights() == hub / FILE
    assert asked["url"].endswith(FILE)
    assert asked["hash"] == "6726825d"


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
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
    torch.save(network.state_dict(), path)
    return path


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


def test_an_error_without_words_is_named_by_its_kind(inception_file, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(ValueError, match="does not hold torch-fidelity's InceptionV3: MemoryError"):
        InceptionFeatures(inception_file)


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


def test_another_trunk_is_another_identity(alexnet_trunk):
    other = {**alexnet_trunk, "features.0.bias": alexnet_trunk["features.0.bias"] + 1}
    first, same, another = (
        Measures({"lpips_alex": LPIPS(trunk)}).identities["lpips_alex"]
        for trunk in (alexnet_trunk, alexnet_trunk, other)
    )
    assert first.startswith("lpips 0.1 heads on alex, ")
    assert first == same != another
