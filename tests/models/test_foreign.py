"""diffusers' other autoencoders behind the common interface, against the classes themselves."""

import json
import re
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.kandinsky6.pipeline_kandinsky6_sr import Kandinsky6SRPipeline
from diffusers.pipelines.ltx.pipeline_ltx_image2video import LTXImageToVideoPipeline
from diffusers.pipelines.qwenimage21.pipeline_qwenimage21 import QwenImage21Pipeline
from PIL import Image

from benchmarks.stand_ins import FOREIGN, make_stock
from latentae import KLVAE, ForeignAutoencoder, cli, load_autoencoder
from latentae.build import open_pretrained, open_teacher
from latentae.evaluation import evaluate as evaluation
from latentae.evaluation.features import Measures
from latentae.evaluation.models import NamedModel
from latentae.export import export_autoencoder
from latentae.latents.cache import LatentDataset, encode_dataset
from latentae.models.checkpoints.open import CLASSES as OWN
from latentae.models.foreign import CLASSES, REFUSED
from latentae.probe.pipeline import pipeline_autoencoder

# Pixels per latent, and the normalisation of the first channel: shift and scale; None: not known.
EXPECTED = {
    "AsymmetricAutoencoderKL": (2, (0.0, 0.18215)),
    "AutoencoderDC": (2, (0.0, 0.41407)),
    "AutoencoderKLCogVideoX": (8, (0.0, 1.15258426)),
    "AutoencoderKLCosmos": (8, (0.0, 1.0)),
    "AutoencoderKLHunyuanImage": (4, (0.0, 0.75)),
    "AutoencoderKLHunyuanImageRefiner": (16, (0.0, 1.03682)),
    "AutoencoderKLHunyuanVideo": (8, (0.0, 0.476986)),
    "AutoencoderKLHunyuanVideo15": (16, (0.0, 1.03682)),
    "AutoencoderKLKVAE": (2, None),
    "AutoencoderKLKVAEVideo": (2, None),
    "AutoencoderKLLTX2Video": (32, (0.0, 1.0)),
    "AutoencoderKLLTXVideo": (32, (0.0, 1.0)),
    "AutoencoderKLMagvit": (8, (0.0, 0.7125)),
    "AutoencoderKLMochi": (8, (0.1, 0.25)),
    "AutoencoderKLQwenImage": (2, (0.1, 1.0)),
    "AutoencoderKLQwenImage21": (2, (0.1, 1.0)),
    "AutoencoderKLTemporalDecoder": (2, (0.0, 0.18215)),
    "AutoencoderKLWan": (4, (0.1, 1.0)),
    "AutoencoderRAE": (8, (0.0, 1.0)),
    "ConsistencyDecoderVAE": (2, (0.0, 0.18215)),
    "Kandinsky6SRVAE": (4, (0.0, 0.910344004631042)),
}
IMAGES_ONLY = {  # without an axis of frames
    "AsymmetricAutoencoderKL",
    "AutoencoderDC",
    "AutoencoderKLHunyuanImage",
    "AutoencoderKLKVAE",
    "AutoencoderKLTemporalDecoder",
    "AutoencoderRAE",
    "ConsistencyDecoderVAE",
}
WITHOUT_POSTERIOR = {"AutoencoderDC", "AutoencoderKLCosmos", "AutoencoderKLKVAEVideo", "AutoencoderRAE"}
ONE_BY_ONE = {"AutoencoderKLHunyuanVideo15", "AutoencoderKLLTXVideo", "ConsistencyDecoderVAE"}


def random_images(model, height, width, count=2):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, model.config.in_channels, height, width, generator=generator) * 2 - 1


