"""Corruption, target and loss: one file per process. A process never imports Flax."""
