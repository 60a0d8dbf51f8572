import pytest
import torch

from latentae.probe.denoiser import NULL_LABEL
from latentae.probe.images import open_images
from latentae.probe.latents import cache_latents
from latentae.probe.request import ProbeRequest
from tests.probe.conftest import draw_images, tiny_model

CPU = torch.device("cpu")


def cached(folder, model, **changes):
    request = ProbeRequest(
        models=["a"], data=str(folder), out=folder / "out", image_size=32, batch_size=8, **changes
    )
    images = open_images(request, 3)
    offset = torch.tensor([0.5, 0.0, 0.0, 0.0])
    return cache_latents(
        model, images, folder.parent / "cache_of_it", request, CPU, offset, lambda text: None
    )


def test_latents_labels_and_variance(image_folder):
    latents = cached(image_folder, tiny_model("vq"), flips=False)
    assert latents.training.latent_shape == (4, 8, 8)
    assert len(latents.held_out.latents) == 12
    assert latents.label_names == ["disc", "stripe"]
    assert latents.labels.bincount().tolist() == [24, 24]
    assert latents.held_out.labels.tolist() == [0] * 6 + [1] * 6
    whole = torch.stack([latents.training[index]["latents"] for index in range(48)])
    assert torch.allclose(latents.variance, whole.var(dim=(0, 2, 3)))


def test_held_out_latents_are_offset(image_folder):
    model = tiny_model("vq")
    latents = cached(image_folder, model, flips=False)
    images = open_images(
        ProbeRequest(["a"], str(image_folder), image_folder / "out", image_size=32, batch_size=8), 3
    )
    with torch.no_grad():
        expected = model.to_latents(images.measured.prepare(0)[None])[0]
    expected[0] += 0.5
    assert torch.allclose(latents.held_out.latents[0], expected, atol=2e-2)  # the cache holds 16 bits


def test_labels_that_are_left_alone(image_folder):
    latents = cached(image_folder, tiny_model("vq"), unconditional=True)
    assert (latents.labels, latents.label_names) == (None, None)


def test_classes_that_training_does_not_have(image_folder):
    draw_images(image_folder / "val" / "another", 2)
    for path in sorted((image_folder / "val" / "another").rglob("*.png")):
        path.rename(image_folder / "val" / "another" / path.name)
    latents = cached(image_folder, tiny_model("vq"))
    assert latents.held_out.labels.tolist() == [NULL_LABEL] * 2 + [0] * 6 + [1] * 6


def test_latents_that_do_not_vary(image_folder):
    model = tiny_model("vq")
    with torch.no_grad():
        model.quant_conv.weight[2] = 0
    with pytest.raises(ValueError, match=r"channel\(s\) \[2\] do not vary"):
        cached(image_folder, model)
