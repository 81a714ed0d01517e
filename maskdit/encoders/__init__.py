"""Encoders: images to features and class scores. For judging and guiding, not for decoding."""
