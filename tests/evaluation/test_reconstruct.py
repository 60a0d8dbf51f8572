import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from latentae import cli
from latentae.evaluation.reconstruct import Job, plan_jobs, run_jobs
from latentae.models import KLVAE
from tests.data.pictures import shows_green, write_cutout
from tests.models.conftest import make


def main(arguments):
    return cli.main(["reconstruct", *arguments])


class Dimmer:
    """Halves every value; like a model of factor 4, it takes no image of less than 4 pixels a side."""

    device = torch.device("cpu")

    def __init__(self, channels: int = 3, out_channels: int | None = None):
        self.config = SimpleNamespace(in_channels=channels, out_channels=out_channels or channels)
        self.seen: list[torch.Tensor] = []

    def __call__(self, images: torch.Tensor) -> SimpleNamespace:
        assert not torch.is_grad_enabled()
        if min(images.shape[-2:]) < 4:
            raise ValueError("images are smaller than one latent")
        self.seen.append(images)
        return SimpleNamespace(sample=images / 2)


def write(path: Path, height: int, width: int, value: object = 255, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), value).save(path)
    return path


def run(model, images: Path, out: Path, **options):
    return list(run_jobs(model, plan_jobs(images, out), **options))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
        return np.asarray(picture)


def test_image_left_reconstruction_right(tmp_path):
    image = write(tmp_path / "a.png", 5, 7, (255, 0, 255))
    (comparison,) = run(Dimmer(), image, tmp_path / "out.png")
    picture = pixels(tmp_path / "out.png")
    assert picture.shape == (5 + 4, 2 * (7 + 4), 3)
    assert (picture[2:7, 2:9] == (255, 0, 255)).all()
    assert (picture[2:7, 13:20] == (191, 64, 191)).all()
    # every value is off by 64 of 255
    assert comparison.psnr == pytest.approx(10 * np.log10(255**2 / 64**2))
    assert (comparison.size, comparison.skipped) == ((5, 7), "")
    assert comparison.job == Job("a.png", image, tmp_path / "out.png")


@pytest.mark.parametrize(
    ("channels", "expected"), [(1, (76, 76, 76)), (3, (255, 0, 0)), (4, (255, 0, 0))]  # luma: 0.299 · 255
)  # fmt: skip
def test_pictures_take_the_channels_of_the_model(tmp_path, channels, expected):
    model = Dimmer(channels)
    run(model, write(tmp_path / "a.png", 5, 7, (255, 0, 0)), tmp_path / "out.png")
    assert model.seen[0].shape == (1, channels, 5, 7)
    assert (pixels(tmp_path / "out.png")[2:7, 2:9] == expected).all()


def test_arrays_of_many_channels(tmp_path):
    levels = np.arange(13, dtype=np.uint8) * 10
    np.save(tmp_path / "a.npy", np.broadcast_to(levels, (6, 4, 13)))
    model = Dimmer(13)
    (comparison,) = run(model, tmp_path / "a.npy", tmp_path / "out.png")
    assert model.seen[0].shape == (1, 13, 6, 4)
    assert (pixels(tmp_path / "out.png")[2:8, 2:6] == (0, 10, 20)).all()
    halved = np.rint((levels / 127.5 - 1) / 2 * 127.5 + 127.5)
    assert comparison.psnr == pytest.approx(10 * np.log10(255**2 / np.mean((halved - levels) ** 2)), abs=0.01)


def test_max_side_shrinks_longer_images_only(tmp_path):
    for name, height, width in (("a", 12, 30), ("b", 30, 12), ("c", 8, 10)):
        write(tmp_path / f"in/{name}.png", height, width)
    comparisons = run(Dimmer(), tmp_path / "in", tmp_path / "out", max_side=10)
    assert [comparison.size for comparison in comparisons] == [(4, 10), (10, 4), (8, 10)]
    assert pixels(tmp_path / "out/a.png").shape == (8, 28, 3)


