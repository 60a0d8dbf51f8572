from inspect import signature

import diffusers.models.autoencoders
import pytest
import torch
import torch.nn.functional as F

from latentae import KLVAE, VQGAN, VQVAE
from latentae.models.tiling import blend_windows, tile_starts, tiled
from tests.models.conftest import make


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "starts"),
    [
        (4, 8, 2, [0]),
        (8, 8, 2, [0]),
        (9, 8, 2, [0, 1]),
        (14, 8, 2, [0, 6]),
        (21, 8, 2, [0, 6, 12, 13]),
        (3, 1, 0, [0, 1, 2]),
    ],
)
def test_tiles_cover_the_image_and_are_all_full(length, tile, overlap, starts):
    assert tile_starts(length, tile, overlap) == starts


def test_windows_by_hand():
    first, second = blend_windows([0, 3], length=7, tile=4, overlap=1)
    assert first.tolist() == [1, 1, 1, 0.5]
    assert second.tolist() == [0.5, 1, 1, 1]
    (only,) = blend_windows([0], length=3, tile=8, overlap=2)
    assert only.tolist() == [1, 1, 1]


@pytest.mark.parametrize("sides", [(40, 28), (8, 9), (21, 64), (5, 33)])
@pytest.mark.parametrize(("input_step", "output_step"), [(2, 1), (1, 2), (1, 1)])
def test_a_function_that_sees_one_position_comes_out_whole(sides, input_step, output_step):
    def function(inputs):
        resized = F.interpolate(inputs, scale_factor=output_step / input_step, mode="nearest")
        return resized * 3 + 1

    inputs = torch.rand(2, 3, *(side * input_step for side in sides), dtype=torch.float64)
    result = tiled(function, inputs, tile=8, overlap=2, input_step=input_step, output_step=output_step)
    torch.testing.assert_close(result, function(inputs), rtol=0, atol=1e-14)


def test_cross_fade_of_two_tiles_that_disagree():
    answers = iter([0.0, 1.0])
    result = tiled(
        lambda inputs: torch.full_like(inputs, next(answers)),
        torch.zeros(1, 1, 1, 6),
        tile=4,
        overlap=2,
        input_step=1,
        output_step=1,
    )
    torch.testing.assert_close(result.flatten(), torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1]))


@pytest.fixture(params=[KLVAE, VQVAE, VQGAN])
def model(request):
    """Tiles of 16 pixels, four of which make the image below."""
    torch.manual_seed(0)
    return make(request.param, sample_size=16, mid_block_add_attention=False)


@pytest.mark.parametrize("size", [(28, 28), (29, 17), (16, 41)])
def test_sizes_stay(model, size):
    images = torch.rand(2, 3, *size) * 2 - 1
    whole, latents = model(images).sample, model.encode(images).latents
    model.enable_tiling(mode="blended")
    assert model.encode(images).latents.shape == latents.shape
    assert model(images).sample.shape == images.shape
    assert not torch.equal(model(images).sample, whole)
    model.disable_tiling()
    assert torch.equal(model(images).sample, whole)


@torch.no_grad()
def test_tiles_lie_where_they_belong(model):
    # each has its own group statistics, but where all are drawn alike these hardly differ
    model.tile_sample_min_size, model.tile_latent_min_size = 64, 32
    images = torch.rand(1, 3, 112, 160) * 2 - 1
    latents = model.encode(images).latents
    decoded = model.decode(latents).sample
    model.enable_tiling(mode="blended")
    for tiles, whole in (
        (model.encode(images).latents, latents),
        (model.decode(latents).sample, decoded),
    ):
        error, error_if_moved = (
            (tiles - target).square().mean().sqrt() for target in (whole, whole.roll(1, dims=-1))
        )
        assert error < 0.5 * whole.std()
        assert error_if_moved > 1.5 * error


@torch.no_grad()
def test_closer_to_the_whole_than_stock_tiles():
    torch.manual_seed(0)
    model = make(KLVAE, sample_size=32)
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    whole = model(images).sample
    stock = model.to_diffusers()
    for each in (model, stock):
        each.enable_tiling(**({"mode": "blended"} if each is model else {}))
    ours, theirs = ((each(images).sample - whole).abs().mean() for each in (model, stock))
    assert ours < theirs


def test_tiles_of_any_size():
    # here a stock tile is 10 latents, its step 7 latents and its share of the result 15 pixels, not 14
    model = make(KLVAE, sample_size=20)
    model.enable_tiling(mode="blended")
    stock = model.to_diffusers()
    stock.enable_tiling()
    images = torch.zeros(1, 3, 34, 40)
    assert stock(images).sample.shape != images.shape
    assert model(images).sample.shape == images.shape


def test_no_piece_is_larger_than_a_tile(model):
    seen = {"encoder": [], "decoder": []}
    for name, shapes in seen.items():
        getattr(model, name).register_forward_pre_hook(
            lambda _, inputs, shapes=shapes: shapes.append(list(inputs[0].shape))
        )
    model.enable_tiling(mode="blended")
    model.enable_slicing()
    model(torch.zeros(2, 3, 28, 16))
    assert seen == {"encoder": [[1, 3, 16, 16]] * 4, "decoder": [[1, 4, 8, 8]] * 4}


def test_slices_are_the_batch(model):
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    whole = model(images).sample
    model.enable_slicing()
    torch.testing.assert_close(model(images).sample, whole)
    model.disable_slicing()
    assert torch.equal(model(images).sample, whole)


