"""Networks: one file per published architecture."""
