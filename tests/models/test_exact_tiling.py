import copy
import ctypes
import json
import re
import sys

import accelerate
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from benchmarks.measuring import peak_memory
from latentae import KLVAE, VQGAN, VQVAE, Flux2VAE, TinyAutoencoder
from latentae.models.exact_tiling import ExactTiling, Layer, program_of, steps
from latentae.models.exact_tiling.maps import Mapped, Statistics, Stored
from latentae.models.exact_tiling.walk import ChunkedAttention, Execution, Plan
from tests.models.conftest import make
from tests.processes import fork, join

M_MMAP_THRESHOLD = -3  # of malloc.h
BLENDED = "use enable_tiling\\(mode='blended'\\)"
LAYERS = {
    "encoder_layers": ["pixel_unshuffle", "conv 12 8", "pooled_block 8 8", "strided_conv 8 16", "conv 16 4"],
    "decoder_layers": [
        *("conv 4 16", "relu", "pooled_block 16 16", "upsample", "conv_without_bias 16 8"),
        *("block 8 12", "pixel_shuffle", "conv 3 3"),
    ],
}
ATTENTION = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}
MODELS = {
    "kl": lambda: make(KLVAE),
    "kl, attention in a level": lambda: make(KLVAE, **ATTENTION, layers_per_block=2),
    "kl, small decoder": lambda: make(
        KLVAE, decoder_block_out_channels=(4, 12), mid_block_add_attention=False
    ),
    "kl, upscaling": lambda: make(KLVAE, upscale=2, use_post_quant_conv=False, use_quant_conv=False),
    "flux2": lambda: Flux2VAE(
        **{"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4},
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval(),
    "vqgan": lambda: make(VQGAN),
    "vqvae, spatial": lambda: make(
        VQVAE, norm_type="spatial", block_out_channels=(32, 32), norm_num_groups=32, vq_embed_dim=4
    ),
    "vqvae, 2017": lambda: make(VQVAE, backbone="2017", block_out_channels=(8, 8, 8)),
    "tiny": lambda: TinyAutoencoder(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 2),
        num_decoder_blocks=(2, 1),
    ).eval(),
    "tiny of layers": lambda: TinyAutoencoder(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        **LAYERS,
    ).eval(),
}


@pytest.fixture(autouse=True)
def _without_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def kl():
    return make(KLVAE)


def in_strips(modules, inputs, memory):
    return Execution(inputs, memory, value=4).outputs(program_of(modules))


def smallest(call):
    """The number of bytes that the message for too little memory names."""
    with pytest.raises(ValueError, match="positions needs") as raised:
        call()
    return int(re.search(r"needs (\d+) bytes", str(raised.value))[1])


def give_least(model, latents):
    """Lets a model decode latents in strips of one row."""
    model.enable_tiling(memory=1)
    model.enable_tiling(memory=smallest(lambda: model.decode(latents)))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sides", [(14, 9), (5, 26)])
def test_strips_of_any_height_give_the_whole(name, sides):
    model = MODELS[name]()
    for parameter in model.parameters():  # biases and the scales of norms start at 0 and 1
        parameter.add_(0.1 * torch.randn_like(parameter))
    images = torch.rand(2, 3, *(side * model.downsampling_factor for side in sides)) * 2 - 1
    latents = 2 * torch.randn(2, model.config.latent_channels, *sides)
    for modules, inputs, whole in (
        (model._encoder_modules(), images, model._encode_whole),
        (model._decoder_modules(), latents, model._decode_whole),
    ):
        expected = whole(inputs)
        for memory in (1, 40_000, 200_000, 10**9):  # from one row to all rows
            strips = in_strips(modules, inputs, memory)
            tolerance = 1e-5 * max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(strips, expected, rtol=0, atol=tolerance)
        plan = Plan(program_of(modules), inputs, 4, 4)
        assert plan.outputs == expected.shape
        assert plan.maps <= plan.smallest < 4 * plan.untiled


def test_sides_that_a_strided_layer_does_not_divide():
    for layer in (nn.Conv2d(2, 3, 3, 2, 1), nn.Conv2d(2, 3, 4, 2, 1), nn.Conv2d(2, 3, 3, 1, 2, dilation=2)):
        for height in (5, 8, 9):
            inputs = torch.randn(1, 2, height, 7)
            torch.testing.assert_close(in_strips([layer], inputs, 1), layer(inputs))


def test_rows_that_a_layer_reads():
    stride = Layer(F.relu, top=1, bottom=1, down=2)
    assert stride.inputs(3, 5, height=100) == (4, 12)  # rows 5 to 10, from an even one to an even one
    assert stride.inputs(0, 50, height=100) == (0, 100)
    double = Layer(F.relu, top=1, bottom=1, up=2)
    assert double.inputs(3, 6, height=100) == (0, 4)  # rows 1 and 2, and one on either side
    rows = Mapped(Stored((1, 2, 50, 7)), stride)
    assert (rows.shape, rows.has_halo) == ((1, 2, 25, 3), True)


def test_one_row_is_computed_at_a_time(kl):
    seen = []
    kl.decoder.conv_out.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[2]))
    in_strips(kl._decoder_modules(), torch.randn(1, 4, 8, 6), 1)
    assert seen == [2, *[3] * 14, 2]  # with the row above and below


