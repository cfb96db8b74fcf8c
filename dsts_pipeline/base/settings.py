"""Every setting of a run: its name, type, range, default and meaning, stated here and nowhere else.

A section is one concern of params.yaml; code that needs an option takes the section itself. The
text below a key is what params.yaml says of it. Where a default departs from the paper's text, the
text names the paper's value; `head=paper` (configs/head/paper.yaml) has all of them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

try:
    from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
except ModuleNotFoundError:  # DSTSHead takes nothing but torch
    from dsts_pipeline.base.plain_sections import (  # type: ignore[assignment, no-redef]
        BaseModel,
        ConfigDict,
        Field,
        field_validator,
        model_validator,
    )

from dsts_pipeline.base.children import REQUEUE_STATUS
from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.hub import own_weights

# Ranges. A section that inherits a key and gives it another default names the same range again.
Number = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Heldout = Annotated[float, Field(ge=0.0, lt=0.9)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
Inside = Annotated[float, Field(gt=0.0, lt=1.0)]
Decay = Annotated[float, Field(gt=0.0, le=1.0)]

# Choices that signatures elsewhere name, too.
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "bfloat16", "float16"]
Specialization = Literal["gated", "fixed", "ungated", "conv3d"]
ImpulseKind = Literal["sum", "mean", "standardized"]
ImpulseGradient = Literal["map", "kernel"]
RoutingGradient = Literal["dense", "selected"]
NormStatistics = Literal["routed", "layer", "batch"]
Readout = Literal["average", "attentive"]
Method = Literal["exact", "forward_over_reverse", "finite_difference"]
Schedule = Literal["one_cycle", "cosine", "steps", "constant"]
InnerStep = Literal["head", "all"]
HeldoutBy = Literal["auto", "clip", "group"]


class Section(BaseModel):
    """One section of params.yaml: unknown keys and lossy conversions are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


# ---- the data set ------------------------------------------------------------------------------


class RenderSettings(Section):
    """An embedded data set, which `prepare` renders into `dataset.root`."""

    renderer: Literal["stick_diving", "stick_something"] = "stick_diving"
    """stick_diving (dives) or stick_something (hands and objects)"""
    num_train: Count = 2400
    """training clips"""
    num_test: Count = 1200
    """test clips"""
    size_px: Annotated[int, Field(ge=32, le=512, multiple_of=2)] = 96
    """side of the frames"""
    num_frames: Annotated[int, Field(ge=4, le=256)] = 16
    """frames of a clip"""
    difficulty: Annotated[float, Field(ge=0.0, le=3.0)] = 1.5
    """how much noise, clutter and camera motion, 0 to 3"""
    seed: Number = 0
    """renders other clips of the same kind"""
    num_groups: Number = 0
    """people, places and cameras in train; test has as many others; 0: every clip has its own"""
    num_workers: Count = 2
    """processes that render"""

    @model_validator(mode="after")
    def _check_groups(self) -> RenderSettings:
        fewest = min(self.num_train, self.num_test)
        if self.num_groups > fewest:
            raise ValueError(
                f"num_groups is {self.num_groups}, with {self.num_train} clips in train and "
                f"{self.num_test} in test; expected at most {fewest}, a clip for each group"
            )
        return self


# The format of the annotations that a renderer writes.
FORMAT_OF = {"stick_diving": "diving48", "stick_something": "ssv2"}