def by_hand(name, stock, images):
    """Latents and reconstructions of images, by the class itself as its pipelines call it."""
    pixels, arguments = images, {}
    if name == "AutoencoderRAE":
        pixels = images * 0.5 + 0.5
    if name == "Kandinsky6SRVAE":
        pixels = images * (127.5 / 128) + (127.5 / 128 - 1)
    if name not in IMAGES_ONLY:
        pixels = pixels.unsqueeze(2)
    if name == "AutoencoderKLTemporalDecoder":
        arguments["num_frames"] = 1
    if name == "AutoencoderKLLTXVideo":
        arguments["temb"] = torch.zeros(1)
    found = []
    for part in pixels.split(1 if name in ONE_BY_ONE else len(pixels)):
        output = stock.encode(part)
        latents = output.latent_dist.mode() if hasattr(output, "latent_dist") else output.latent
        if name in ONE_BY_ONE:
            torch.manual_seed(0)
        found.append((latents, stock.decode(latents, **arguments).sample))
    latents, decoded = (torch.cat(parts) for parts in zip(*found, strict=True))
    if name not in IMAGES_ONLY:
        latents, decoded = latents.squeeze(2), decoded.squeeze(2)
    if name == "AutoencoderRAE":
        decoded = (decoded - 0.5) / 0.5
    if name == "Kandinsky6SRVAE":
        decoded = (decoded - (127.5 / 128 - 1)) / (127.5 / 128)
    return latents, decoded


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_as_the_class_itself(name):
    stock = make_stock(name)
    model = ForeignAutoencoder.around(stock)
    factor, normalisation = EXPECTED[name]
    assert type(model).__name__ == name
    assert model.downsampling_factor == factor
    height, width = {"AutoencoderRAE": (32, 32), "AutoencoderKLLTX2Video": (64, 96)}.get(name, (32, 64))
    images = random_images(model, height, width)

    # Latents and images are the class's, bit for bit.
    latents, decoded = by_hand(name, stock, images)
    output = model(images)
    assert torch.equal(output.latents, latents)
    assert torch.equal(output.sample, decoded)
    assert tuple(latents.shape[1:]) == model.latents_shape(images)
    assert (output.mean is None) == (name in WITHOUT_POSTERIOR)
    before = torch.random.get_rng_state()
    assert torch.equal(model.decode(latents).sample, decoded)
    assert torch.equal(torch.random.get_rng_state(), before) or name not in ONE_BY_ONE

    # The batch does not change the result.
    torch.testing.assert_close(model(images[1:]).sample, decoded[1:], atol=1e-4, rtol=1e-4)

    # The denoiser's latents, and back.
    if normalisation is None:
        with pytest.raises(ValueError, match=f"no scale of the latents of an {name}"):
            model.to_latents(images)
        return
    shift, scale = normalisation
    posterior = model.encode(images).latent_dist
    sample = posterior.sample(torch.Generator().manual_seed(3))
    normalised = model.to_latents(images, torch.Generator().manual_seed(3))
    torch.testing.assert_close(normalised[:, 0], (sample[:, 0] - shift) * scale)
    torch.testing.assert_close(
        model.from_latents(normalised), model.decode(sample).sample, atol=1e-4, rtol=1e-4
    )


def pretend_pipeline(vae):
    return SimpleNamespace(vae=vae, latent_channels=vae.config.get("z_dim"))


@torch.no_grad()
def test_latents_are_normalised_as_in_the_pipelines():
    # LTX keeps statistics among its tensors, and scales by a factor as well.
    stock = make_stock("AutoencoderKLLTXVideo", scaling_factor=0.5)
    stock.latents_mean.copy_(torch.linspace(-1, 1, 8))
    stock.latents_std.copy_(torch.linspace(1, 3, 8))
    model = ForeignAutoencoder.around(stock)
    images = random_images(model, 64, 32)
    mode = torch.cat([stock.encode(image[:, :, None]).latent_dist.mode() for image in images.split(1)])
    pipeline = LTXImageToVideoPipeline
    expected = pipeline._normalize_latents(mode, stock.latents_mean, stock.latents_std, 0.5)
    named = NamedModel("ltx", "", model)
    torch.testing.assert_close(named.normalise(named.encode(images)), expected[:, :, 0])

    stock = make_stock("AutoencoderKLQwenImage21")
    named = NamedModel("qwen", "", ForeignAutoencoder.around(stock))
    images = random_images(named.autoencoder, 16, 24)
    encode = QwenImage21Pipeline._encode_vae_image
    expected = encode(pretend_pipeline(stock), images[:, :, None], None)
    torch.testing.assert_close(named.normalise(named.encode(images)), expected[:, :, 0])

    stock = make_stock("Kandinsky6SRVAE")
    named = NamedModel("kandinsky", "", ForeignAutoencoder.around(stock))
    images = random_images(named.autoencoder, 16, 24)
    expected = Kandinsky6SRPipeline.encode_video(pretend_pipeline(stock), images[:, :, None])
    latents = named.normalise(named.encode(images))
    torch.testing.assert_close(latents, expected[:, :, 0])
    expected = Kandinsky6SRPipeline.decode_latents(pretend_pipeline(stock), latents[:, :, None])
    torch.testing.assert_close(named.decode_normalised(latents, (16, 24)).clamp(-1, 1), expected[:, :, 0])


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in CLASSES if name != "AutoencoderRAE"])
def test_any_size_is_padded_and_cropped(name):
    model = ForeignAutoencoder.around(make_stock(name))
    height, width = model.downsampling_factor + 1, 2 * model.downsampling_factor - 1
    images = random_images(model, height, width, 1)
    edges = torch.nn.functional.pad(images, (0, 1, 0, model.downsampling_factor - 1), mode="replicate")
    output = model(images)
    assert output.sample.shape == images.shape
    assert output.latents.shape[-2:] == (2, 2)
    assert torch.equal(output.sample, model(edges).sample[..., :height, :width])


