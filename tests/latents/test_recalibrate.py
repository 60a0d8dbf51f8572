import os
import socket

import pytest
import torch
import torch.multiprocessing as mp

from latentae import distributed, load_autoencoder
from latentae.latents.measurement import measure_latents
from latentae.latents.recalibrate import recalibrate
from latentae.latents.statistics import merge_over_ranks
from tests.latents.conftest import batches_of, draw_tensors, make_kl, make_vq


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


def test_in_place_and_without_a_place(picture_folder, tmp_path):
    make_vq().save_pretrained(tmp_path / "vq")
    common = {"data": str(picture_folder), "max_images": 20, "say": str}
    recalibrate(str(tmp_path / "vq"), **common)
    assert load_autoencoder(tmp_path / "vq").config.scaling_factor == 1.0
    recalibrate(str(tmp_path / "vq"), **common, in_place=True)
    assert load_autoencoder(tmp_path / "vq").config.scaling_factor != 1.0


def test_broken_images_are_told_of(kl_folder, picture_folder):
    (picture_folder / "000.png").write_bytes(b"no picture")
    said = []
    recalibrate(str(kl_folder), data=str(picture_folder), max_images=24, say=said.append)
    assert any("could not be decoded, and others were measured in their place" in part for part in said)


def test_what_is_written_must_be_what_was_calibrated(kl_folder, picture_folder, tmp_path, monkeypatch):
    def write_wrongly(model, place):
        raise OSError("no space left")

    monkeypatch.setattr("latentae.latents.recalibrate.write_model", write_wrongly)
    with pytest.raises(OSError, match="no space left"):
        recalibrate(str(kl_folder), data=str(picture_folder), max_images=9, out=tmp_path / "out", say=str)
    assert not (tmp_path / "out").exists()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
    mp.spawn(work_as, args=(tmp_path, free_port()), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    images = draw_tensors(11)
    alone = {
        "uneven": measure_latents(make_kl(), batches_of(images, 11), seed=1),
        "one without": measure_latents(make_kl(), batches_of(images[8:], 3, first=8), seed=1),
    }
    for name, expected in alone.items():
        assert first[name]["images"] == expected.images
        for field in ("mean", "squares", "spread"):
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