class DatasetSettings(Section):
    """Where the clips are, how their annotations are read, and which are held out."""

    name: str = "stick_diving"
    """shown in reports"""
    format: Literal["diving48", "ssv2", "folder", "csv", "mmaction"] = "diving48"
    """of the annotations: diving48, ssv2, folder, csv or mmaction"""
    root: str = "data/stick_diving"
    """folder of the data set"""
    video_folder: str | None = None
    """where below root the videos are; null: where the format has them"""
    train_file: str | None = None
    """training annotations below root; null: the format's own name"""
    test_file: str | None = None
    """test annotations below root; null: the format's own name"""
    class_file: str | None = None
    """list of classes below root; null: the format's own name"""
    end_frame: Literal["auto", "exclusive", "inclusive"] = "auto"
    """whether the annotated last frame is part of its clip; auto: by the videos' lengths"""
    official_counts: bool = False
    """compare the splits with the published numbers of clips"""
    min_frames: Count = 1
    """clips with fewer frames are problems"""
    flip: Literal["allowed", "label_mapped", "forbidden"] = "allowed"
    """whether a mirrored clip keeps its class, or has the one of flip_pairs"""
    flip_pairs: tuple[tuple[int, int], ...] = ()
    """classes that mirroring exchanges, by number; with label_mapped alone"""
    heldout_fraction: Heldout = 0.0
    """share of train that becomes the split val, to choose settings by"""
    heldout_by: HeldoutBy = "auto"
    """group: whole source videos or performers are held out; auto: where they are told"""
    heldout_seed: Number = 0
    """holds out other clips, deals other folds"""
    test_fraction: Heldout = 0.0
    """share of all clips that becomes the split test, where the data set has none"""
    num_folds: Annotated[int, Field(ge=2)] | None = None
    """of a cross-validation: whole groups of all splits are dealt anew; null: none"""
    fold: Number | None = None
    """the one that is test, the others train; null: the splits as they are"""
    allow_outside_root: bool = False
    """take videos outside of root, by absolute names or links"""
    max_problem_fraction: Fraction = 0.01
    """share of clips that can't be used above which `prepare` fails"""
    num_probe_workers: Count = 2
    """processes that look into the videos"""
    render: RenderSettings | None = RenderSettings()
    """an embedded data set to be rendered first; null for videos that are there"""

    @model_validator(mode="after")
    def _check_fold(self) -> DatasetSettings:
        if self.fold is not None and self.num_folds is None:
            raise ValueError(
                f"fold is {self.fold} and num_folds null; set num_folds, such as 5, or fold to null"
            )
        if self.fold is not None and self.num_folds is not None and self.fold >= self.num_folds:
            raise ValueError(
                f"fold is {self.fold}, expected 0 to {self.num_folds - 1} with num_folds = "
                f"{self.num_folds}"
            )
        return self

    @model_validator(mode="after")
    def _check_flip(self) -> DatasetSettings:
        if (self.flip == "label_mapped") != bool(self.flip_pairs):
            raise ValueError(
                f"flip is {self.flip} with {len(self.flip_pairs)} flip_pairs; expected pairs with "
                "label_mapped, and none otherwise"
            )
        return self


# ---- the backbone and what it is fed -----------------------------------------------------------


class AugmentationSettings(Section):
    """What is done to training views."""

    crop: Literal["centre", "multi_scale", "resized"] = "centre"
    """centre, or a random one: multi_scale (TSN's) or resized (random area and shape)"""
    flip: Fraction = 0.0
    """probability of mirroring"""
    color_jitter: Fraction = 0.0
    """largest relative change of brightness, contrast and saturation"""
    rand_augment: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """magnitude of two random operations; 10 is the strongest"""
    erasing: Fraction = 0.0
    """probability of erasing a rectangle"""


def check_flow_augmentation(chosen: AugmentationSettings, name: str) -> None:
    """Refuse what changes the colours of frames: fields of optical flow have none.

    Raises:
        ValueError: It changes colours.
    """
    if chosen.color_jitter or chosen.rand_augment:
        raise ValueError(
            f"{name} has color_jitter {chosen.color_jitter:g} and rand_augment "
            f"{chosen.rand_augment:g}, and input is flow, which has no colours; set both to 0"
        )


class ViewSettings(Section):
    """How many maps a clip has."""

    train: Count = 1
    """views of a training clip; several are worth it with an augmentation"""
    test_clips: Count = 1
    """views in time of any other clip; the answers to them are averaged"""
    test_crops: Literal[1, 3] = 1
    """views in space of each of these, 1 or 3"""
    segments: Count = 1
    """equal stretches of time that every clip is cut into, each with all of these views"""
    seed: Number = 0
    """draws other augmentations"""
    augmentation: AugmentationSettings = AugmentationSettings()
    """what is done to training views"""

    @model_validator(mode="after")
    def _check_augmentation(self) -> ViewSettings:
        seed = self.seed
        if seed and self.augmentation == AugmentationSettings():
            raise ValueError(f"seed is {seed} but nothing is drawn; expected an augmentation")
        return self


