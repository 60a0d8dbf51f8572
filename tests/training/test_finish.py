import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from latentae import distributed
from latentae.data import BrokenImageError, CenterCrop, FolderSource, ImageDataset
from latentae.evaluation.metrics import psnr, ssim
from latentae.models import KLVAE, VQVAE, AutoencoderOutput
from latentae.training import finish
from latentae.training import trainer as trainer_module
from latentae.training.finish import NoMeasurementError, evaluate_reconstruction, evaluating, validate
from latentae.training.run_folder import RunError, RunFolder
from latentae.training.trainer import Trainer
from tests.models.conftest import make
from tests.training.conftest import draw_images
from tests.training.launch import in_two_ranks


@pytest.fixture
def drawn(tmp_path):
    draw_images(tmp_path / "images", count=4)
    return ImageDataset(FolderSource(tmp_path / "images"), CenterCrop(32), channels=3)


def l1_distance(reconstruction, images):
    return (reconstruction - images).abs().mean(dim=(1, 2, 3))


def calibrate(model, images, config, said):
    return finish.calibrate_and_measure(
        model, images, images, l1_distance, config, device=torch.device("cpu"), say=said.append
    )


def test_the_numbers_of_a_summary(drawn, tiny):
    model, said = make(), []
    numbers = calibrate(model, drawn, tiny(), said)
    assert numbers["images"] == 4
    assert numbers["scaling_factor"] == model.config.scaling_factor
    latents = torch.cat([model.to_latents(drawn[0, i]["images"][None]) for i in range(4)])
    assert latents.mean().abs() < 0.01
    assert latents.std().item() == pytest.approx(1, abs=0.01)
    assert said == []


def test_latents_that_cannot_be_measured_do_not_lose_the_run(drawn, tiny):
    model, said = make(), []
    torch.nn.init.zeros_(model.quant_conv.weight)
    numbers = calibrate(model, drawn, tiny(), said)
    assert numbers["scaling_factor"] is None
    assert numbers["psnr"] > 0
    assert said[0].startswith("the latents' scale could not be measured")


def test_the_stock_class_wherever_it_fits(tmp_path):
    folder = RunFolder(tmp_path)
    finish.export_run(make(), folder)
    assert json.loads((folder.model / "config.json").read_text())["_class_name"] == "VQModel"


def test_an_export_that_fails_leaves_the_model_before_it(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    finish.export_run(make(), folder)
    before = (folder.model / "config.json").read_bytes()

    def no_room(model, path):
        path.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(finish, "export_diffusers", no_room)
    with pytest.raises(RunError, match="No space left on device"):
        finish.export_run(make(), folder)
    assert (folder.model / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_frozen_encoder_s_scale_is_not_measured_anew(drawn, tiny, monkeypatch):
    monkeypatch.setattr(finish, "calibrate_on", None)
    model, said = make(scaling_factor=0.37, shift_factor=0.2), []
    config = tiny("freeze_encoder=true", "model.pretrained=some/model", *ARCHITECTURE)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    numbers = calibrate(model, drawn, config, said)
    assert (numbers["scaling_factor"], numbers["shift_factor"]) == (0.37, 0.2)
    assert numbers["scale_source"] == "of the pretrained model"
    assert (model.config.scaling_factor, model.config.shift_factor) == (0.37, 0.2)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


# What a pretrained model would bring.
ARCHITECTURE = [
    "model.block_out_channels=[8,16]",
    "model.norm_num_groups=4",
    "model.latent_channels=4",
    "model.quantizer.num_codes=16",
]


WIDTHS = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4}
BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


class Pictures:
    """Five noisy squares."""

    def __len__(self):
        return 5

    def name(self, index):
        return f"{index}.png"

    def load(self, index, channels, minimum_side=None):
        return np.random.default_rng(index).integers(0, 255, (16, 16, channels), dtype=np.uint8)


def distance(first, second):
    return (first - second).square().mean(dim=(1, 2, 3))


@pytest.fixture
def images():
    return ImageDataset(Pictures(), CenterCrop(16), channels=3)


def measure(model, images, batch_size=2):
    return validate(model, images, distance, batch_size=batch_size, device=torch.device("cpu"))


def test_means_over_the_images_whatever_the_batches(images):
    torch.manual_seed(0)
    model = KLVAE(**WIDTHS, **BLOCKS).eval()
    numbers = measure(model, images)
    assert set(numbers) == {"validation_psnr", "validation_ssim", "validation_lpips"}
    originals = torch.stack([images[0, index]["images"] for index in range(5)])
    with torch.no_grad():
        expected = psnr(model(originals).sample, originals)
    assert numbers["validation_psnr"] == pytest.approx(expected.mean().item(), abs=1e-3)
    assert measure(model, images, batch_size=5) == pytest.approx(numbers, rel=1e-4)


def test_a_codebook_s_health_is_part_of_it(images):
    torch.manual_seed(0)
    model = VQVAE(**WIDTHS, **BLOCKS, num_vq_embeddings=8)
    counts = model.quantize.pending_counts.clone()
    numbers = measure(model, images)
    assert 1 / 8 <= numbers["validation_codebook_usage"] <= 1
    assert 1 <= numbers["validation_codebook_perplexity"] <= 8
    assert model.training
    assert torch.equal(model.quantize.pending_counts, counts)  # validation images teach the codebook nothing


def test_random_state_is_left_alone(images):
    model = KLVAE(**WIDTHS, **BLOCKS)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    measure(model, images)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()


def test_each_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout())).train()
    model[1][0].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, True, False, True]


