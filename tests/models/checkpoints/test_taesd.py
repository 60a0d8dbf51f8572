import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from latentae import load_autoencoder
from latentae.models import TinyAutoencoder
from latentae.models.checkpoints.taesd import find_halves, taesd_arguments
from tests.models.checkpoints.examples import images_for
from tests.models.checkpoints.taesd_reference import EDITIONS, FITS_STOCK, build, expected, in_layout


def _is_that(model, halves):
    """Whether a model gives the reference's latents and pixels."""
    images = images_for(model, 64, 32)
    latents, pixels = expected(halves, images)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(images).latents, latents, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(images).sample, pixels, rtol=1e-5, atol=1e-5)
    return type(model) is TinyAutoencoder


def _save_pair(folder, halves, names=("taesd_encoder.pth", "taesd_decoder.pth")):
    for name, half in zip(names, halves, strict=True):
        torch.save(half.state_dict(), folder / name)


@pytest.mark.parametrize("edition", EDITIONS)
def test_every_edition_in_two_files_as_published(edition, tmp_path):
    halves = build(edition)
    _save_pair(tmp_path, halves)
    for place in ("taesd_encoder.pth", "taesd_decoder.pth", ""):
        model = load_autoencoder(tmp_path / place)
        assert _is_that(model, halves)
    factor = {"f32": 32, "f16": 16, "deep": 16}.get(edition, 8)
    assert model.downsampling_factor == 2 ** (len(model.config.block_out_channels) - 1) == factor
    assert model.fits_stock_class == (edition in FITS_STOCK)


@pytest.mark.parametrize("edition", ["taesd", "taesd of FLUX.2", "f16"])
@pytest.mark.parametrize("layout", ["class", "comfyui", "diffusers"])
@pytest.mark.parametrize("prefix", ["", "vae.", "model.first_stage_model."])
def test_both_halves_in_one_file(edition, layout, prefix):
    halves = build(edition)
    around = {"vae_scale": torch.tensor(1.0), "unet.out.2.weight": torch.zeros(1)}
    found = find_halves({**around, **in_layout(halves, layout, prefix)})
    state = in_layout(halves, "diffusers")
    assert {**found["encoder"].state(), **found["decoder"].state()}.keys() == state.keys()
    for half in found.values():
        assert all(tensor.data_ptr() == state[name].data_ptr() for name, tensor in half.state().items())
    model = TinyAutoencoder(**taesd_arguments(found["encoder"], found["decoder"])).eval()
    model.load_state_dict(state)
    assert _is_that(model, halves)


def test_the_halves_as_a_trainer_keeps_them(tmp_path):
    halves = build("taesd of FLUX.2")
    parts = {name: half.state_dict() for name, half in zip(("encoder", "decoder"), halves, strict=True)}
    torch.save({"step": 3, "model": parts}, tmp_path / "last.pt")
    assert _is_that(load_autoencoder(tmp_path / "last.pt"), halves)


@pytest.mark.parametrize("edition", ["deep", "f32"])
def test_saved_and_opened_again(edition, tmp_path):
    halves = build(edition)
    _save_pair(tmp_path, halves)
    model = load_autoencoder(tmp_path)
    model.save_pretrained(tmp_path / "saved")
    weights = tmp_path / "saved" / "diffusion_pytorch_model.safetensors"
    assert _is_that(load_autoencoder(tmp_path / "saved"), halves)
    assert _is_that(load_autoencoder(weights), halves)
    assert _is_that(load_autoencoder(weights.rename(tmp_path / "renamed.safetensors")), halves)
    if edition in FITS_STOCK:
        stock = model.to_diffusers()
        images = images_for(model, 64, 32)
        assert type(stock) is AutoencoderTiny
        assert torch.equal(stock.decode(stock.encode(images).latents).sample, model(images).sample)
    else:
        with pytest.raises(ValueError, match="AutoencoderTiny has no layers like those"):
            model.to_diffusers()


