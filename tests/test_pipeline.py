"""All stages on a few rendered clips, from video files to the report, through the command line.

One run serves all tests of this file; the tests then look at it and go on from it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dsts_pipeline.base.files import sign, write_json
from dsts_pipeline.base.params import load_settings, overrides_of
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.metrics.ablation import paper_figures
from tests.pipeline import TINY, WEIGHTS, params_of, run_cli, tell_plainly

STAGES = "prepare extract train-head evaluate report".split()
SETTINGS = {key.replace(".", "__"): value for key, value in TINY.items()}
HEADS = ("baseline", "linear_probe", "dsts")

# One run is not `slow`: `make test` sees every stage once.
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="the embedded weights are not here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder in which all five stages have run."""
    folder = tmp_path_factory.mktemp("run")
    for stage in STAGES:
        run = run_cli(folder, stage, **SETTINGS)
        assert run.returncode == 0, f"{stage}: {run.stderr}"
    return folder


def read(folder: Path, name: str):
    return json.loads((folder / "outputs" / name).read_text())


def test_every_clip_is_accounted_for(folder):
    counts = read(folder, "features.json")["counts"]
    assert (counts["planned"], counts["stored"], counts["failed"]) == (72, 72, 0)
    metrics = read(folder, "evaluation/metrics.json")
    assert (metrics["evaluated"], metrics["failed"], metrics["missing"]) == (24, 0, 0)


def test_every_head_has_its_figures(folder):
    heads = read(folder, "evaluation/metrics.json")["heads"]
    assert set(heads) == set(HEADS)
    for head in heads.values():
        assert 0 <= head["top1_low"] <= head["top1"] <= head["top1_high"] <= 1
    usage = heads["dsts"]["routing"]["layers"][0]["usage"]
    assert len(usage) == 10 and abs(sum(usage) - 1) < 1e-9


def test_routing_is_analysed_and_drawn(folder):
    routing = read(folder, "evaluation/routing.json")
    layer = routing["heads"]["dsts"]["layers"][2]
    assert sum(map(sum, layer["class_by_neuron"])) == 24
    assert set(layer["information"]) == {"class", "takeoff", "somersault", "twist", "position"}
    assert len(routing["heads"]["dsts"]["class_need"]["need"]) == 48
    drawn = (folder / "outputs/evaluation/plots/per_class.csv").read_text().splitlines()
    assert drawn[0].startswith("head,class,clips") and len(drawn) == 1 + 3 * 24


def test_history_has_an_entry_per_epoch(folder):
    lengths = {name: len(read(folder, f"heads/{name}/history.json")["epochs"]) for name in HEADS}
    assert lengths == {"baseline": 0, "linear_probe": 2, "dsts": 2}


def test_results_are_traced_to_their_origin(folder):
    metrics = read(folder, "evaluation/metrics.json")
    assert metrics["store"] == read(folder, "features.json")["fingerprint"]
    assert {"commit", "settings", "versions"} <= set(metrics["provenance"])


def test_table_and_report_are_told(folder):
    run = run_cli(folder, "results", **SETTINGS)
    assert run.returncode == 0
    assert "DSTS head (N = 10, L = 3)" in run.stdout
    assert "24 of 24 clips evaluated; 0 failed to decode" in run.stdout
    report = folder / "outputs" / "report" / "report.html"
    assert f"report: {report}" in run.stdout
    assert report.read_text().startswith("<!DOCTYPE html>")


def test_curves_are_logged(folder):
    curve = (folder / "outputs/dvclive/plots/metrics/train_loss.tsv").read_text().splitlines()
    assert curve[0].split("\t") == ["step", "train_loss"]
    assert len(curve) == 3


@pytest.mark.slow
def test_untrained_head_answers_as_the_baseline(folder):
    # Step zero of the DSTS head is the backbone's own classifier.
    values = SETTINGS | {"train__num_epochs": 0}
    for stage in ("train-head", "evaluate"):
        assert run_cli(folder, stage, **values).returncode == 0
    heads = read(folder, "evaluation/metrics.json")["heads"]
    assert heads["dsts"]["top1"] == heads["baseline"]["top1"]
    assert heads["dsts"]["versus_baseline"]["only_head_right"] == 0
    assert heads["dsts"]["versus_baseline"]["only_baseline_right"] == 0