class NaNElsewhere(nn.Module):
    """Reconstructs perfectly on the first rank, and NaN on the others."""

    def forward(self, images):
        return AutoencoderOutput(sample=images * (1.0 if distributed.is_main() else math.nan))


def what_is_said(_folder):
    with pytest.raises(NoMeasurementError) as caught:
        measure(NaNElsewhere(), ImageDataset(Pictures(), CenterCrop(16), channels=3))
    return str(caught.value)


def test_what_one_rank_cannot_measure_ends_all_alike(tmp_path):
    first, second = in_two_ranks(what_is_said, tmp_path)
    assert first == second
    assert first.startswith("images hold NaN")


def test_averaged_weights_that_diverged_end_the_run_with_a_sentence(tiny, tmp_path, capsys):
    trainer = Trainer(tiny("max_steps=4", "sample_every=1", "validate_every=2"))
    nn.init.constant_(trainer.networks.ema.model.encoder.conv_in.weight, math.nan)
    with pytest.raises(
        RunError, match=r"averaged weights cannot be measured: .* are NaN or infinite.*"
    ) as caught:
        trainer.fit()
    assert "saved at step 2" in str(caught.value)
    assert (tmp_path / "run/checkpoints/step_000002").is_dir()
    printed = capsys.readouterr()
    assert "no sample picture of step 1" in printed.out + printed.err


@pytest.mark.parametrize("reason", ["smaller than one latent", "the computer is out of memory"])
def test_whole_images_that_a_model_cannot_take_do_not_fail_the_run(reason, tiny, monkeypatch, capsys):
    monkeypatch.setattr(
        trainer_module, "load_whole_images", lambda dataset, **options: [torch.zeros(3, 1, 40)]
    )
    if "memory" in reason:
        monkeypatch.setattr(trainer_module, "whole_preview", lambda *_, **__: bytearray(2**62))
    trainer = Trainer(tiny("max_steps=1"))
    assert trainer.fit()["step"] == 1
    assert trainer.folder.summary.exists()
    assert not trainer.folder.whole(1).exists()
    (sentence,) = [line for line in capsys.readouterr().out.splitlines() if "whole images" in line]
    assert sentence.startswith("no picture of whole images: ")
    assert reason in sentence


