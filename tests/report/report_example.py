"""A made-up run, of the default run's size or smaller, for tests and for looking at the page.

`python -m tests.report.report_example FOLDER` writes its report to FOLDER/report.html.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from dsts_pipeline.base.settings import EvaluateSettings
from dsts_pipeline.metrics import (
    Bootstrap,
    Denominators,
    HeadResult,
    Predictions,
    assemble_metrics,
    assemble_routing,
    softmax,
)
from dsts_pipeline.report.inputs import Failure, ReportInputs
from dsts_pipeline.report.page import render_report, write_report

TITLES = {
    "baseline": "Backbone's own classifier",
    "linear_probe": "Linear probe",
    "dsts": "DSTS head (N = 10, L = 3)",
}
ATTRIBUTE_NAMES = ("takeoff", "somersault", "twist", "position")


def class_attributes(num_classes: int) -> list[tuple[str, str, str, str]]:
    takeoffs = ("Back", "Forward", "Inward", "Reverse")
    each = -(-num_classes // 4)
    somersaults, twists = ("15som", "25som", "35som"), ("NoTwis", "05Twis", "15Twis", "25Twis")
    return [
        (
            takeoffs[i // each],
            somersaults[i % each // 4 % 3],
            twists[i % 4],
            ("TUCK", "PIKE", "FREE")[i % 3],
        )
        for i in range(num_classes)
    ]


def make_predictions(
    name: str, num_clips: int, num_classes: int, num_neurons: int, num_layers: int
) -> Predictions:
    generator = np.random.default_rng(0)  # labels and difficulty are the same for all heads
    labels = generator.integers(num_classes, size=num_clips)
    attributes = np.asarray(class_attributes(num_classes))
    shared = (attributes[:, None] == attributes[None]).sum(axis=2)[labels].astype(float)
    noise = generator.normal(size=(num_clips, num_classes))
    own = np.random.default_rng(len(name)).normal(size=(num_clips, num_classes))
    strength = {"baseline": 1.25, "linear_probe": 0.8, "dsts": 1.33}[name]
    logits = strength * shared + 1.15 * noise + 0.3 * own
    logits[np.arange(num_clips), labels] += 1.0
    neurons = None
    if name == "dsts":
        layers = []
        for layer in range(num_layers):
            centre = np.random.default_rng(layer).integers(
                max(num_neurons - 1, 1), size=num_classes
            )
            moved = generator.integers(max(num_neurons - 1, 1), size=num_clips)
            layers.append(np.where(generator.random(num_clips) < 0.7, centre[labels], moved))
        neurons = np.stack(layers, axis=1)
    ids = tuple(f"stick_{i:05d}" for i in range(num_clips))
    return Predictions(ids, labels, softmax(1.4 * logits), neurons)


def make_history(name: str, num_neurons: int, num_layers: int, epochs: int = 12) -> list[dict]:
    generator = np.random.default_rng(len(name))
    rows = []
    for epoch in range(epochs):
        done = 1 - np.exp(-epoch / 4)
        rise = {"linear_probe": 0.45, "dsts": 0.13}[name]
        base = {"linear_probe": 0.05, "dsts": 0.62}[name]
        row = {
            "epoch": epoch,
            "train_loss": 2.1 - 1.1 * done + 0.02 * generator.normal(),
            "train_accuracy": min(1.0, base + (rise + 0.1) * done),
            "heldout_loss": 2.2 - 0.9 * done + 0.03 * generator.normal(),
            "heldout_accuracy": base + rise * done + 0.008 * generator.normal(),
            "seconds": 4.2,
        }
        if name == "dsts":
            row["layers"] = [
                {
                    "usage": [1 / num_neurons] * num_neurons,
                    "entropy": float(np.log(num_neurons) * (1 - 0.12 * done * (layer + 1) / 2)),
                    "dead": int(done * layer),
                    "temporal_share": [0.5 + 0.06 * layer * done] * num_neurons,
                    "saturated_share": 0.4 * float(done) * (layer + 1) / 3,
                }
                for layer in range(num_layers)
            ]
        rows.append(row)
    return rows


def make_inputs(
    num_clips: int = 1195,
    num_classes: int = 48,
    num_neurons: int = 10,
    num_layers: int = 3,
    **changes,
) -> ReportInputs:
    sizes = (num_clips, num_classes, num_neurons, num_layers)
    predictions = {name: make_predictions(name, *sizes) for name in TITLES}
    attributes = class_attributes(num_classes)
    gates = np.random.default_rng(3).beta(2, 2, size=(num_layers, num_neurons)).tolist()
    answers, noise = predictions["dsts"], np.random.default_rng(5)
    routed = {
        "num_neurons": num_neurons,
        "temporal_share": gates,
        "features": np.eye(num_classes)[answers.labels] + noise.normal(size=(num_clips, 1)) / 4,
        "without_time": 0.7 * answers.probabilities + 0.3 / num_classes,
    }
    counts = {"baseline": 6192, "linear_probe": 6192, "dsts": 1_284_336}
    results = {
        name: HeadResult(
            TITLES[name], predictions[name], counts[name], **(routed if name == "dsts" else {})
        )
        for name in TITLES
    }
    metrics = assemble_metrics(
        results,
        denominators=Denominators(num_clips, failed=4, missing=1),
        split="test",
        store="9f2c41d7a0b35e68",
        bootstrap=Bootstrap(500),
        attribute_names=ATTRIBUTE_NAMES,
        attributes=attributes,
        provenance={
            "commit": "95df6f5c0ffee0123456789abcdef0123456789ab",
            "code_changed": False,
            "python": "3.11.2",
            "machine": "x86_64",
            "versions": {"torch": "2.13.0", "mmaction2": "1.2.0", "zarr": "3.1.6"},
            "settings": {
                "seed": 0,
                "head": {"num_neurons": num_neurons, "width": None, "synapse": True},
                "train": {"epochs": 12, "learning_rate": 0.002, "betas": [0.9, 0.999]},
            },
        },
    )
    routing = assemble_routing(
        results,
        class_names=[" ".join(row) for row in attributes],
        bootstrap=Bootstrap(200),
        how=EvaluateSettings(num_permutations=20, temporal_need="average"),
        num_pairs=8,
        attribute_names=ATTRIBUTE_NAMES,
        attributes=attributes,
    )
    fields = {
        "routing": json.loads(json.dumps(routing, sort_keys=True)),
        "metrics": json.loads(json.dumps(metrics, sort_keys=True)),
        "predictions": predictions,
        "histories": {
            "baseline": [],
            "linear_probe": make_history("linear_probe", num_neurons, num_layers),
            "dsts": make_history("dsts", num_neurons, num_layers),
        },
        "class_names": [" ".join(row) for row in attributes],
        "attribute_names": ATTRIBUTE_NAMES,
        "attributes": attributes,
        "failures": (
            Failure("stick_01195", "test", "decode", "truncated: 3 of 16 frames"),
            Failure("stick_01196", "test", "index", "no such file: rgb/stick_01196.mp4"),
        ),
        "dataset": "stick_diving",
    }
    return ReportInputs(**(fields | changes))


def make_frames(clip_id: str) -> np.ndarray:
    """A white disc that falls over a gradient: uint8 [16, 96, 96, 3]."""
    start = sum(clip_id.encode()) % 60 + 15
    y, x = np.mgrid[:96, :96]
    frames = np.empty((16, 96, 96, 3), np.uint8)
    for index in range(16):
        ground = np.stack([60 + y, 90 + x // 2, 150 - y // 2], axis=-1)
        disc = (x - start - index) ** 2 + (y - 10 - 5 * index) ** 2 < 60
        frames[index] = np.where(disc[..., None], 245, ground)
    return frames


if __name__ == "__main__":
    page = render_report(make_inputs(), frames_of=make_frames)
    for path in write_report(page, Path(sys.argv[1]) / "report.html"):
        print(path, path.stat().st_size)
