# DSTS on TPN with SlowOnly-R50, 8 frames, for Diving48: the paper's SGD at 0.01, batches of 8. The
# paper reports 88.4 / 78.2 (top-1 / class-wise), TPN alone 86.2 / 76.0. Not trained by us.
#   python cli.py prepare --params diving48.yaml; python cli.py export-annotations outputs/mmaction2
#   python -m dsts_pipeline.mmaction2 train \
#     configs/mmaction2/dsts_tpn-slowonly_r50_diving48.py
# load_from is mmaction2's model of Kinetics-400; give it a TPN trained on Diving48 if you have one:
# where its classifier fits, training starts at its accuracy (zero_start).
# The base is found by mmengine with pkg_resources (older setuptools), or by the launcher above.
_base_ = [
    "mmaction::recognition/tpn/tpn-slowonly_imagenet-pretrained-r50_8xb8-8x8x1-150e_kinetics400-rgb.py"
]
custom_imports = dict(imports=["dsts_pipeline.mmaction2"], allow_failed_imports=False)

model = dict(
    backbone=dict(pretrained=None),
    # Scale 1 takes the pool over time away: DSTS needs T; KeepTimeOfTPNHook sets up the rest.
    neck=dict(
        temporal_modulation_cfg=dict(downsample_scales=(1, 1)),
        aux_head_cfg=dict(out_channels=48),
    ),
    cls_head=dict(
        _delete_=True,
        type="DSTSHead",
        num_classes=48,
        in_channels=2048,
        num_neurons=10,
        num_layers=3,
        width=160,  # None is the text as written: 420 C^2 = 1.8 billion weights
        zero_start=True,
        average_clips="prob",
    ),
)
load_from = "https://download.openmmlab.com/mmaction/v1.0/recognition/tpn/tpn-slowonly_imagenet-pretrained-r50_8xb8-8x8x1-150e_kinetics400-rgb/tpn-slowonly_imagenet-pretrained-r50_8xb8-8x8x1-150e_kinetics400-rgb_20220913-fed3f4c1.pth"  # noqa: E501

data_root = "data/diving48"
lists = "outputs/mmaction2"
train_pipeline = [
    dict(type="DecordInit"),
    dict(type="UniformSample", clip_len=8),  # a dive is short: frames of all of it
    dict(type="DecordDecode"),
    dict(type="RandomResizedCrop"),
    dict(type="Resize", scale=(224, 224), keep_ratio=False),
    dict(type="Flip", flip_ratio=0.5),
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackActionInputs", meta_keys=("img_shape", "sample_idx")),
]
val_pipeline = [
    dict(type="DecordInit"),
    dict(type="UniformSample", clip_len=8, test_mode=True),
    dict(type="DecordDecode"),
    dict(type="Resize", scale=(-1, 256)),
    dict(type="CenterCrop", crop_size=224),
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackActionInputs"),
]
test_pipeline = [
    dict(type="DecordInit"),
    dict(type="UniformSample", clip_len=8, num_clips=2, test_mode=True),
    dict(type="DecordDecode"),
    dict(type="Resize", scale=(-1, 256)),
    dict(type="ThreeCrop", crop_size=256),
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackActionInputs"),
]


def dataset(split, pipeline, **options):
    """A VideoDataset of the lists that `export-annotations` wrote."""
    return dict(
        _delete_=True,
        type="VideoDataset",
        ann_file=f"{lists}/{split}_list_videos.txt",
        data_prefix=dict(video=data_root),
        pipeline=pipeline,
        **options,
    )


# UDL trains on 8 clips and validates on the other 8.
train_dataloader = dict(batch_size=16, drop_last=True, dataset=dataset("train", train_pipeline))
val_dataloader = dict(dataset=dataset("test", val_pipeline, test_mode=True))
test_dataloader = dict(dataset=dataset("test", test_pipeline, test_mode=True))

# An epoch updates d by half of the clips (the other half serves the meta-update).
train_cfg = dict(type="UDLTrainLoop", simulate_backbone=False)
optim_wrapper = dict(optimizer=dict(lr=0.01))
custom_hooks = [dict(type="KeepTimeOfTPNHook"), dict(type="RecalibrateNormsHook", num_clips=256)]
