"""Make the embedded backbone: render a pool of clips, train a recognizer on it, write its weights.

Not a stage of the pipeline: the weights that it once made are a part of the package.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.extract.model_zoo import get_preset
from dsts_pipeline.extract.weights import save_weights
from dsts_pipeline.stick.pretrain import (
    PoolRecipe,
    pretrain_recognizer,
    render_pool,
    write_card,
)


def run(settings: Settings) -> None:
    """Write backbone.weights and, beside it, a model card with the figures of every epoch.

    Raises:
        SettingsError: The data set is not the embedded one; there are weights already.
    """
    chosen = settings.pretrain
    backbone = settings.backbone
    render = settings.dataset.render
    if render is None:
        raise SettingsError(
            "pretrain renders its clips, but dataset.render is null; other data sets need a "
            "recognizer trained elsewhere: give its file in backbone.weights"
        )
    if backbone.weights is None:
        raise SettingsError("backbone.weights is null; give the file that is to be written")
    if Path(backbone.weights).exists():
        raise SettingsError(
            f"backbone.weights {backbone.weights} is there already, and pretrain replaces nothing; "
            "name another file, such as --set backbone.weights=weights/mine.safetensors, or move "
            "that one away"
        )
    preset = get_preset(backbone.name)
    heldout_recipe = PoolRecipe(
        renderer=render.renderer,
        stream="pretrain_heldout",
        num_clips=chosen.num_heldout,
        video_frames=render.num_frames,
        num_frames=backbone.num_frames or preset.num_frames,
        render_px=render.size_px,
        input_px=backbone.size_px or preset.size_px,
        difficulty=render.difficulty,
        seed=chosen.seed,
    )
    train_recipe = replace(heldout_recipe, stream="pretrain", num_clips=chosen.num_clips)
    heldout = render_pool(chosen.pool, heldout_recipe, num_workers=chosen.num_workers)
    train = render_pool(chosen.pool, train_recipe, num_workers=chosen.num_workers)
    recognizer, history = pretrain_recognizer(backbone.name, train, heldout, chosen)
    save_weights(recognizer, backbone.weights, half=True)
    card = Path(backbone.weights).with_suffix(".md")
    write_card(card, backbone.name, recognizer, train_recipe, heldout_recipe, chosen, history)
    last = history[-1]
    reached = (
        f"top-1 {last.heldout_top1:.1%}"
        if chosen.class_epochs
        else f"error of targets {last.heldout_error:.3f}, no classes"
    )
    console.print(f"{backbone.weights}: held-out {reached}; card: {card}")