def test_statistics_are_those_of_float64():
    values = torch.randn(2, 6, 50, 9) + torch.tensor([1000.0, -3, 0, 5, 200, 0.1])[:, None, None]
    statistics = Statistics()
    for strip in values.split([1, 30, 7, 12], dim=2):
        statistics.add(strip)
    mean, variance = statistics.of_groups(3)
    groups = values.double().unflatten(1, (3, 2)).flatten(2)
    torch.testing.assert_close(mean[..., 0], groups.mean(-1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance[..., 0], groups.var(-1, correction=0), rtol=1e-6, atol=0)


def test_attention_in_chunks_of_queries(monkeypatch):
    seen: list[torch.Tensor] = []
    stand_in = "latentae.models.exact_tiling.walk.writes_scores"
    monkeypatch.setattr(stand_in, lambda query, *_: seen.append(query) or True)
    query, key = torch.randn(2, 1, 2, 37, 8)
    whole = F.scaled_dot_product_attention(query, key, key)
    with ChunkedAttention(memory=2 * 4 * 2 * 37 * 5):  # of five queries
        torch.testing.assert_close(F.scaled_dot_product_attention(query, key, key), whole)
    assert len(seen) == 1
    masked = F.scaled_dot_product_attention(query, key, key, torch.eye(37, dtype=torch.bool))
    with ChunkedAttention(memory=1):
        same = F.scaled_dot_product_attention(query, key, key, torch.eye(37, dtype=torch.bool))
    assert torch.equal(same, masked)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_as_much_as_the_whole(kl, dtype):
    latents = torch.randn(1, 4, 16, 12)
    exact = kl.decode(latents).sample
    model = copy.deepcopy(kl).to(dtype)
    whole = model.decode(latents.to(dtype)).sample
    give_least(model, latents.to(dtype))
    strips = model.decode(latents.to(dtype)).sample
    assert strips.dtype == dtype
    ours, theirs = ((each.float() - exact).abs().max() for each in (strips, whole))
    assert ours < 1.5 * theirs
    assert (strips - whole).abs().max() < 4 * torch.finfo(dtype).eps * exact.abs().max()


def test_maps_in_half_precision():
    kl = make(KLVAE, mid_block_add_attention=False)
    latents = torch.randn(1, 4, 16, 12)
    expected = kl.decode(latents).sample
    program, memory = program_of(kl._decoder_modules()), 30_000
    errors = {
        dtype: float((Execution(latents, memory, 4, dtype).outputs(program) - expected).abs().max())
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    scale = float(expected.abs().max())
    assert (
        errors[torch.float32] < 1e-5 * scale < errors[torch.float16] < errors[torch.bfloat16] < 0.05 * scale
    )
    half = Plan(program, latents, 4, 2)
    assert half.maps == Plan(program, latents, 4, 4).maps / 2


def test_an_image_that_fits_is_decoded_as_without_tiling(kl):
    latents = torch.randn(2, 4, 8, 8)
    expected = kl.decode(latents).sample
    calls = []
    kl.decoder.conv_in.register_forward_hook(lambda *_: calls.append(1))
    kl.enable_tiling(memory=2**30)
    assert torch.equal(kl.decode(latents).sample, expected)
    kl.enable_tiling()
    assert torch.equal(kl.decode(latents).sample, expected)
    assert len(calls) == 2


def test_batches_slices_and_other_memory_orders(kl):
    latents, images = torch.randn(3, 4, 12, 10), torch.rand(3, 3, 21, 24) * 2 - 1
    expected, encoded = kl.decode(latents).sample, kl.encode(images).latents
    kl.enable_tiling(memory=1)
    calls = (lambda: kl.decode(latents), lambda: kl.encode(images))
    kl.enable_tiling(memory=max(map(smallest, calls)))
    for change in (lambda: None, kl.enable_slicing, lambda: kl.to(memory_format=torch.channels_last)):
        change()
        torch.testing.assert_close(kl.decode(latents).sample, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(kl.encode(images).latents, encoded, rtol=0, atol=1e-5)
    kl.disable_tiling()
    torch.testing.assert_close(kl.tiled_decode(latents).sample, expected, rtol=0, atol=1e-5)
    assert not kl.use_tiling
    with torch.inference_mode():
        torch.testing.assert_close(kl.tiled_decode(latents).sample, expected, rtol=0, atol=1e-5)


def test_autocast_and_plain_attention(kl):
    latents = torch.randn(1, 4, 12, 10)
    with torch.autocast("cpu", torch.bfloat16):
        whole = kl.decode(latents).sample
        give_least(kl, latents)
        strips = kl.decode(latents).sample
    assert strips.dtype == whole.dtype
    torch.testing.assert_close(strips.float(), whole.float(), rtol=0, atol=0.03)
    expected = kl.to_diffusers().decode(latents).sample
    kl.set_attn_processor(AttnProcessor())
    torch.testing.assert_close(kl.decode(latents).sample, expected, rtol=0, atol=1e-5)


def test_hooks_adapters_and_compilers(kl):
    latents = torch.randn(1, 4, 12, 10)
    expected = kl.decode(latents).sample
    give_least(kl, latents)
    torch.testing.assert_close(torch.compile(kl.decode, backend="eager")(latents).sample, expected)
    kl.decoder = torch.compile(kl.decoder, backend="eager")
    torch.testing.assert_close(kl.decode(latents).sample, expected, rtol=0, atol=1e-5)
    kl.decoder = kl.decoder._orig_mod
    accelerate.cpu_offload(kl, execution_device=torch.device("cpu"))
    assert kl.decoder.conv_in.weight.is_meta
    torch.testing.assert_close(kl.decode(latents).sample, expected, rtol=0, atol=1e-5)


def test_lora_layers_are_run():
    peft = pytest.importorskip("peft")
    model = make(KLVAE)
    config = peft.LoraConfig(target_modules=["conv1", "conv2", "to_q"], init_lora_weights=False)
    model = peft.inject_adapter_in_model(config, model).eval()
    latents = torch.randn(1, 4, 9, 10)
    expected = model.decode(latents).sample
    torch.testing.assert_close(in_strips(model._decoder_modules(), latents, 1), expected, rtol=0, atol=1e-5)


class Mirrored(nn.Module):
    """A block that exact tiling cannot know."""

    channels = 16

    def forward(self, x, temb=None):
        return F.interpolate(F.conv2d(x, torch.full((16, 16, 3, 3), 0.01), padding=1), scale_factor=2.0)


def test_an_unknown_module_is_named_before_work_and_can_be_registered(kl):
    kl.decoder.up_blocks[0] = nn.Sequential(kl.decoder.up_blocks[0].resnets[0], Mirrored())
    with pytest.raises(ValueError, match=f"cannot divide a Mirrored: {BLENDED}"):
        kl.enable_tiling()
    assert not kl.use_tiling
    kl.enable_tiling(mode="blended")
    steps.register(Mirrored, lambda module: [Layer(module, top=1, bottom=1, up=2)])
    decoder = nn.Sequential(kl.decoder.mid_block, Mirrored(), kl.decoder.up_blocks[1].resnets[0])
    inputs = torch.randn(1, 16, 7, 5)
    expected = kl.decoder.up_blocks[1].resnets[0](Mirrored()(kl.decoder.mid_block(inputs)), None)
    torch.testing.assert_close(in_strips([decoder], inputs, 1), expected, rtol=0, atol=1e-5)


def test_what_cannot_be_divided(kl):
    hook = kl.decoder.mid_block.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=f"UNetMidBlock2D with hooks around it: {BLENDED}"):
        kl.enable_tiling()
    hook.remove()
    for module, message in (
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "padding_mode 'circular'"),
        (nn.Conv2d(2, 2, (3, 1)), "differs between height and width"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "whole number of times"),
        (nn.ReLU(inplace=True), "overwrites its input"),
        (nn.Dropout().train(), "in training mode"),
    ):
        with pytest.raises(ValueError, match=message):
            program_of([module])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "seamless"}, "mode is 'seamless'.*'exact' or 'blended'"),
        ({"mode": "exact", "tile_sample_min_height": 8}, "tile_sample_min_height is an argument of mode='bl"),
        ({"mode": "blended", "memory": 10}, "memory is an argument of mode='exact'"),
        ({"tile_sample_min_size": 8, "offload": True}, "offload is an argument of mode='exact'"),
        ({"memory": 0}, "memory is 0.*positive number of bytes"),
        ({"memory": 1.5}, "memory is 1.5"),
        ({"storage_dtype": torch.int8}, "storage_dtype is torch.int8"),
    ],
)
def test_settings_that_are_not_allowed(kl, arguments, message):
    with pytest.raises(ValueError, match=message):
        kl.enable_tiling(**arguments)
    assert (kl.use_tiling, kl.tiling_mode, kl.exact_tiling) == (False, "exact", ExactTiling())


