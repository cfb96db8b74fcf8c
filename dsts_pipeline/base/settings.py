"""The base class of every settings section: strict, frozen, closed to unknown names."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dsts_pipeline.base.errors import SettingsError


class Section(BaseModel):
    """One section of params.yaml: unknown keys and lossy conversions are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


# ---- Settings of views and their augmentation: what an extraction makes of one clip. ------------


class AugmentationSettings(Section):
    """What is done to training views; as they stand here nothing is.

    `flip`, `erasing`: probabilities. `color_jitter`: largest relative change. `rand_augment`:
    magnitude of two random operations, 10 the strongest.
    """

    crop: Literal["centre", "multi_scale", "resized"] = "centre"
    flip: float = Field(0.0, ge=0.0, le=1.0)
    color_jitter: float = Field(0.0, ge=0.0, le=1.0)
    rand_augment: float = Field(0.0, ge=0.0, le=10.0)
    erasing: float = Field(0.0, ge=0.0, le=1.0)


class ViewSettings(Section):
    """How many maps a clip has: `train` of a training clip, clips x crops of any other."""

    train: int = Field(1, ge=1)
    test_clips: int = Field(1, ge=1)
    test_crops: Literal[1, 3] = 1
    seed: int = Field(0, ge=0)
    augmentation: AugmentationSettings = AugmentationSettings()

    @model_validator(mode="after")
    def _check_augmentation(self) -> ViewSettings:
        seed = self.seed
        if seed and self.augmentation == AugmentationSettings():
            raise ValueError(f"seed is {seed} but nothing is drawn; expected an augmentation")
        return self


# ---- Settings of stage one's input: the data set and the frozen backbone. -----------------------


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


# ---- Settings of the feature store and of reading it back. --------------------------------------


class StoreSettings(Section):
    """Where feature maps are kept and how they are stored.

    `codec` zstd is for those with little disk space; `zstd_level` 1 is fast, 19 small.
    `shard_bytes` is the size a shard aims at; a small data set gets smaller shards, so that there
    are at least `min_shards` of them and a stopped extraction resumes from most of its work.
    `on_overflow` says what becomes of a map that the storage type can't hold: the extraction stops,
    the clip is listed as failed, or the values are cut to the type's largest and counted.
    """

    root: str = "stores"
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    codec: Literal["none", "zstd"] = "none"
    zstd_level: int = Field(1, ge=1, le=19)
    on_overflow: Literal["error", "fail", "saturate"] = "error"
    shard_bytes: int = Field(128 * 2**20, ge=1)
    min_shards: int = Field(32, ge=1)


class FeedSettings(Section):
    """How stored maps are read for training and evaluation; nothing here changes a stored byte.

    `order`: "random" draws every clip from the whole split, "shard" shuffles shards and then the
    clips within a window of `shard_window` shards (for stores far larger than memory, or remote
    ones). `class_balanced` draws every class equally often in an epoch of the same length.
    `cache_dir` and `cache_bytes` are for stores that are read over the network; a server of theirs
    that sends less than 1 kB/s for `stall_seconds` is given up, on the second try with an error.
    """

    preload_bytes: int = Field(2 * 2**30, ge=0)
    order: Literal["random", "shard"] = "random"
    shard_window: int = Field(16, ge=1)
    class_balanced: bool = False
    num_read_threads: int = Field(2, ge=1)
    verify_checksums: bool = True
    cache_dir: str = ".feature_cache"
    cache_bytes: int = Field(20 * 2**30, ge=0)
    stall_seconds: float = Field(30.0, gt=0.0)


# ---- Settings of the head and of its training; defaults are what learns on the embedded data set.
#
# Where a default departs from the paper's text, the value that follows the paper stands beside it.

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class HeadSettings(Section):
    """The DSTS head; the names are those of `DSTSHead`'s arguments."""

    num_neurons: int = Field(10, ge=1)
    num_layers: int = Field(3, ge=0)
    width: int | None = Field(32, ge=1)  # paper: null
    synapse: bool = True
    specialization: Literal["gated", "fixed", "conv3d"] = "gated"
    impulse: Literal["sum", "mean", "standardized"] = "standardized"  # paper: sum
    impulse_spread: float = Field(20.0, gt=0.0)
    routing_gradient: Literal["dense", "selected"] = "selected"  # paper: dense
    norm_statistics: Literal["routed", "layer", "batch"] = "routed"
    impulse_gradient: Literal["map", "kernel"] = "map"
    shared_neuron: bool = False
    own_scale: float = Field(1.0, ge=0.0)
    layer_residual: bool = True  # paper: false
    skip: bool = True
    zero_start: bool = True  # paper: false
    temperature: float = Field(1.0, gt=0.0)
    gumbel_scale: float = Field(1.0, ge=0.0)
    gate_noise_scale: float = Field(1.0, ge=0.0)
    gate_init_std: float = Field(0.01, ge=0.0)
    take_over_classifier: bool = True  # the backbone's own, where it has one for these classes


