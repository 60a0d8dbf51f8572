"""What the demo shows, in numbers."""

import numpy as np
import pytest
import torch
from PIL import Image

from latentae.data import BrokenImageError
from latentae.demo.compute import (
    Demo,
    Reading,
    amplified_difference,
    channel_pictures,
    code_colours,
    code_maps,
    count_photo_codes,
    decode,
    draw_codes,
    encode,
    interpolate,
    read_image,
    reconstruct_image,
    sample_codes,
    sample_prior,
    sample_size,
    show,
)
from latentae.evaluation.metrics import psnr
from latentae.evaluation.models import NamedModel
from tests.data.pictures import shows_green, write_cutout
from tests.latents.conftest import draw_tensors, make_kl, make_vq

CPU = torch.device("cpu")


def named(model, name="model"):
    return NamedModel(name, name, model)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_a_difference_of_zero_is_grey_and_others_are_amplified():
    first = np.array([[[10, 20, 30], [0, 0, 200]]], np.uint8)
    second = np.array([[[10, 21, 27], [255, 0, 0]]], np.uint8)
    expected = [[[128, 128 + 8, 128 - 24], [255, 128, 0]]]
    assert amplified_difference(first, second, 8).tolist() == expected
    assert amplified_difference(second, first, 1.5)[0, 0].tolist() == [128, 126, 132]  # 126.5 rounds to even


def test_each_channel_has_its_own_scale():
    latents = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]], [[5.0, 5.0], [5.0, 5.0]]])
    (first, caption), (constant, other) = channel_pictures(latents)
    assert (caption, other) == ("0: -1.00 to 3.00", "1: 5.00 to 5.00")
    assert first.shape == (192, 192, 3)  # each value became 96 pixels
    assert first[::96, ::96, 0].tolist() == [[0, 64], [128, 255]]
    assert np.unique(constant).tolist() == [128]
    assert len(channel_pictures(torch.zeros(100, 2, 2))) == 32


def test_equal_codes_have_equal_colours():
    codes = torch.tensor([[[3, 3], [7, 0]], [[1, 1], [1, 1]]])
    (first, caption), (_, other) = code_maps(codes, 16)
    assert (caption, other) == (
        "table 0: 3 of 16 codes at 4 positions",
        "table 1: 1 of 16 codes at 4 positions",
    )
    small = first[::96, ::96]
    assert (small[0, 0] == small[0, 1]).all()
    assert (small[0, 0] != small[1, 0]).any()
    ((_, caption),) = code_maps(codes[0], 16)
    assert caption == "3 of 16 codes at 4 positions"
    colours = code_colours(np.arange(256)[None]).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) >= 250


def test_reading_shrinks_and_refuses(tmp_path):
    image = save(tmp_path / "large.png", np.full((40, 80, 3), 255, np.uint8))
    loaded = read_image(image, 3, Reading(max_side=20))
    assert (loaded.size, loaded.file_size) == ((10, 20), (40, 80))
    assert loaded.fit(loaded.size).unique().tolist() == [1.0]
    assert loaded.fit((4, 4)).shape == (1, 3, 4, 4)
    with pytest.raises(BrokenImageError, match=r"large\.png: 80 by 40 are 3200 pixels.*--max-pixels"):
        read_image(image, 3, Reading(max_pixels=3199))
    (tmp_path / "notes.png").write_text("notes")
    with pytest.raises(BrokenImageError, match=r"notes\.png: not an image"):
        read_image(tmp_path / "notes.png", 3, Reading())


def test_arrays_shrink_by_their_alpha(tmp_path):
    loaded = read_image(write_cutout(tmp_path / "a.npy", side=30), 4, Reading(alpha=True, max_side=16))
    for size in ((16, 16), (8, 8)):
        assert not shows_green(loaded.fit(size))


