# DSTS on Video Swin-B for Diving48, as on Something-Something v2 but for the data. The paper
# reports 83.0 / 71.5 (top-1 / class-wise), Swin-B alone 80.5 / 69.7. Not trained by us.
#   python cli.py prepare --params diving48.yaml; python cli.py export-annotations outputs/mmaction2
#   python -m dsts_pipeline.mmaction2 train configs/mmaction2/dsts_swin_base_diving48.py
# load_from is the model of Something-Something v2; its classifier does not fit and is left out.
# Give it a Swin-B trained on Diving48 if you have one: then training starts at its accuracy.
_base_ = ["dsts_swin_base_ssv2.py"]

model = dict(cls_head=dict(num_classes=48))

data_root = "data/diving48"
train_pipeline = [
    dict(type="DecordInit"),
    dict(type="UniformSample", clip_len=32),
    dict(type="DecordDecode"),
    dict(type="Resize", scale=(-1, 256)),
    dict(type="RandomResizedCrop"),
    dict(type="Resize", scale=(224, 224), keep_ratio=False),
    dict(type="Flip", flip_ratio=0.5),  # a mirrored dive has the same class
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackActionInputs", meta_keys=("img_shape", "sample_idx")),
]
train_dataloader = dict(dataset=dict(data_prefix=dict(video=data_root), pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_prefix=dict(video=data_root)))
test_dataloader = dict(dataset=dict(data_prefix=dict(video=data_root)))
