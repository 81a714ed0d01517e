"""Images to latents and back: one file per tokenizer."""
