"""The way back from noise: samplers, and the guidance that wraps a prediction."""
