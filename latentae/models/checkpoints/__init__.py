"""Reads checkpoints that other programs wrote and turns them into our models."""
