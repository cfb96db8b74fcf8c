"""Schedules, mixup, averaged weights, early stopping: each does what it says; faults are told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.progress import track
from dsts_pipeline.base.settings import TrainSettings
from dsts_pipeline.feed import FeatureBatch, FeatureFeed
from dsts_pipeline.head import ConvBlockHead, DSTSHead, LinearProbe
from dsts_pipeline.head.recalibration import recalibrate
from dsts_pipeline.learn import train_head
from dsts_pipeline.learn.optimizers import learning_rate_factor
from dsts_pipeline.learn.processes import choose_device, joined_processes
from dsts_pipeline.learn.steps import MixedBatch, Objective, mix_batch, split_batch
from dsts_pipeline.learn.training import Training, WeightAverage
from tests.learn.recipes import how, recipe
from tests.learn.small_feed import MemoryStore, ordered_feed


def batch_of(size=6):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(size, 6, 2, 3, 3, generator=generator)
    return FeatureBatch(maps, torch.arange(size) % 4, torch.arange(size))


def test_steps_multiply_at_their_milestones():
    how = TrainSettings(
        schedule="steps", warmup_fraction=0.1, step_milestones=(0.5, 0.75), step_factor=0.1
    )

    def factor(progress):
        return learning_rate_factor(progress, how)

    assert [factor(p) for p in (0.0, 0.05, 0.1, 0.49)] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert [factor(p) for p in (0.5, 0.74, 0.75, 1.0)] == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_mixup_blends_maps_and_labels_alike():
    batch = batch_of()
    mixed = mix_batch(batch, alpha=1.0, seed=3)
    assert 0.5 <= mixed.share <= 1.0 and torch.equal(mixed.rows, batch.rows)
    for clip in range(len(batch)):
        rest = (mixed.maps[clip] - mixed.share * batch.maps[clip]) / (1 - mixed.share)
        (partner,) = [k for k in range(6) if torch.allclose(rest, batch.maps[k], atol=1e-4)]
        assert mixed.partners[clip] == batch.labels[partner]
    assert mix_batch(batch, alpha=1.0, seed=3).share == mixed.share
    assert mix_batch(batch, alpha=1.0, seed=4).share != mixed.share


def test_loss_of_a_mixed_batch_is_that_of_its_soft_labels():
    mixed = mix_batch(batch_of(), alpha=1.0, seed=3)
    probe = LinearProbe(6, 4)
    objective = Objective(probe)
    found = objective.evaluate(objective.draw(mixed), update_statistics=False)[0]
    soft = mixed.share * F.one_hot(mixed.labels, 4) + (1 - mixed.share) * F.one_hot(
        mixed.partners, 4
    )
    torch.testing.assert_close(found, F.cross_entropy(probe(mixed.maps), soft))


@pytest.mark.parametrize("mixed", [False, True])
def test_parts_of_a_batch_make_the_batch(mixed):
    batch = mix_batch(batch_of(), alpha=1.0, seed=3) if mixed else batch_of()
    parts = split_batch(batch, 4)
    assert [len(part) for part in parts] == [4, 2]
    assert torch.equal(torch.cat([part.maps for part in parts]), batch.maps)
    assert all(isinstance(part, MixedBatch) == mixed for part in parts)
    if mixed:
        assert torch.equal(torch.cat([part.partners for part in parts]), batch.partners)


def test_average_of_weights_follows_its_formula_and_leaves_the_head_alone():
    head = LinearProbe(6, 4)
    average = WeightAverage(head, 0.5)
    expected = head.classifier.bias.detach().clone()
    for step in range(1, 9):
        with torch.no_grad():
            head.classifier.bias += 1.0
        average.update()
        m = min(0.5, (1 + step) / (10 + step))
        expected = m * expected + (1 - m) * head.classifier.bias.detach()
    torch.testing.assert_close(average.values["classifier.bias"], expected)
    own = head.classifier.bias.detach().clone()
    with average.in_place():
        torch.testing.assert_close(head.classifier.bias.detach(), expected)
    assert torch.equal(head.classifier.bias, own)


def probe_after(**options):
    torch.manual_seed(0)
    head = LinearProbe(6, 4)
    history = train_head(head, ordered_feed(), **how(num_epochs=4, batch_size=16, **options))
    return head, history


def test_averaged_weights_are_what_a_training_leaves():
    options = {"schedule": "constant", "optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1}
    plain, _ = probe_after(**options)
    averaged, _ = probe_after(ema_decay=0.99, **options)
    torch.manual_seed(0)
    start = LinearProbe(6, 4).classifier.weight
    moved = (plain.classifier.weight - start).norm()
    assert 0.5 * moved < (averaged.classifier.weight - start).norm() < 0.98 * moved


def test_mixup_reaches_the_training():
    plain, _ = probe_after()
    mixed, _ = probe_after(mixup_alpha=1.0)
    assert not torch.equal(plain.classifier.weight, mixed.classifier.weight)


def test_noise_fades_linearly_over_the_training():
    def trained(**options):
        torch.manual_seed(0)
        head = DSTSHead.paper(6, 4, num_neurons=2, num_layers=1)
        training = Training(
            head,
            ordered_feed(),
            recipe(num_epochs=2, batch_size=16, udl=False, **options),
            joined_of_one(),
        )
        scales = []

        def note():
            scales.append(training.stepper.noise_scale)

        with track("training", total=2) as progress:
            for _ in range(2):
                training.run_epoch(progress, note)
        return head, scales

    steady, scales = trained()
    assert set(scales) == {1.0}
    fading, scales = trained(final_noise=0.2)
    assert len(scales) > 2 and scales[0] == 1.0
    assert scales == pytest.approx(np.linspace(1.0, 0.2, len(scales) + 1)[:-1])
    assert not torch.equal(steady.layers[0].gate_logits, fading.layers[0].gate_logits)


@pytest.mark.parametrize("udl", [False, True])
def test_steps_with_scaled_noise_are_those_of_a_head_with_scaled_noise(udl):
    def stepped(scale, **options):
        torch.manual_seed(0)
        head = DSTSHead.paper(6, 4, num_neurons=3, num_layers=2, **options)
        training = Training(head, ordered_feed(), recipe(num_epochs=1), joined_of_one())
        stepper, batch = training.stepper, batch_of()
        stepper.generator.manual_seed(1)
        stepper.noise_scale = scale
        if udl:
            stepper.udl_step(batch, replace(batch, rows=batch.rows + 6), inner_lr=0.1)
        else:
            stepper.plain_step(batch)
        return head.state_dict()

    wanted = stepped(1.0, gumbel_scale=0.25, gate_noise_scale=0.25)
    found = stepped(0.25)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=name)
    other = stepped(1.0)
    assert not torch.equal(other["layers.0.gate_logits"], wanted["layers.0.gate_logits"])


def test_statistics_at_the_end_are_of_as_many_clips_as_asked_for():
    feed = ordered_feed()

    def trained(**options):
        torch.manual_seed(0)
        head = DSTSHead.paper(6, 4, num_neurons=2, num_layers=1)
        train_head(head, feed, **how(num_epochs=1, batch_size=16, udl=False, **options))
        return head

    few, everyone = trained(recompute_clips_at_end=16), trained()
    assert torch.equal(few.classifier.weight, everyone.classifier.weight)
    mean = "layers.0.spatial_norm.running_mean"
    assert not torch.equal(few.state_dict()[mean], everyone.state_dict()[mean])
    training = Training(few, feed, recipe(num_epochs=1), joined_of_one())
    rows = training.draw_rows(16)
    assert len(set(rows)) == 16 and not np.array_equal(rows, training.rows[:16])
    recalibrate(everyone, lambda: (batch.maps for batch in feed.batches([rows])))
    assert torch.allclose(few.state_dict()[mean], everyone.state_dict()[mean], atol=1e-6)


def test_statistics_of_an_epoch_are_of_all_classes_where_clips_come_class_by_class():
    mixed = ordered_feed(num_clips=256)
    order = np.argsort(mixed.labels, kind="stable")
    feed = FeatureFeed(MemoryStore(mixed.store.maps[order], mixed.labels[order], 4))
    training = Training(LinearProbe(6, 4), feed, recipe(num_epochs=1), joined_of_one())
    drawn = np.bincount(feed.labels[training.draw_rows(64)], minlength=4)
    assert drawn.min() >= 8
    again = Training(LinearProbe(6, 4), feed, recipe(num_epochs=1), joined_of_one())
    assert np.array_equal(training.draw_rows(64), again.draw_rows(64))  # one reading serves both
    assert np.array_equal(training.draw_rows(None), training.draw_rows(1000))


def test_a_convolution_block_trained_on_mixed_clips_has_statistics_of_clips_as_they_are():
    feed = ordered_feed()
    head = ConvBlockHead(6, 4, num_parameters=200)
    train_head(head, feed, **how(num_epochs=1, batch_size=16, udl=False, mixup_alpha=1.0))
    found = head.norm.running_mean.clone()
    everything = range(0, len(feed.rows) - 15, 16)
    batches = [feed.rows[start : start + 16] for start in everything]
    recalibrate(head, lambda: (batch.maps for batch in feed.batches(batches)))
    torch.testing.assert_close(found, head.norm.running_mean)


def test_training_ends_after_epochs_without_a_better_one():
    options = {"heldout_fraction": 0.25, "learning_rate": 3.0, "optimizer": "sgd"}
    _, history = probe_after(**options)
    assert len(history) == 4
    _, history = probe_after(early_stopping_epochs=2, **options)
    assert len(history) < 4 and not any(entry["best"] for entry in history[-2:])
    with pytest.raises(SettingsError, match="nothing to judge an epoch by; set train.heldout_f"):
        recipe(num_epochs=3, early_stopping_epochs=2)


def test_weights_that_are_not_finite_are_never_saved():
    training = Training(LinearProbe(6, 4), ordered_feed(), recipe(num_epochs=1), joined_of_one())
    training.watch.check_weights(training)
    with torch.no_grad():
        training.head.classifier.bias[1] = float("nan")
    with pytest.raises(SettingsError, match="diverged: classifier.bias holds NaN or infinity"):
        training.watch.check_weights(training)


def joined_of_one():
    with joined_processes("cpu", 1) as processes:
        return processes


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_explained():
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(SettingsError, match="train.device is cuda and torch finds no GPU"):
        choose_device("cuda")


# ---- UDL's batches of different groups -----------------------------------------------------------


def udl_training(validation_by, group_numbers):
    feed = ordered_feed()
    feed.store.group_numbers = group_numbers
    head = DSTSHead(6, 4, num_neurons=2, num_layers=1, width=4)
    options = {"udl": True, "batch_size": 8, "num_epochs": 1, "validation_by": validation_by}
    return Training(head, feed, recipe(**options), joined_of_one())


def test_udl_validates_on_other_groups_where_that_is_wanted():
    groups = np.arange(64) // 4 % 5
    shared = {"clip": 0, "group": 0}
    for by in shared:
        for train, val in udl_training(by, groups).sampler.pairs(0):
            shared[by] += bool(set(groups[train]) & set(groups[val]))
    assert shared["group"] == 0 < shared["clip"]


def test_udl_by_group_needs_groups():
    with pytest.raises(SettingsError, match="tell no groups"):
        udl_training("group", None)
