import numpy as np
import pytest
import torch
from PIL import Image

from latentae.data import CenterCrop, RandomCrop
from latentae.data.transforms import Window, common_minimum_side, resize_window


def coordinates(height: int, width: int) -> np.ndarray:
    """A picture whose channels tell where each pixel was: row, column, 0."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint8)


def to_levels(tensor: torch.Tensor) -> np.ndarray:
    """Back from [-1, 1] to 0 to 255, [H, W, C]."""
    return ((tensor + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(int)


def noise(height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_at_scale_one_the_crop_is_a_copy_of_whole_pixels():
    picture = coordinates(40, 60)
    crop = RandomCrop((8, 16), downscale=(1, 1))
    corners = set()
    for seed in range(200):
        tensor = crop(picture, np.random.default_rng(seed))
        assert tensor.shape == (3, 8, 16)
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        levels = to_levels(tensor)
        top, left = levels[0, 0, :2]
        assert np.array_equal(levels, picture[top : top + 8, left : left + 16])
        corners.add((int(top), int(left)))
    assert max(top for top, _ in corners) == 32
    assert max(left for _, left in corners) >= 42  # of at most 44
    assert min(left for _, left in corners) <= 2


def test_values_are_exactly_mapped():
    picture = np.array([[0, 255], [51, 204]], np.uint8)
    expected = torch.tensor([[[-1.0, 1.0], [-0.6, 0.6]]])
    crop = CenterCrop(2)
    for image in (picture, Image.fromarray(picture), picture.astype(np.float32) / 255):
        torch.testing.assert_close(crop(image), expected, rtol=0, atol=1e-6)


def test_same_generator_same_crop_and_flip_mirrors():
    picture = noise(50, 70, 3)
    crop, flipped = RandomCrop(16, (1, 3)), RandomCrop(16, (1, 3), flip=True)
    mirrored = 0
    for seed in range(40):
        plain = crop(picture, np.random.default_rng(seed))
        torch.testing.assert_close(crop(picture, np.random.default_rng(seed)), plain, rtol=0, atol=0)
        perhaps = flipped(picture, np.random.default_rng(seed))
        assert perhaps.is_contiguous()
        if torch.equal(perhaps, plain.flip(2)):
            mirrored += 1
        else:
            assert torch.equal(perhaps, plain)
    assert 10 < mirrored < 30


def test_downscale_is_log_uniform():
    # A horizontal ramp of one level a pixel: the step between output pixels is the scale.
    picture = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    crop = RandomCrop(16, downscale=(1, 16))
    scales = []
    for seed in range(400):
        levels = to_levels(crop(picture, np.random.default_rng(seed)))[0, :, 0]
        scales.append((levels[14] - levels[1]) / 13)
    assert min(scales) >= 0.9
    assert max(scales) <= 16.1
    assert np.median(scales) == pytest.approx(4, rel=0.2)  # uniform would have 8.5
    assert np.mean(np.array(scales) < 2) == pytest.approx(1 / 4, abs=0.06)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (9, 200)])
def test_without_downscale_the_shorter_side_fits(shape):
    picture = np.tile(np.linspace(0, 255, shape[1]), (shape[0], 1)).astype(np.float32) / 255
    levels = [
        RandomCrop(16)(picture, np.random.default_rng(seed))[0].add(1).div(2).numpy() for seed in range(20)
    ]
    step = 1 / (shape[1] - 1) * min(shape) / 16  # of the ramp, per output pixel
    for level in levels:
        assert level.shape == (16, 16)
        assert np.allclose(np.diff(level[:, 5:-5], axis=1), step, rtol=0.01)


def test_windows_that_do_not_fit_shrink_keeping_their_aspect():
    picture = coordinates(20, 30)
    for crop in (RandomCrop((10, 20), downscale=(4, 4)), CenterCrop((10, 20), downscale=(4, 4))):
        levels = to_levels(crop(picture, np.random.default_rng(0)))
        # 30 wide and 20 high: the largest 1:2 window is 15 by 30, at 1.5 source pixels per output pixel.
        assert np.allclose(np.diff(levels[5, 3:-3, 1]), 1.5, atol=0.51)
        assert levels[5, -4, 1] - levels[5, 3, 1] == pytest.approx(1.5 * 13, abs=1)
        assert levels[-3, 5, 0] - levels[2, 5, 0] == pytest.approx(1.5 * 5, abs=1)
    small = CenterCrop(32)(np.full((4, 4, 3), 255, np.uint8))
    assert torch.equal(small, torch.ones(3, 32, 32))


def test_center_crop_takes_the_middle():
    picture = coordinates(41, 61)
    levels = to_levels(CenterCrop((10, 20), downscale=(1, 1))(picture))
    assert np.array_equal(levels, picture[15:25, 20:40])
    # The middle of (1, 4) is 2: 20 by 40 source pixels.
    levels = to_levels(CenterCrop((10, 20), downscale=(1, 4))(picture))
    assert np.allclose(levels[2:-2, 3, 0], [10.5 + 2 * row for row in range(2, 8)], atol=0.51)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_resized_window_is_a_part_of_the_whole_picture_resized(dtype, channels):
    picture = noise(96, 128, channels)
    picture = picture if dtype == np.uint8 else picture.astype(np.float32) / 255
    window = resize_window(picture, Window(16, 32, 48, 64), (24, 32))
    for channel in range(channels):
        whole = Image.fromarray(picture[..., channel]).resize((64, 48), Image.Resampling.BICUBIC)
        expected = np.asarray(whole)[8:32, 16:48]
        tolerance = 1 if dtype == np.uint8 else 1e-5
        difference = np.abs(
            window[..., channel].astype(float) - expected.clip(0, 255 if dtype == np.uint8 else 1)
        )
        assert difference.max() <= tolerance
    assert window.dtype == dtype
    assert window.min() >= 0
    assert window.max() <= (255 if dtype == np.uint8 else 1)


def test_downscaling_is_antialiased():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    assert CenterCrop(16)(stripes).abs().max() < 0.15  # the mean, 127.5, and not black or white


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_colours_under_transparent_pixels_do_not_bleed(dtype):
    picture = np.zeros((8, 8, 4), dtype)
    white = 255 if dtype == np.uint8 else 1
    picture[:, :3] = (white, 0, 0, white)
    picture[:, 3:] = (0, white, 0, 0)
    rng = np.random.default_rng(0)
    for crop in (CenterCrop(4, alpha=True), RandomCrop(4, alpha=True)):
        levels = to_levels(crop(picture, rng))
        visible = levels[levels[..., 3] > 8]
        assert visible[:, 1].max() <= 2
        assert visible[:, 0].min() >= 253


def test_colours_of_arrays_are_weighted_as_those_of_pictures_are():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (24, 20, 4), dtype=np.uint8)
    floats = picture.astype(np.float32) / 255
    weighted = to_levels(CenterCrop(9, alpha=True)(floats))
    levels = to_levels(CenterCrop(9)(picture))
    assert np.abs(weighted - levels)[levels[..., 3] > 64].max() <= 4  # Pillow rounds to 8 bits on its way
    # Without alpha, the four channels are bands.
    bands = to_levels(CenterCrop(9)(floats))
    assert np.abs(bands[..., 3] - levels[..., 3]).max() <= 1
    assert np.abs(bands - levels)[..., :3].max() > 20


def test_every_shape_gives_its_size():
    rng = np.random.default_rng(0)
    for _ in range(150):
        height, width, *size = (int(number) for number in rng.integers(1, 40, size=4))
        low = float(rng.uniform(0.2, 3))
        for downscale in (None, (low, 2 * low)):
            crop = RandomCrop((size[0], size[1]), downscale, flip=True)
            tensor = crop(noise(height, width, 3), rng)
            assert tensor.shape == (3, *size)
            assert tensor.abs().max() <= 1


def test_a_smaller_decoding_is_permitted_only_where_it_cannot_show():
    assert RandomCrop((64, 32)).minimum_side == 128
    assert RandomCrop(64, downscale=(1, 2)).minimum_side is None
    assert CenterCrop(64).minimum_side is None


def test_read_only_arrays():
    picture = noise(9, 9, 3)
    picture.flags.writeable = False
    assert CenterCrop(9)(picture).shape == (3, 9, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"image_size": (8, 8, 8)}, "image_size"),
        ({"image_size": (8, 2.5)}, "image_size"),
        ({"image_size": 8, "downscale": (2, 1)}, "0 < low <= high"),
        ({"image_size": 8, "downscale": (0, 1)}, "0 < low <= high"),
        ({"image_size": 8, "downscale": (1,)}, "downscale"),
    ],
)
@pytest.mark.parametrize("crop", [RandomCrop, CenterCrop])
def test_bad_arguments(crop, arguments, message):
    with pytest.raises(ValueError, match=message):
        crop(**arguments)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((0, 4, 3), np.uint8), np.zeros(4, np.uint8)])
def test_bad_arrays(image):
    with pytest.raises(ValueError, match=r"a picture is \[H, W\]"):
        CenterCrop(4)(image)


def test_a_pil_image_of_another_mode_points_to_decode_image():
    with pytest.raises(ValueError, match="mode CMYK: decode it with decode_image"):
        CenterCrop(4)(Image.new("CMYK", (4, 4)))


def test_float_values_stay_in_range_at_edges():
    edge = np.zeros((8, 8), np.float32)
    edge[:, 4:] = 1
    enlarged = Image.fromarray(edge).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.asarray(enlarged).max() > 1.02  # bicubic overshoots
    tensor = CenterCrop(32)(edge)
    assert (tensor.min(), tensor.max()) == (-1, 1)


def test_one_decoding_serves_several_transforms():
    assert common_minimum_side([RandomCrop(16), RandomCrop((8, 40))]) == 80
    assert common_minimum_side([RandomCrop(16), RandomCrop(8, (1, 2))]) is None