def test_every_autoencoder_of_diffusers_is_opened_or_refused():
    """A new release of diffusers with another autoencoder fails here: give it a line in one of the tables."""
    exported = set(dir(diffusers.models.autoencoders)) | {
        name
        for name in dir(diffusers)
        if re.search(r"Autoencoder|VAE|Vae$|VQModel|Tokenizer$|Vocoder$", name)
    }
    models = {
        name
        for name in exported
        if isinstance(getattr(diffusers, name, None), type)
        and issubclass(getattr(diffusers, name), diffusers.ModelMixin)
    }
    assert set(FOREIGN) == set(EXPECTED) == set(CLASSES)
    assert not set(CLASSES) & (set(REFUSED) | set(OWN))
    assert models - set(OWN) == set(CLASSES) | set(REFUSED)


def test_a_size_that_a_class_cannot_take_is_refused():
    model = ForeignAutoencoder.around(make_stock("AutoencoderRAE"))
    assert model.config.sample_size == 32
    with pytest.raises(ValueError, match="takes images of 32x32 pixels alone, and these have 32x40"):
        model(torch.zeros(1, 3, 32, 40))
    with pytest.raises(ValueError, match="decodes latents of 4x4 positions alone, and these have 4x5"):
        model.decode(torch.zeros(1, 64, 4, 5))


def test_bad_input(tmp_path):
    model = ForeignAutoencoder.around(make_stock("AutoencoderDC"))
    with pytest.raises(ValueError, match=r"AutoencoderDC encodes floating-point images \[B, 3, H, W\]"):
        model(torch.zeros(1, 3, 1, 16, 16))
    with pytest.raises(ValueError, match=r"decodes floating-point latents \[B, 4, h, w\]"):
        model.decode(torch.zeros(1, 8, 4, 4))
    with pytest.raises(ValueError, match="for evaluation only"):
        model.train()
    with pytest.raises(ValueError, match=r"vae is a Linear, but must be one of .*AutoencoderDC"):
        ForeignAutoencoder.around(torch.nn.Linear(1, 1))
    model = ForeignAutoencoder.around(make_stock("AutoencoderKLLTX2Video"))
    with pytest.raises(ValueError, match=r"smaller than 2x2 latents, of 32 pixels a side each, .* 32x64"):
        model(torch.zeros(1, 3, 32, 64))
    # An edition whose config promises another factor.
    stock = make_stock("AutoencoderKLWan", scale_factor_spatial=8)
    with pytest.raises(ValueError, match=r"32x32 pixels to 8x8 latents, .* divides each side by 8"):
        ForeignAutoencoder.around(stock)(torch.zeros(1, 3, 32, 32))
    # A class that is refused, and one that is no autoencoder.
    for name, reason in (
        ("AutoencoderOobleck", "which is for audio"),
        ("UNet2DModel", "must be one of KLVAE"),
    ):
        (tmp_path / "config.json").write_text(f'{{"_class_name": "{name}"}}')
        with pytest.raises(ValueError, match=f"describes a {name}, .*{reason}|describes a {name}, {reason}"):
            load_autoencoder(tmp_path)


@torch.no_grad()
def test_an_opaque_alpha():
    model = ForeignAutoencoder.around(make_stock("AutoencoderKLQwenImage21"))
    images = random_images(model, 16, 24)
    images[:, 3] = 1
    expected = model(images)
    model.ignore_alpha()
    output = model(images[:, :3])
    assert torch.equal(output.latents, expected.latents)
    assert torch.equal(output.sample, expected.sample[:, :3])
    with pytest.raises(ValueError, match="takes images of 3 channels"):
        model.ignore_alpha()


