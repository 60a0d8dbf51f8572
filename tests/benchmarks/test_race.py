import copy
import json
import math

import pytest
import torch

from latentae.losses.perceptual import LPIPS
from tests.training.small_networks import FeatureDistance, small_networks, tiny_vqgan

NAMES = ["ldm-kl", "vqgan"]
SMALL = [
    "model.block_out_channels=[8,8,8]",
    "model.norm_num_groups=4",
    "data.image_size=32",
    "batch_size=2",
]


@pytest.fixture
def race(script, monkeypatch, tmp_path, alexnet_trunk):
    """Runs the script in small; AlexNet stands for VGG16, whose weights tests do without."""

    class MeanColours:
        dimensions = 3

        def __call__(self, images):
            return images.float().mean(dim=(2, 3))

    module = script("bench_race")
    monkeypatch.setattr("latentae.build.build_lpips", lambda *_: LPIPS(alexnet_trunk))
    monkeypatch.setattr(script("race_report"), "VGG16Features", MeanColours)

    def run(out, *options, names=NAMES):
        words = [out, "--only", *names, "--changes", *SMALL, "--points", "2", "--cost-rounds", "4", *options]
        monkeypatch.setattr("sys.argv", ["bench_race.py", *map(str, words)])
        module.main()

    run.module, run.floors = module, list(module.FLOORS)
    return run


def test_a_race_of_a_few_steps_has_a_table_and_a_figure(race, tmp_path, capsys):
    race(tmp_path, "--steps", "4")
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0].startswith("| competitor | settings | steps | seeds | PSNR, dB | of luma | of chroma |")
    assert [line.split(" | ")[0] for line in table[2:4]] == ["| ldm-kl", "| vqgan"]
    settings = [line.split(" | ")[1] for line in table[2:4]]
    assert settings[0] in ("published, 9e-06", "published, 9e-06, averaged")
    assert settings[1] == "shipped, 0.001, averaged"
    assert len({line.count("|") for line in table[:4]}) == 1
    assert [line.split(" | ")[0] for line in table[6:10]] == [f"| {name}" for name in race.floors]
    assert "4.5e-6 per image of the batch" in table[-1]
    assert (tmp_path / "race_4_steps.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "race_4_steps_images.png").read_bytes().startswith(b"\x89PNG")
    runs = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("run_*.json"))]
    assert [[point["step"] for point in run["curve"]] for run in runs] == [[2, 4], [2, 4]]
    assert all(5 < run["final"]["psnr"] < 30 and run["seconds"] > 0 for run in runs)
    assert "codes" in runs[1]["final"]
    assert "codes" not in runs[0]["final"]


def test_a_changed_config_is_compared_with_the_unchanged_one(race, tmp_path, capsys):
    race(tmp_path, "--steps", "2", "--quick", names=["kl", "kl, AdamW"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    first_cells = [line.split(" | ")[0] for line in lines if "---" not in line]
    assert first_cells == [
        "| competitor",
        "| kl",
        "| without training",
        *(f"| {name}" for name in race.floors),
        "| change",
        "| kl, AdamW",
    ]
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("run_*.json")]
    psnr = {run["competitor"]: run["final"]["psnr"] for run in runs}
    difference = psnr["kl, AdamW"] - psnr["kl"]
    assert f"| {psnr['kl, AdamW']:.2f} ({difference:+.2f}) |" in lines[-1]


def test_equal_time_gives_more_steps_to_the_cheaper_and_tuning_keeps_the_best(race, tmp_path, capsys):
    race(tmp_path, "--minutes", "0.01", "--tune", "--rates", "1e-4", "1e-2", names=["ldm-kl"])
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("run_*.json")]
    tried = {run["rate"]: run["final"]["psnr"] for run in runs if run["budget"] == "0.2 s"}
    (full,) = (run for run in runs if run["budget"] == "0.6 s")
    assert sorted(tried) == [1e-4, 1e-2]
    assert full["rate"] == full["learning_rate"] == max(tried, key=tried.get)
    assert f"| ldm-kl | {full['rate']:g}, cosine" in capsys.readouterr().out
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert full["steps"] == max(1, round(0.6 / costs["ldm-kl"]))


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_continues_as_if_nothing_had_happened(race, name, tmp_path, monkeypatch):
    race(tmp_path / "whole", "--steps", "4", names=[name])
    seen, evaluator = [], race.module.Evaluator
    measure_few = evaluator.measure_few

    def interrupt(*arguments):
        if seen:
            raise KeyboardInterrupt
        seen.append(True)
        return measure_few(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "measure_few", interrupt)
        with pytest.raises(KeyboardInterrupt):
            race(tmp_path / "parts", "--steps", "4", names=[name])
    whole, parts = (next((tmp_path / folder).glob("run_*.json")) for folder in ("whole", "parts"))
    begun = json.loads(parts.read_text())
    assert [point["step"] for point in begun["curve"]] == [2]
    assert "final" not in begun
    race(tmp_path / "parts", "--steps", "4", names=[name])
    expected, got = (json.loads(path.read_text()) for path in (whole, parts))
    assert got["final"] == expected["final"]
    assert [{**point, "seconds": 0} for point in got["curve"]] == [
        {**point, "seconds": 0} for point in expected["curve"]
    ]


