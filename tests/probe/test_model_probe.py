import torch

from latentae.evaluation.subject import Subject
from latentae.probe.denoiser import DenoiserSize
from latentae.probe.folder import ProbeFolder
from latentae.probe.generation import Judge
from latentae.probe.images import open_images
from latentae.probe.model_probe import ModelProbe
from latentae.probe.pipeline import pipeline_autoencoder
from latentae.probe.request import ProbeRequest
from tests.probe.conftest import tiny_model

CPU = torch.device("cpu")


def test_one_model_once(image_folder, tmp_path):
    request = ProbeRequest(
        ["a"],
        str(image_folder),
        tmp_path / "probe",
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
        Judge(images, {}, {}, [], request, CPU),
        4,
        4,
        CPU,
        said.append,
    )
    model = tiny_model("vq")
    subject, decoder = Subject("a", "somewhere", model), pipeline_autoencoder(model)
    result = job.run(subject, decoder)
    assert (result.class_name, result.latent_shape, result.patch_size) == ("VQVAE", [4, 8, 8], 2)
    assert [point.step for point in result.curve] == [1, 2, 3, 4]
    assert result.metrics["flow_loss"] == result.curve[-1].validation_loss
    assert result.pictures == {"samples": "a/samples.png", "interpolations": "a/interpolations.png"}
    assert (request.out / "a" / "pipeline" / "model_index.json").is_file()
    assert job.run(subject, decoder) == result
    assert said[-1] == "a: finished earlier"
