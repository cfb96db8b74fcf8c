"""The published attentive probe of a V-JEPA 2 folder, from cached maps, against the whole model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.base.settings import HeadSettings
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store
from dsts_pipeline.feature_store.joining import join_views
from dsts_pipeline.head.building import build_head, own_head_of, title_of

transformers = pytest.importorskip("transformers", reason="the optional extra is not installed")
CLASSES = ("Moving [something] up", "Pushing [something]", "Turning [something] over")
PUBLISHED = ("Pushing something", "Turning something over", "Moving something up")
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
NUM_CLIPS = 12


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small random model as it is published, and its folder."""
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(
        **SIZES,
        **{f"pred_{name}": value for name, value in SIZES.items()},
        crop_size=48,
        frames_per_clip=6,
        num_pooler_layers=3,
        id2label=dict(enumerate(PUBLISHED)),
        label2id={name: number for number, name in enumerate(PUBLISHED)},
    )
    model = transformers.VJEPA2ForVideoClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("vjepa2")
    model.eval().save_pretrained(folder)
    return model, folder


def cache(root, backbone, frames, dtype):
    """A store of the frames' maps, as `extract` describes them."""
    plan = StorePlan(
        {"backbone": backbone.describe()},
        clips=[(f"clip{n}", n % 3, "train" if n < 6 else "test") for n in range(NUM_CLIPS)],
        class_names=CLASSES,
        map_shape=backbone.map_shape,
        samples_per_shard=NUM_CLIPS,
        dtype=dtype,
    )
    with StoreWriter(root, plan) as writer, torch.no_grad():
        maps = backbone(frames).numpy()
        for shard in writer.claims():
            writer.write_shard(shard, maps)
        return open_store(writer.finish({"backbone": backbone.describe()}).parent)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-2)])
def test_cached_maps_give_the_published_models_logits(published, tmp_path, dtype, tolerance):
    model, folder = published
    frames = torch.randint(0, 256, (NUM_CLIPS, 6, 48, 48, 3), dtype=torch.uint8)
    pixels = frames.permute(0, 1, 4, 2, 3) / 255
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.no_grad():
        expected = model(pixel_values_videos=(pixels - mean) / std).logits
    store = cache(tmp_path, build_backbone("vjepa2", weights=folder), frames, dtype)
    probe = own_head_of(folder, store)
    assert probe is not None and title_of(probe) == "published probe (depth 4)"
    with torch.no_grad():
        found = probe(torch.from_numpy(store.read(np.arange(NUM_CLIPS))).float())
    expected = expected[:, [2, 0, 1]]  # our classes are in another order
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert torch.equal(found.argmax(1), expected.argmax(1)) and expected.std() > 0.05

    alike = HeadSettings(readout="attentive", readout_depth=4, readout_heads=4, width=8)
    head = build_head(alike, (24, 3), probe, seed=0).eval()
    with torch.no_grad():
        started = head(torch.from_numpy(store.read(np.arange(NUM_CLIPS))).float())
    torch.testing.assert_close(started, found, rtol=1e-5, atol=1e-5)
    other = build_head(alike.model_copy(update={"readout_depth": 2}), (24, 3), probe, seed=0)
    assert not torch.equal(other.classifier.weight, probe.classifier.weight)


def test_joined_segments_are_pooled_together_as_the_published_pooler_does_it(published, tmp_path):
    """V-JEPA 2's frozen evaluation: tokens of a video's segments side by side, one answer."""
    model, folder = published
    backbone = build_backbone("vjepa2", weights=folder)
    frames = torch.randint(0, 256, (NUM_CLIPS, 6, 48, 48, 3), dtype=torch.uint8)
    clips = [(f"clip{n // 3}", n // 3 % 3, "test" if n > 5 else "train") for n in range(NUM_CLIPS)]
    plan = StorePlan(
        {"backbone": backbone.describe(), "views": {"segments": 3}},
        clips=[(*clip, number % 3) for number, clip in enumerate(clips)],
        class_names=CLASSES,
        map_shape=backbone.map_shape,
        samples_per_shard=5,
        dtype="float32",
    )
    with StoreWriter(tmp_path, plan) as writer, torch.no_grad():
        maps = backbone(frames).numpy()
        for shard in writer.claims():
            places = writer.shard_clips(shard)
            writer.write_shard(shard, maps[places.start : places.stop])
        store = join_views(open_store(writer.finish({"backbone": backbone.describe()}).parent))
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    pixels = (frames.permute(0, 1, 4, 2, 3) / 255 - mean) / std
    with torch.no_grad():
        tokens = model.vjepa2(pixels, skip_predictor=True).last_hidden_state  # [12, P, D]
        video = torch.stack([torch.cat([*tokens[n : n + 3]]) for n in range(0, NUM_CLIPS, 3)])
        expected = model.classifier(model.pooler(video))[:, [2, 0, 1]]
        alone = model.classifier(model.pooler(tokens))[:, [2, 0, 1]].reshape(4, 3, 3).mean(1)
        probe = own_head_of(folder, store)
        found = probe(torch.from_numpy(store.read(np.arange(4))))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - alone).abs().max() > 1e-4, "not the mean of the segments' answers"


def test_other_classes_have_no_published_probe(published, tmp_path):
    _, folder = published
    backbone = build_backbone("vjepa2", weights=folder)
    plan = StorePlan(
        {},
        clips=[("a", 0, "train"), ("b", 1, "test")],
        class_names=("x", "y"),
        map_shape=backbone.map_shape,
        samples_per_shard=2,
    )
    with StoreWriter(tmp_path, plan) as writer:
        for shard in writer.claims():
            writer.write_shard(shard, np.zeros((2, *backbone.map_shape), np.float32))
        store = open_store(writer.finish({"backbone": backbone.describe()}).parent)
    assert own_head_of(folder, store) is None


def test_classes_of_other_names_keep_their_order_and_that_is_said(published, capsys):
    from dsts_pipeline.head.published import find_published_probe

    _, folder = published
    probe = find_published_probe(folder, 24, ("a", "b", "c"))
    own = load_file(folder / "model.safetensors")["classifier.weight"]
    assert torch.equal(probe.classifier.weight, own)
    assert "taken in their order" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["less", "misshapen", "cut"])
def test_a_damaged_probe_is_refused(published, tmp_path, change):
    from dsts_pipeline.head.published import find_published_probe

    _, folder = published
    state = load_file(folder / "model.safetensors")
    name = "pooler.self_attention_layers.1.self_attn.k_proj.weight"
    if change == "less":
        del state[name]
    elif change == "misshapen":
        state[name] = state[name][:5].contiguous()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    if change == "cut":
        content = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(content[:2000])
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="get the folder again"):
        find_published_probe(tmp_path, 24, CLASSES)


def test_maps_of_other_weights_are_told(published, tmp_path):
    _, folder = published
    backbone = build_backbone("vjepa2", weights=folder)
    frames = torch.zeros(NUM_CLIPS, 6, 48, 48, 3, dtype=torch.uint8)
    store = cache(tmp_path / "s", backbone, frames, "float32")
    state = load_file(folder / "model.safetensors")
    state["classifier.bias"] += 1.0
    (tmp_path / "other").mkdir()
    save_file(state, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "other" / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="the maps of .* are of weights"):
        own_head_of(tmp_path / "other", store)
