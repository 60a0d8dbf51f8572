import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from latentae import KLVAE, VQGAN, VQVAE, load_autoencoder
from latentae.training.networks import freeze_encoder
from latentae.training.trainer import Trainer
from tests.training.pretrained_models import fine_tuning, make_pretrained, write_pretrained

DECODER = {"decoder", "post_quant_conv"}
MODELS = {
    "KL": (KLVAE, ()),
    "KL without a KL term": (KLVAE, ("loss.kl=null",)),
    "codes by gradient": (VQVAE, ("model.quantizer.type=vector",)),
    "codes by averages": (VQVAE, ("model.quantizer.type=ema", "gradient_accumulation_steps=2")),
    "residual codes": (VQVAE, ("gradient_accumulation_steps=2",)),
    "VQGAN": (VQGAN, ()),
}
RESIDUAL = {"type": "residual", "depth": 2, "dropout": 0.5, "member": {"type": "ema", "revive_after": 1}}


def pictures(count=4):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1


def place_of(tmp_path, cls, kind=""):
    if kind == "residual codes":
        return write_pretrained(make_pretrained(cls, quantizer=RESIDUAL), tmp_path, "our folder")
    return write_pretrained(make_pretrained(cls), tmp_path, "diffusers folder")


@torch.no_grad()
def latents_of(model):
    """All that a denoiser could have been trained on."""
    images = pictures()
    if isinstance(model, KLVAE):
        posterior = model.encode(images).latent_dist
        scaled = model.to_latents(images, torch.Generator().manual_seed(0))
        return {"mean": posterior.mean, "log-variance": posterior.logvar, "scaled": scaled}
    return {
        "latents": model.encode(images).latents,
        "indices": model.encode_indices(images),
        "codes": model.quantize.codes(model.encode_indices(images)),
        "scaled": model.to_latents(images),
    }


@pytest.mark.parametrize("cls", [KLVAE, VQVAE])
def test_what_is_frozen_records_and_observes_nothing(cls):
    model = make_pretrained(cls).train()
    frozen = freeze_encoder(model)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda x: x):
        latents = model.encode(pictures()).latents
    assert (latents.requires_grad, saved) == (False, [])
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == DECODER
    assert frozen.total == sum(p.numel() for p in model.parameters())
    assert frozen.parameters == frozen.total - sum(p.numel() for p in model.parameters() if p.requires_grad)
    model(pictures()).sample.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    if cls is VQVAE:
        assert model.quantize.pending_counts.sum() == 0
        assert "frozen: encoder, quant_conv, quantize (" in str(frozen)


@pytest.mark.parametrize("kind", MODELS)
def test_latents_are_bit_equal_before_and_after(tiny, tmp_path, kind):
    cls, overrides = MODELS[kind]
    place = place_of(tmp_path, cls, kind)
    before = load_autoencoder(place)
    trainer = Trainer(fine_tuning(tiny, place, "freeze_encoder=true", *overrides, cls=cls))
    (optimizer,) = [
        learner.optimizer for learner in trainer.networks.learners if learner.name == "autoencoder"
    ]
    summary = trainer.fit()

    learned = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    decoders = [
        p for name, p in trainer.networks.autoencoder.named_parameters() if name.split(".")[0] in DECODER
    ]
    assert learned == sum(p.numel() for p in decoders)
    after = load_autoencoder(tmp_path / "run")
    for model in (after, trainer.networks.autoencoder, trainer.networks.ema.model):
        for name, value in latents_of(model).items():
            assert torch.equal(value, latents_of(before)[name]), name
    own, old = after.state_dict(), before.state_dict()
    moved = {name for name, value in old.items() if not torch.equal(own[name], value)}
    decoding = {name for name in old if name.split(".")[0] in DECODER}
    # Attention does not depend on the bias of its keys.
    assert {name for name in decoding if not name.endswith("to_k.bias")} <= moved <= decoding
    assert summary["scaling_factor"] == after.config.scaling_factor == 0.37
    assert summary["scale_source"] == "of the pretrained model"
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        assert not {"kl", "commitment", "codebook", "codebook_usage"} & set(json.loads(line))


@pytest.mark.parametrize("kind", ["KL", "VQGAN"])
def test_a_resumed_run_needs_no_pretrained_model_and_equals_an_uninterrupted_one(tiny, tmp_path, kind):
    cls, overrides = MODELS[kind]
    place = place_of(tmp_path, cls)
    shared = ["freeze_encoder=true", "optimizer.schedule=constant", *overrides]
    Trainer(fine_tuning(tiny, place, *shared, f"output_dir={tmp_path}/whole", cls=cls)).fit()
    Trainer(fine_tuning(tiny, place, *shared, "max_steps=3", cls=cls)).fit()
    shutil.rmtree(place)
    (tmp_path / "run/pretrained.json").unlink()
    continued = Trainer(fine_tuning(tiny, place, *shared, cls=cls))
    assert continued.step == 3
    assert continued.fit()["scaling_factor"] == 0.37
    weights = [
        load_file(tmp_path / run / "model/diffusion_pytorch_model.safetensors") for run in ("whole", "run")
    ]
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value), name
    records = [json.loads((tmp_path / run / "pretrained.json").read_text()) for run in ("whole", "run")]
    assert records[0] == records[1]


def test_a_posterior_is_sampled_as_its_denoiser_s_latents_were(tiny, tmp_path):
    place = place_of(tmp_path, KLVAE)
    trainer = Trainer(fine_tuning(tiny, place, "freeze_encoder=true", "loss.kl=null"))
    seen = []
    trainer.networks.autoencoder.post_quant_conv.register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    batch = pictures(2)
    trainer.networks.step(batch, trainer.randomness())
    noise = trainer.randomness().normal("posterior", 2, 4, 16, 16)
    posterior = trainer.networks.autoencoder.encode(batch).latent_dist
    torch.testing.assert_close(seen[0], posterior.mean + posterior.std * noise)
