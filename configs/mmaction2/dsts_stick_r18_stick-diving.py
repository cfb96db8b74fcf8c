# DSTS on stick diving, trained and tested by mmaction2's own tools; see docs/mmaction2.md.
#   python cli.py use experiment=stick_diving
#   python cli.py prepare && python cli.py export-annotations outputs/mmaction2
#   python -m dsts_pipeline.mmaction2 train configs/mmaction2/dsts_stick_r18_stick-diving.py
# Start from the embedded backbone (else from random weights, which two epochs don't train):
#   python cli.py convert-checkpoint dsts_pipeline/extract/pretrained/stick_r18.safetensors w.pth
#   ... --cfg-options load_from=w.pth
custom_imports = dict(imports=["dsts_pipeline.mmaction2"], allow_failed_imports=False)

model = dict(
    type="Recognizer3D",
    backbone=dict(
        type="ResNet3dSlowOnly",
        depth=18,
        pretrained=None,
        lateral=False,
        base_channels=16,
        conv1_kernel=(3, 5, 5),
        conv1_stride_s=2,
        pool1_stride_s=2,
        spatial_strides=(1, 2, 2, 1),
        temporal_strides=(1, 1, 2, 1),
        inflate=(1, 1, 1, (1, 0)),
        norm_eval=False,
        zero_init_residual=False,
    ),
    cls_head=dict(
        type="DSTSHead",
        num_classes=48,
        in_channels=128,
        num_neurons=10,
        num_layers=3,
        width=32,
        impulse="standardized",
        impulse_spread=20.0,
        routing_gradient="selected",
        layer_residual=True,
        zero_start=True,
        average_clips="prob",
    ),
    data_preprocessor=dict(
        type="ActionDataPreprocessor",
        mean=[127.5, 127.5, 127.5],
        std=[63.75, 63.75, 63.75],
        format_shape="NCTHW",
    ),
)

dataset_type = "VideoDataset"
data_root = "data/stick_diving"
lists = "outputs/mmaction2"
train_pipeline = [
    dict(type="DecodeSegments", num_frames=16, size_px=64),
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackActionInputs", meta_keys=("img_shape", "sample_idx")),
]
test_pipeline = [
    dict(type="DecodeSegments", num_frames=16, size_px=64, test_mode=True),
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackActionInputs"),
]
train_dataloader = dict(
    batch_size=16,  # UDL trains on 8 clips and validates on the other 8
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type=dataset_type,
        ann_file=f"{lists}/train_list_videos.txt",
        data_prefix=dict(video=data_root),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        ann_file=f"{lists}/test_list_videos.txt",
        data_prefix=dict(video=data_root),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="AccMetric")
test_evaluator = val_evaluator

train_cfg = dict(type="UDLTrainLoop", max_epochs=2, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            "backbone": dict(lr_mult=0.1),
            "gate_logits": dict(lr_mult=20.0, decay_mult=0.0),
        }
    ),
)
custom_hooks = [dict(type="RecalibrateNormsHook", num_clips=512)]

default_scope = "mmaction"
default_hooks = dict(
    runtime_info=dict(type="RuntimeInfoHook"),
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=20, ignore_last=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=1, save_best="auto"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    sync_buffers=dict(type="SyncBuffersHook"),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
log_processor = dict(type="LogProcessor", window_size=20, by_epoch=True)
vis_backends = [dict(type="LocalVisBackend")]
visualizer = dict(type="ActionVisualizer", vis_backends=vis_backends)
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=0)