def test_pairs_by_name(tmp_path):
    halves = build("taesd")
    _save_pair(tmp_path, halves, ("TAESD_Encoder.pth", "TAESD_Decoder.pth"))
    assert _is_that(load_autoencoder(tmp_path / "TAESD_Encoder.pth"), halves)
    for name, half in zip(("TAESD_Encoder", "TAESD_Decoder"), halves, strict=True):
        save_file(half.state_dict(), tmp_path / f"{name}.safetensors")  # the same pair in two formats
    assert _is_that(load_autoencoder(tmp_path), halves)
    _save_pair(tmp_path, halves, ("small_encoder.pth", "small_decoder.pth"))
    with pytest.raises(ValueError, match=r"holds 2 autoencoders in two files.*TAESD_Encoder.*small_encoder"):
        load_autoencoder(tmp_path)
    assert _is_that(load_autoencoder(tmp_path / "small_decoder.pth"), halves)
    save_file(halves[1].state_dict(), tmp_path / "other_decoder.safetensors")
    torch.save(halves[0].state_dict(), tmp_path / "other_encoder.pth")
    assert _is_that(load_autoencoder(tmp_path / "other_encoder.pth"), halves)
    for name in ("TAESD", "small"):
        for path in tmp_path.glob(f"{name}_*"):
            path.unlink()
    assert _is_that(load_autoencoder(tmp_path), halves)  # the pair in one format each


def test_half_a_taesd(tmp_path):
    halves = build("taesd")
    torch.save(halves[0].state_dict(), tmp_path / "taesd_encoder.pth")
    with pytest.raises(
        ValueError, match=r"holds the encoder of a TAESD: .* beside it, as taesd_decoder\.pth"
    ):
        load_autoencoder(tmp_path / "taesd_encoder.pth")
    torch.save(halves[0].state_dict(), tmp_path / "taesd_decoder.pth")
    with pytest.raises(ValueError, match=r"taesd_decoder\.pth does not hold the other half"):
        load_autoencoder(tmp_path / "taesd_encoder.pth")
    with pytest.raises(ValueError, match=r"its name says that it is the decoder"):
        load_autoencoder(tmp_path / "taesd_decoder.pth")
    torch.save(halves[1].state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(ValueError, match=r"the decoder of a TAESD, and the name does not tell"):
        load_autoencoder(tmp_path / "tiny.pth")


def test_halves_of_two_models(tmp_path):
    _save_pair(tmp_path, (build("taesd")[0], build("taesd of FLUX.2")[1]))
    with pytest.raises(
        ValueError, match=r"to 4 channels .* decoder from 6 channels .* do not belong together"
    ):
        load_autoencoder(tmp_path)
    _save_pair(tmp_path, (build("taesd")[0], build("deep")[1]))
    with pytest.raises(ValueError, match=r"at 1/8 of .* at 1/16: they do not belong together"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("lost", ["encoder.3.", "encoder.11.", "decoder.3.", "decoder.14."])
def test_layers_that_are_missing(lost):
    stored = in_layout(build("taesd"), "class")
    found = find_halves({name: x for name, x in stored.items() if not name.startswith(lost)})
    with pytest.raises(ValueError, match=r"missing|without the tensors|do not belong"):
        taesd_arguments(found["encoder"], found["decoder"])


def test_anything_else():
    assert find_halves({"encoder.conv_in.weight": torch.zeros(1)}) == {}
    assert find_halves({"main.0.weight": torch.zeros(8, 3, 4, 4), "main.2.weight": torch.zeros(1)}) == {}
    two = {f"{name}.{key}": x for name in "ab" for key, x in in_layout(build("taesd"), "class").items()}
    with pytest.raises(ValueError, match=r"several encoders of TAESD"):
        find_halves(two)


def test_no_family_and_no_averages(tmp_path):
    _save_pair(tmp_path, build("taesd"))
    with pytest.raises(ValueError, match="this is TAESD, whose latents are scaled already"):
        load_autoencoder(tmp_path, family="sd1")
    with pytest.raises(ValueError, match="this is TAESD, which has no averaged weights"):
        load_autoencoder(tmp_path, variant="ema")
