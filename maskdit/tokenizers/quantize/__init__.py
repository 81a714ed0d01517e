"""Quantizers: what turns the features of an encoder into codes, and codes into what a decoder takes."""
