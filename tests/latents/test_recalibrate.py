import os

import pytest
import torch

from latentae import VQGAN, cli, distributed, load_autoencoder
from latentae.data import FolderSource, ImageDataset, RandomCrop
from latentae.latents.calibration import calibrate_on
from latentae.latents.recalibrate import recalibrate
from latentae.latents.statistics import measure_latents, merge_over_ranks
from tests.data.pictures import shows_green, write_cutout
from tests.latents.conftest import SHAPE, batches_of, draw_tensors, make_kl, make_vq
from tests.processes import free_port, run_ranks


@pytest.fixture
def kl_folder(tmp_path):
    make_kl().save_pretrained(tmp_path / "kl")
    return tmp_path / "kl"


def test_it_says_what_it_measures_and_writes_a_calibrated_model(kl_folder, picture_folder, tmp_path):
    said = []
    recalibrate(str(kl_folder), data=str(picture_folder), out=tmp_path / "out", say=said.append)
    text = "\n".join(said)
    model = load_autoencoder(tmp_path / "out")
    assert f"scaling_factor {model.config.scaling_factor:.6g}, shift_factor 0" in text
    assert load_autoencoder(kl_folder).config.scaling_factor == 1.0  # the source is as it was
    images = draw_tensors(8)
    with torch.no_grad():
        torch.testing.assert_close(
            model(images).sample, load_autoencoder(kl_folder)(images).sample, rtol=0, atol=1e-5
        )
    # The twelve pictures are split: most are measured, the rest held out. Their table has the last word.
    held_out = next(part for part in said if "held-out" in part)
    mean, std = (float(word) for word in held_out.splitlines()[-1].split()[1:])
    assert abs(mean) < 0.3
    assert 0.7 < std < 1.3
    measured = next(part for part in said if "posterior samples" in part)
    assert [line.split()[0] for line in measured.splitlines()[1:]] == ["channel", "0", "1", "2", "3", "all"]


def test_without_a_place_nothing_is_written(picture_folder, tmp_path):
    make_vq().save_pretrained(tmp_path / "vq")
    before = sorted(tmp_path.rglob("*"))
    said = []
    recalibrate(str(tmp_path / "vq"), data=str(picture_folder), max_images=20, say=said.append)
    assert said[-1].startswith("nothing is written: --out FOLDER")
    assert sorted(tmp_path.rglob("*")) == before
    assert load_autoencoder(tmp_path / "vq").config.scaling_factor == 1.0


