import pytest
import torch
from safetensors.torch import load_file

from benchmarks.random_weights import random_trunk
from latentae.config import load_config
from latentae.losses.perceptual import LPIPS
from latentae.losses.reconstruction import ReconstructionObjective, l1
from latentae.models.lean import make_lean
from latentae.training.accelerator import create_accelerator
from latentae.training.adversary import Adversary
from latentae.training.dry_run import WorkingSpace
from latentae.training.networks import build_networks
from latentae.training.randomness import StepRandomness
from latentae.training.speed import TorchSettings, set_float32_precision, tune, use_channels_last
from latentae.training.step import TrainingStep
from latentae.training.trainer import Trainer
from tests.models.conftest import make
from tests.training.conftest import draw_images
from tests.training.launch import log_lines
from tests.training.small_networks import assert_same_gradients, gradients, small_networks

CPU = torch.device("cpu")


def kinds(model):
    return {type(module).__name__ for module in model.modules()}


@pytest.mark.parametrize(("size", "chunk"), [((64, 64), 8), ((128, 256), 1), ((512, 512), 1)])
def test_on_a_cpu_blocks_are_lean_and_lpips_goes_in_chunks(alexnet_trunk, size, chunk):
    model, objective = make(), ReconstructionObjective(l1, perceptual=LPIPS(alexnet_trunk))
    sentence = tune(model, objective, size, CPU)
    assert objective.perceptual.chunk == chunk
    assert {"LeanResnetBlock2D", "LeanUpsample2D", "LeanActivatedNorm"} < kinds(model)
    # 1 + 1 + 2 residual blocks, attention and a norm; 2 + 2 + 2 with the same and an upsampling
    lpips = f"LPIPS {chunk} images at a time, 3 of its convolutions by Winograd's algorithm"
    assert sentence == f"performance=auto on cpu: 15 lean blocks; {lpips}"


def test_lpips_in_bfloat16_is_told(alexnet_trunk):
    objective = ReconstructionObjective(l1, perceptual=LPIPS(alexnet_trunk, precision="bfloat16"))
    assert tune(make(), objective, (64, 64), CPU).endswith("LPIPS 8 images at a time in bfloat16")


def test_where_nothing_was_measured_the_blocks_stay(alexnet_trunk):
    model, objective = make(), ReconstructionObjective(l1, perceptual=LPIPS(alexnet_trunk))
    sentence = tune(model, objective, (64, 64), torch.device("xpu"))
    assert sentence == "performance=auto on xpu: LPIPS 128 images at a time"
    assert "LeanResnetBlock2D" not in kinds(model)
    without = tune(model, ReconstructionObjective(l1), (64, 64), torch.device("xpu"))
    assert without == "performance=auto on xpu: nothing to choose"


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
@pytest.mark.parametrize(("size", "chunk"), [((256, 256), 8), ((512, 1024), 1), ((2048, 2048), 1)])
def test_on_any_other_device_lpips_is_bounded_in_memory(monkeypatch, alexnet_trunk, device, size, chunk):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    objective = ReconstructionObjective(l1, perceptual=LPIPS(alexnet_trunk))
    tune(make(), objective, size, torch.device(device))
    assert objective.perceptual.chunk == chunk


def test_the_bound_on_lpips_is_less_than_a_gibibyte():
    """Of the larger trunk; memory grows with the pixels that it takes at a time, not with the batch."""
    trunk = random_trunk("vgg")
    images, target = torch.rand(2, 4, 3, 32, 32) * 2 - 1
    peaks, values = {}, {}
    for chunk in (None, 1):
        lpips, space = LPIPS(trunk, net="vgg", chunk=chunk), WorkingSpace()
        with space:
            values[chunk] = lpips(images.requires_grad_(), target)
        peaks[chunk] = space.peak
    assert peaks[None] / (4 * 32 * 32) * 2**19 < 2**30
    assert peaks[1] < 0.35 * peaks[None]
    torch.testing.assert_close(values[1], values[None])


