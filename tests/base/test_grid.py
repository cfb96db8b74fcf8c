"""Grids and lists of variants; what may not vary is told with the closest setting."""

from __future__ import annotations

import json

import pytest

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.params import list_variants, load_settings, overrides_of, read_grid
from tests.pipeline import params_of


def settings_of(repository, *overrides):
    return load_settings(params_of(), overrides)


def with_grid(repository, *grid):
    return settings_of(repository, f"ablate.grid={json.dumps(grid)}")


def test_every_combination_the_last_key_fastest():
    found = read_grid(["head.num_neurons=5, 10", "udl.enabled=true,false", "head.width=null"])
    assert found == [
        {"head.num_neurons": n, "udl.enabled": u, "head.width": None}
        for n in (5, 10)
        for u in (True, False)
    ]
    assert read_grid(["train.step_milestones=[0.5, 0.8],[0.6]"]) == [
        {"train.step_milestones": [0.5, 0.8]},
        {"train.step_milestones": [0.6]},
    ]
    assert read_grid([]) == []


def test_variants_of_a_grid_stand_beside_the_settings_as_they_are(repository):
    found = list_variants(with_grid(repository, "head.num_neurons=5,10", "head.impulse=mean"))
    names = [variant.name for variant in found]
    assert names == ["full", *(f"head.num_neurons={n} head.impulse=mean" for n in (5, 10))]
    assert found[0].changes == {} and found[0].settings.head.num_neurons == 10
    assert found[1].settings.head.num_neurons == 5 and found[1].settings.head.impulse == "mean"


def test_the_reference_may_be_a_listed_variant_and_comes_first(repository):
    variants = [{"name": "a"}, {"name": "small", "settings": {"head.num_neurons": 2}}]
    overrides = f"ablate.variants={json.dumps(variants)}", "ablate.reference=small"
    found = list_variants(settings_of(repository, *overrides))
    assert [variant.name for variant in found] == ["small", "a"]


def test_listed_variants_may_be_left_out_by_their_names(repository):
    variants = f"ablate.variants={json.dumps([{'name': 'a'}, {'name': 'b'}])}"
    found = list_variants(settings_of(repository, variants, "ablate.leave_out=[a]"))
    assert [variant.name for variant in found] == ["full", "b"]
    with pytest.raises(SettingsError, match=r"leave_out names c, .*\['a', 'b'\]"):
        list_variants(settings_of(repository, variants, "ablate.leave_out=[c]"))


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ("head.num_neuron=5", "head.num_neuron is not a setting; did you mean head.num_neurons?"),
        ("dataset.root=a,b", "--grid dataset.root=a,b: dataset.root is common to all variants"),
        ("train.devices=1,2", "train.devices is common to all"),
        ("seed=1,2", "seed is common to all variants"),
        ("head.num_neurons", "expected KEY=VALUE,VALUE"),
        ("head.num_neurons=", "expected KEY=VALUE,VALUE"),
        ("head.num_neurons=[5", "is no list of YAML values"),
        ("head.num_neurons=five", 'variant head.num_neurons=five: head.num_neurons: found "five"'),
        ("head.num_layers=0,1", "variant head.num_layers=0: udl.enabled is true and"),
    ],
)
def test_wrong_grids_are_explained(repository, grid, expected):
    with pytest.raises(SettingsError) as told:
        list_variants(with_grid(repository, grid))
    assert expected in str(told.value)


def test_a_key_twice_is_refused():
    with pytest.raises(SettingsError, match="head.width has values already; list all of them"):
        read_grid(["head.width=8", "head.width=16"])


def test_udl_without_upstream_parameters_is_explained(repository):
    variants = [{"name": "x", "settings": {"head.synapse": False, "head.specialization": "fixed"}}]
    with pytest.raises(SettingsError, match="variant x: .* neither scoring kernels nor gates"):
        list_variants(settings_of(repository, f"ablate.variants={json.dumps(variants)}"))


def test_wrong_lists_are_explained(repository):
    with pytest.raises(SettingsError, match="ablate --experiment paper_tables"):
        list_variants(settings_of(repository))
    with pytest.raises(SettingsError, match="two variants are named a; give each a name"):
        settings_of(repository, 'ablate.variants=[{"name": "a"}, {"name": "a"}]')
    with pytest.raises(SettingsError, match="variant a: head.wdth is not a setting"):
        overrides = 'ablate.variants=[{"name": "a", "settings": {"head.wdth": 1}}]'
        list_variants(settings_of(repository, overrides))


def test_experiments_are_laid_over_the_settings(repository):
    folder = repository / "configs" / "experiment"
    settings = settings_of(repository, *overrides_of("without_udl", folder), "seed=3")
    assert not settings.udl.enabled and settings.seed == 3
    with pytest.raises(SettingsError, match="did you mean paper_tables?"):
        overrides_of("paper_table", folder)
    assert overrides_of("ssv2_tpn", folder)[:2] == ["dataset=ssv2", "backbone=tpn_tsm_r50"]