class BackboneSettings(Section):
    """The frozen recognizer whose feature map is cached, what it is fed, and how it is run."""

    name: str = "stick_r18"
    """a preset, timm:NAME, hub:OWNER/NAME@COMMIT, a config (mmaction2's, yours), a folder"""
    weights: str | None = "dsts_pipeline/extract/pretrained/stick_r18.safetensors"
    """a file, address, folder, hub:..., or random; null: imported maps, a name hub:..."""
    weights_sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """digest that the weights file must have; null: not compared"""
    key_map: Literal["auto", "mmaction2", "video_swin", "bare_backbone", "gst", "dsts"] = "auto"
    """whose names the weights' keys follow; auto: found by trying"""
    taps: tuple[str, ...] = ()
    """where maps are taken, the first is stored; none: where the preset says"""
    num_frames: Count | None = 16
    """frames of a view; null: the model's own"""
    frame_interval: Count | None = None
    """of transformers and V-JEPA 2.1: frames from one to the next; null: over the whole clip"""
    size_px: Annotated[int, Field(ge=16)] | None = 64
    """side of the input; null: the model's own"""
    input: Literal["rgb", "flow"] = "rgb"
    """rgb: frames; flow: for each frame a stack of five optical flow fields from it on"""
    decoder: Literal["auto", "decord", "pyav", "torchcodec", "torchcodec_cuda"] = "auto"
    """auto: decord for what it reads exactly, PyAV for all else"""
    decoder_fallback: Literal["none", "decord", "pyav"] = "none"
    """tried where the decoder refuses, fails or hangs"""
    num_decode_workers: Number | Literal["auto"] = "auto"
    """processes that decode; auto: as the measured times ask for; 0: this one does"""
    clip_timeout_seconds: Positive = 60.0
    """a clip that takes longer to decode is given up; more for slow disks"""
    prefetch_bytes: Count = 256 * 2**20
    """bound on decoded frames that wait; less where memory is short"""
    views: ViewSettings = ViewSettings()
    """how many maps a clip has"""
    device: Device = "auto"
    """auto: this process's GPU where there is one, else the CPU"""
    precision: Precision = "float32"
    """type of the forward pass: float32, bfloat16 or float16"""
    compile: bool = False
    """torch.compile: slower to start, faster on large sets"""
    channels_last: bool = False
    """memory layout; faster for convolutions on some GPUs"""
    batch_size: Count = 32
    """views at a time; halved where that does not fit the device"""
    max_failed_fraction: Fraction = 0.01
    """share of clips that can't be decoded above which `extract` fails"""

    @field_validator("weights")
    @classmethod
    def _name_weights(cls, value: str | None, known: Any) -> str | None:
        """A model of the hub has its own weights, which are named once."""
        return own_weights(known.data.get("name", ""), value)

    @model_validator(mode="after")
    def _check_input(self) -> BackboneSettings:
        if self.input == "flow":
            check_flow_augmentation(self.views.augmentation, "views.augmentation")
        return self


class PretrainSettings(Section):
    """How the embedded backbone is made (`python cli.py pretrain`, not part of the default run)."""

    num_clips: Annotated[int, Field(ge=96)] = 12000
    """rendered clips to learn from"""
    num_heldout: Annotated[int, Field(ge=48)] = 1200
    """rendered clips to judge by"""
    seed: Number = 20220914
    """renders other clips than the data set's"""
    pose_epochs: Number = 1
    """epochs that learn the pose alone"""
    class_epochs: Number = 2
    """epochs that learn the class, too"""
    batch_size: Count = 32
    """clips per step"""
    learning_rate: Positive = 2e-3
    """at the schedule's peak"""
    pose_weight: Factor = 0.5
    """weight of the pose's loss beside the class's"""
    pool: str = "data/pretrain_pool"
    """where the clips are rendered to"""
    num_workers: Count = 2
    """processes that render"""


# ---- the feature store, and reading it back ----------------------------------------------------


