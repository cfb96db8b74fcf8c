"""Decode processes that hang, crash and are killed. The stand-ins read their orders in `path`."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np
import pytest

from dsts_pipeline.clips.probe import VideoError
from dsts_pipeline.extract.decode_pool import Decoded, DecodePool
from dsts_pipeline.extract.views import FrameRequest, FrameView


def obey(job: FrameRequest) -> np.ndarray:
    """A decoder that does what the job's path says; its frames hold the first index."""
    order, _, argument = job.path.partition(":")
    if order == "hang-in-decord" and job.decoder == "decord":
        order = "hang"
    if order == "hang":
        time.sleep(600)
    if order == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if order == "crash-once" and not os.path.exists(argument):
        open(argument, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "refuse":
        raise VideoError(job.path, "refused")
    if order == "bug-in-decord" and job.decoder == "decord":
        order = "bug"
    if order == "bug":
        raise KeyError("a bug")
    if order == "unsendable":
        return Decoded(np.zeros((1, 1, 2, 2, 3), np.uint8), reason=lambda: "")
    if order == "deep":
        return obey(job)
    if order == "slow":
        time.sleep(float(argument))
    if order == "modules":
        return np.array([name in sys.modules for name in ("torch", "mmaction")])
    if order == "huge":
        raise MemoryError
    return np.full((1, 1, 2, 2, 3), job.views[0].indices[0], np.uint8)


def wait() -> None:
    """A slow start."""
    time.sleep(3.0)


def _jobs(*orders: str, fallback=None) -> list[FrameRequest]:
    return [
        FrameRequest(order, "decord", fallback, views=(FrameView((i,)),), size_px=2)
        for i, order in enumerate(orders)
    ]


def _values(answers) -> list[int | str]:
    return [a.reason if a.frames is None else int(a.frames.flat[0]) for a in answers]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_answers_come_in_the_order_of_the_jobs(workers):
    orders = ["slow:0.2", "", "refuse", "slow:0.1", "", ""]
    with DecodePool(workers, decode=obey) as pool:
        assert _values(pool.run(_jobs(*orders))) == [0, 1, "refused", 3, 4, 5]


@pytest.mark.slow
def test_a_hang_is_killed_and_failed_and_the_others_go_on():
    with DecodePool(2, decode=obey, clip_timeout_seconds=3.0) as pool:
        values = _values(pool.run(_jobs("", "hang", "", "")))
    assert values == [0, "decoding took longer than 3 s, 2 times", 2, 3]


def test_a_crash_is_failed_and_a_single_loss_is_made_good(tmp_path):
    with DecodePool(1, decode=obey) as pool:
        values = _values(pool.run(_jobs("crash", f"crash-once:{tmp_path / 'seen'}", "")))
    assert values == ["the decode process died (signal 11), 2 times", 1, 2]


def test_killing_the_processes_from_outside_loses_nothing():
    with DecodePool(2, decode=obey) as pool:
        values = []
        for value in pool.run(_jobs(*["slow:0.02"] * 40)):
            values += _values([value])
            if len(values) in (3, 20):
                os.kill(pool.process_ids[0], signal.SIGKILL)
    assert values == list(range(40))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_that_nobody_foresaw_fails_its_clip_alone(workers, capfd):
    with DecodePool(workers, decode=obey) as pool:
        values = _values(pool.run(_jobs("", "bug", "unsendable", "", "deep")))
    told = "decoding failed: KeyError: 'a bug'"
    assert values[:2] == [0, told] and values[3] == 3
    assert "decoding failed: RecursionError" in values[4]
    if workers:  # frames that can't be sent from process to process
        assert "decoding failed: " in values[2]
    log = capfd.readouterr().err
    assert f"bug: {told} (at test_decode_pool.py:" in log and " in obey < " in log
    assert "Traceback" not in log


def test_the_other_decoder_gets_its_turn_after_an_error_that_nobody_foresaw():
    with DecodePool(1, decode=obey) as pool:
        values = _values(pool.run(_jobs("bug-in-decord", "bug", "", fallback="pyav")))
    told = "decoding failed: KeyError: 'a bug'"
    assert values == [0, f"{told}; pyav: {told}", 2]


@pytest.mark.slow
def test_the_other_decoder_gets_its_turn_after_the_first_hung_twice():
    with DecodePool(1, decode=obey, clip_timeout_seconds=2.0) as pool:
        values = _values(pool.run(_jobs("hang-in-decord", "hang", "", fallback="pyav")))
    told = "decoding took longer than 2 s"
    assert values == [0, f"{told}, 2 times; pyav: {told}", 2]


def test_too_little_memory_is_a_reason():
    with DecodePool(1, decode=obey) as pool:
        values = _values(pool.run(_jobs("huge", "")))
    assert values == ["decoding it takes more memory than there is", 1]


def test_a_slow_start_is_not_held_against_the_first_clip():
    with DecodePool(1, decode=obey, warm_up=wait, clip_timeout_seconds=1.5) as pool:
        assert _values(pool.run(_jobs("", ""))) == [0, 1]


def test_no_more_is_decoded_ahead_than_asked_for():
    taken = []
    frame_bytes = 2 * 2 * 3

    def jobs():
        for job in _jobs(*[""] * 50):
            taken.append(job)
            yield job

    with DecodePool(2, decode=obey, prefetch_bytes=5 * frame_bytes) as pool:
        for number, _ in enumerate(pool.run(jobs()), start=1):
            assert len(taken) <= number + 5  # the one in hand counts no more
    assert len(taken) == 50


def test_one_job_for_each_process_is_let_in_whatever_its_size():
    with DecodePool(2, decode=obey, prefetch_bytes=1) as pool:
        assert _values(pool.run(_jobs(*[""] * 7))) == list(range(7))


def test_decode_processes_do_without_torch():
    with DecodePool(1, decode=obey) as pool:
        (answer,) = pool.run(_jobs("modules"))
    assert answer.frames is not None and not answer.frames.any()


def test_closing_ends_the_processes_and_drops_what_is_left():
    with DecodePool(1, decode=obey, clip_timeout_seconds=500, prefetch_bytes=24) as pool:
        results = pool.run(_jobs("", *["hang"] * 5))
        assert _values([next(results)]) == [0]
        (process,) = pool.process_ids
        started = time.monotonic()
    assert time.monotonic() - started < 10
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
