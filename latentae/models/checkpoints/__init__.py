"""Checkpoints that others wrote: read, told apart, and translated."""
