import pytest
import torch

from latentae.losses.compositing import composite, composites, opacity, weigh_by_alpha
from latentae.losses.reconstruction import GaussianLikelihood, ReconstructionObjective, l1


def pixel(red, green, blue, alpha):
    """One RGBA pixel [1, 4, 1, 1] in [-1, 1]."""
    return torch.tensor([red, green, blue, alpha], dtype=torch.float64)[None, :, None, None]


def test_a_half_transparent_pixel_over_black_white_and_a_colour():
    image = pixel(1.0, 0.2, -1.0, 0.0)  # alpha one half
    assert opacity(image).item() == 0.5
    assert composite(image, -1.0).flatten().tolist() == pytest.approx([0.0, -0.4, -1.0])
    assert composite(image, 1.0).flatten().tolist() == pytest.approx([1.0, 0.6, 0.0])
    blue = torch.tensor([[-1.0, 0.0, 1.0]])
    assert composite(image, blue).flatten().tolist() == pytest.approx([0.0, 0.1, 0.0])


def test_opaque_pixels_hide_the_background_and_transparent_ones_show_it():
    colour = torch.tensor([[0.3, -0.4, 0.5]])
    assert composite(pixel(0.1, 0.2, 0.9, 1.0), colour).flatten().tolist() == pytest.approx([0.1, 0.2, 0.9])
    assert composite(pixel(0.1, 0.2, 0.9, -1.0), colour).flatten().tolist() == pytest.approx([0.3, -0.4, 0.5])


def test_the_composites_of_an_image_follow_each_other():
    images = torch.cat([pixel(0, 0, 0, -1.0), pixel(0, 0, 0, 1.0)])
    colours = torch.tensor([[0.25, 0.25, 0.25], [0.75, 0.75, 0.75]])
    assert composites(images, colours)[:, 0].flatten().tolist() == [0.25, -1, 1, 0, 0, 0]


def test_rgb_images_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 3, 2, 2\]"):
        composite(torch.zeros(1, 3, 2, 2), 0.0)


def test_the_error_of_colours_is_weighted_by_the_images_alpha():
    reconstruction, image = pixel(0.5, 0.5, 0.5, 1.0), pixel(0.1, 0.1, 0.1, -0.5)  # alpha 1/4
    # (3 · 1/4 · 0.4 + 1.5) / 4
    assert l1(*weigh_by_alpha(reconstruction, image)).item() == pytest.approx(0.45)


class Distance(torch.nn.Module):
    def forward(self, reconstruction, images):
        assert reconstruction.shape[1] == 3
        return (reconstruction - images).square().mean(dim=(1, 2, 3))


def test_the_objective_of_one_pixel():
    objective = ReconstructionObjective(l1, perceptual=Distance(), perceptual_weight=2.0)
    reconstruction, image = pixel(0.5, 0.5, 0.5, 1.0), pixel(0.1, 0.1, 0.1, -0.5)
    colour = torch.full((1, 3), 0.5, dtype=torch.float64)
    loss, terms = objective(reconstruction, image, colour)
    # The opaque reconstruction is 0.5 over everything; the image is 0.4, -0.725 and 0.775.
    distance = (0.1**2 + 1.225**2 + 0.275**2) / 3
    assert terms["perceptual"].item() == pytest.approx(distance)
    assert terms["reconstruction"].item() == pytest.approx(0.45)
    assert terms["alpha_error"].item() == pytest.approx(0.75)
    assert loss.item() == pytest.approx(0.45 + 2 * distance)


@pytest.mark.parametrize("loss", [l1, GaussianLikelihood()])
def test_hidden_colours_change_no_gradient(loss):
    torch.manual_seed(0)
    objective = ReconstructionObjective(loss, perceptual=Distance())
    images = torch.rand(2, 4, 6, 6) * 2 - 1
    images[:, 3, :3] = -1
    hidden = images.clone()
    hidden[:, :3, :3] = torch.rand(2, 3, 3, 6) * 2 - 1
    colours = torch.rand(2, 3) * 2 - 1
    gradients = []
    for target in (images, hidden):
        reconstruction = torch.linspace(-1, 1, images.numel()).view_as(images).requires_grad_()
        value, _ = objective(reconstruction, target, colours)
        gradients.append(torch.autograd.grad(value, reconstruction)[0])
    assert not torch.equal(images, hidden)
    assert torch.equal(*gradients)
    assert gradients[0][:, 3, :3].abs().min() > 0  # alpha's own error is learned there


def test_without_backgrounds_channels_are_channels():
    objective = ReconstructionObjective(l1)
    reconstruction, image = pixel(0.5, 0.5, 0.5, 1.0), pixel(0.1, 0.1, 0.1, -0.5)
    loss, terms = objective(reconstruction, image)
    assert loss.item() == pytest.approx((3 * 0.4 + 1.5) / 4)
    assert "alpha_error" not in terms