class UdlSettings(Section):
    """Upstream-Downstream Learning; with `enabled: false` u and d share one ordinary step."""

    enabled: bool = True
    method: Literal["exact", "forward_over_reverse", "finite_difference"] = "exact"
    inner_learning_rate: float | None = Field(None, gt=0.0)  # null: d's current learning rate
    redraw_noise: bool = False

    @field_validator("method", mode="before")
    @classmethod
    def _refuse_first_order(cls, value: object) -> object:
        if value == "first_order":
            raise ValueError(
                "first_order has no effect: upstream parameters enter UDL's step 2 only through "
                "the simulated step, so its gradient without the second-order term is zero; use "
                "exact, or set udl.enabled to false"
            )
        return value


class TrainSettings(Section):
    """Optimisers, schedules and what is kept of a training."""

    num_epochs: int = Field(12, ge=0)
    batch_size: int = Field(32, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(2e-3, gt=0.0)
    classifier_learning_rate_factor: float = Field(5.0, ge=0.0)
    scoring_learning_rate_factor: float = Field(1.0, ge=0.0)
    gate_learning_rate_factor: float = Field(20.0, ge=0.0)
    schedule: Literal["one_cycle", "cosine", "steps", "constant"] = "one_cycle"
    step_milestones: tuple[Share, ...] = (0.5, 0.8333)  # of "steps": shares of the training
    step_factor: float = Field(0.1, gt=0.0, le=1.0)
    warmup_fraction: float = Field(0.2, ge=0.0, lt=1.0)
    weight_decay: float = Field(0.05, ge=0.0)
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    clip_norm: float | None = Field(None, gt=0.0)
    part_size: int | None = Field(None, ge=1)  # gradient accumulation: samples at a time
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    mixup_alpha: float = Field(0.0, ge=0.0)  # 0: no mixup
    final_noise: float = Field(1.0, ge=0.0)  # factor on routing's and gates' noise, linear from 1
    balance_weight: float = Field(0.0, ge=0.0)
    ema_decay: float | None = Field(None, gt=0.0, lt=1.0)
    max_loss: float = Field(1e6, gt=0.0)  # above it a training counts as diverged
    heldout_fraction: float = Field(0.1, ge=0.0, lt=0.9)  # of train, to choose the epoch by
    data_seed: int | None = Field(None, ge=0)  # of batches and held-out clips; null: the run's seed
    recompute_statistics: bool = True
    recompute_clips: int = Field(512, ge=1)  # at each epoch
    recompute_clips_at_end: int | None = Field(None, ge=1)  # null: all training clips
    early_stopping_epochs: int | None = Field(None, ge=1)  # so many without a best one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(1, ge=1)  # processes on this machine; `torchrun` overrules it
    checkpoint_every_batches: int | None = Field(200, ge=1)  # and after every epoch
    keep_checkpoints: bool = False  # also after the end
    requeue_status: int = Field(99, ge=1, le=255)  # exit status after SIGTERM
    tensorboard: bool = False


# ---- Settings of the last two stages: evaluation and report. ------------------------------------


class EvaluateSettings(Section):
    """Which split heads are run over, and how sure their figures are.

    `split` "val" is for choosing settings: it is there where `dataset.heldout_fraction` or the
    annotations make one, and leaves "test" unseen until the settings are settled.
    `num_bins` is for calibration; `num_permutations` for the nulls of routing. `temporal_need` is
    how maps lose their order in time to measure which classes need it, at the price of a second
    pass of the heads that route; "none" leaves it out.
    """

    split: Literal["test", "val"] = "test"
    batch_size: int = Field(64, ge=1)
    num_bootstrap: int = Field(2000, ge=100, le=100_000)
    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    num_bins: int = Field(15, ge=2, le=100)
    num_permutations: int = Field(200, ge=20, le=100_000)
    temporal_need: Literal["shuffle", "average", "none"] = "shuffle"


class ReportSettings(Section):
    """What the HTML page shows.

    `num_gallery_clips` is the number of moving previews per neuron; 0 leaves the gallery out.
    `num_cell_clips` is the same for each cell of the confusion matrix, and `num_mistakes` how many
    wrong answers are shown one by one. All previews together take at most `max_preview_mb`
    megabytes of the page.
    """

    title: str = "Dynamic spatio-temporal specialization: a run in figures"
    num_confused_pairs: int = Field(12, ge=1, le=200)
    num_gallery_clips: int = Field(4, ge=0, le=24)
    num_cell_clips: int = Field(6, ge=0, le=100)
    num_mistakes: int = Field(40, ge=0, le=1000)
    preview_size_px: int = Field(72, ge=32, le=160)
    max_preview_mb: float = Field(12.0, ge=0, le=200)
    write_plots: bool = True


# ---- Settings of training backbone and head together on videos (`finetune`, `pretrain-backbone`).

Share_of_finetuning = Annotated[float, Field(gt=0.0, lt=1.0)]


class FinetuneSettings(Section):
    """How a backbone trains, with a head that was trained on its cached maps or a linear one.

    Input, decoding and limits are those of `backbone`, UDL's own options those of `udl`; the same
    clips are held out as in `train` (`train.heldout_fraction`). `inner_step`: what UDL's simulated
    step moves, the "head" alone, so that each map is computed once, or "all" (the paper's text).
    `frozen_stages` counts from the pixels, `frozen` names beginnings of parameters. The backbone
    learns at `backbone_learning_rate_factor` times the learning rate, each stage before its last
    one at `layer_decay` times that of the next. `backbone_norms`: "frozen" keeps the statistics of
    batch norms; `backbone_dropout` switches on dropout and stochastic depth. `recompute`:
    activation checkpointing. `evaluate_test` also scores the test split, before and after.
    """

    head: str = "outputs/heads/dsts"
    num_epochs: int = Field(1, ge=0)
    batch_size: int = Field(32, ge=1)
    part_size: int | None = Field(None, ge=1)  # gradient accumulation: clips at a time
    inner_step: Literal["head", "all"] = "head"
    frozen_stages: int = Field(3, ge=0)
    frozen: tuple[str, ...] = ()
    recompute: bool = False
    backbone_norms: Literal["frozen", "batch"] = "frozen"
    backbone_dropout: bool = False
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(1e-4, gt=0.0)
    backbone_learning_rate_factor: float = Field(1.0, ge=0.0)
    layer_decay: float = Field(1.0, gt=0.0, le=1.0)
    classifier_learning_rate_factor: float = Field(1.0, ge=0.0)
    scoring_learning_rate_factor: float = Field(1.0, ge=0.0)
    gate_learning_rate_factor: float = Field(1.0, ge=0.0)
    schedule: Literal["one_cycle", "cosine", "steps", "constant"] = "one_cycle"
    step_milestones: tuple[Share_of_finetuning, ...] = (0.5, 0.8333)
    step_factor: float = Field(0.1, gt=0.0, le=1.0)
    warmup_fraction: float = Field(0.1, ge=0.0, lt=1.0)
    weight_decay: float = Field(0.05, ge=0.0)
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    clip_norm: float | None = Field(None, gt=0.0)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    balance_weight: float = Field(0.0, ge=0.0)
    ema_decay: float | None = Field(None, gt=0.0, lt=1.0)
    max_loss: float = Field(1e6, gt=0.0)
    recompute_statistics: bool = True
    recompute_clips: int = Field(512, ge=1)  # their maps are held in memory, at each epoch
    early_stopping_epochs: int | None = Field(None, ge=1)
    augmentation: AugmentationSettings = AugmentationSettings()
    evaluation_batch: int = Field(32, ge=1)
    evaluate_test: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(1, ge=1)
    checkpoint_every_batches: int | None = Field(50, ge=1)
    keep_checkpoints: bool = False
    requeue_status: int = Field(99, ge=1, le=255)


# ---- Settings of the search of settings on held-out clips. --------------------------------------


class SearchSettings(Section):
    """What `search` tries, how long, and how it gives up on a trial.

    `space` lists settings of the sections head, udl and train with their range: "key=low:high"
    (even; whole numbers if both are), "key=low:high:log" (even in the logarithm) or "key=a,b,c".
    """

    space: tuple[str, ...] = (
        "train.learning_rate=0.0005:0.008:log",
        "train.weight_decay=0.005:0.2:log",
        "train.classifier_learning_rate_factor=1.0:10.0:log",
        "train.scoring_learning_rate_factor=0.3:3.0:log",
        "train.gate_learning_rate_factor=2.0:50.0:log",
        "head.impulse_spread=5.0:50.0:log",
        "head.width=16,32,64",
    )
    num_trials: int = Field(30, ge=1)  # of the study, those of earlier calls included
    timeout_seconds: float | None = Field(None, gt=0.0)  # no trial is begun after so long
    pruner: Literal["median", "successive_halving", "none"] = "median"
    startup_trials: int = Field(5, ge=0)  # drawn at random; the median pruner spares them, too
    warmup_epochs: int = Field(2, ge=0)  # of a trial, before the median pruner may end it


# ---- Settings of the ablation: which variants are trained, and with how many seeds. -------------

Kind = Literal[
    "dsts", "baseline", "continued_classifier", "linear_probe", "attentive_probe", "conv_block"
]


class VariantSettings(BaseModel):
    """One variant: what differs from all other settings of the run.

    `table` names the paper's tables that it is a row of. `kind` other than dsts is an opponent on
    the same maps; see `learn.ablation.RunPlan`. `settings` are dotted keys of head, udl and train.
    No section of params.yaml: there is a list of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(min_length=1, max_length=120)
    title: str | None = None
    table: tuple[int, ...] = ()
    kind: Kind = "dsts"
    settings: dict[str, Any] = {}


class AblateSettings(Section):
    """Which heads `ablate` trains.

    Every variant is compared with the one named `reference`, which is the settings as they are
    unless `variants` has it. `leave_out` names those of `variants` that are not wanted, such as the
    baseline where the backbone has no classifier. Each of `grid`, such as head.num_neurons=5,10,
    lists the values of a setting; every combination is a variant. Seeds count up from the run's.
    `jobs` processes share the trainings; each holds at most `num_together` of them at a time.
    """

    reference: str = Field("full", min_length=1)
    variants: tuple[VariantSettings, ...] = ()
    leave_out: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    num_seeds: int = Field(3, ge=1)
    jobs: int = Field(1, ge=1)
    num_together: int = Field(64, ge=1)

    @field_validator("variants")
    @classmethod
    def _names_differ(cls, value: tuple[VariantSettings, ...]) -> tuple[VariantSettings, ...]:
        names = [variant.name for variant in value]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two variants are named {twice[0]}; give each a name of its own")
        return value


# ---- All sections as one tree. ------------------------------------------------------------------


class Settings(Section):
    """Everything that a run depends on besides code and data: one section per stage's concern."""

    seed: int = Field(0, ge=0)
    dataset: DatasetSettings = DatasetSettings()
    backbone: BackboneSettings = BackboneSettings()
    store: StoreSettings = StoreSettings()
    feed: FeedSettings = FeedSettings()
    head: HeadSettings = HeadSettings()
    udl: UdlSettings = UdlSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()
    pretrain: PretrainSettings = PretrainSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    search: SearchSettings = SearchSettings()
    ablate: AblateSettings = AblateSettings()


# ---- Settings that are sound one by one and wrong together, told before any command runs. -------


def check_together(settings: Settings) -> None:
    """Refuse combinations that can't do what they say.

    Raises:
        SettingsError: UDL of a head without upstream parameters; early stopping with nothing
            held out.
    """
    head, train = settings.head, settings.train
    if settings.udl.enabled and head.num_layers == 0:
        raise SettingsError(
            "udl.enabled is true and head.num_layers 0: a head without layers has no upstream "
            "parameters (scoring kernels, gates) for Upstream-Downstream Learning to update; set "
            "udl.enabled to false or head.num_layers to at least 1"
        )
    if settings.udl.enabled and not head.synapse and head.specialization != "gated":
        raise SettingsError(
            f"udl.enabled is true, head.synapse false and head.specialization "
            f"{head.specialization}: such a head has neither scoring kernels nor gates, so no "
            "upstream parameters for Upstream-Downstream Learning to update; set udl.enabled to "
            "false"
        )
    if train.early_stopping_epochs is not None and not train.heldout_fraction:
        raise SettingsError(
            f"train.early_stopping_epochs is {train.early_stopping_epochs} and "
            "train.heldout_fraction 0: there is nothing to judge an epoch by; set "
            "train.heldout_fraction, such as 0.1, or train.early_stopping_epochs to null"
        )
