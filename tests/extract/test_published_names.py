"""Names of tensors in published encoders, and that our loader takes every one of them.

The names are facts of the conversion scripts by which the checkpoints on the hub were made, in the
transformers library's repository: convert_vjepa2_to_hf.py, convert_videomae_to_pytorch.py,
convert_timesformer_to_pytorch.py, convert_vivit_flax_to_pytorch.py, convert_dinov2_to_hf.py,
convert_dinov3_vit_to_hf.py (its published files have the later names q_proj, up_proj and the like),
convert_siglip_to_hf.py. The library renames some as it loads.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsts_pipeline.extract import build_backbone
from tests.extract.test_transformers_models import SIZES, make_model, preset_of

transformers = pytest.importorskip("transformers", reason="the optional extra is not installed")

_NAMES = {
    "vjepa2": (
        "encoder.embeddings.patch_embeddings.proj",
        "encoder.layer.#.norm1 encoder.layer.#.norm2 encoder.layer.#.mlp.fc1 "
        "encoder.layer.#.mlp.fc2 encoder.layer.#.attention.query encoder.layer.#.attention.key "
        "encoder.layer.#.attention.value encoder.layer.#.attention.proj",
        "encoder.layernorm",
        "",
    ),
    "videomae": (
        "embeddings.patch_embeddings.projection",
        "encoder.layer.#.attention.output.dense encoder.layer.#.intermediate.dense "
        "encoder.layer.#.output.dense encoder.layer.#.layernorm_before "
        "encoder.layer.#.layernorm_after",
        "",
        "encoder.layer.#.attention.attention.query.weight "
        "encoder.layer.#.attention.attention.key.weight "
        "encoder.layer.#.attention.attention.value.weight "
        "encoder.layer.#.attention.attention.q_bias encoder.layer.#.attention.attention.v_bias",
    ),
    "timesformer": (
        "embeddings.patch_embeddings.projection",
        "encoder.layer.#.attention.attention.qkv encoder.layer.#.attention.output.dense "
        "encoder.layer.#.temporal_attention.attention.qkv encoder.layer.#.temporal_dense "
        "encoder.layer.#.temporal_attention.output.dense encoder.layer.#.temporal_layernorm "
        "encoder.layer.#.layernorm_before encoder.layer.#.layernorm_after "
        "encoder.layer.#.intermediate.dense encoder.layer.#.output.dense",
        "layernorm",
        "embeddings.cls_token embeddings.position_embeddings embeddings.time_embeddings",
    ),
    "vivit": (
        "embeddings.patch_embeddings.projection",
        "encoder.layer.#.attention.attention.query encoder.layer.#.attention.attention.key "
        "encoder.layer.#.attention.attention.value encoder.layer.#.attention.output.dense "
        "encoder.layer.#.layernorm_before encoder.layer.#.layernorm_after "
        "encoder.layer.#.intermediate.dense encoder.layer.#.output.dense",
        "layernorm",
        "embeddings.cls_token embeddings.position_embeddings",
    ),
    "dinov2": (
        "embeddings.patch_embeddings.projection",
        "encoder.layer.#.attention.attention.query encoder.layer.#.attention.attention.key "
        "encoder.layer.#.attention.attention.value encoder.layer.#.attention.output.dense "
        "encoder.layer.#.norm1 encoder.layer.#.norm2 encoder.layer.#.mlp.fc1 "
        "encoder.layer.#.mlp.fc2",
        "layernorm",
        "embeddings.cls_token embeddings.position_embeddings embeddings.mask_token "
        "encoder.layer.#.layer_scale1.lambda1 encoder.layer.#.layer_scale2.lambda1",
    ),
    "dinov3_vit": (
        "embeddings.patch_embeddings",
        "layer.#.attention.q_proj layer.#.attention.v_proj layer.#.attention.o_proj layer.#.norm1 "
        "layer.#.norm2 layer.#.mlp.up_proj layer.#.mlp.down_proj",
        "norm",
        "embeddings.cls_token embeddings.register_tokens embeddings.mask_token "
        "layer.#.attention.k_proj.weight layer.#.layer_scale1.lambda1 layer.#.layer_scale2.lambda1",
    ),
    "siglip": (
        "vision_model.embeddings.patch_embedding",
        "vision_model.encoder.layers.#.self_attn.q_proj "
        "vision_model.encoder.layers.#.self_attn.k_proj "
        "vision_model.encoder.layers.#.self_attn.v_proj "
        "vision_model.encoder.layers.#.self_attn.out_proj "
        "vision_model.encoder.layers.#.layer_norm1 vision_model.encoder.layers.#.layer_norm2 "
        "vision_model.encoder.layers.#.mlp.fc1 vision_model.encoder.layers.#.mlp.fc2",
        "vision_model.post_layernorm",
        "vision_model.embeddings.position_embedding.weight",
    ),
}
BARE = {"siglip": "", "dinov3_vit": ""}  # published with no model's name before the tensor's


def published_names(kind: str, num_layers: int) -> set[str]:
    """All tensors of the encoder: its pairs of weight and bias, and what stands alone."""
    *pairs, alone = (text.split() for text in _NAMES[kind])
    names = [f"{name}.{part}" for text in pairs for name in text for part in ("weight", "bias")]
    return {
        name.replace("#", str(number)) for name in [*names, *alone] for number in range(num_layers)
    }


@pytest.mark.parametrize("kind", _NAMES)
@pytest.mark.parametrize("has_head", [True, False], ids=["with its head", "alone"])
def test_a_file_with_the_published_names_is_taken_whole(kind, has_head, tmp_path):
    model = make_model(kind)
    model.save_pretrained(tmp_path)
    place = tmp_path / "model.safetensors"
    saved = load_file(place)
    prefix = BARE.get(kind, f"{kind}.")
    expected = published_names(kind, SIZES["num_hidden_layers"])
    others = saved.keys() - {prefix + name for name in expected}
    heads = ("classifier", "fc_norm", "pooler", "vjepa2.predictor", "text_model", "logit_")
    assert len(saved) - len(others) == len(expected)
    assert all(name.startswith((*heads, "vision_model.head.")) for name in others), others
    if not has_head:  # as facebook/dinov2-base, facebook/vjepa2-vitl-fpc64-256 are published
        bare = {name.removeprefix(prefix): saved[name] for name in saved}
        kept = {name: bare[name] for name in bare if not name.startswith(heads)}
        save_file(kept, place, metadata={"format": "pt"})
    backbone = build_backbone(preset_of(kind), weights=tmp_path, num_frames=6)
    report = backbone.load_report
    assert not (report.missing or report.unexpected or report.misshapen)
    spared = {"embeddings.mask_token"} if kind.startswith("dinov") else set()
    assert len(report.matched) >= len(expected - spared)
    found = backbone(torch.full((1, 6, 48, 48, 3), 90, dtype=torch.uint8))
    assert torch.isfinite(found).all()


# Hidden size, layers, heads, hidden size of the feed-forward layers, as convert_vjepa2_to_hf.py.
PUBLISHED = {"L": (1024, 24, 16, 4096), "H": (1280, 32, 16, 5120), "g": (1408, 40, 22, 6144)}


@pytest.mark.parametrize("size", PUBLISHED)
def test_vjepa2_of_the_published_sizes_wants_the_published_tensors(size):
    hidden, layers, heads, inner = PUBLISHED[size]
    config = transformers.VJEPA2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        mlp_ratio=inner / hidden,
    )
    with torch.device("meta"):
        state = transformers.VJEPA2Model(config).state_dict()
    wanted = {name for name in state if not name.startswith("predictor.")}
    assert wanted == published_names("vjepa2", layers)
    assert tuple(state[f"encoder.layer.{layers - 1}.mlp.fc1.weight"].shape) == (inner, hidden)
    patch = state["encoder.embeddings.patch_embeddings.proj.weight"]
    assert tuple(patch.shape) == (hidden, 3, 2, 16, 16)