class StoreSettings(Section):
    """Where feature maps are kept and how they are stored."""

    root: str = "stores"
    """folder of the stores"""
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    """float16, bfloat16, float32 or int8"""
    codec: Literal["none", "zstd"] = "none"
    """none, or zstd: smaller and slower"""
    zstd_level: Annotated[int, Field(ge=1, le=19)] = 1
    """how hard zstd tries, 1 to 19"""
    on_overflow: Literal["error", "fail", "saturate"] = "error"
    """values that dtype can't hold: error stops, fail lists the clip, saturate cuts"""
    shard_bytes: Count = 128 * 2**20
    """size that a shard aims at"""
    min_shards: Count = 32
    """at least so many, so that little is lost when an extraction stops"""


class FeedSettings(Section):
    """How stored maps are read for training and evaluation; nothing here changes a stored byte."""

    preload_bytes: Number = 2 * 2**30
    """maps that take no more than this are read into memory once"""
    device_preload_bytes: Number = 2 * 2**30
    """on a GPU: maps that take no more than this are kept there instead, by each process"""
    order: Literal["random", "shard"] = "random"
    """random, or shard: shuffled near their shards, for large or remote stores"""
    shard_window: Count = 16
    """shards whose clips the order shard mixes"""
    class_balanced: bool = False
    """draw every class equally often in an epoch of the same length"""
    num_read_threads: Count = 2
    """threads that read shards"""
    views: Literal["separate", "joined"] = "separate"
    """joined: the maps of a clip's backbone.views.segments are one map, longer in time"""
    verify_checksums: bool = True
    """of every map that is read; false is faster and lets damage pass"""
    cache_dir: str = ".feature_cache"
    """where shards of remote stores are kept"""
    cache_bytes: Number = 20 * 2**30
    """how much of remote stores is kept"""
    stall_seconds: Positive = 30.0
    """a server that sends less than 1 kB/s for so long is given up"""


# ---- the head and its training -----------------------------------------------------------------
#
# Defaults are what learns on the embedded data set.


class HeadSettings(Section):
    """The head; the names are those of `DSTSHead`'s arguments.

    `GSTHead` takes num_layers, width, zero_start and the readout, `TQNHead` num_layers, width,
    class_query, readout_heads and readout_dropout.
    """

    kind: Literal["dsts", "gst", "tqn"] = "dsts"
    """dsts, or a system of the paper's Table 2 on the same maps: gst or tqn"""
    num_neurons: Count = 10
    """N: specialized neurons per layer, of which each clip activates one"""
    num_layers: Number = 3
    """L: layers; 0 is a linear classifier on the pooled map"""
    width: Count | None = 32
    """channels inside the module at most, projected from more and back; null (paper): all"""
    bottleneck: Count | None = None
    """channels between a neuron's own operators and its fusion (needs width null); null: all"""
    synapse: bool = True
    """false: all neurons run and are averaged (Table 4)"""
    specialization: Specialization = "gated"
    """gated (paper), fixed (halves of the channels), conv3d (both Table 3) or ungated"""
    temporal_taps: Literal[1, 3, 5, 7, 9, 11, 13, 15] = 3
    """time steps that a temporal operator spans; 3 is the paper"""
    impulse: ImpulseKind = "standardized"
    """how a neuron's answer is measured: sum (paper), mean or standardized"""
    impulse_spread: Positive = 20.0
    """standard deviation of standardized impulses, against noise of 1.28"""
    routing_gradient: RoutingGradient = "selected"
    """straight-through over all neurons (dense, paper) or the selected one"""
    norm_statistics: NormStatistics = "routed"
    """of a neuron's routed clips, of its layer's, or of the batch (needs dense)"""
    impulse_gradient: ImpulseGradient = "map"
    """routing's gradient goes into the map (paper) or stops at the kernel"""
    shared_neuron: bool = False
    """a neuron is one common to its layer plus a part of its own"""
    own_scale: Factor = 1.0
    """of a shared neuron: factor on its own part"""
    common_neuron: bool = False
    """a neuron that always runs, to which the chosen one's output is added"""
    layer_residual: bool = True
    """add a layer's input to its output; paper: false"""
    skip: bool = True
    """the connection around the module"""
    zero_start: bool = True
    """training starts at the classifier's answers; paper: false"""
    temperature: Positive = 1.0
    """tau of the Gumbel-softmax"""
    gumbel_scale: Factor = 1.0
    """factor on routing's noise in training"""
    gate_noise_scale: Factor = 1.0
    """factor on the gates' noise in training"""
    gate_init_std: Factor = 0.01
    """standard deviation of the first gate logits"""
    readout: Readout = "average"
    """how the last map is read: average (paper), or attentive by a learned query"""
    readout_depth: Count = 1
    """of an attentive readout: its blocks; 4 is V-JEPA 2's probe"""
    readout_heads: Count = 8
    """of an attentive readout: its attention heads; V-JEPA 2 has 16"""
    readout_width: Count | None = None
    """of an attentive readout: its channels at most, projected from more; null: all"""
    readout_positions: bool = False
    """of an attentive readout: tokens are told where they stand, which V-JEPA's say themselves"""
    readout_dropout: BelowOne = 0.0
    """share of channels dropped before the classifier, in training"""
    class_query: bool = True
    """of tqn: a query for the class beside those for its attributes"""
    take_over_classifier: bool = True
    """start from the backbone's classifier, where it fits the classes and the readout"""

    @property
    def has_upstream(self) -> bool:
        """Whether it routes or gates; else Upstream-Downstream Learning has nothing to update."""
        routes = self.synapse and self.num_neurons > 1
        decides = routes or self.specialization == "gated"
        return self.kind == "dsts" and self.num_layers > 0 and decides