@pytest.mark.parametrize("device", ["cpu", "xpu"])
def test_the_least_memory_is_to_be_had_on_any_device(alexnet_trunk, device):
    model, objective = make(), ReconstructionObjective(l1, perceptual=LPIPS(alexnet_trunk))
    sentence = tune(model, objective, (64, 64), torch.device(device), performance="memory")
    assert objective.perceptual.chunk == 1
    blocks = [module for module in model.modules() if type(module).__name__ == "LeanResnetBlock2D"]
    assert {block.recomputed_channels for block in blocks} == {8}
    assert sentence == (
        f"performance=memory on {device}: 15 lean blocks, convolutions of 8 channels done twice; "
        "LPIPS 1 images at a time"
    )


@pytest.mark.parametrize(("sizes_differ", "tries"), [(False, True), (True, False)])
def test_on_cuda_what_documentation_promises_is_chosen_and_said_to_be_unmeasured(
    monkeypatch, sizes_differ, tries
):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    model = make()
    sentence = tune(
        model, ReconstructionObjective(l1), (64, 64), torch.device("cuda"), sizes_differ=sizes_differ
    )
    assert torch.backends.cudnn.benchmark == tries
    assert ("cuDNN tries" in sentence) == tries
    assert sentence.endswith("not measured here")
    assert "LeanResnetBlock2D" not in kinds(model)


def test_a_run_switches_off_what_a_run_before_it_left_on(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    tune(make(), ReconstructionObjective(l1), (64, 64), torch.device("cuda"), sizes_differ=True)
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ((), False),
        (("loss.equivariance={min_scale: 0.5}",), True),
        (("loss.equivariance={probability: 0.1, min_scale: 1, low_resolution_probability: 0}",), True),
        (("loss.spectral={factors: [2, 4]}",), False),
        (("loss.latent_noise={scale: 0.1}",), False),
        (("data.resolutions=[[16, 16], [16, 32]]",), True),
    ],
)
def test_cudnn_tries_nothing_out_where_a_step_draws_its_sizes(tiny, monkeypatch, changes, differ):
    found = []
    monkeypatch.setattr(
        "latentae.training.networks.tune", lambda *_, sizes_differ, **__: found.append(sizes_differ) or ""
    )
    config = tiny("loss.perceptual=null", *changes)
    build_networks(config, create_accelerator(config), ReconstructionObjective(l1))
    assert found == [differ]


