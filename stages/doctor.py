"""Whether this machine can run the settings: one line per check, ok or what to do."""

from __future__ import annotations

from collections.abc import Iterator

from dsts_pipeline.base.checkup import Finding, check_versions, examine, read_constraints
from dsts_pipeline.base.errors import UserError
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.checkup import check_data, check_decoder
from dsts_pipeline.extract.checkup import check_devices, check_weights

_FILES = {"video_folder", "train_file", "test_file", "class_file"}


class NotReady(UserError):
    """At least one check failed."""

    exit_status = 1


def run(settings: Settings) -> None:
    """Print the findings.

    Raises:
        NotReady: Something has to be done first.
    """
    num_failed = 0
    for finding in examine_all(settings):
        console.print("[green]ok[/]" if finding.is_ok else "[red]do[/]", end="")
        console.print(f"  {finding.topic:<9} {finding.text}", markup=False, soft_wrap=True)
        num_failed += not finding.is_ok
    if num_failed:
        raise NotReady(f"{num_failed} of these checks failed; do what they say and run it again")


def examine_all(settings: Settings) -> Iterator[Finding]:
    """All checks in turn; space and time only where clips and backbone are known."""
    dataset, backbone = settings.dataset, settings.backbone
    num_clips, map_shape = [0], list[int]()

    def data() -> str:
        if render := dataset.render:
            num_clips[0] = render.num_train + render.num_test
            return f"{num_clips[0]:,} clips, which `python cli.py prepare` renders"
        text, num_clips[0] = check_data(
            dataset.format,
            dataset.root,
            files=dataset.model_dump(include=_FILES),
            allow_outside_root=dataset.allow_outside_root,
            test_fraction=dataset.test_fraction,
            max_problem_fraction=dataset.max_problem_fraction,
        )
        return text

    def weights() -> str:
        text, shape = check_weights(
            backbone.name,
            backbone.weights,
            num_frames=backbone.num_frames,
            size_px=backbone.size_px,
        )
        map_shape.extend(shape)
        return text

    yield examine("versions", lambda: check_versions(tested=read_constraints("constraints.txt")))
    yield examine("decoder", lambda: check_decoder(backbone.decoder))
    yield examine("devices", lambda: check_devices(backbone.device))
    yield examine("data", data)
    yield examine("weights", weights)
    if num_clips[0] and map_shape:
        from stages.forecasts import describe_time, judge_space

        yield examine("space", lambda: judge_space(settings, tuple(map_shape), num_clips[0]))
        yield examine("time", lambda: describe_time(settings))