class UdlSettings(Section):
    """Upstream-Downstream Learning (paper 3.3)."""

    enabled: bool = True
    """false: upstream and downstream parameters share one ordinary step (Table 5)"""
    method: Method = "exact"
    """exact, forward_over_reverse (exact, less memory) or finite_difference"""
    inner_learning_rate: Positive | None = None
    """alpha of the simulated step; null: the current learning rate"""
    redraw_noise: bool = False
    """draw new noise for the step that is made, after the one that was simulated"""
    validation_by: Literal["clip", "group"] = "clip"
    """clip (paper): the two batches share no clip; group: no player, subject or source video"""

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


class LearningSettings(Section):
    """What a training on maps and a fine-tuning on videos have in common."""

    num_epochs: Number
    """passes over the clips that are not held out"""
    batch_size: Count = 32
    """clips per batch and process; UDL takes two batches an iteration"""
    part_size: Count | None = None
    """clips gone through at a time (gradient accumulation); null: the batch"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw (the paper's for Swin) or sgd (for TPN)"""
    learning_rate: Positive
    """at the schedule's peak"""
    classifier_learning_rate_factor: Factor
    """times the learning rate, for the classifier"""
    scoring_learning_rate_factor: Factor = 1.0
    """times the learning rate, for the scoring kernels"""
    gate_learning_rate_factor: Factor
    """times the learning rate, for the gate logits"""
    schedule: Schedule = "one_cycle"
    """of the learning rate: one_cycle, cosine, steps or constant"""
    step_milestones: tuple[Inside, ...] = (0.5, 0.8333)
    """shares of the training at which the schedule steps lowers the rate"""
    step_factor: Decay = 0.1
    """what it multiplies the rate by there"""
    warmup_fraction: BelowOne
    """share of the training in which the rate rises"""
    weight_decay: Factor = 0.05
    """of kernels and projections; vectors have none"""
    momentum: BelowOne = 0.9
    """of the optimizer sgd"""
    clip_norm: Positive | None = None
    """largest norm of a gradient; null: no clipping"""
    precision: Precision = "float32"
    """type of the forward pass: float32, bfloat16 or float16"""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """of float32 products on a GPU, by torch's names; high and medium allow TF32"""
    label_smoothing: BelowOne = 0.0
    """share of the label spread over all classes"""
    balance_weight: Factor = 0.0
    """weight of the load-balancing loss; 0 is the paper"""
    ema_decay: Inside | None = None
    """keeps a moving average of the weights instead of the last; null: none"""
    recompute_statistics: bool = True
    """norms get the statistics of noise-free passes before each evaluation"""
    recompute_clips: Count = 512
    """clips of these passes at each epoch, drawn from all that are trained on"""
    early_stopping_epochs: Count | None = None
    """epochs without a better one after which it ends; null: never"""

    def rate_of(self, name: str) -> float:
        """Peak learning rate of a head's parameter `name`."""
        factor = 1.0
        if name.endswith("scoring_kernel"):
            factor = self.scoring_learning_rate_factor
        elif name.endswith("gate_logits"):
            factor = self.gate_learning_rate_factor
        elif name.startswith("classifier."):
            factor = self.classifier_learning_rate_factor
        return self.learning_rate * factor


