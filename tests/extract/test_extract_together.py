"""Extractions that share a store, and the forecast of one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dsts_pipeline.base.errors import DataError, StoreError
from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.extract.runner import Forecast, extract_features, forecast_extraction
from dsts_pipeline.extract.views import ViewPlan
from dsts_pipeline.feature_store import StoreWriter, open_store
from tests.extract.small_set import (
    NUM_CLIPS,
    PoolingBackbone,
    extract_store,
    index_clips,
    plan_store,
    write_clips,
)
from tests.feature_store.small_store import read_tree

HERE = BackboneSettings(num_decode_workers=0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    write_clips(root)
    return root


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    """The store as one process writes it."""
    store, _ = extract_store(tmp_path_factory.mktemp("s"), index_clips(clips), num_decode_workers=0)
    return store


def start_extraction(clips: Path, root: Path, repository: Path) -> subprocess.Popen[str]:
    """A process that extracts and prints a line per shard; it waits 0.3 s after each."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.extract.small_set", str(clips), str(root)],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_extractions_share_a_store(clips, undisturbed, tmp_path, repository):
    runs = [start_extraction(clips, tmp_path, repository) for _ in range(2)]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    shards = [out.split("\n")[:-1] for out, _ in outputs]
    assert sorted(sum(shards, [])) == [f"shard {number}" for number in range(6)]
    assert read_tree(tmp_path / undisturbed.name) == read_tree(undisturbed)


@pytest.mark.long
def test_the_shards_of_a_killed_extraction_are_taken_over(clips, undisturbed, tmp_path, repository):
    first = start_extraction(clips, tmp_path, repository)
    assert first.stdout.readline() == "shard 0\n"
    first.send_signal(signal.SIGSTOP)  # It holds its shards, and does not get on.
    second = start_extraction(clips, tmp_path, repository)
    waited = iter(second.stderr.readline, "")
    assert any("shards that other processes write" in line for line in waited)
    first.kill()
    first.communicate(timeout=60)
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0 and out
    assert read_tree(tmp_path / undisturbed.name) == read_tree(undisturbed)


def test_an_unwritable_store_ends_the_extraction(clips, tmp_path):
    class Hot(PoolingBackbone):
        def __call__(self, frames):
            return super().__call__(frames) * 1e6

    index = index_clips(clips)
    with StoreWriter(tmp_path, plan_store(index)) as writer:
        with pytest.raises(StoreError, match="clip clip0: channel 0 .* overflows float16"):
            extract_features(ViewPlan(index, Hot()), Hot(), writer, HERE)
        assert len(writer.pending_shards()) == writer.plan.num_shards


def test_overflowing_clips_count_as_failed(clips, tmp_path):
    class HotAtFirst(PoolingBackbone):
        def __call__(self, frames):
            maps = super().__call__(frames)
            maps[0] *= 1e6
            return maps

    index = index_clips(clips)
    plan = replace(plan_store(index), on_overflow="fail")
    views = ViewPlan(index, HotAtFirst())
    settings = HERE.model_copy(update={"max_failed_fraction": 0.05})
    with StoreWriter(tmp_path, plan) as writer:
        with pytest.raises(DataError, match="2 of 22 clips have no map, 1 are .*can't be stored"):
            extract_features(views, HotAtFirst(), writer, settings)
        assert len(writer.pending_shards()) >= 3, "it does not go on to the end"
        settings = HERE.model_copy(update={"max_failed_fraction": 0.3})
        extract_features(views, HotAtFirst(), writer, settings)
        writer.finish({})
    store = open_store(writer.path)
    assert [failure["position"] for failure in store.manifest["failures"]] == [0, 4, 8, 12, 16, 20]
    assert len(store) == NUM_CLIPS - 6


@pytest.mark.parametrize("workers", [0, 2])
def test_forecast_measures_pending_clips_and_keeps_nothing(clips, tmp_path, workers):
    index = index_clips(clips)
    backbone: object = PoolingBackbone()
    forecast = forecast_extraction(
        ViewPlan(index, PoolingBackbone()),
        backbone,  # type: ignore[arg-type]
        range(3, NUM_CLIPS),
        num_decode_workers=workers,
        batch_size=4,
    )
    assert forecast.num_clips == 8
    assert 0 < forecast.decode_seconds < 1 and 0 < forecast.forward_seconds < 1
    plan = ViewPlan(index, PoolingBackbone())
    few = forecast_extraction(plan, backbone, [5], num_decode_workers=0)  # type: ignore[arg-type]
    assert few.num_clips == 1


class SlowBackbone(PoolingBackbone):
    """Half a tenth of a second a clip."""

    def __call__(self, frames):
        time.sleep(0.05 * len(frames))
        return super().__call__(frames)


def test_a_forecast_ends_within_its_limit_and_says_on_how_many_clips(clips):
    plan = ViewPlan(index_clips(clips), SlowBackbone())

    def forecast(limit_seconds):
        began = time.monotonic()
        found = forecast_extraction(
            plan,
            SlowBackbone(),  # type: ignore[arg-type]
            range(NUM_CLIPS),
            num_decode_workers=0,
            batch_size=8,
            limit_seconds=limit_seconds,
        )
        return found, time.monotonic() - began

    few, seconds = forecast(0.9)
    assert 1 < few.num_clips < 16 and seconds < 1.5
    assert few.forward_seconds == pytest.approx(0.05, rel=0.5)
    least, _ = forecast(0.001)
    assert (least.num_clips, least.num_decoded) == (1, 1)
    assert forecast(60.0)[0].num_clips == 16


class DeepBackbone(nn.Module):
    """Ten layers of a twentieth of a second, of which hooks see each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(SlowLayer() for _ in range(10)))
        inner = PoolingBackbone()
        self.num_frames, self.size_px = inner.num_frames, inner.size_px
        self.device = torch.device("cpu")

    def forward(self, frames):
        return self.layers(frames.float())


class SlowLayer(nn.Linear):
    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, frames):
        time.sleep(0.05)
        return frames


def test_a_pass_that_outlasts_the_limit_ends_between_two_modules_and_is_a_lower_bound(clips):
    began = time.monotonic()
    backbone: object = DeepBackbone()
    plan = ViewPlan(index_clips(clips), PoolingBackbone())
    options = {"num_decode_workers": 0, "batch_size": 2, "limit_seconds": 0.3}
    found = forecast_extraction(plan, backbone, range(4), **options)  # type: ignore[arg-type]
    assert time.monotonic() - began < 1.0
    assert found.is_lower_bound and 0.0 < found.forward_seconds < 0.4
    assert 0.1 <= found.share_passed <= 0.6
    options |= {"limit_seconds": 0.75}
    once = forecast_extraction(plan, backbone, range(4), **options)  # type: ignore[arg-type]
    assert once.num_clips == 1 and not once.is_lower_bound, "the only pass is what is told"
    assert 0.5 < once.forward_seconds < 0.75


def test_forecast_adds_up_what_does_not_go_on_side_by_side():
    assert Forecast(8, 0.2, 0.3, is_parallel=True).seconds_per_clip == 0.3
    assert Forecast(8, 0.2, 0.3, is_parallel=False).seconds_per_clip == 0.5
