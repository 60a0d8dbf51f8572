"""Training: the run's folder, the step, and the trainer, the only module that knows accelerate."""