class RunSettings(Section):
    """How a training is run; nothing here decides its result."""

    device: Device = "auto"
    """auto: a GPU where there is one"""
    devices: Count = 1
    """processes that train together, each on its own; torchrun overrules it"""
    checkpoint_every_batches: Count | None
    """and after every epoch; null: after epochs alone"""
    requeue_status: Annotated[int, Field(ge=1, le=255)] = REQUEUE_STATUS
    """exit status after SIGTERM, by which a cluster starts the job anew"""


LoggerName = Literal["dvclive", "tensorboard", "wandb", "mlflow"]


class TrainSettings(RunSettings, LearningSettings):
    """Training of heads on cached maps."""

    num_epochs: Number = 12
    learning_rate: Positive = 2e-3
    classifier_learning_rate_factor: Factor = 5.0
    gate_learning_rate_factor: Factor = 20.0
    warmup_fraction: BelowOne = 0.2
    checkpoint_every_batches: Count | None = 200
    mixup_alpha: Factor = 0.0
    """strength of mixup on maps; 0: none"""
    final_noise: Factor = 1.0
    """factor on the noise at the end, linear from 1; 1 is the paper"""
    heldout_fraction: Heldout = 0.1
    """of the training clips, to choose the epoch by; `finetune` takes the same"""
    heldout_by: HeldoutBy = "auto"
    """group: whole players, subjects or source videos; auto: where they are told"""
    data_seed: Number | None = None
    """of batches and held-out clips; null: the run's seed"""
    recompute_clips_at_end: Count | None = None
    """clips of the last such passes; null: all training clips"""
    loggers: tuple[LoggerName, ...] = ("dvclive",)
    """of the DSTS head's curves: dvclive, tensorboard, wandb, mlflow"""
    cuda_graph: Literal["auto", "off"] = "auto"
    """auto: on one GPU iterations are captured once and replayed; off: never"""


# What decides nothing about a training's result.
OF_THE_RUN = frozenset(RunSettings.model_fields) | {"loggers", "cuda_graph"}


class FinetuneSettings(RunSettings, LearningSettings):
    """Training of backbone and head together on videos (`finetune`, `pretrain-backbone`).

    Input, decoding and limits are those of `backbone`, UDL's own options those of `udl`; the same
    clips are held out as in `train`.
    """

    num_epochs: Number = 1
    learning_rate: Positive = 1e-4
    classifier_learning_rate_factor: Factor = 1.0
    gate_learning_rate_factor: Factor = 1.0
    warmup_fraction: BelowOne = 0.1
    checkpoint_every_batches: Count | None = 50
    head: str = "outputs/heads/dsts"
    """the head to start from, trained on the backbone's cached maps"""
    inner_step: InnerStep = "head"
    """what UDL's simulated step moves: head (maps computed once) or all (paper)"""
    frozen_stages: Number = 3
    """stages of the backbone that keep their values, counted from the pixels"""
    frozen: tuple[str, ...] = ()
    """beginnings of parameters' names that keep their values, too"""
    recompute: bool = False
    """activation checkpointing: less memory, more time"""
    backbone_norms: Literal["frozen", "batch"] = "frozen"
    """statistics of its batch norms: frozen as they came, or of the batch"""
    backbone_dropout: bool = False
    """dropout and stochastic depth of the backbone"""
    backbone_learning_rate_factor: Factor = 1.0
    """times the learning rate, for the backbone; Video Swin's recipe has 0.1"""
    layer_decay: Decay = 1.0
    """a stage's rate as a factor on the next one's; 1: all alike"""
    augmentation: AugmentationSettings = AugmentationSettings()
    """what is done to training views, anew in every epoch"""
    evaluate_test: bool = False
    """score the test split, too, before and after"""


# ---- evaluation and report ---------------------------------------------------------------------