def test_taming_s_first_step_has_the_gradients_of_its_losses(script):
    autoencoder, discriminator, _ = small_networks()
    expected = copy.deepcopy(autoencoder)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    program = script("peers_training").Taming(
        autoencoder, discriminator, FeatureDistance().double(), batch_size=2, learning_rate=1e-3
    )
    lpips = copy.deepcopy(program.lpips)
    program.step(images)
    output = expected(images)
    loss = (output.sample - images).abs().mean() + lpips(output.sample, images).mean() + output.commit_loss
    loss.backward()
    optimizer = torch.optim.Adam(expected.parameters(), lr=1e-3, betas=(0.5, 0.9))
    optimizer.step()
    for one, other in zip(program.autoencoder.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_a_peer_s_rate_follows_its_schedule(script):
    autoencoder, discriminator, _ = small_networks()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    program = script("peers_training").LlamaGen(
        autoencoder,
        discriminator,
        FeatureDistance().double(),
        batch_size=2,
        learning_rate=1e-3,
        schedule=lambda step: (1.0, 0.0)[step],
    )
    states = []
    for _ in range(2):
        program.step(images)
        states.append(copy.deepcopy(list(autoencoder.parameters())))
    assert [group["lr"] for optimizer in program.optimizers for group in optimizer.param_groups] == [0, 0]
    assert all(torch.equal(*pair) for pair in zip(*states, strict=True))


def test_a_peer_reconstructs_by_the_better_of_raw_and_averaged_weights(script):
    autoencoder, discriminator, _ = small_networks()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    program = script("peers_training").LlamaGen(
        autoencoder, discriminator, FeatureDistance().double(), batch_size=2
    )
    competitor = script("race_competitors").PeerCompetitor(program)
    before, _ = competitor.reconstruct(images)
    with torch.no_grad():
        for raw in autoencoder.decoder.parameters():
            raw.mul_(100)
    competitor.choose_weights(images)
    assert competitor.averaged
    torch.testing.assert_close(competitor.reconstruct(images)[0], before)
    with torch.no_grad():
        for raw, average in zip(
            autoencoder.decoder.parameters(), competitor.average.model.decoder.parameters(), strict=True
        ):
            raw.copy_(average)
            average.mul_(100)
    competitor.choose_weights(images)
    assert not competitor.averaged
    torch.testing.assert_close(competitor.reconstruct(images)[0], before)


def test_the_codebook_losses_of_diffusers_vqgan_are_those_of_its_vq_model(script):
    autoencoder = tiny_vqgan(**script("peers_training").DiffusersVQGAN.QUANTIZER)
    images = torch.rand(2, 3, 16, 16)
    theirs = autoencoder.to_diffusers()(images)
    ours = autoencoder(images)
    torch.testing.assert_close(ours.commit_loss.reshape(()), theirs.commit_loss.reshape(()))
    torch.testing.assert_close(ours.sample, theirs.sample)


def test_the_bounded_discriminator_has_probabilities_of_patches(script):
    discriminator = script("peers_training").BoundedDiscriminator(channels=16, depth=4)
    logits = discriminator(torch.randn(2, 3, 32, 32) * 100)
    assert logits.shape == (2, 1, 2, 2)
    assert 0 < logits.min() < logits.max() < 1


def test_what_needs_no_training_has_known_ratios(script):
    report = script("race_report")
    # Left half black, right half white: the mean is grey, half the range away from each pixel.
    images = torch.ones(1, 3, 32, 32)
    images[..., :16] = -1
    mean, _ = report.Floor("the mean colour of each image").reconstruct(images)
    assert mean.unique().tolist() == [0.0]
    luma, chroma = report._psnr_of_luma_and_chroma(mean, images)
    assert luma.item() == pytest.approx(-10 * math.log10(0.25), abs=1e-4)
    assert chroma.item() == pytest.approx(60.0, abs=1e-3)
    # Without colour, red is as bright as before, and both differences of colour are gone.
    red = torch.tensor([1.0, -1.0, -1.0]).reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
    grey, _ = report.Floor("the images without colour").reconstruct(red)
    luma, chroma = report._psnr_of_luma_and_chroma(grey, red)
    assert luma.item() == pytest.approx(60.0, abs=1e-3)
    assert chroma.item() == pytest.approx(-10 * math.log10((0.168736**2 + 0.5**2) / 2), abs=1e-3)
    # Squares of the size of the small image's pixels survive in it.
    small, _ = report.Floor("8x8 pixels, enlarged").reconstruct(images)
    assert small[..., 0].unique().tolist() == [-1.0]
    assert small[..., -1].unique().tolist() == [1.0]


def test_a_discriminator_that_has_not_started_learns_nothing(script):
    autoencoder, discriminator, _ = small_networks()
    before = copy.deepcopy(discriminator)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    program = script("peers_training").LlamaGen(
        autoencoder, discriminator, FeatureDistance().double(), batch_size=2, adversarial_start=1
    )
    program.step(images)
    assert all(
        torch.equal(*pair) for pair in zip(before.parameters(), discriminator.parameters(), strict=True)
    )
    program.step(images)
    assert not torch.equal(next(before.parameters()), next(discriminator.parameters()))
