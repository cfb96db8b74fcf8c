"""Trained head -> answers: the bundle that holds all an answer needs, predictions, the local page.

Enters: what a run made. Leaves: a folder that can be taken elsewhere, and what it says of videos.
"""

from dsts_pipeline.serve.bundle import BackboneSource, Bundle, load_bundle, save_bundle

__all__ = ["BackboneSource", "Bundle", "load_bundle", "save_bundle"]