def test_arrays_shrink_by_their_alpha(tmp_path):
    model = Dimmer(4)
    run(model, write_cutout(tmp_path / "a.npy", side=30), tmp_path / "out.png", max_side=16, alpha=True)
    assert not shows_green(model.seen[0])


def test_the_reading_of_pictures_is_passed_on(tmp_path):
    np.save(tmp_path / "a.npy", np.full((8, 8), 30.0))
    write(tmp_path / "b.png", 20, 30, mode="L")
    model = Dimmer(1)
    results = run(model, tmp_path, tmp_path.parent / "out", value_range=(20, 40), max_pixels=599)
    assert model.seen[0].unique().tolist() == [0]  # half of the range
    assert [result.skipped.partition(":")[0] for result in results] == [
        "",
        "30 by 20 are 600 pixels, more than the limit of 599",
    ]


def test_what_cannot_be_reconstructed_is_skipped_with_its_reason(tmp_path):
    write(tmp_path / "in/b.png", 3, 9)
    write(tmp_path / "in/c.png", 5, 5)
    (tmp_path / "in/a.jpg").write_bytes(b"no picture")
    np.save(tmp_path / "in/d.npy", np.zeros((8, 8, 5), np.uint8))
    comparisons = run(Dimmer(), tmp_path / "in", tmp_path / "out")
    assert [comparison.job.name for comparison in comparisons] == ["a.jpg", "b.png", "c.png", "d.npy"]
    assert [comparison.skipped[:25] for comparison in comparisons] == [
        "not an image that Pillow ", "images are smaller than o", "", "an array [8, 8, 5] is not",
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c.png"]


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the GPU"),
        (RuntimeError("can't allocate memory: 9 bytes"), "the computer"),
        (MemoryError(), "the computer"),
    ],
)
def test_too_little_memory_is_a_reason(tmp_path, error, place):
    class Greedy(Dimmer):
        def __call__(self, images):
            raise error

    (comparison,) = run(Greedy(), write(tmp_path / "a.png", 5, 5), tmp_path / "out.png")
    assert comparison.skipped == f"{place} is out of memory: try --tile, or --max-side"
    assert comparison.lack_of_memory is error
    assert error.__traceback__ is None
    assert not (tmp_path / "out.png").exists()


def test_a_model_of_one_size_refuses_other_images_before_it_starts(tmp_path):
    model = Dimmer()
    model.fixed_size = 6
    write(tmp_path / "in/a.png", 8, 8)
    write(tmp_path / "in/b.png", 8, 6)
    with pytest.raises(
        ValueError, match=r"images of 6x6 pixels alone, and none of 2 image\(s\) has this size"
    ):
        run(model, tmp_path / "in", tmp_path / "out")
    assert model.seen == []
    assert len(run(model, tmp_path / "in/a.png", tmp_path / "out.png", max_side=6)) == 1
    (tmp_path / "in/c.png").write_bytes(b"no picture")
    assert [comparison.job.name for comparison in run(model, tmp_path / "in", tmp_path / "out")] == [
        *("a.png", "b.png", "c.png")
    ]
    assert len(model.seen) == 3


def test_a_mistake_in_the_model_is_not_hidden(tmp_path):
    class Faulty(Dimmer):
        def __call__(self, images):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(Faulty(), write(tmp_path / "a.png", 5, 5), tmp_path / "out.png")


def test_nothing_to_compare(tmp_path):
    with pytest.raises(ValueError, match="images of 1 channels from 3: they cannot be compared"):
        run(Dimmer(3, 1), write(tmp_path / "a.png", 5, 5), tmp_path / "out.png")


def planned(images: Path, out: Path, **options) -> dict[str, str]:
    return {job.name: job.picture.as_posix() for job in plan_jobs(images, out, **options)}