class FuseSettings(Section):
    """Late fusion: another run's scores averaged with this run's, as a head of its own."""

    run: str | None = None
    """outputs folder of the other run, evaluated on the same clips; null: nothing is fused"""
    head: str = "dsts"
    """the head of both runs whose scores are averaged"""
    weight: Inside = 0.5
    """share of the other run's scores"""


class EvaluateSettings(Section):
    """Which split heads are run over, and how sure their figures are."""

    split: Literal["test", "val"] = "test"
    """test, or val to choose settings by (see dataset.heldout_fraction)"""
    batch_size: Count = 64
    """maps at a time"""
    num_bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 2000
    """resamples behind the intervals"""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """share of cases that the intervals hold for"""
    num_bins: Annotated[int, Field(ge=2, le=100)] = 15
    """bins of probability in the calibration"""
    num_permutations: Annotated[int, Field(ge=20, le=100_000)] = 200
    """shuffles behind the comparison of routing with chance"""
    temporal_need: Literal["shuffle", "average", "none"] = "shuffle"
    """how maps lose their order in time to see who needs it: shuffle, average, none"""
    fuse: FuseSettings = FuseSettings()
    """late fusion with another run's scores, such as those of optical flow"""


class ReportSettings(Section):
    """What the HTML page shows."""

    title: str | None = None
    """on the page and in its tab; null: the data set's name"""
    num_examples: Annotated[int, Field(ge=0, le=24)] = 3
    """right answers shown large at the top, and as many wrong ones"""
    num_confused_pairs: Annotated[int, Field(ge=1, le=200)] = 12
    """rows of the table of confused classes"""
    num_gallery_clips: Annotated[int, Field(ge=0, le=24)] = 4
    """moving previews per neuron; 0: no gallery"""
    num_cell_clips: Annotated[int, Field(ge=0, le=100)] = 6
    """previews per cell of the confusion matrix"""
    num_mistakes: Annotated[int, Field(ge=0, le=1000)] = 40
    """wrong answers shown one by one"""
    preview_size_px: Annotated[int, Field(ge=32, le=480)] = 160
    """longer side of a preview's frames, which are never enlarged"""
    max_preview_mb: Annotated[float, Field(ge=0, le=200)] = 8.0
    """megabytes that all previews may take"""
    write_plots: bool = True
    """also write every figure as a file"""


# ---- search and ablation -----------------------------------------------------------------------


class SearchSettings(Section):
    """What `search` tries, how long, and how it gives up on a trial."""

    space: tuple[str, ...] = (
        "train.learning_rate=0.0005:0.008:log",
        "train.weight_decay=0.005:0.2:log",
        "train.classifier_learning_rate_factor=1.0:10.0:log",
        "train.scoring_learning_rate_factor=0.3:3.0:log",
        "train.gate_learning_rate_factor=2.0:50.0:log",
        "head.impulse_spread=5.0:50.0:log",
        "head.width=16,32,64",
        "head.readout_dropout=0.0:0.6",
    )
    """settings to vary: key=low:high, key=low:high:log or key=a,b,c"""
    num_trials: Count = 30
    """of the study, those of earlier calls included"""
    minutes: Positive | None = None
    """time for a call: no epoch is begun that would end later; null: no limit"""
    pruner: Literal["median", "successive_halving", "none"] = "median"
    """what ends bad trials early: median, successive_halving or none"""
    startup_trials: Number = 5
    """trials drawn at random, which median lets finish"""
    warmup_epochs: Number = 2
    """epochs of a trial before median may end it"""


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
    """Which heads `ablate` trains; every one is compared with `reference`."""

    reference: Annotated[str, Field(min_length=1)] = "full"
    """what the others are compared with; the settings as they are"""
    variants: tuple[VariantSettings, ...] = ()
    """names and what differs; see configs/experiment/paper_tables.yaml"""
    leave_out: tuple[str, ...] = ()
    """names of variants that are not wanted"""
    grid: tuple[str, ...] = ()
    """such as head.num_neurons=5,10; every combination is a variant"""
    num_seeds: Count = 3
    """trainings of each variant; seeds count up from the run's"""
    search: tuple[str, ...] = ()
    """such as train.learning_rate=0.001,0.004: trained with each, held-out clips choose"""
    search_seeds: Literal["each", "first", "together"] = "each"
    """which seeds search: each for itself, the first for all, or all together, by their mean"""
    num_search_seeds: Count | None = None
    """of seeds that search together the first so many; the others take their choice; null: all"""
    choose_by: Literal["heldout", "evaluated"] = "heldout"
    """clips that the search chooses by: held out of train, or those reported on (V-JEPA 2's way)"""
    folds: bool = False
    """train each once for every one of dataset.num_folds"""
    jobs: Count = 1
    """processes that share the trainings"""
    num_together: Count = 64
    """trainings a process holds at a time; fewer where memory is short"""
    minutes: Positive | None = None
    """time for a call: no epoch is begun that would end later; null: no limit"""

    @field_validator("variants")
    @classmethod
    def _names_differ(cls, value: tuple[VariantSettings, ...]) -> tuple[VariantSettings, ...]:
        names = [variant.name for variant in value]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two variants are named {twice[0]}; give each a name of its own")
        return value


