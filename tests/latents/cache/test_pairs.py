"""Images with their cached latents: the right ones, in the right orientation, or an error."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from latentae import VQVAE
from latentae.data import open_source, training_loader
from latentae.latents.cache import ImagesWithLatents, encode_dataset
from tests.data.pictures import shows_green, write_cutout
from tests.latents.conftest import make_kl
from tests.models.test_flux2 import make_flux2
from tests.training.conftest import draw_images

SIZE = (32, 32)


@pytest.fixture
def photos(tmp_path):
    """Nine pictures that are not square, and one that cannot be decoded."""
    draw_images(tmp_path / "photos", count=9, size=48)
    for file in sorted((tmp_path / "photos").iterdir()):
        Image.open(file).crop((0, 4, 48, 44)).save(file)
    (tmp_path / "photos/004a.png").write_bytes(b"no picture")
    return tmp_path / "photos"


def encode(photos, folder, model=None, **options):
    usual = {"image_size": 32, "shard_size": 4, "batch_size": 4, "dtype": "float32"}
    encode_dataset(model or make_kl(), photos, folder, **{**usual, **options})
    return folder


def pairs(photos, folder, **options):
    return ImagesWithLatents(open_source(str(photos)), folder, SIZE, 3, **options)


def posterior_error(sample, model):
    """The largest error of a sample's moments, against those that its image gives."""
    with torch.no_grad():
        posterior = model.encode(sample["images"][None]).latent_dist
    expected = torch.stack([posterior.mean[0], posterior.std[0]])
    assert sample["latents"].shape == expected.shape
    return float((sample["latents"] - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def test_each_image_has_its_own_latents(photos, tmp_path):
    model = make_kl()
    dataset = pairs(photos, encode(photos, tmp_path / "cache", flips=True), flip=True, seed=3)
    assert len(dataset) == 10
    assert len(dataset.cache) == 9
    dataset.check_model(model)
    flips, shown = [], []
    for epoch in range(3):
        for index in range(10):
            sample = dataset[epoch, index]
            assert posterior_error(sample, model) < 1e-5
            usual = pairs(photos, tmp_path / "cache", seed=3)[epoch, index]
            assert usual["name"] == sample["name"]
            flipped = not torch.equal(usual["images"], sample["images"])
            assert torch.equal(usual["images"].flip(-1) if flipped else usual["images"], sample["images"])
            flips.append(flipped)
            if index == 5:  # the broken one: another takes its place, with its own latents
                assert "004a.png" in sample["broken"]
                shown.append(sample["name"])
            else:
                assert not sample["broken"]
    assert 8 < sum(flips) < 22
    assert len(set(shown)) > 1


def test_an_image_that_was_broken_then_stays_out(photos, tmp_path):
    folder = encode(photos, tmp_path / "cache")
    Image.fromarray(np.full((40, 48, 3), 90, np.uint8)).save(photos / "004a.png")
    sample = pairs(photos, folder)[0, 5]
    assert "could not be decoded for the latents" in sample["broken"]
    assert posterior_error(sample, make_kl()) < 1e-5


def test_batches_are_the_same_in_workers_and_after_pickling(photos, tmp_path):
    dataset = pairs(photos, encode(photos, tmp_path / "cache", flips=True), flip=True)
    loaders = [
        iter(training_loader(each, batch_size=3, num_workers=workers, start_batch=1))
        for each, workers in ((dataset, 0), (dataset, 2), (pickle.loads(pickle.dumps(dataset)), 0))
    ]
    for _ in range(4):
        first, *others = (next(loader) for loader in loaders)
        assert first["latents"].shape == (3, 2, 4, 16, 16)
        for other in others:
            assert torch.equal(other["latents"], first["latents"])
            assert torch.equal(other["images"], first["images"])


def test_other_images_and_models_are_refused(photos, tmp_path):
    folder = encode(photos, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"no latents of mirrored images: use data\.random_flip=false"):
        pairs(photos, folder, flip=True)
    with pytest.raises(ValueError, match=r"its images had 32x32 pixels, and the run's have 16x16"):
        ImagesWithLatents(open_source(str(photos)), folder, (16, 16), 3)
    other = make_kl()
    with torch.no_grad():
        other.decoder.conv_in.weight += 1
    pairs(photos, folder).check_model(other)  # decoders may differ
    with torch.no_grad():
        other.encoder.conv_in.weight += 0.01
    with pytest.raises(ValueError, match=r"of another encoder, that of .* data.latents=null"):
        pairs(photos, folder).check_model(other)
    # Pixels that changed under the same name.
    Image.fromarray(np.full((40, 48, 3), 90, np.uint8)).save(photos / "000.png")
    with pytest.raises(
        ValueError, match=r"not those of the image 000.png, as it is now.*times as much as is allowed"
    ):
        pairs(photos, folder).check_model(make_kl())
    draw_images(photos / "more", count=1)
    with pytest.raises(ValueError, match=r"no latents of 1 of the 11 training images, such as more/000.png"):
        pairs(photos, folder)


def test_vq_models(photos, tmp_path):
    torch.manual_seed(0)
    model = VQVAE(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        num_vq_embeddings=16,
    ).eval()
    dataset = pairs(photos, encode(photos, tmp_path / "cache", model))
    dataset.check_model(model)
    sample = dataset[0, 0]
    with torch.no_grad():
        latents = model.encode(sample["images"][None]).latents
    torch.testing.assert_close(sample["latents"], latents, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="it holds codes alone"):
        pairs(photos, encode(photos, tmp_path / "codes", model, latents=False, codes=True))


def test_flux2_has_plain_latents_of_whole_patches(photos, tmp_path):
    model = make_flux2()
    dataset = pairs(photos, encode(photos, tmp_path / "cache", model))
    assert dataset[0, 0]["latents"].shape == (2, 4, 16, 16)
    dataset.check_model(model)
    assert posterior_error(dataset[0, 0], model) < 1e-5
    folder = encode(photos, tmp_path / "padded", model, image_size=30)
    padded = ImagesWithLatents(open_source(str(photos)), folder, (30, 30), 3)
    with pytest.raises(ValueError, match=r"have the shape \[4, 16, 16\].*\[4, 15, 15\].* multiple of 4"):
        padded.check_model(model)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float16", 1e-3), ("bfloat16", 8e-3)])
@torch.no_grad()
def test_the_error_of_a_dtype(photos, tmp_path, dtype, error):
    dataset = pairs(
        photos, encode(photos, tmp_path / "cache", dtype=dtype, batch_size=1, precision="float32")
    )
    assert posterior_error(dataset[0, 0], make_kl()) <= error
    dataset.check_model(make_kl())


def test_arrays_are_cropped_as_the_cache_did(tmp_path):
    for number in range(3):
        write_cutout(tmp_path / f"arrays/{number}.npy", side=48)
    source = open_source(str(tmp_path / "arrays"))
    model = make_kl(in_channels=4)
    for alpha, refusal in (
        (
            True,
            r"by their alpha, and data\.alpha is false: use data\.alpha=true, or encode .* without --alpha",
        ),
        (False, r"as bands, and data\.alpha is true: encode the images with --alpha into another folder"),
    ):
        folder = encode(tmp_path / "arrays", tmp_path / str(alpha), model, alpha=alpha)
        sample = ImagesWithLatents(source, folder, SIZE, 4, alpha=alpha)[0, 1]
        assert shows_green(sample["images"]) != alpha
        assert posterior_error(sample, model) < 1e-5
        with pytest.raises(ValueError, match=refusal):
            ImagesWithLatents(source, folder, SIZE, 4, alpha=not alpha)
        # Arrays that were not resized are the same either way.
        whole = encode(
            tmp_path / "arrays",
            tmp_path / f"{alpha} whole",
            model,
            alpha=alpha,
            sizes="refuse",
            image_size=48,
        )
        assert len(ImagesWithLatents(source, whole, (48, 48), 4, alpha=not alpha)) == 3


def test_pictures_state_their_alpha_themselves(photos, tmp_path):
    model = make_kl(in_channels=4)
    folder = encode(photos, tmp_path / "cache", model)
    dataset = ImagesWithLatents(open_source(str(photos)), folder, SIZE, 4, alpha=True)
    assert posterior_error(dataset[0, 0], model) < 1e-5
