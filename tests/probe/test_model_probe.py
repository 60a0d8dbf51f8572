import pytest
import torch

from latentae.evaluation.models import NamedModel
from latentae.probe.denoiser import NULL_LABEL, DenoiserSize
from latentae.probe.folder import ProbeFolder
from latentae.probe.generation import GenerationEvaluator
from latentae.probe.model_probe import ModelProbe, cache_latents
from latentae.probe.pipeline import pipeline_autoencoder
from latentae.probe.request import ProbeRequest, open_images
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


def test_one_model_once(image_folder, tmp_path):
    request = ProbeRequest(
        ["a"],
        str(image_folder),
        tmp_path / "probe",
        steps=4,
        batch_size=8,
        image_size=32,
        samples=3,
        sampling_steps=2,
        size=DenoiserSize(32, 1),
    )
    images = open_images(request, 3)
    said = []
    job = ModelProbe(
        request,
        ProbeFolder(request.out),
        images,
        GenerationEvaluator(images, {}, {}, [], request, CPU),
        4,
        CPU,
        said.append,
    )
    model = tiny_model("vq")
    subject, decoder = NamedModel("a", "somewhere", model), pipeline_autoencoder(model)
    result = job.run(subject, decoder)
    assert (result.class_name, result.latent_shape, result.patch_size) == ("VQVAE", [4, 8, 8], 2)
    assert [point.step for point in result.curve] == [1, 2, 3, 4]
    assert result.metrics["flow_loss"] == result.curve[-1].validation_loss
    assert result.pictures == {"samples": "a/samples.png", "interpolations": "a/interpolations.png"}
    assert (request.out / "a" / "pipeline" / "model_index.json").is_file()
    assert job.run(subject, decoder) == result
    assert said[-1] == "a: finished earlier"
