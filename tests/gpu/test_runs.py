"""Whole runs on a device: bit-equal repeats, steps without waits, ranks, and what follows a run."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentae.evaluation.evaluate import Request, evaluate
from latentae.latents.cache import encode_dataset
from latentae.probe.denoiser import DenoiserSize
from latentae.probe.probe import probe
from latentae.probe.request import ProbeRequest
from latentae.training.log import Meter
from latentae.training.trainer import Trainer
from latentae.weights import WeightsNotFoundError
from tests.probe.conftest import draw_images, measures, tiny_model  # noqa: F401
from tests.processes import launch_by_torchrun
from tests.training.launch import flatten, log_lines, states_of

# Everything that a step can do, in turns. Each case is overrides of the tiny VQGAN.
EXTRAS = [
    "discriminator.augment=[color, translation, cutout]",
    "discriminator.r1={weight: 0.1, every: 2}",
    "loss.adversarial.lecam={weight: 0.001}",
]
CASES = {
    "vector": [],
    "vector, bf16": ["mixed_precision=bf16"],
    "vector, fp16": ["mixed_precision=fp16"],
    "least memory": ["performance=memory", "mixed_precision=bf16"],
    "stock blocks": ["performance=off", "float32_precision=high"],
    "channels last": ["channels_last=true", "mixed_precision=bf16"],
    "ema": ["model.quantizer.type=ema", *EXTRAS],
    "ema, fp16": ["model.quantizer.type=ema", "mixed_precision=fp16", *EXTRAS],
    "fsq": ["model.quantizer={type: fsq, levels: [4, 4, 3, 3]}", "gradient_accumulation_steps=2"],
    "latents": [
        *("loss.latent_noise={scale: 0.1}", "loss.spectral={factors: [2]}"),
        *("loss.equivariance={min_scale: 0.5}", "loss.perceptual=null"),
    ],
}


# On the CPU, tests/training/test_trainer.py holds resumed runs to uninterrupted ones.
@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_deterministic_runs_repeat_and_resume_to_the_last_bit(tiny, tmp_path, cuda, case):
    checkpoint = tmp_path / "first" / "checkpoints" / "step_000003"
    states, lines = [], []
    for name, *changes in (("first",), ("second",), ("resumed", f"resume={checkpoint}")):
        run = tmp_path / name
        trainer = Trainer(
            tiny("deterministic=true", "max_steps=4", f"output_dir={run}", *CASES[case], *changes)
        )
        assert trainer.device.type == cuda.type
        assert trainer.step == (3 if name == "resumed" else 0)
        trainer.fit()
        states.append(flatten(states_of(trainer)))
        lines.append(log_lines(run)[-1])
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        for key, value in states[0].items():
            same = torch.equal(value, state[key]) if isinstance(value, torch.Tensor) else value == state[key]
            assert same, key
    assert lines[0] == lines[1] == lines[2]


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_steps_between_log_lines_never_wait(tiny, cuda, case):
    trainer = Trainer(tiny("max_steps=20", *CASES[case]))
    loader, meter = trainer.batches(), Meter()
    for _ in range(4):  # the adversary begins, and codes are revived
        trainer.optimizer_step(loader, meter)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            trainer.optimizer_step(loader, meter)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(map(math.isfinite, meter.read().values()))


@pytest.mark.gpu
def test_batches_come_from_pinned_memory(tiny, cuda):
    batch = next(iter(Trainer(tiny("data.num_workers=2")).batches()))
    assert batch["images"].is_pinned()


@pytest.mark.gpu
def test_a_compiled_step_learns_as_one_that_is_not(tiny, tmp_path, cuda):
    losses = []
    for compiled in ("false", "true"):
        run = tmp_path / compiled
        Trainer(tiny(f"compile={compiled}", f"output_dir={run}", "max_steps=4")).fit()
        losses.append(log_lines(run)[-1]["reconstruction"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_over_nccl(tiny, tmp_path, cuda, ranks):
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"there are fewer than {ranks} CUDA devices")
    shared = ["--config", str(tiny.file), "deterministic=true", "max_steps=4"]
    overrides = [f"batch_size={2 // ranks}", f"output_dir={tmp_path}/ranks"]
    words = json.dumps([["vqgan", [*shared, *overrides]]])
    script = Path(__file__).parent / "train_offline_in_ranks.py"
    launch_by_torchrun(script, ranks, words, ACCELERATE_USE_CPU="false")
    states = [
        flatten(torch.load(tmp_path / "ranks" / f"rank_{rank}.pt", map_location="cpu", weights_only=False))
        for rank in range(ranks)
    ]
    for key, value in states[0].items():
        if isinstance(value, torch.Tensor) and key.startswith(("models", "optimizers")):
            assert all(torch.equal(value, other[key]) for other in states[1:]), key
    Trainer(tiny("deterministic=true", "max_steps=4")).fit()
    first, alone = (log_lines(tmp_path / name)[0] for name in ("ranks", "run"))
    for name in ("reconstruction", "perceptual", "autoencoder_gradient_norm"):
        assert first[name] == pytest.approx(alone[name], rel=1e-3), name


def without_inception(*arguments):
    raise WeightsNotFoundError("not looked for here")


def test_evaluation_is_that_of_the_cpu(alexnet_trunk, tmp_path, monkeypatch, device):
    monkeypatch.setattr("latentae.evaluation.networks.InceptionFeatures", without_inception)
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path / "cache"))
    draw_images(tmp_path / "images", 12, size=64)
    tiny_model().save_pretrained(tmp_path / "kl")
    found = {}
    for place in {"cpu": torch.device("cpu"), device.type: device}.values():
        out = tmp_path / f"report-{place.type}"
        request = Request([str(tmp_path / "kl")], str(tmp_path / "images"), out, protocol="native")
        metrics = evaluate(request, place).models["kl"]
        found[place.type] = {name: metrics[name].value for name in metrics if "per_second" not in name}
    ours, theirs = found[device.type], found["cpu"]
    assert {"psnr", "ssim", "lpips_alex", "lpips_vgg", "fd_vgg16"} <= set(ours)
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-2, abs=1e-4, nan_ok=True), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_cache_of_latents_is_that_of_the_cpu(tmp_path, device, kind, precision):
    draw_images(tmp_path / "images", 6)
    model = tiny_model(kind)
    caches = []
    for place in (torch.device("cpu"), device):
        out = tmp_path / f"{place.type}-{len(caches)}"
        encode_dataset(
            model,
            str(tmp_path / "images"),
            out,
            image_size=32,
            device=place,
            precision=precision,
        )
        files = sorted(out.rglob("*.safetensors"))
        assert files
        caches.append({f"{file.name} {name}": t for file in files for name, t in load_file(file).items()})
    assert caches[0].keys() == caches[1].keys()
    for name, value in caches[0].items():
        tolerance = 2e-3 if precision == "float32" else 5e-2
        torch.testing.assert_close(caches[1][name], value, rtol=tolerance, atol=tolerance, msg=name)


def test_a_probe_ends_with_its_report(tmp_path, measures, monkeypatch, device):  # noqa: F811
    monkeypatch.setenv("LATENTAE_CACHE", str(tmp_path / "cache"))
    draw_images(tmp_path / "images" / "train", 24)
    draw_images(tmp_path / "images" / "val", 6, seed=1)
    request = ProbeRequest(
        models=["a=kl"],
        data=str(tmp_path / "images"),
        out=tmp_path / "probe",
        steps=4,
        batch_size=4,
        image_size=32,
        samples=4,
        sampling_steps=2,
        size=DenoiserSize(32, 1),
    )
    results = probe(request, device, open_model=lambda path: tiny_model(path, seed=3), measures=measures)
    assert all(math.isfinite(point.training_loss) for point in results.models["a"].curve)
    assert math.isfinite(results.reconstruction["a"]["psnr"].value)
    assert (request.out / "probe.html").is_file()
