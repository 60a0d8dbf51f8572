import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, VQModel

from tests.pipelines.autoencoders import has_codes
from tests.pipelines.cases import CASES
from tests.pipelines.running import built, pairs, run

pytestmark = pytest.mark.usefixtures("no_gradients")

# one task of each pipeline; VQ-Diffusion's own embeddings cannot be loaded again, whatever its autoencoder
SAVED = [
    name
    for name, case in CASES.items()
    if not (case.image and "strength" in case.arguments) and not case.mask and name != "VQ-Diffusion"
]
WITHOUT_LATENTAE = """
import json, pathlib, sys
sys.modules["latentae"] = None  # importing it now raises
import numpy, torch
from diffusers import DiffusionPipeline
for folder in map(pathlib.Path, sys.argv[1:]):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    arguments = json.loads((folder / "arguments.json").read_text())
    images = pipeline(**arguments, generator=torch.Generator().manual_seed(0), output_type="np").images
    numpy.save(folder / "images.npy", images)
"""


@pytest.mark.parametrize(("name", "autoencoder"), pairs(SAVED))
def test_saved_and_loaded_where_latentae_is_imported(name, autoencoder, tmp_path):
    case = CASES[name]
    pipeline = built(name, autoencoder)
    expected = run(case, pipeline).images
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())[case.part] == ["latentae", autoencoder]
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(getattr(loaded, case.part)) is type(getattr(pipeline, case.part))
    assert torch.equal(run(case, loaded).images, expected)


def test_a_stock_class_in_its_place_loads_without_latentae(tmp_path):
    expected = {}
    for name, autoencoder in (
        ("StableDiffusion, text-to-image", "KLVAE"),
        ("SD3, text-to-image", "KLVAE"),
        ("LDM, unconditional", "VQGAN"),
    ):
        case, pipeline, folder = CASES[name], built(name, autoencoder, scaling_factor=0.7), tmp_path / name
        expected[folder] = run(case, pipeline).images
        stock = getattr(pipeline, case.part).to_diffusers()
        assert type(stock) is (VQModel if has_codes(autoencoder) else AutoencoderKL)
        pipeline.register_modules(**{case.part: stock})
        pipeline.save_pretrained(folder)
        index = json.loads((folder / "model_index.json").read_text())
        assert index[case.part] == ["diffusers", type(stock).__name__]
        (folder / "arguments.json").write_text(json.dumps({"num_inference_steps": 4, **case.arguments}))
    command = [sys.executable, "-c", WITHOUT_LATENTAE, *map(str, expected)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ})
    assert done.returncode == 0, done.stderr
    for folder, images in expected.items():
        loaded = torch.from_numpy(np.load(folder / "images.npy")).permute(0, 3, 1, 2)
        torch.testing.assert_close(loaded, images, rtol=0, atol=1e-5)