def test_the_mode_follows_from_the_arguments(kl):
    kl.enable_tiling(tile_sample_min_height=16)
    assert kl.tiling_mode == "blended"
    kl.enable_tiling(False)
    assert (kl.use_tiling, kl.tiling_mode) == (False, "blended")
    kl.enable_tiling()
    assert (kl.use_tiling, kl.tiling_mode) == (True, "exact")


def test_too_little_memory_and_gradients(kl):
    latents = torch.randn(1, 4, 12, 10)
    kl.enable_tiling(memory=1)
    with pytest.raises(ValueError, match=r"12x10 positions needs .* and 1 are allowed.*storage_dtype"):
        kl.decode(latents)
    give_least(kl, latents)
    with torch.enable_grad(), pytest.raises(ValueError, match=r"computes no gradients.*no_grad"):
        kl.decode(latents)


def test_the_stock_class_is_as_exact_as_ours(kl):
    stock = kl.to_diffusers()
    assert type(stock) is AutoencoderKL
    latents = torch.randn(1, 4, 9, 9)
    modules = [stock.post_quant_conv, stock.decoder]
    torch.testing.assert_close(
        in_strips(modules, latents, 1), stock.decode(latents).sample, rtol=0, atol=1e-5
    )


@torch.no_grad()
def peaks_of_decoding(out):
    """Writes by how many MiB a decoding in strips raises the peak, and one in a piece."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)  # or malloc keeps freed tensors for later ones
    torch.set_num_threads(1)
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    widths = {"block_out_channels": (16, 16), "norm_num_groups": 4, "mid_block_add_attention": False}
    model = KLVAE(**widths, **levels).eval()
    model.decode(torch.zeros(1, 4, 8, 8))
    latents, peaks = torch.randn(1, 4, 256, 128), []  # a map is 8 MiB, and two are held at a time
    for memory in (28 * 2**20, 2**40):
        model.enable_tiling(memory=memory)
        if memory == 28 * 2**20:
            model.decode(latents)  # the libraries keep some memory for each shape
        peaks.append(peak_memory(lambda: model.decode(latents), torch.device("cpu")))
    out.write_text(json.dumps(peaks))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's status from Linux")
def test_the_peak_stays_below_the_memory(tmp_path):
    assert join([fork(peaks_of_decoding, tmp_path / "peaks.json")]) == [0]
    strips, whole = json.loads((tmp_path / "peaks.json").read_text())
    assert strips < 28 < 36 < whole