# ---- all of them -------------------------------------------------------------------------------


class Settings(Section):
    """Everything that a run depends on besides code and data: one section per stage's concern."""

    seed: Number = 0
    """decides initial values, noise, batches and held-out clips"""
    dataset: DatasetSettings = DatasetSettings()
    """where the clips are, and which are held out"""
    backbone: BackboneSettings = BackboneSettings()
    """the frozen recognizer whose maps are cached"""
    store: StoreSettings = StoreSettings()
    """how maps are stored"""
    feed: FeedSettings = FeedSettings()
    """how stored maps are read"""
    head: HeadSettings = HeadSettings()
    """the DSTS head, or another kind"""
    udl: UdlSettings = UdlSettings()
    """Upstream-Downstream Learning"""
    train: TrainSettings = TrainSettings()
    """training of heads on cached maps"""
    evaluate: EvaluateSettings = EvaluateSettings()
    """what heads are scored on, and how"""
    report: ReportSettings = ReportSettings()
    """what the page shows"""
    pretrain: PretrainSettings = PretrainSettings()
    """`pretrain`: how the embedded backbone is made"""
    finetune: FinetuneSettings = FinetuneSettings()
    """`finetune`, `pretrain-backbone`: backbone and head together, on videos"""
    search: SearchSettings = SearchSettings()
    """`search`: settings found on held-out clips"""
    ablate: AblateSettings = AblateSettings()
    """`ablate`: many variants in one pass"""


def check_together(settings: Settings) -> None:
    """Refuse settings that are sound one by one and can't do together what they say.

    Raises:
        SettingsError: UDL of a head without upstream parameters; early stopping with nothing
            held out; a number of seeds that search together, which do not; an ablation over folds
            without folds; a data set rendered in one format and read in another.
    """
    head = settings.head
    train = settings.train
    dataset = settings.dataset
    if dataset.render is not None and dataset.format != FORMAT_OF[dataset.render.renderer]:
        raise SettingsError(
            f"dataset.format is {dataset.format} and dataset.render renders "
            f"{dataset.render.renderer}, which is {FORMAT_OF[dataset.render.renderer]}; for videos "
            f"of your own set dataset.render to null, as dataset={dataset.format} does"
        )
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
    by_heldout = settings.ablate.choose_by == "heldout"
    if settings.ablate.search and by_heldout and not train.heldout_fraction:
        raise SettingsError(
            "ablate.search is given and train.heldout_fraction 0: there are no clips to choose by; "
            "set train.heldout_fraction, such as 0.1, or leave ablate.search out"
        )
    if settings.ablate.num_search_seeds is not None and settings.ablate.search_seeds != "together":
        raise SettingsError(
            "ablate.num_search_seeds is of seeds that search together, and ablate.search_seeds is "
            f"{settings.ablate.search_seeds}; set ablate.search_seeds to together, or "
            "ablate.num_search_seeds to null"
        )
    if settings.ablate.folds and settings.dataset.num_folds is None:
        raise SettingsError(
            "ablate.folds is true and dataset.num_folds null; set dataset.num_folds, such as 5"
        )
    if settings.backbone.input == "flow":
        try:
            check_flow_augmentation(settings.finetune.augmentation, "finetune.augmentation")
        except ValueError as error:
            raise SettingsError(str(error)) from None
