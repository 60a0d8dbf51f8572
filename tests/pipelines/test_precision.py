import pytest
import torch

from tests.pipelines.autoencoders import OURS
from tests.pipelines.cases import CASES
from tests.pipelines.running import built, run

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("autoencoder", OURS)
@pytest.mark.parametrize("force_upcast", [False, True])
@pytest.mark.parametrize("task", ["text-to-image", "image-to-image"])
def test_sdxl_in_half_precision(task, force_upcast, autoencoder):
    name = f"SDXL, {task}"
    pipeline = built(name, autoencoder, force_upcast=force_upcast).to(torch.float16)
    result = run(CASES[name], pipeline)
    assert result.decoded[0].dtype == (torch.float32 if force_upcast else torch.float16)
    assert pipeline.vae.dtype == torch.float16
    assert result.images.isfinite().all()


@pytest.mark.parametrize("autoencoder", OURS)
@pytest.mark.parametrize("name", ["StableDiffusion, image-to-image", "Flux, image-to-image"])
def test_bfloat16(name, autoencoder):
    pipeline = built(name, autoencoder).to(torch.bfloat16)
    result = run(CASES[name], pipeline)
    assert result.decoded[0].dtype == torch.bfloat16
    assert result.images.isfinite().all()