@pytest.mark.slow
def test_second_extraction_changes_no_byte(folder):
    record = folder / "outputs" / "features.json"
    store = folder / read(folder, "features.json")["store"]
    before = record.read_bytes(), {p: p.stat().st_mtime_ns for p in store.rglob("*.*")}
    run = run_cli(folder, "extract", **SETTINGS)
    assert run.returncode == 0 and "0 maps in 0 shards" in run.stderr
    assert (record.read_bytes(), {p: p.stat().st_mtime_ns for p in store.rglob("*.*")}) == before


def test_maps_of_an_earlier_data_set_are_not_scored_as_those_of_another(folder):
    path = folder / "outputs" / "clips.json"
    kept = path.read_bytes()
    index = ClipIndex.load(path)
    try:
        replace(index, class_names=("of another set", *index.class_names[1:])).save(path)
        message = tell_plainly(run_cli(folder, "evaluate", **SETTINGS))
        assert "outputs/clips.json names" in message and "others; run `dvc repro`" in message
    finally:
        path.write_bytes(kept)


def test_results_of_other_maps_than_the_latest_are_told(folder):
    path = folder / "outputs" / "evaluation" / "metrics.json"
    kept = path.read_bytes()
    try:
        write_json(path, sign(json.loads(kept) | {"store": "f00"}))
        run = run_cli(folder, "results", **SETTINGS)
        assert "names other maps by now" in run.stdout and "are of (f00)" in run.stdout
    finally:
        path.write_bytes(kept)
    assert "other maps" not in run_cli(folder, "results", **SETTINGS).stdout


def test_options_that_exclude_each_other_are_told(folder):
    excluding = {"head__width": 16, "head__bottleneck": 8}
    message = tell_plainly(run_cli(folder, "train-head", **SETTINGS | excluding))
    assert message.startswith("error: head: bottleneck=8 and width=16 are two readings")


@pytest.mark.slow
def test_damage_is_found_named_and_repaired(folder):
    store = folder / read(folder, "features.json")["store"]
    shard = sorted((store / "maps").glob("c.*"))[1]
    sound = shard.read_bytes()
    shard.write_bytes(sound[:1000] + bytes([sound[1000] ^ 1]) + sound[1001:])
    message = tell_plainly(run_cli(folder, "verify", **SETTINGS))
    assert shard.name in message and "python cli.py verify --repair" in message
    assert run_cli(folder, "extract", **SETTINGS).returncode == 0
    assert shard.read_bytes() == sound
    assert run_cli(folder, "verify", **SETTINGS).returncode == 0


@pytest.mark.slow
def test_gst_and_tqn_have_figures_beside_the_papers(folder, repository):
    """From rendered files in Diving48's layout to the report's Table 2, by the listed variants."""
    overrides = overrides_of("paper_tables", repository / "configs" / "experiment")
    listed = load_settings(params_of(), overrides).ablate.variants
    variants = [variant.model_dump() for variant in listed if 2 in variant.table]
    assert [variant["name"] for variant in variants] == ["full", "gst", "tqn"]
    chosen = {"ablate__variants": json.dumps(variants), "ablate__num_seeds": 1}
    for stage in ("ablate", "report"):
        run = run_cli(folder, stage, **SETTINGS | chosen)
        assert run.returncode == 0, run.stderr
    found = read(folder, "ablation/results.json")["variants"]
    text = (folder / "outputs/report/tables/table_2.md").read_text().replace("*", "")
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    rows = {cells[1]: cells for cells in lines if len(cells) > 2}
    for name, method in {"gst": "GST", "tqn": "TQN", "full": "TPN with DSTS"}.items():
        assert rows[method][2] == str(paper_figures(2, name)["top1"])
        assert rows[method][4].startswith(f"{100 * found[name]['top1']['mean']:.1f}")
    assert rows["I3D"][2:6] == ["48.3", "33.2", "", ""]