def test_tiles_may_be_told_apart_from_the_sample_size(model):
    model.tile_sample_min_size, model.tile_latent_min_size, model.tiling_mode = 12, 6, "blended"
    images = torch.rand(1, 3, 13, 24) * 2 - 1
    encoded = model.tiled_encode(images)[:, :4]
    assert model.tiled_decode(encoded).sample.shape == (1, 3, 14, 24)
    assert not model.use_tiling


def test_gradients_pass_through_tiles(model):
    model.enable_tiling(mode="blended")
    images = (torch.rand(1, 3, 24, 24) * 2 - 1).requires_grad_()
    model(images).sample.square().mean().backward()
    assert (images.grad.abs().amax(dim=(0, 1)) > 0).all()


@torch.no_grad()
def test_tiled_encode_is_what_diffusers_announces(model):
    images = torch.rand(1, 3, 28, 28) * 2 - 1
    model.tiling_mode = "blended"
    tensor = model.tiled_encode(images)
    model.enable_tiling(mode="blended")
    encoded = model.encode(images, return_dict=False)[0]
    assert torch.equal(tensor, encoded if isinstance(model, VQVAE) else encoded.parameters)
    model.disable_tiling()
    with pytest.warns(FutureWarning, match="return_dict"):
        assert torch.equal(model.tiled_encode(images, return_dict=True).latents, tensor[:, :4])
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        model.tiled_encode(images[:, :1])


def tiling_arguments(cls):
    return list(signature(getattr(cls, "enable_tiling", lambda: None)).parameters)


STOCK = [
    cls
    for name, cls in vars(diffusers.models.autoencoders).items()
    if name.startswith("Autoencoder") and "tile_sample_min_height" in tiling_arguments(cls)
]


def test_the_arguments_are_those_of_the_stock_classes():
    assert len(STOCK) >= 15
    ours = tiling_arguments(KLVAE)
    for cls in STOCK:
        spatial = [name for name in tiling_arguments(cls) if "frames" not in name]
        strided = "tile_sample_stride_height" in spatial  # else an overlap, under various names
        assert spatial[:5] == ours[:5] if strided else spatial[:3] == ours[:3], cls


def shapes(model, images):
    """What the encoder and the decoder are given, [(h, w) of each tile, ...] for each."""
    seen = {"encoder": [], "decoder": []}
    hooks = [
        getattr(model, name).register_forward_pre_hook(
            lambda _, given, seen=seen[name]: seen.append(tuple(given[0].shape[-2:]))
        )
        for name in seen
    ]
    sample = model(images).sample
    for hook in hooks:
        hook.remove()
    assert sample.shape == images.shape
    return seen["encoder"], seen["decoder"]


def test_tiles_by_height_and_width(model):
    images = torch.zeros(1, 3, 24, 40)
    model.enable_tiling(tile_sample_min_height=8, tile_sample_min_width=20)
    assert (model.use_tiling, model.tile_sample_min_height, model.tile_sample_min_width) == (True, 8, 20)
    # rows start at latents 0, 3, 6, 8 of 12, and columns at 0, 7, 10 of 20
    assert shapes(model, images) == ([(8, 20)] * 12, [(4, 10)] * 12)
    model.enable_tiling(8, 20, 8, 20)
    assert shapes(model, images) == ([(8, 20)] * 6, [(4, 10)] * 6)
    model.enable_tiling(tile_sample_stride_height=4)  # the others stay
    assert shapes(model, images) == ([(8, 20)] * 10, [(4, 10)] * 10)
    model.enable_tiling(tile_sample_min_height=24)
    assert shapes(model, images) == ([(24, 20)] * 2, [(12, 10)] * 2)
    model.enable_tiling(tile_sample_min_width=40)
    assert shapes(model, images) == ([(24, 40)], [(12, 20)])
    model.enable_tiling(tile_sample_min_size=16, tile_overlap_factor=0.0)
    assert shapes(model, images) == ([(16, 16)] * 6, [(8, 8)] * 6)
    model.enable_tiling(False)
    assert shapes(model, images) == ([(24, 40)], [(12, 20)])
    model.enable_tiling(use_tiling=False)
    assert not model.use_tiling


@torch.no_grad()
def test_tiles_that_are_no_squares_are_cross_faded_like_squares(model):
    images = torch.rand(1, 3, 16, 40) * 2 - 1
    model.enable_tiling(tile_sample_min_size=16, tile_overlap_factor=0.5)
    squares = model(images).sample
    model.enable_tiling(16, 16, 16, 8)
    torch.testing.assert_close(model(images).sample, squares)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile_sample_min_height": 1}, "tile_sample_min_height is 1,.*at least the 2 pixels"),
        ({"tile_sample_min_width": 0}, "tile_sample_min_width is 0"),
        ({"tile_sample_stride_width": -8}, "tile_sample_stride_width is -8"),
        ({"tile_sample_stride_width": 17}, "tile_sample_stride_width is 17,.*at most the tile's width of 16"),
        (
            {"tile_sample_min_height": 8, "tile_sample_stride_height": 10},
            "is 10,.*at most the tile's height of 8",
        ),
        ({"tile_overlap_factor": 1.0}, "tile_overlap_factor is 1.0"),
        ({"tile_sample_min_size": 8, "tile_sample_min_width": 8}, "tile_sample_min_width are both given"),
    ],
)
def test_tiles_that_cannot_be_made(model, arguments, message):
    before = {name: value for name, value in vars(model).items() if "til" in name}
    with pytest.raises(ValueError, match=message):
        model.enable_tiling(**arguments)
    assert {name: value for name, value in vars(model).items() if "til" in name} == before
    with pytest.raises(TypeError, match="tile_sample_min_num_frames"):
        model.enable_tiling(tile_sample_min_num_frames=8)
