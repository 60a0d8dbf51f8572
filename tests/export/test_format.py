import pytest
import torch

from latentae.export.autoencoder import _FORMATS
from tests.export.conftest import make_kl


@pytest.mark.parametrize("name", ["diffusers", "ldm"])
def test_each_step_does_as_it_says(name, tmp_path, images):
    steps, model = _FORMATS[name], make_kl()
    path = tmp_path / ("model" if steps.is_folder else "model.safetensors")
    assert steps.prepare(model, None) == []
    steps.write(model, path, torch.float16, None)
    assert path.is_dir() == steps.is_folder
    reopened = steps.reopen(path, None)
    assert reopened.dtype == torch.float32
    assert not reopened.training
    assert (reopened.encode(images).latents - model.encode(images).latents).abs().max() < 1e-2
    assert str(path) in steps.load_hint(model, path, None)