@torch.no_grad()
@pytest.mark.parametrize("name", ["AutoencoderDC", "AutoencoderKLWan", "AutoencoderRAE"])
def test_folders(name, tmp_path):
    stock = make_stock(name)
    stock.save_pretrained(tmp_path / "stock" / "vae")
    model = load_autoencoder(tmp_path / "stock")  # a pipeline's folder
    assert isinstance(model, ForeignAutoencoder)
    images = random_images(model, 32, 32)
    expected = ForeignAutoencoder.around(stock)(images).sample
    assert torch.equal(model(images).sample, expected)
    model.save_pretrained(tmp_path / "again")
    again = load_autoencoder(tmp_path / "again" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(again(images).sample, expected)
    assert again.state_dict().keys() == stock.state_dict().keys()
    half = load_autoencoder(tmp_path / "again", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="leave family out"):
        load_autoencoder(tmp_path / "again", family="sd1")
    with pytest.raises(ValueError, match="no argument of"):
        load_autoencoder(tmp_path / "again", nonsense=1)


def test_in_tiles():
    model = ForeignAutoencoder.around(make_stock("AutoencoderKLQwenImage"))
    images = random_images(model, 64, 96, 1)
    model.enable_tiling(tile_sample_min_size=64)
    with torch.no_grad():
        tiled = model(images)
        model.disable_tiling()
        whole = model(images)
    assert tiled.sample.shape == images.shape
    assert tiled.mean.shape == whole.mean.shape
    assert 0 < (tiled.sample - whole.sample).abs().mean() < 0.2


EVALUATED = [
    "AutoencoderDC",
    "AutoencoderKLWan",
    "AutoencoderRAE",
    "AutoencoderKLHunyuanImage",
    "AutoencoderKLQwenImage21",  # for RGBA images
]


class NoDistance(torch.nn.Module):
    net = "alex"

    def forward(self, reconstruction, images):
        return (reconstruction - images).square().mean(dim=(1, 2, 3))


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setattr(
        evaluation, "open_measures", lambda device, **options: Measures(lpips={"lpips_alex": NoDistance()})
    )
    for name in EVALUATED:
        make_stock(name).save_pretrained(tmp_path / name)
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(4):
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def test_evaluate_and_reconstruct(places):
    names = EVALUATED
    models = [str(places / name) for name in names]
    data = ["--data", str(places / "images")]
    options = [
        "--out",
        str(places / "report"),
        "--protocol",
        "native",
        "--cycle-images",
        "2",
        "--no-features",
    ]
    assert cli.main(["evaluate", *models, *data, *options]) == 0
    results = json.loads((places / "report" / "results.json").read_text())["models"]
    assert list(results) == names
    with torch.no_grad():
        paths = sorted((places / "images").iterdir())
        images = torch.stack(
            [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths]
        )
        images = images.float() / 127.5 - 1
        for name in names:
            model = load_autoencoder(places / name)
            if name == "AutoencoderKLQwenImage21":
                model.ignore_alpha()
            output = model(images)
            expected = (output.sample.clamp(-1, 1) - images).abs().mean().item()
            assert results[name]["l1"]["value"] == pytest.approx(expected, abs=4e-3)  # of 8-bit images
            assert ("kl_bits_per_pixel" in results[name]) == (output.mean is not None)
    for name in names[:3]:
        out = places / f"{name}.png"
        assert (
            cli.main(["reconstruct", str(places / "images/0.png"), str(out), "--model", str(places / name)])
            == 0
        )
        with Image.open(out) as picture:  # the image and its reconstruction, side by side
            assert picture.size == (72, 36)
    page = ["--out", str(places / "page"), "--image-size", "32", "--batch-size", "2"]
    assert cli.main(["inspect", models[0], *data, *page]) == 0


@torch.no_grad()
def test_encode(places):
    model = load_autoencoder(places / "AutoencoderKLWan")
    encode_dataset(model, places / "images", places / "cache", image_size=32, workers=0)
    dataset = LatentDataset(places / "cache", model=model, sample=False)
    assert dataset[0]["latents"].shape == (4, 8, 8)


def test_commands_that_cannot_take_it_say_so_at_once(places, tmp_path, capsys):
    place = str(places / "AutoencoderDC")
    model = load_autoencoder(place)
    with pytest.raises(ValueError, match="model is a AutoencoderDC, but must be a KLVAE"):
        export_autoencoder(model, tmp_path / "export", format="diffusers")
    with pytest.raises(ValueError, match="this is a AutoencoderDC, but a probe takes KL-VAEs"):
        pipeline_autoencoder(model)
    with pytest.raises(ValueError, match="it is a AutoencoderDC, "):
        open_pretrained(place)
    with pytest.raises(ValueError, match=r"AutoencoderDC, another architecture, .* for evaluation only"):
        open_teacher(place)
    assert cli.main(["stats", place, "--data", str(places / "images")]) == 2
    assert "AutoencoderDC, which cannot be calibrated" in capsys.readouterr().err
    assert not isinstance(model, KLVAE)
