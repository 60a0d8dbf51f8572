"""The probe: a small denoiser trained on a model's latents, to see what can be generated from them."""
