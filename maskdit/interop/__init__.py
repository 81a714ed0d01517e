"""Published weights in and out: one table per model."""
