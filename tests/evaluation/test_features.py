import pytest
import torch
from torchvision.models.vgg import cfgs, make_layers

from latentae.evaluation.features import VGG16Features, to_rgb


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
