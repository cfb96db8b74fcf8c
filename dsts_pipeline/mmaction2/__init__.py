"""DSTS as a component of mmaction2, for its own tools and configs.

A config that says `custom_imports = dict(imports=["dsts_pipeline.mmaction2"])` may use:
`DSTSHead` (a `cls_head`), `UDLTrainLoop` (a `train_cfg`), the hooks `RecalibrateNormsHook` and
`KeepTimeOfTPNHook`, and the transform `DecodeSegments`. See docs/mmaction2.md.

Importing this registers them, which is what `custom_imports` is for. First it installs what stands
in for the missing parts of mmaction2's wheel; then it allows its checkpoints to be loaded.
`python -m dsts_pipeline.mmaction2 train CONFIG` does the same and then runs the tool that the
wheel ships.
"""

from dsts_pipeline.extract.mmaction_compat import import_mmaction

import_mmaction()  # before all that imports mmaction by itself, as the modules below do

from dsts_pipeline.mmaction2.components import (  # noqa: E402
    DSTSHead,
    KeepTimeOfTPNHook,
    RecalibrateNormsHook,
    allow_checkpoints,
)
from dsts_pipeline.mmaction2.frames import DecodeSegments  # noqa: E402
from dsts_pipeline.mmaction2.loop import UDLTrainLoop  # noqa: E402

allow_checkpoints()

__all__ = [
    "DSTSHead",
    "DecodeSegments",
    "KeepTimeOfTPNHook",
    "RecalibrateNormsHook",
    "UDLTrainLoop",
]