def test_any_image_becomes_the_model_channels(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    rotated = save(tmp_path / "a.png", np.zeros((4, 9, 3), np.uint8), exif=exif)
    assert read_image(rotated, 3, Reading()).size == (9, 4)
    deep = save(tmp_path / "b.png", np.full((4, 4), 65535, np.uint16))
    assert read_image(deep, 3, Reading()).fit((4, 4)).unique().tolist() == [1.0]
    clear = np.zeros((4, 4, 4), np.uint8)
    transparent = save(tmp_path / "c.png", clear)
    assert read_image(transparent, 3, Reading()).fit((4, 4)).unique().tolist() == [1.0]  # over white
    assert read_image(transparent, 4, Reading()).fit((4, 4)).unique().tolist() == [-1.0]
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 255)]
    frames[0].save(tmp_path / "d.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "d.gif", 1, Reading()).fit((4, 4)).unique().tolist() == [-1.0]


@pytest.mark.parametrize("make", [make_kl, make_vq])
def test_a_reconstruction_is_the_model_own(make):
    model, images = make(), draw_tensors(1, 17)
    found = reconstruct_image(named(model), images)
    with torch.no_grad():
        output = model(images)
    assert found.psnr == pytest.approx(psnr(output.sample, images).item())
    assert (found.picture == show(output.sample)).all()
    assert found.picture.shape == found.original.shape == (17, 17, 3)
    assert torch.equal(found.latents, output.latents[0])
    assert found.latents.shape == (4, 9, 9)
    assert (found.indices is None) == (make is make_kl)
    if found.indices is not None:
        assert torch.equal(found.indices, output.indices[0])


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_transparent_models(channels, tmp_path):
    model = named(make_kl(in_channels=channels, out_channels=channels))
    image = save(tmp_path / "a.png", np.full((16, 24, 4), (200, 100, 50, 0), np.uint8))
    demo = Demo([model], Reading(alpha=channels == 4), CPU)
    found = demo.reconstruct("model", str(image))
    assert found.picture.shape == (16, 24, 3)
    if channels == 4:
        assert np.unique(found.original).tolist() == [204, 255]  # the checkerboard is seen through the image
        assert found.psnr <= 60
    else:
        assert np.unique(found.original).tolist() == [255]  # over white
    assert len(demo.sample("model", 2, 0)) == 2


def test_alpha_needs_four_channels():
    with pytest.raises(ValueError, match=r"the models take images of 3 channels.*leave --alpha out"):
        Demo([named(make_kl())], Reading(alpha=True), CPU)


@pytest.mark.parametrize("scale", [0.5, None])
@pytest.mark.parametrize("spherical", [False, True])
def test_the_ends_of_an_interpolation_are_reconstructions(scale, spherical):
    model = named(make_kl(scaling_factor=scale, shift_factor=0.25))
    images = draw_tensors(2)
    first, second = (encode(model, one[None]) for one in images)
    for share, image in ((0.0, images[:1]), (1.0, images[1:])):
        decoded = decode(model, interpolate(first, second, share, spherical=spherical), (16, 16))
        torch.testing.assert_close(decoded, model(image).sample, atol=1e-4, rtol=0)
    middle = interpolate(first, second, 0.5, spherical=spherical)
    chord = (first + second) / 2
    if spherical:  # on the arc above the middle of the chord
        cosine = torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0)
        torch.testing.assert_close(middle, chord / ((1 + cosine) / 2).sqrt(), atol=1e-5, rtol=1e-4)
    else:
        torch.testing.assert_close(middle, chord)
    if scale is not None:
        torch.testing.assert_close(first, (model.encode(images[:1]) - 0.25) * 0.5)


def test_samples_of_the_prior_pass_the_scale():
    model = named(make_kl(scaling_factor=0.5, shift_factor=0.25))
    assert sample_size(model, 1024) == 16
    assert sample_size(model, 7) == 8  # whole latents
    samples = sample_prior(model, 3, 16, 5, CPU)
    assert samples.shape == (3, 3, 16, 16)
    torch.testing.assert_close(samples[:1], sample_prior(model, 1, 16, 5, CPU))
    plain = named(make_kl(scaling_factor=1.0, shift_factor=0.0))
    assert (sample_prior(plain, 1, 16, 5, CPU) - samples[:1]).abs().max() > 0.01
    with pytest.raises(ValueError, match="model does not record the scale of its latents"):
        sample_prior(named(make_kl(scaling_factor=None)), 1, 16, 0, CPU)


def test_codes_are_drawn_as_often_as_counted():
    counts = torch.tensor([[0, 3, 1], [5, 0, 0]])
    drawn = draw_codes(counts, (2, 100, 100), torch.manual_seed(0))
    assert drawn.shape == (2, 100, 100)
    assert drawn[0].unique().tolist() == [1, 2]
    assert (drawn[0] == 1).double().mean().item() == pytest.approx(0.75, abs=0.02)  # 4.6 deviations
    assert drawn[1].unique().tolist() == [0]
    assert draw_codes(counts[0], (4, 5), torch.manual_seed(0)).shape == (4, 5)


def test_samples_of_a_vq_model():
    model = named(make_vq())
    counts = count_photo_codes(model, CPU)
    assert counts.shape == (32,)
    assert counts.sum().item() == 36 * 64 * 64  # 36 windows of 128 pixels, 2 pixels per code
    samples = sample_codes(model, counts, 2, 16, 3)
    assert samples.shape == (2, 3, 16, 16)
    torch.testing.assert_close(samples[:1], sample_codes(model, counts, 1, 16, 3))
    one_code = torch.zeros(32, dtype=torch.int64)
    one_code[9] = 1
    expected = model.autoencoder.decode_indices(torch.full((1, 8, 8), 9))
    torch.testing.assert_close(sample_codes(model, one_code, 1, 16, 0), expected)


def test_a_model_runs_once_per_image(tmp_path):
    image = save(tmp_path / "a.png", np.full((16, 16, 3), 90, np.uint8))
    model = named(make_kl())
    calls = []
    model.autoencoder.register_forward_hook(lambda *_: calls.append(1))
    demo = Demo([model], Reading(), CPU)
    first = demo.reconstruct("model", str(image))
    assert demo.reconstruct("model", str(image)) is first
    assert calls == [1]
    other = save(tmp_path / "b.png", np.full((8, 30, 3), 10, np.uint8))
    picture = demo.interpolate("model", str(image), str(other), 0.5, spherical=False)
    assert picture.shape == (16, 16, 3)