def test_places_for_one_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = write(tmp_path / "in/a.b.jpg", 4, 4)
    Path("version.2").mkdir()
    for out, picture in (
        ("x.PNG", "x.PNG"), ("new", "new/a.b.png"), ("in", "in/a.b.png"), ("version.2", "version.2/a.b.png"),
    ):  # fmt: skip
        assert planned(image, Path(out)) == {"a.b.jpg": picture}
    with pytest.raises(ValueError, match=r"OUT x\.jpg must end in \.png, or be a folder"):
        planned(image, Path("x.jpg"))
    png = write(tmp_path / "in/c.png", 4, 4)
    for out in ("in", "in/c.png"):
        with pytest.raises(ValueError, match="is the image itself"):
            planned(png, Path(out), overwrite=True)


def test_places_for_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "sub/a.jpg", "sub/b.jpg", "sub/b.png", "sub/deep/c.TIF", ".hidden/d.png"):
        write(tmp_path / "in" / name, 4, 4)
    assert planned(Path("in"), Path("out")) == {
        "a.png": "out/a.png",
        "sub/a.jpg": "out/sub/a.png",
        "sub/b.jpg": "out/sub/b.jpg.png",
        "sub/b.png": "out/sub/b.png.png",
        "sub/deep/c.TIF": "out/sub/deep/c.png",
    }
    write(tmp_path / "in/sub/b.jpg.png", 4, 4)
    with pytest.raises(ValueError, match=r"would both become sub/b\.jpg\.png: rename"):
        planned(Path("in"), Path("out"))


def test_places_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = write(tmp_path / "in/a.png", 4, 4)
    Path("empty").mkdir()
    for images, out, message in (
        ("gone", "out", "there is no image or folder gone"),
        ("empty", "out", "no image in the folder empty"),
        ("in", "out.png", r"OUT must be a folder too, and out\.png is a file"),
        ("empty/../in", "in/out", r"OUT in/out is inside of empty/\.\./in"),
        ("in", "in", "is inside of in"),
    ):
        with pytest.raises(ValueError, match=message):
            planned(Path(images), Path(out))
    with pytest.raises(ValueError, match="OUT must be a folder too"):
        planned(Path("in"), image)


