"""Statistics of latents, calibrated models, caches of latents, and inspections of the latent space."""