def test_an_empty_folder_is_a_place_and_a_vq_model_is_written_to_it(picture_folder, tmp_path):
    make_vq().save_pretrained(tmp_path / "vq")
    place = tmp_path / "out"
    place.mkdir()
    recalibrate(str(tmp_path / "vq"), data=str(picture_folder), max_images=20, out=place, say=str)
    assert load_autoencoder(place).config.scaling_factor != 1.0
    assert sorted(file.name for file in place.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    (tmp_path / "file.txt").write_text("")
    for taken in (place, tmp_path / "file.txt"):
        with pytest.raises(ValueError, match="is there already; choose a new folder"):
            recalibrate(str(tmp_path / "vq"), data=str(picture_folder), out=taken, say=str)


def test_the_number_of_crops_has_a_limit(picture_folder, monkeypatch, kl_folder):
    for module in ("recalibrate", "calibration"):
        monkeypatch.setattr(f"latentae.latents.{module}.MOST_VIEWS", 30)
    said = []
    recalibrate(str(kl_folder), data=str(picture_folder), say=said.append)
    assert any("posterior samples of 30 crops" in part for part in said)
    dataset = ImageDataset(FolderSource(picture_folder), RandomCrop(16), channels=3, seed=0)
    assert calibrate_on(make_kl(), dataset, batch_size=8).statistics.images == 30


@pytest.mark.parametrize("alpha", [True, False])
def test_arrays_are_resized_by_their_alpha(tmp_path, monkeypatch, alpha):
    for number in range(6):
        write_cutout(tmp_path / f"data/{number}.npy", side=30)
    make_kl(in_channels=4, out_channels=4).save_pretrained(tmp_path / "rgba")
    seen = []

    def measure(model, batches, **options):
        seen.extend(batch["images"] for batch in batches)
        return measure_latents(model, batches_of(torch.rand(6, 4, 16, 16), 6), **options)

    monkeypatch.setattr("latentae.latents.recalibrate.measure_latents", measure)
    options = ["--max-images", "8", *(["--alpha"] if alpha else [])]
    assert cli.main(["stats", str(tmp_path / "rgba"), "--data", str(tmp_path / "data"), *options]) == 0
    assert sum(len(images) for images in seen) > 8  # of training crops and held-out images
    assert all(shows_green(images) != alpha for images in seen)


def test_alpha_needs_four_channels(kl_folder, picture_folder):
    with pytest.raises(ValueError, match="alpha is set, but the model takes images of 3 channels"):
        recalibrate(str(kl_folder), data=str(picture_folder), alpha=True, say=str)


def test_broken_images_are_told_of(kl_folder, picture_folder):
    (picture_folder / "000.png").write_bytes(b"no picture")
    said = []
    recalibrate(str(kl_folder), data=str(picture_folder), max_images=24, say=said.append)
    assert any("could not be decoded, and others were measured in their place" in part for part in said)


def test_what_is_written_must_be_what_was_calibrated(kl_folder, picture_folder, tmp_path, monkeypatch):
    def write_wrongly(model, out, *, format):
        raise OSError("no space left")

    monkeypatch.setattr("latentae.latents.recalibrate.export_autoencoder", write_wrongly)
    with pytest.raises(OSError, match="no space left"):
        recalibrate(str(kl_folder), data=str(picture_folder), max_images=9, out=tmp_path / "out", say=str)
    assert not (tmp_path / "out").exists()


def work_as(rank, folder, port):
    """One of two processes as torchrun would start them: uneven shares, then the whole command."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    torch.set_num_threads(1)
    images = draw_tensors(11)
    with distributed.init_from_environment() as device:
        share = [batches_of(images[:8], 3), batches_of(images[8:], 3, first=8)][rank]
        result = {
            "uneven": measure_latents(make_kl(), share, seed=1),
            "one without": measure_latents(make_kl(), share if rank == 1 else [], seed=1),
            "nothing": merge_over_ranks(None),
        }
        torch.save(
            {name: vars(value) if value else None for name, value in result.items()}, folder / f"{rank}.pt"
        )
        recalibrate(
            str(folder / "kl"),
            data=str(folder / "images"),
            batch_size=5,
            max_images=33,
            device=device,
            out=folder / "out",
            say=str,
        )


def test_two_ranks_measure_and_write_what_one_does(kl_folder, picture_folder, tmp_path):
    run_ranks(work_as, 2, tmp_path, free_port())
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    images = draw_tensors(11)
    alone = {
        "uneven": measure_latents(make_kl(), batches_of(images, 11), seed=1),
        "one without": measure_latents(make_kl(), batches_of(images[8:], 3, first=8), seed=1),
    }
    for name, expected in alone.items():
        assert first[name]["images"] == expected.images
        for field in ("mean", "squares", "between"):
            assert torch.equal(first[name][field], second[name][field])
            torch.testing.assert_close(first[name][field], getattr(expected, field), rtol=1e-5, atol=1e-3)
    assert first["nothing"] is None

    recalibrate(
        str(kl_folder), data=str(picture_folder), batch_size=10, max_images=33, out=tmp_path / "one", say=str
    )
    one, two = load_autoencoder(tmp_path / "one"), load_autoencoder(tmp_path / "out")
    assert two.config.scaling_factor == pytest.approx(one.config.scaling_factor, rel=1e-5)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-5, atol=1e-5)


def main(arguments):
    return cli.main(["stats", *arguments])


def make_fsq():
    """No stock class can hold it."""
    return VQGAN(**{**SHAPE, "quantizer": {"type": "fsq", "levels": [3, 3, 3, 3]}})


def test_a_model_is_calibrated(picture_folder, tmp_path, capsys):
    make_kl().save_pretrained(tmp_path / "kl")
    arguments = [str(tmp_path / "kl"), "--data", str(picture_folder), "--max-images", "20"]
    arguments += ["--image-size", "12", "--batch-size", "7", "--seed", "3", "--per-channel"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "posterior samples of 20 crops" in shown
    assert "12 pixels" in shown
    assert "mean and std of each channel folded" in shown
    assert "held-out" in shown
    assert f"written to {tmp_path / 'out'}" in shown
    model = load_autoencoder(tmp_path / "out")
    assert (model.config.scaling_factor, model.config.shift_factor) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: MODEL, --data"),
        (["{kl}"], "the following arguments are required: --data"),
        (["{kl}", "--data", "{images}", "--batch", "5"], "unrecognized arguments: --batch"),
        (["{kl}", "--data", "{images}", "--in-place"], "error: --in-place was removed: use --out FOLDER"),
        (
            ["{kl}", "--data", "{images}", "--batch-size", "many"],
            "--batch-size: 'many' is not a whole number",
        ),
        (["{kl}", "--data", "{images}", "--batch-size", "0"], "--batch-size: '0' is not"),
        (["{kl}", "--data", "{images}", "--seed", "-1"], "--seed: '-1' is not a whole number of 0 or more"),
        (["{kl}", "--data", "{images}", "--image-size", "1"], "error: images of 1x1 pixels are smaller"),
        (["{kl}", "--data", "{images}", "--out", "{kl}"], "is there already; choose a new folder"),
        (["{kl}", "--data", "{images}/nowhere"], "does not exist"),
        (["{kl}", "--data", "{images}", "--split", "dev"], "split 'dev' is not in"),
        (["{kl}", "--data", "{images}", "--max-pixels", "9"], "24 by 24 are 576 pixels, more than the limit"),
        (["{kl}", "--data", "{images}", "--value-range", "1", "0"], "value_range=(1.0, 0.0) must be"),
        (["{kl}", "--data", "{images}", "--image-column", "x"], "image_column='x' is for tables"),
        (["{kl}", "--data", "{images}", "--dataset-config", "x"], "dataset_config='x' belongs to datasets"),
        (["{images}", "--data", "{images}"], "error: "),
        (["{vq}", "--data", "{images}", "--per-channel"], "error: per_channel is for KL-VAEs"),
        (["{twelve}", "--data", "{images}"], "a PNG picture, not of 12 channels"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, says, picture_folder, tmp_path, capsys):
    make_kl().save_pretrained(tmp_path / "kl")
    make_vq().save_pretrained(tmp_path / "vq")
    make_kl(in_channels=12, out_channels=12).save_pretrained(tmp_path / "twelve")
    places = {name: tmp_path / name for name in ("kl", "vq", "twelve")}
    assert main([word.format(images=picture_folder, **places) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    if error.startswith("error: "):
        assert len(error.splitlines()) == 1


def test_the_second_process_keeps_still(picture_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    make_kl().save_pretrained(tmp_path / "kl")
    arguments = [str(tmp_path / "kl"), "--data", str(picture_folder), "--max-images", "4"]
    assert main(arguments) == 0
    assert main([*arguments, "--batch-size", "0"]) == 2
    assert capsys.readouterr() == ("", "")
    for file in picture_folder.iterdir():
        file.write_bytes(b"no picture")
    assert main(arguments) == 2  # but of what only it has met it speaks
    assert "cannot be decoded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "arguments", "says"),
    [
        (make_vq(), ["--per-channel"], "per_channel is for KL-VAEs"),
        (
            make_kl(use_quant_conv=False),
            ["--per-channel"],
            "quant_conv and post_quant_conv, which this model",
        ),
        (make_fsq(), ["--out", "{tmp}/out"], "quantizer 'fsq' is not"),
    ],
)
def test_what_cannot_be_is_refused_before_images_are_read(model, arguments, says, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    words = [word.format(tmp=tmp_path) for word in arguments]
    # There are no such images, which would be said if they were looked for first.
    assert main([str(tmp_path / "model"), "--data", str(tmp_path / "nowhere"), *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert says in shown.err


def test_a_model_that_makes_nan_is_refused_before_it_is_measured(picture_folder, tmp_path, capsys):
    model = make_kl()
    torch.nn.init.constant_(model.decoder.conv_out.bias, float("nan"))
    model.save_pretrained(tmp_path / "broken")
    assert main([str(tmp_path / "broken"), "--data", str(picture_folder), "--image-size", "16"]) == 2
    assert "makes images that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "calibrated").exists()
