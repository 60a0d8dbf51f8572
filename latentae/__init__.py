"""latentae: the autoencoders in front of latent diffusion models, trained, measured and exported.

Nothing heavy is imported before it is asked for, so that the command line answers at once.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# ModelMixin stands here because diffusers takes a module for a library of models only if it has that name.
_HOMES = {
    "Flux2VAE": "latentae.models",
    "ForeignAutoencoder": "latentae.models",
    "KLVAE": "latentae.models",
    "LatentDataset": "latentae.latents.cache",
    "TinyAutoencoder": "latentae.models",
    "Trainer": "latentae.training.trainer",
    "VQGAN": "latentae.models",
    "VQVAE": "latentae.models",
    "evaluate": "latentae.api",
    "export_autoencoder": "latentae.export",
    "load_autoencoder": "latentae.models",
    "load_config": "latentae.api",
    "ModelMixin": "diffusers",
}
__all__ = [
    "KLVAE",
    "VQGAN",
    "VQVAE",
    "Flux2VAE",
    "ForeignAutoencoder",
    "LatentDataset",
    "ModelMixin",
    "TinyAutoencoder",
    "Trainer",
    "__version__",
    "evaluate",
    "export_autoencoder",
    "load_autoencoder",
    "load_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'latentae' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
