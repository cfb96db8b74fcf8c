"""Frozen models by name, file or registry, and the maps that are taken from them."""
