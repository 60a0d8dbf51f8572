import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentae import cli
from latentae.evaluation import reconstruct_command
from latentae.evaluation.reconstruct_command import main
from latentae.models import KLVAE
from tests.models.conftest import make


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
        ([image, "o.png", "--model", model, "--max-side", "0"], "give 1 or more"),
        ([image, "o.png", "--model", model, "--max-side", "x"], "invalid"),
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
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(reconstruct_command, "_reconstruct", interrupt)
    assert main([str(folder), "out", "--model", "x"]) == 130
    assert capsys.readouterr().err.startswith("error: interrupted")


def test_the_command_is_known(capsys):
    assert cli.main(["reconstruct", "--help"]) == 0
    assert "IMAGE_OR_FOLDER" in capsys.readouterr().out
