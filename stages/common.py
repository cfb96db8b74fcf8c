"""What the stages share: where they put what they make, from the folder that a run starts in."""

from __future__ import annotations

from pathlib import Path

OUTPUTS = Path("outputs")
CLIP_INDEX = OUTPUTS / "clips.json"
CLIP_CHECK = OUTPUTS / "clip_check.json"
PROBE_CACHE = OUTPUTS / "probe_cache.jsonl"
WEIGHTS = OUTPUTS / "weights.json"
WEIGHTS_DIGESTS = OUTPUTS / "weights_digests.json"
FEATURES = OUTPUTS / "features.json"
NAMED_VIDEOS = OUTPUTS / "named_videos.json"
HEADS = OUTPUTS / "heads"
CHECKPOINTS = OUTPUTS / "checkpoints"
FINETUNED = OUTPUTS / "finetuned"
PRETRAINED = OUTPUTS / "pretrained_backbone"
SEARCH = OUTPUTS / "search"
EVALUATION = OUTPUTS / "evaluation"
METRICS = EVALUATION / "metrics.json"
ROUTING = EVALUATION / "routing.json"
PLOT_TABLES = EVALUATION / "plots"
HEADLINE = EVALUATION / "headline.json"
PREDICTIONS = EVALUATION / "predictions"
ABLATION = OUTPUTS / "ablation"
REPORT = OUTPUTS / "report" / "report.html"

# Heads in the order of the tables.
HEAD_NAMES = ("baseline", "linear_probe", "attentive_probe", "dsts")