def test_a_deterministic_run_lets_cudnn_try_nothing_out(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    tune(make(), ReconstructionObjective(l1), (64, 64), torch.device("cuda"))
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize("setting", ["auto", "memory", "off"])
def test_the_config_decides_and_what_is_exported_is_stock(tiny, setting):
    config = tiny(f"performance={setting}")
    networks = build_networks(config, create_accelerator(config), ReconstructionObjective(l1))
    assert ("LeanResnetBlock2D" in kinds(networks.autoencoder)) == (setting != "off")
    assert "LeanResnetBlock2D" not in kinds(networks.ema.model)
    assert any(f"performance={setting}" in line for line in networks.describe()) == (setting != "off")


def test_training_comes_to_the_same_with_and_without(tiny, tmp_path):
    weights = []
    # Adam divides by a gradient's size: with its usual epsilon, rounding errors near 0 would be whole steps.
    gently = ("optimizer.epsilon=1.0e-3", "discriminator.optimizer.epsilon=1.0e-3", "max_steps=3")
    for setting in ("auto", "memory", "off"):
        trainer = Trainer(tiny(*gently, f"performance={setting}", f"output_dir={tmp_path}/{setting}"))
        trainer.fit()
        weights.append([p.detach().clone() for p in trainer.networks.autoencoder.parameters()])
    for tuned in weights[:2]:
        torch.testing.assert_close(tuned, weights[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("lean", [False, True])
def test_channels_last_changes_the_order_in_memory_and_no_gradient(lean):
    found = []
    for last in (False, True):
        autoencoder, discriminator, objective = small_networks()
        if lean:
            make_lean(autoencoder)
        if last:
            sentence = use_channels_last(autoencoder, objective.perceptual, discriminator)
            assert sentence.startswith("channels_last=true: ")
            for weight in (autoencoder.last_layer.weight, discriminator.layers[2].weight):
                assert weight.is_contiguous(memory_format=torch.channels_last)
                assert not weight.is_contiguous()
        step = TrainingStep(autoencoder, autoencoder.last_layer, objective, Adversary(discriminator))
        torch.manual_seed(0)
        images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
        step(images, StepRandomness(seed=0, step=0))
        found.append(gradients(autoencoder, discriminator))
    assert_same_gradients(found[1], found[0])


def test_a_run_in_channels_last_resumes_exactly_and_exports_what_any_run_does(tiny, tmp_path):
    def train(name, *changes):
        trainer = Trainer(tiny("max_steps=4", f"output_dir={tmp_path}/{name}", *changes))
        trainer.fit()
        return trainer.networks.autoencoder.state_dict()

    weights = train("whole", "channels_last=true")
    checkpoint = tmp_path / "whole" / "checkpoints" / "step_000003"
    resumed = train("resumed", "channels_last=true", f"resume={checkpoint}")
    train("plain")
    assert not weights["decoder.conv_out.weight"].is_contiguous()
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())
    exported = [
        load_file(tmp_path / name / "model" / "diffusion_pytorch_model.safetensors")
        for name in ("whole", "plain")
    ]
    shapes = [{name: value.shape for name, value in weights.items()} for weights in exported]
    assert shapes[0] == shapes[1]


def test_the_end_of_a_run_puts_torch_s_settings_back(tiny, monkeypatch):
    """So that who trains and then goes on in the same process does not go on with them."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or the run would leave it behind
    threads, within = torch.get_num_threads(), []
    torch.set_num_threads(threads + 1)  # fewer in the run: of more than cores, all wait
    trainer = Trainer(tiny("deterministic=true", f"cpu_threads={threads}", "max_steps=1"))
    torch.backends.cudnn.benchmark = True  # as on CUDA
    train = trainer._train
    trainer._train = lambda *arguments: (within.append(TorchSettings.read()), train(*arguments))
    trainer.fit()
    after = TorchSettings.read()
    torch.set_num_threads(threads)
    assert within == [TorchSettings(True, 2, threads)]
    assert after == TorchSettings(False, 0, threads + 1)


@pytest.fixture
def precision_restored():
    """What a run sets stays set for its process."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.usefixtures("precision_restored")
@pytest.mark.parametrize(("precision", "allowed"), [("high", True), ("highest", False)])
def test_float32_on_cuda_is_what_was_asked_for(precision, allowed):
    torch.backends.cudnn.allow_tf32 = not allowed
    sentence = set_float32_precision(precision, torch.device("cuda"))
    assert sentence.startswith(f"float32_precision={precision}: ")
    assert ("TensorFloat-32" in sentence) == allowed
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == allowed
    assert torch.get_float32_matmul_precision() == precision


def test_float32_elsewhere_is_left_alone(tiny):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    config = tiny("float32_precision=high")
    networks = build_networks(config, create_accelerator(config), ReconstructionObjective(l1))
    expected = "float32_precision=high: is about CUDA, nothing to set on cpu"
    assert expected in networks.describe()
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_auto_has_the_losses_of_off_when_latents_are_transformed(tmp_path, tiny):
    """Equivariance changes the size of the decoder's input and of the images that LPIPS sees."""
    draw_images(tmp_path / "large", count=6, size=96)
    shared = [
        *("model.class=KLVAE", "loss.adversarial=null", "discriminator=null"),
        *("data.image_size=64", f"data.name={tmp_path}/large", "log_every=1", "max_steps=4"),
        "loss.equivariance={probability: 0.6, min_scale: 0.5, low_resolution_probability: 0.5}",
    ]
    logs = []
    for performance in ("auto", "off"):
        words = [*shared, f"performance={performance}", f"output_dir={tmp_path}/{performance}"]
        trainer = Trainer(load_config("kl_vae", ["--config", str(tiny.file), *words]))
        assert ("LeanResnetBlock2D" in kinds(trainer.networks.autoencoder)) == (performance == "auto")
        trainer.fit()
        logs.append(log_lines(tmp_path / performance))
    auto, off = logs
    assert any("equivariance" in line for line in off)
    assert any("equivariance" not in line for line in off)
    for line, expected in zip(auto, off, strict=True):
        assert line == pytest.approx(expected, rel=1e-4)
