"""Small models to start from, in every format, and the runs that start from them."""

import torch
from safetensors.torch import save_file

from latentae import KLVAE, VQGAN, TinyAutoencoder
from latentae.config import load_config
from latentae.models.checkpoints.layouts import to_ldm_names
from latentae.models.tiny_layers import TinyLevels, arguments_of
from latentae.training.run_folder import describe_pretrained

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WITHOUT_GAN = ("loss.adversarial=null", "discriminator=null")
KL = ("model.class=KLVAE", "loss.kl.weight=0.01", *WITHOUT_GAN)
VQ = ("model.class=VQVAE", *WITHOUT_GAN)

TAESD = ("model.class=TinyAutoencoder", *WITHOUT_GAN)


def make_tiny(widths=(8, 16), *, blocks=1, pooled=True, folds=1, decoder=None, upscale=1):
    """A TinyAutoencoder of given levels with random weights; ``decoder``: the levels of its decoder."""
    torch.manual_seed(9)
    levels = TinyLevels(widths, blocks, pooled, folds)
    upwards = decoder or TinyLevels(widths, blocks, pooled, folds * upscale)
    model = TinyAutoencoder(**arguments_of(levels.encoder(3, 4), upwards.decoder(4, 3), upscale)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def make_pretrained(cls=KLVAE, **changes):
    """A model of two levels, no value of which is what a fresh one has; 32 channels, as single files want."""
    arguments = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 8,
        "latent_channels": 4,
        "scaling_factor": 0.37,
    }
    if cls is not KLVAE:
        arguments["num_vq_embeddings"] = 24
    torch.manual_seed(9)
    model = cls(**{**arguments, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        for name, codes in model.named_parameters():
            if "embedding" in name:
                codes.normal_()
    return model


def write_pretrained(model, folder, form):
    """Writes a model under ``folder``; returns what ``model.pretrained`` is to be."""
    if form == "our folder":
        model.save_pretrained(folder / "ours")
        return str(folder / "ours")
    if form == "diffusers folder":
        model.to_diffusers().save_pretrained(folder / "stock")
        return str(folder / "stock")
    if form == "weights in a folder":
        model.save_pretrained(folder / "ours")
        return str(folder / "ours/diffusion_pytorch_model.safetensors")
    if form == "run":
        model.to_diffusers().save_pretrained(folder / "old_run/model")
        return str(folder / "old_run")
    if form == "hub id":  # as the hub's cache holds it
        repository = folder / "hub/models--owner--name"
        model.to_diffusers().save_pretrained(repository / "snapshots" / COMMIT / "vae")
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text(COMMIT)
        return "owner/name"
    state = {name: value.contiguous() for name, value in to_ldm_names(model.state_dict()).items()}
    if form == "LDM file":
        save_file(state, folder / "vae.safetensors")
        return str(folder / "vae.safetensors")
    assert form == "checkpoint"
    torch.save(
        {"state_dict": {f"first_stage_model.{name}": x for name, x in state.items()}}, folder / "a.ckpt"
    )
    return str(folder / "a.ckpt")


FORMS = (
    "our folder",
    "diffusers folder",
    "weights in a folder",
    "run",
    "hub id",
    "LDM file",
    "checkpoint",
)


def fine_tuning(tiny, place, *overrides, cls=KLVAE):
    """The config of a tiny run that starts from ``place``."""
    family, own = {
        "KLVAE": ("kl_vae", KL),
        "TinyAutoencoder": ("kl_vae", TAESD),
        "VQGAN": ("vqgan", ()),
        "VQVAE": ("vq_vae", VQ),
    }[cls.__name__]
    if "loss.kl=null" in overrides:
        own = tuple(key for key in own if not key.startswith("loss.kl"))
    arguments = ["--config", str(tiny.file), *own, f"model.pretrained={place}", *overrides]
    return load_config(family, arguments, describe_pretrained)


__all__ = [
    "FORMS",
    "KL",
    "KLVAE",
    "VQ",
    "VQGAN",
    "fine_tuning",
    "make_pretrained",
    "make_tiny",
    "write_pretrained",
]
