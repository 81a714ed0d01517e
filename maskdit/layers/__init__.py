"""Layers shared by tokenizers and networks."""