def test_measured_on_the_way_without_a_trace_in_the_training(tiny, tmp_path):
    runs = {}
    for name, overrides in {"with": ["validate_every=1"], "without": []}.items():
        trainer = Trainer(tiny("max_steps=3", "log_every=2", f"output_dir={tmp_path}/{name}", *overrides))
        summary = trainer.fit()
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        runs[name] = (trainer, summary, [json.loads(line) for line in lines])
    (trainer, summary, lines), (other, other_summary, plain) = runs["with"], runs["without"]

    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["step"] for line in plain] == [2, 3]
    measured = {name for name in lines[0] if name.startswith("validation_")}
    assert measured == set(trainer.validation) >= {"validation_psnr", "validation_ssim", "validation_lpips"}
    assert trainer.validation["validation_psnr"] == pytest.approx(lines[2]["validation_psnr"], rel=1e-5)
    # measured once at the last step, and told twice
    assert (summary["psnr"], summary["images"]) == (trainer.validation["validation_psnr"], 1)
    assert summary["codebook_usage"] == trainer.validation["validation_codebook_usage"]
    # the other's is of the exported model: the same but for the scale that was folded into its weights
    assert other_summary["psnr"] == pytest.approx(summary["psnr"], abs=0.05)
    assert other.validation == {}
    assert not [name for name in plain[1] if name.startswith("validation_")]

    weights = trainer.networks.autoencoder.state_dict()
    for name, value in other.networks.autoencoder.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_an_image_that_cannot_be_read_is_left_out_and_told(images):
    class Broken(Pictures):
        def load(self, index, channels, minimum_side=None):
            if index in (2, 3):
                raise BrokenImageError(f"{self.name(index)}: torn")
            return super().load(index, channels)

    torch.manual_seed(0)
    model, told = KLVAE(**WIDTHS, **BLOCKS).eval(), []
    partly = ImageDataset(Broken(), CenterCrop(16), channels=3)
    found = validate(
        model, partly, distance, batch_size=1, device=torch.device("cpu"), note_broken=told.extend
    )
    sound = torch.stack([images[0, index]["images"] for index in (0, 1, 4)])
    with torch.no_grad():
        expected = psnr(model(sound).sample, sound).mean().item()
    assert found["validation_psnr"] == pytest.approx(expected, abs=1e-3)
    assert {line.partition(":")[0] for line in told} == {"2.png", "3.png"}


class Dimmer(nn.Module):
    """Reconstructs each image darker, and gives code 2 everywhere."""

    def __init__(self):
        super().__init__()
        self.quantize = nn.Module()
        self.quantize.num_codes, self.quantize.depth = 4, None

    def forward(self, images):
        indices = torch.full((len(images), 2, 2), 2)
        return AutoencoderOutput(sample=images * 0.5, indices=indices)


def batches(images, sizes):
    numbers = torch.arange(len(images))
    for batch, indices in zip(images.split(sizes), numbers.split(sizes), strict=True):
        yield {"images": batch, "indices": indices}


def test_means_over_images_by_hand():
    images = torch.stack([torch.full((3, 16, 16), value) for value in (1.0, -1.0, 1 / 127.5)])
    quality = evaluate_reconstruction(Dimmer(), batches(images, [2, 1]), l1_distance, torch.device("cpu"))
    # 255 → 191 and 0 → 64 (rounded, half to even); 128.5 → 128 stays 128.
    assert quality.images == 3
    assert quality.lpips == pytest.approx((64 / 127.5 + 64 / 127.5 + 0) / 3, abs=1e-6)
    assert quality.codebook_usage == 0.25
    assert quality.codebook_perplexity == pytest.approx(1.0)
    assert quality.psnr == math.inf or quality.psnr > 0


def test_codes_of_several_tables():
    class Deep(Dimmer):
        """Gives codes 0 and 1 in its first table, and 2 everywhere in its second."""

        def __init__(self):
            super().__init__()
            self.quantize.depth = 2

        def forward(self, images):
            indices = torch.full((len(images), 2, 2, 2), 2)
            indices[:, 0] = torch.tensor([0, 1])
            return AutoencoderOutput(sample=images, indices=indices)

    images = torch.rand(3, 3, 16, 16)
    quality = evaluate_reconstruction(Deep(), batches(images, [2, 1]), l1_distance, torch.device("cpu"))
    assert quality.codebook_usage == 3 / 8
    assert quality.codebook_perplexity == pytest.approx((2 + 1) / 2)


def test_the_same_for_every_batch_size():
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole, parts = (
        evaluate_reconstruction(Dimmer(), batches(images, sizes), l1_distance, torch.device("cpu"))
        for sizes in ([5], [2, 2, 1])
    )
    assert whole == parts
    assert whole.psnr == pytest.approx(psnr(images * 0.5, images).mean().item())
    assert whole.ssim == pytest.approx(ssim(images * 0.5, images).mean().item())


def test_no_images_to_validate_on():
    with pytest.raises(ValueError, match="no images"):
        evaluate_reconstruction(Dimmer(), [], l1_distance, torch.device("cpu"))


def test_nan_is_no_measurement():
    class Broken(Dimmer):
        def forward(self, images):
            return AutoencoderOutput(sample=images / 0 * 0, indices=torch.zeros(len(images), 2, 2))

    with pytest.raises(NoMeasurementError, match="hold NaN"):
        evaluate_reconstruction(
            Broken(), batches(torch.ones(2, 3, 16, 16), [1, 1]), l1_distance, torch.device("cpu")
        )
