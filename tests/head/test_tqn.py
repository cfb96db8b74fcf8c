"""The Temporal Query Network's decoder, against a literal one, and what it asks of a data set."""

from __future__ import annotations

import json

import pytest
import torch

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.settings import HeadSettings, TrainSettings
from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head import TQNHead, load_head, save_head
from dsts_pipeline.head.building import build_head, new_head
from dsts_pipeline.learn.steps import Objective, mix_batch
from tests.reference.literal_tqn import responses, tqn_loss

DIVES = [["Back", "15som"], ["Back", "25som"], ["Front", "15som"], ["Front", "Dive"]]
MAPS = torch.randn(3, 8, 4, 2, 2, generator=torch.Generator().manual_seed(0)).double()
LABELS = torch.tensor([2, 0, 3])
VALUES = [[1, 0], [0, 0], [1, 2]]  # of these labels: which takeoff, which somersault


def small_head(**options) -> TQNHead:
    torch.manual_seed(0)
    head = TQNHead(8, 4, attributes=DIVES, num_layers=2, readout_heads=2, **options).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head.eval()


@pytest.mark.parametrize("options", [{}, {"class_query": False}, {"width": 6}])
def test_logits_and_loss_are_the_literal_ones(options):
    head = small_head(**options)
    state = dict(head.state_dict())
    with_class = options.get("class_query", True)
    sizes = [2, 3, 4] if with_class else [2, 3]
    targets = [[*VALUES[i], int(LABELS[i])][: len(sizes)] for i in range(3)]
    answers = responses(MAPS, state, num_layers=2, num_heads=2)
    loss, shares = tqn_loss(answers, state, sizes, targets)
    logits = head(MAPS)
    torch.testing.assert_close(head.loss(logits, LABELS), loss)
    takeoff, somersault = shares[:2]
    for number, dive in enumerate(DIVES):
        of_dive = takeoff[:, ["Back", "Front"].index(dive[0])]
        of_dive = of_dive * somersault[:, ["15som", "25som", "Dive"].index(dive[1])]
        if with_class:
            of_dive = of_dive * shares[2][:, number]
        torch.testing.assert_close(logits[:, number].exp(), of_dive)


def test_training_makes_the_heads_own_loss_small():
    """Not the cross-entropy of the class logits, which the attributes' answers do not normalise."""
    head = small_head()
    head.train()
    batch = FeatureBatch(MAPS, LABELS, torch.arange(3))
    for smoothing in (0.0, 0.1):
        how = TrainSettings(label_smoothing=smoothing)
        objective = Objective(head, how)
        draw = objective.draw(batch, torch.Generator().manual_seed(1))
        loss, (logits, _) = objective.evaluate(draw, update_statistics=True)
        hard = -logits[range(3), LABELS].mean()
        torch.testing.assert_close(loss, (1 - smoothing) * hard - smoothing * logits.mean())
        assert abs(loss - torch.nn.functional.cross_entropy(logits, LABELS)) > 0.1
    mixed = mix_batch(batch, alpha=1.0, seed=0)
    draw = Objective(head).draw(mixed, torch.Generator().manual_seed(1))
    loss, (logits, _) = Objective(head).evaluate(draw, update_statistics=True)
    parts = [-logits[range(3), labels].mean() for labels in (mixed.labels, mixed.partners)]
    torch.testing.assert_close(loss, mixed.share * parts[0] + (1 - mixed.share) * parts[1])


def test_dropout_is_drawn_beforehand_and_only_trains():
    head = small_head(readout_dropout=0.5)
    (noise,) = head.draw_noise(3, torch.Generator().manual_seed(0))
    assert noise.factors.shape == (3, 3, 8) and set(noise.factors.unique().tolist()) == {0.0, 2.0}
    head.train()
    torch.testing.assert_close(head(MAPS, (noise,)), head(MAPS, (noise,)))
    assert not torch.allclose(head(MAPS, (noise,)), head.eval()(MAPS, (noise,)))
    part = noise.of_samples(1, 3)
    head.train()
    torch.testing.assert_close(head(MAPS[1:], (part,)), head(MAPS, (noise,))[1:])


def test_preset_has_the_sizes_of_the_published_code():
    """Four layers, four heads, 1,024 channels, four attributes of a dive and its class."""
    chosen = HeadSettings(kind="tqn", num_layers=4, width=None, readout_heads=4)
    dives = [
        [f"takeoff {n % 4}", f"somersault {n % 8}", f"twist {n % 6}", "PIKE"] for n in range(48)
    ]
    with torch.device("meta"):
        head = new_head(chosen, (1024, 48), dives)
    assert isinstance(head, TQNHead)
    assert head.queries.shape == (5, 1024) and len(head.decoder.layers) == 4
    layer = head.decoder.layers[0]
    assert layer.self_attn.num_heads == layer.multihead_attn.num_heads == 4
    assert layer.linear1.out_features == 1024 and layer.norm_first
    assert head.sizes == [4, 8, 6, 1, 48] and head.classifier.out_features == 67


def test_round_trip(tmp_path):
    head = small_head().float()
    save_head(tmp_path, head)
    loaded, _ = load_head(tmp_path)
    torch.testing.assert_close(loaded(MAPS.float()), head(MAPS.float()))
    told = json.loads((tmp_path / "head.json").read_text())["arguments"]
    assert told["attributes"] == DIVES


def test_what_has_no_attributes_is_refused():
    chosen = HeadSettings(kind="tqn", width=None, readout_heads=4)
    with pytest.raises(SettingsError, match="head: TQN asks for the attributes of a class"):
        build_head(chosen, (8, 4), None, 0)
    with pytest.raises(SettingsError, match="told of 4 classes; expected 5 rows"):
        build_head(chosen, (8, 5), None, 0, DIVES)
    alike = [*DIVES, DIVES[1]]
    build_head(chosen, (8, 5), None, 0, alike)
    without = chosen.model_copy(update={"class_query": False})
    with pytest.raises(SettingsError, match="classes 1 and 4 have the same attributes"):
        build_head(without, (8, 5), None, 0, alike)
    many = chosen.model_copy(update={"readout_heads": 3})
    with pytest.raises(SettingsError, match="8 channels are no multiple of 3 attention heads"):
        build_head(many, (8, 4), None, 0, DIVES)
    bare = chosen.model_copy(update={"num_layers": 0})
    with pytest.raises(SettingsError, match="TQN has 0 layers, .* expected at least 1"):
        build_head(bare, (8, 4), None, 0, DIVES)