def test_nothing_is_overwritten_unless_allowed(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        write(tmp_path / "in" / name, 4, 4)
    write(tmp_path / "out/b.png", 4, 4)
    with pytest.raises(ValueError, match=r"out/b\.png is there already: .* --overwrite"):
        plan_jobs(tmp_path / "in", tmp_path / "out")
    write(tmp_path / "out/c.png", 4, 4)
    with pytest.raises(ValueError, match=r"out/b\.png and 1 more are there already"):
        plan_jobs(tmp_path / "in", tmp_path / "out")
    assert len(plan_jobs(tmp_path / "in", tmp_path / "out", overwrite=True)) == 3


def kl(channels: int = 3) -> KLVAE:
    return KLVAE(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
    )


def noise(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three images, one of them a level below, a broken one, and one that is too small."""
    (tmp_path / "in/sub").mkdir(parents=True)
    Image.fromarray(noise(9, 14, 3)).save(tmp_path / "in/a.png")
    Image.fromarray(noise(8, 8, 4)).save(tmp_path / "in/b.png")
    Image.fromarray(noise(33, 5, 3)).save(tmp_path / "in/sub/c.png")
    (tmp_path / "in/broken.png").write_bytes(b"")
    Image.fromarray(noise(1, 9, 3)).save(tmp_path / "in/thin.png")
    return tmp_path / "in"


@pytest.mark.parametrize(("model", "channels"), [(kl, 1), (kl, 3), (kl, 4), (make, 3)])
def test_a_folder(folder, tmp_path, capsys, model, channels):
    torch.manual_seed(0)
    built = (model(channels) if model is kl else model()).eval()
    built.save_pretrained(tmp_path / "model")
    assert main([str(folder), str(tmp_path / "out"), "--model", str(tmp_path / "model")]) == 0
    shown = capsys.readouterr()
    assert sorted(shown.err.splitlines()) == [
        "skipped broken.png: it is empty (0 bytes)",
        "skipped thin.png: images of 1x9 pixels are smaller than one latent, which stands for 2x2",
    ]
    *lines, mean = shown.out.splitlines()
    found = {line.partition(":")[0]: float(re.search(r"PSNR ([\d.]+) dB", line)[1]) for line in lines}
    assert list(found) == ["a.png", "b.png", "sub/c.png"]
    assert lines[2].startswith("sub/c.png: 5x33 pixels, PSNR")
    said = re.fullmatch(r"mean of 3 image\(s\): PSNR ([\d.]+) dB, 2 skipped", mean)
    # The mean is taken before rounding to two digits, that of the printed values after.
    assert float(said[1]) == pytest.approx(np.mean(list(found.values())), abs=0.011)
    with Image.open(tmp_path / "out/sub/c.png") as picture:
        assert picture.size == (2 * (5 + 4), 33 + 4)

    # The picture's halves give the number again, where 8 bits of three channels show all there is.
    if channels in (1, 3):
        with Image.open(tmp_path / "out/a.png") as picture:
            pixels = np.asarray(picture).astype(float)
        image, reconstruction = pixels[2:11, 2:16], pixels[2:11, 20:34]
        error = np.mean((image - reconstruction) ** 2)
        assert found["a.png"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.006)


def test_options(tmp_path, monkeypatch):
    given = {}

    class Model(KLVAE):
        def enable_tiling(self):
            given["tiled"] = True

    def load(path, torch_dtype):
        given.update(path=path, dtype=torch_dtype)
        model = kl().eval()
        model.__class__ = Model
        return model

    monkeypatch.setattr("latentae.models.load_autoencoder", load)
    Image.fromarray(noise(20, 40, 3)).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--model", "owner/name"]
    assert main([*arguments, "--tile", "--max-side", "10"]) == 0
    assert given == {"path": "owner/name", "dtype": torch.float32, "tiled": True}
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.size == (28, 9)
    given.clear()
    assert main([*arguments, "--overwrite"]) == 0
    assert "tiled" not in given


def test_mistakes_are_one_sentence(folder, tmp_path, capsys):
    kl(13).save_pretrained(tmp_path / "model")
    (tmp_path / "taken.png").touch()
    image, model = str(folder / "a.png"), str(tmp_path / "model")
    for arguments, message in (
        ([image, str(tmp_path / "o.png"), "--model", str(tmp_path / "gone")], "gone"),
        ([str(tmp_path / "gone"), "o.png", "--model", model], "there is no image or folder"),
        ([image, str(tmp_path / "taken.png"), "--model", str(tmp_path / "gone")], "there already"),
        ([image, str(tmp_path / "taken.png/o.png"), "--model", model], "not of 13 channels"),
        ([image, "o.png"], "--model"),
        ([image, "o.png", "--model", model, "--max-side", "0"], "'0' is not a whole number of 1 or more"),
        ([image, "o.png", "--model", model, "--max-side", "x"], "'x' is not a whole number"),
        ([image, "o.png", "--model", "gone", "--value-range", "2", "1"], "must be null or (low, high)"),
        ([image, str(tmp_path / "o.png"), "--model", model, "--max-pixels", "9"], "more than the limit of 9"),
    ):
        assert main(arguments) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert message in shown.err
        assert shown.err.count("error: ") == 1
        assert "Traceback" not in shown.err
    assert (tmp_path / "taken.png").read_bytes() == b""


def test_a_picture_that_cannot_be_written(folder, tmp_path, capsys):
    kl().save_pretrained(tmp_path / "model")
    (tmp_path / "file").touch()
    out = str(tmp_path / "file/out.png")
    assert main([str(folder / "a.png"), out, "--model", str(tmp_path / "model")]) == 2
    assert capsys.readouterr().err.startswith("error: [Errno")


def test_interrupted(folder, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("latentae.models.load_autoencoder", interrupt)
    assert main([str(folder), str(tmp_path / "out"), "--model", "x"]) == 130
    assert capsys.readouterr().err == "interrupted; the images written so far are complete\n"
