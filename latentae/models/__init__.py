"""The autoencoders, behind one interface."""

from latentae.models.checkpoints.open import Autoencoder
from latentae.models.flux2 import Flux2VAE
from latentae.models.foreign import ForeignAutoencoder
from latentae.models.kl import KLVAE
from latentae.models.latent import AutoencoderOutput, EncoderOutput, LatentAutoencoder, PosteriorOutput
from latentae.models.loading import load_autoencoder
from latentae.models.tiny import TinyAutoencoder
from latentae.models.vq import VQGAN, VQVAE

__all__ = [
    "KLVAE",
    "VQGAN",
    "VQVAE",
    "Autoencoder",
    "AutoencoderOutput",
    "EncoderOutput",
    "Flux2VAE",
    "ForeignAutoencoder",
    "LatentAutoencoder",
    "PosteriorOutput",
    "TinyAutoencoder",
    "load_autoencoder",
]
