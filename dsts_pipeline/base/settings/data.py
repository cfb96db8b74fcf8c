"""Settings of stage one's input: the data set and the frozen backbone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dsts_pipeline.base.settings.extraction import ViewSettings
from dsts_pipeline.base.settings.sections import Section


class RenderSettings(Section):
    """An embedded data set: which one, how many clips, of which look."""

    renderer: Literal["stick_diving", "stick_something"] = "stick_diving"
    num_train: int = Field(2400, ge=1)
    num_test: int = Field(1200, ge=1)
    size_px: int = Field(96, ge=32, le=512, multiple_of=2)
    num_frames: int = Field(16, ge=4, le=256)
    difficulty: float = Field(1.5, ge=0.0, le=3.0)
    seed: int = Field(0, ge=0)
    num_workers: int = Field(2, ge=1)


class DatasetSettings(Section):
    """Where the clips are, how their annotations are read, and which are held out.

    `video_folder` and the three file names replace the format's own, relative to `root`.
    `end_frame` says whether the annotated last frame belongs to its clip; "auto" decides from the
    videos' frame counts. `heldout_fraction` of train becomes the split "val" of the clip index, by
    clip or by whole groups (source video, performer), so that settings are chosen without the test
    split. `test_fraction` of the clips becomes the split "test" of a data set that comes without
    one, drawn with `heldout_seed`, the same share of every class, by whole groups where the clips
    have some. `allow_outside_root` takes videos that lie outside of `root`, by absolute names or
    links. `official_counts` compares the splits with the published numbers of clips.
    """

    name: str = "stick_diving"
    format: Literal["diving48", "ssv2", "folder", "csv", "mmaction"] = "diving48"
    root: str = "data/stick_diving"
    video_folder: str | None = None
    train_file: str | None = None
    test_file: str | None = None
    class_file: str | None = None
    end_frame: Literal["auto", "exclusive", "inclusive"] = "auto"
    official_counts: bool = False
    min_frames: int = Field(1, ge=1)
    flip: Literal["allowed", "label_mapped", "forbidden"] = "allowed"
    flip_pairs: tuple[tuple[int, int], ...] = ()
    heldout_fraction: float = Field(0.0, ge=0.0, lt=0.9)
    heldout_by: Literal["clip", "group"] = "clip"
    heldout_seed: int = Field(0, ge=0)
    test_fraction: float = Field(0.0, ge=0.0, lt=0.9)
    allow_outside_root: bool = False
    max_problem_fraction: float = Field(0.01, ge=0.0, le=1.0)
    num_probe_workers: int = Field(2, ge=1)
    render: RenderSettings | None = RenderSettings()

    @model_validator(mode="after")
    def _check_flip(self) -> DatasetSettings:
        if (self.flip == "label_mapped") != bool(self.flip_pairs):
            raise ValueError(
                f"flip is {self.flip} with {len(self.flip_pairs)} flip_pairs; expected pairs with "
                "label_mapped, and none otherwise"
            )
        return self


class BackboneSettings(Section):
    """The frozen recognizer whose feature map is cached, what it is fed, and how it is run.

    `name` is a preset, a config of mmaction2's model zoo by name, the path of a config file, or a
    folder of the transformers library. `weights` is a file, an address, such a folder, or the word
    random; a file must have the digest `weights_sha256` if one is given, and `key_map` says whose
    names its keys are. `num_frames` and `size_px` null stand for the model's own input. Maps are
    taken at `taps`, the first of which is stored; none given: where the preset says.
    `decoder` "auto" has decord read what it reads exactly, and PyAV all else; the others refuse
    what they can't read exactly, and `decoder_fallback` is tried where they refuse, fail or hang.
    `prefetch_bytes` bounds the
    frames that are held ahead of the backbone. `batch_size` is halved where it does not fit the
    device. `device` "auto" takes the CUDA device of this process's number on its host, else the
    CPU.
    """

    name: str = "stick_r18"
    weights: str = "dsts_pipeline/extract/pretrained/stick_r18.safetensors"
    weights_sha256: str | None = Field(None, pattern=r"^[0-9a-fA-F]{64}$")
    key_map: Literal["auto", "mmaction2", "video_swin", "bare_backbone", "dsts"] = "auto"
    taps: tuple[str, ...] = ()
    num_frames: int | None = Field(16, ge=1)
    size_px: int | None = Field(64, ge=16)
    decoder: Literal["auto", "decord", "pyav", "torchcodec", "torchcodec_cuda"] = "auto"
    decoder_fallback: Literal["none", "decord", "pyav"] = "none"
    num_decode_workers: int = Field(1, ge=0)
    clip_timeout_seconds: float = Field(60.0, gt=0.0)
    prefetch_bytes: int = Field(256 * 2**20, ge=1)
    views: ViewSettings = ViewSettings()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    channels_last: bool = False
    batch_size: int = Field(32, ge=1)
    max_failed_fraction: float = Field(0.01, ge=0.0, le=1.0)


class PretrainSettings(Section):
    """How the embedded backbone is made (`python cli.py pretrain`, not part of the default run)."""

    num_clips: int = Field(12000, ge=96)
    num_heldout: int = Field(1200, ge=48)
    seed: int = Field(20220914, ge=0)
    pose_epochs: int = Field(1, ge=0)
    class_epochs: int = Field(2, ge=0)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(2e-3, gt=0.0)
    pose_weight: float = Field(0.5, ge=0.0)
    pool: str = "data/pretrain_pool"
    num_workers: int = Field(2, ge=1)
