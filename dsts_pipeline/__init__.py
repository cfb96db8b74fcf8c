"""Dynamic Spatio-Temporal Specialization for fine-grained action recognition, end to end.

Folders, read alphabetically from `base`, are the order of the data's way and of the imports:
base, clips, extract, feature_store, feed, head, learn, metrics, report.
"""

__version__ = "0.1.0"
