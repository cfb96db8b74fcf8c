"""Weights files of others, read without running code; addresses, digests, names of keys."""
