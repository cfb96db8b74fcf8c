"""What every other folder uses: errors, settings, provenance, seeding, files, progress.

This folder imports none of ours.

Legend of dimensions, used in docstrings and shapes everywhere:
B batch, V views of one video, C channels, T H W time and space of a feature map,
N neurons per layer, L layers, K classes.
"""
