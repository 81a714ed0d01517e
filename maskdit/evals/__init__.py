"""Evals: how good samples are, and pictures of runs."""
