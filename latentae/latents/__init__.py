"""What latents are like over a set of images, and models made to give them zero mean and unit variance."""
