"""``optimize``: the same images with less arithmetic, and nothing else changes."""

import copy
import pickle

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from latentae import KLVAE, VQGAN, Flux2VAE, TinyAutoencoder, load_autoencoder, winograd
from latentae.models.lean import blocks as lean_blocks
from latentae.models.lean import make_lean

KINDS = {
    "KL": (KLVAE, {"latent_channels": 4}),
    "FLUX.2": (Flux2VAE, {"latent_channels": 4}),
    "VQ": (VQGAN, {"num_vq_embeddings": 16}),
    "VQ, normalised by its codes": (VQGAN, {"num_vq_embeddings": 16, "norm_type": "spatial"}),
}


@pytest.fixture(autouse=True)
def small_convolutions_count(monkeypatch):
    """Lets Winograd's convolution take what is too small to pay."""
    monkeypatch.setattr(winograd, "_LEAST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "_LEAST_TILES", 1)


def make_pair(kind="KL", dtype=torch.float64):
    """(stock, optimised), with normalisations and biases that differ from 1 and 0."""
    torch.manual_seed(0)
    if kind == "TAESD":
        stock = TinyAutoencoder(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ).to(dtype)
    else:
        model_class, arguments = KINDS[kind]
        channels = (32, 32) if arguments.get("norm_type") == "spatial" else (8, 16)
        stock = model_class(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            **arguments,
        ).to(dtype)
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.normal_()
    stock.eval()
    optimised = copy.deepcopy(stock)
    optimised.optimize()
    return stock, optimised


@pytest.fixture
def images():
    return torch.rand(2, 3, 14, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1


def assert_same(first, second, images, tolerance=1e-12):
    """The same latents and reconstructions of images of even and odd sides."""
    with torch.no_grad():
        for size in (images, images[..., :13, :9]):
            size = size.to(first.dtype)
            for output in ("latents", "sample"):
                expected, found = first(size)[output], second(size)[output]
                assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("kind", [*KINDS, "TAESD"])
def test_images_and_latents_stay(kind, images):
    stock, optimised = make_pair(kind)
    assert optimised.is_optimized
    assert not stock.is_optimized
    assert_same(stock, optimised, images)
    assert_same(stock.float(), optimised.float(), images, 1e-5)


def test_the_blocks_do_compute_otherwise(images, monkeypatch):
    stock, optimised = make_pair()
    calls = []
    for name in ("winograd_conv", "doubled_by_products"):
        function = getattr(lean_blocks, name)
        monkeypatch.setattr(
            lean_blocks, name, lambda *a, n=name, f=function, **b: calls.append(n) or f(*a, **b)
        )
    with torch.no_grad():
        stock(images)
        assert not calls
        optimised(images)
    blocks = [m for m in optimised.modules() if isinstance(m, ResnetBlock2D)]
    assert calls.count("winograd_conv") == 2 * len(blocks)
    assert calls.count("doubled_by_products") == 1


def test_it_can_be_undone(images):
    stock, optimised = make_pair()
    optimised.optimize()  # twice does no harm
    optimised.deoptimize()
    assert not optimised.is_optimized
    assert [type(m) for m in optimised.modules()] == [type(m) for m in stock.modules()]
    with torch.no_grad():
        assert torch.equal(optimised(images).sample, stock(images).sample)


def test_a_lean_model_can_be_optimised(images):
    stock, _ = make_pair()
    lean = copy.deepcopy(stock)
    make_lean(lean)
    lean.optimize()
    assert lean.is_optimized
    assert_same(stock, lean, images)


def test_gradients_are_the_stock_model_s(images):
    stock, optimised = make_pair()
    for model in (stock, optimised):
        model(images).sample.square().sum().backward()
    largest = max(parameter.grad.abs().max() for parameter in stock.parameters())
    for (name, expected), found in zip(stock.named_parameters(), optimised.parameters(), strict=True):
        assert (found.grad - expected.grad).abs().max() <= 1e-12 * largest, name


def test_names_weights_and_files_stay(images, tmp_path):
    stock, optimised = make_pair(dtype=torch.float32)
    with torch.no_grad():
        optimised(images.float())
    before, after = stock.state_dict(), optimised.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    stock.save_pretrained(tmp_path / "stock")
    optimised.save_pretrained(tmp_path / "optimised")
    for path in (tmp_path / "stock").iterdir():
        assert path.read_bytes() == (tmp_path / "optimised" / path.name).read_bytes()
    opened = load_autoencoder(tmp_path / "optimised")
    assert not opened.is_optimized
    assert_same(stock, opened, images, 0)


def test_loaded_weights_and_other_dtypes_count(images):
    stock, optimised = make_pair()
    assert_same(stock, optimised, images)
    other = {name: value * 1.25 for name, value in stock.state_dict().items()}
    for model in (stock, optimised):
        model.load_state_dict(other)
    assert_same(stock, optimised, images)
    for model in (stock, optimised):
        model.to(torch.bfloat16).double()  # rounds the weights
    assert_same(stock, optimised, images)


def test_copies_and_pickles_stay_optimised(images):
    stock, optimised = make_pair()
    for twin in (copy.deepcopy(optimised), pickle.loads(pickle.dumps(optimised))):
        assert twin.is_optimized
        assert_same(stock, twin, images)


def test_bfloat16_is_as_close_to_the_weights_as_the_stock_model(images):
    exact, _ = make_pair()
    exact.to(torch.bfloat16).double()
    stock, optimised = (model.to(torch.bfloat16) for model in make_pair())
    with torch.no_grad():
        latents = exact.encode(images.bfloat16().double()).latents.bfloat16()
        expected = exact.decode(latents.double()).sample

        def error(model):
            return (model.decode(latents).sample.double() - expected).norm() / expected.norm()

        assert error(optimised) < 1.3 * error(stock) < 0.05


def test_hooks_and_autocast_get_the_stock_code(images):
    stock, optimised = make_pair(dtype=torch.float32)
    images = images.float()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(optimised(images).sample, stock(images).sample)
        seen = []
        for model in (stock, optimised):
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    module.register_forward_hook(lambda *_: seen.append(1))
        assert torch.equal(optimised(images).sample, stock(images).sample)
    assert len(seen) == 2 * sum(isinstance(module, nn.Conv2d) for module in stock.modules())


def test_an_export_sees_the_stock_code(images):
    stock, optimised = make_pair()
    optimised.requires_grad_(False)
    with torch.no_grad():
        example = torch.randn(1, 4, 5, 6).double()
        traced = torch.jit.trace(lambda x: optimised.decoder(x), example, check_trace=False)
    latents = torch.randn(1, 4, 7, 4).double()
    with torch.no_grad():
        assert torch.allclose(traced(latents), stock.decoder(latents), atol=1e-12)


def test_tiles_of_an_optimised_model(images):
    stock, optimised = make_pair()
    images = images.repeat(1, 1, 4, 4)
    for model in (stock, optimised):
        model.enable_tiling(tile_sample_min_height=16, tile_sample_min_width=16)
    assert_same(stock, optimised, images)


def test_the_sides_of_taesd_s_layers_that_do_not_fit_stay():
    layers = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 4, 3, padding=1))
    model = TinyAutoencoder(
        encoder_block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        num_encoder_blocks=(1,),
        num_decoder_blocks=(1,),
    )
    model.decoder.layers = layers
    model.optimize()
    assert not model.is_optimized
