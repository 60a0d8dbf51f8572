import pytest
import torch

from latentae.models.checkpoints.families import FAMILIES, Normalisation, check_family, find_normalisation


def _find(channels=4, factor=8, metadata=None, tensors=None, family=None):
    return find_normalisation(
        channels, factor=factor, metadata=metadata or {}, tensors=tensors or {}, family=family
    )


def _unet(width):
    """What tells a family: the width of the text embeddings that a UNet's cross-attention takes."""
    return {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight": torch.zeros(
            320, 320
        ),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(
            320, width
        ),
    }


def test_published_numbers():
    numbers = {name: (x.latent_channels, x.scale, x.shift) for name, x in FAMILIES.items()}
    assert numbers == {
        "sd1": (4, 0.18215, 0.0),
        "sdxl": (4, 0.13025, 0.0),
        "sd3": (16, 1.5305, 0.0609),
        "flux": (16, 0.3611, 0.1159),
    }


def test_a_family_that_is_named():
    found = _find(channels=16, family="sd3")
    assert found == Normalisation(1.5305, 0.0609, family="sd3")
    assert found.arguments() == {
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "latents_mean": None,
        "latents_std": None,
    }
    with pytest.raises(
        ValueError, match="'sd3', whose latents have 16 channels, but those of this model have 4"
    ):
        _find(family="sd3")
    with pytest.raises(ValueError, match="family is 'sd2', but must be one of sd1, sdxl, sd3, flux"):
        check_family("sd2", 4)


def test_metadata():
    numbers = {"latentae.scaling_factor": "0.9", "latentae.shift_factor": "-0.25", "latentae.family": "sd1"}
    assert _find(metadata=numbers) == Normalisation(0.9, -0.25)
    assert _find(metadata={"latentae.scaling_factor": "0.9"}) == Normalisation(0.9)
    assert _find(metadata={"latentae.family": "sdxl"}) == Normalisation(0.13025, family="sdxl")
    assert _find(metadata=numbers, tensors=_unet(768)) == Normalisation(0.9, -0.25)
    assert _find(metadata=numbers, family="sdxl") == Normalisation(0.13025, family="sdxl")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"latentae.scaling_factor": "big"}, "scaling_factor in the metadata is 'big', but must be a number"),
        ({"latentae.scaling_factor": "nan"}, "must be finite"),
        ({"latentae.scaling_factor": "0"}, "must be positive"),
        ({"latentae.scaling_factor": "1", "latentae.shift_factor": "inf"}, "shift_factor .* must be finite"),
        ({"latentae.family": "sd9"}, "family is 'sd9'"),
    ],
)
def test_metadata_that_make_no_sense(metadata, message):
    with pytest.raises(ValueError, match=message):
        _find(metadata=metadata)


@pytest.mark.parametrize(
    ("tensors", "channels", "family"),
    [
        (_unet(768), 4, "sd1"),
        (_unet(1024), 4, "sd1"),
        (_unet(2048), 4, "sdxl"),
        ({**_unet(1280), "conditioner.embedders.0.model.x": torch.zeros(1)}, 4, "sdxl"),
        (_unet(1280), 4, None),
        ({"conditioner.embedders.1.model.ln_final.weight": torch.zeros(1)}, 4, "sdxl"),
        ({"model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight": torch.zeros(1)}, 16, "sd3"),
        ({"model.diffusion_model.double_blocks.0.img_attn.proj.weight": torch.zeros(1)}, 16, "flux"),
        ({}, 4, None),
    ],
)
def test_the_denoiser_beside_it(tensors, channels, family):
    named = FAMILIES.get(family)
    expected = Normalisation() if named is None else Normalisation(named.scale, named.shift, family=family)
    assert _find(channels=channels, tensors=tensors) == expected


def test_a_denoiser_of_other_latents_tells_nothing():
    assert _find(channels=3, tensors=_unet(768)).scaling_factor is None
    assert (
        _find(factor=4, tensors=_unet(1024)).scaling_factor is None
    )  # SD's x4 upscaler, whose scale differs


def test_a_scale_that_ldm_measured():
    assert _find(channels=3, factor=4, tensors={"scale_factor": torch.tensor(0.25)}) == Normalisation(0.25)
    with pytest.raises(ValueError, match=r"scale_factor in the file is 0\.0"):
        _find(tensors={"scale_factor": torch.tensor(0.0)})


def test_playground_has_numbers_of_its_own():
    own = {"edm_mean": torch.tensor([[0.0], [1.0], [2.0], [3.0]]), "edm_std": torch.full((1, 4, 1, 1), 8.0)}
    found = _find(tensors={**_unet(2048), **own})
    assert (found.scaling_factor, found.latents_mean, found.latents_std) == (
        0.5,
        (0.0, 1.0, 2.0, 3.0),
        (8.0,) * 4,
    )
