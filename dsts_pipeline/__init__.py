"""Dynamic Spatio-Temporal Specialization for fine-grained action recognition, end to end.

Folders in the order of the imports: base, clips, extract, feature_store, feed, head, learn, stick,
metrics, report, serve, mmaction2 (docs/layout.md).
"""

__version__ = "0.2.0"
