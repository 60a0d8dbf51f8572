"""The families of autoencoders that can be trained: one script each. To add a family, add its line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """The `model.class` values that a training script accepts, the script, and the config it starts from."""

    classes: tuple[str, ...]
    script: str
    default_config: str


FAMILIES = {
    "kl_vae": Family(classes=("KLVAE",), script="train_kl_vae.py", default_config="quickstart_kl"),
    "vq_vae": Family(classes=("VQVAE",), script="train_vq_vae.py", default_config="quickstart_vq"),
    "vqgan": Family(classes=("VQGAN",), script="train_vqgan.py", default_config="quickstart"),
}
