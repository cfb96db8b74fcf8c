"""YAML of people: what stands for too much is refused before a value is made."""

from __future__ import annotations

import time

import pytest
from ruamel.yaml.error import YAMLError

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.params import load_settings, overrides_of, read_grid, read_yaml
from dsts_pipeline.learn.search import parse_dimension


def laughs(levels: int = 10, each: int = 9) -> str:
    """Lists of aliases of lists: `each ** levels` values."""
    lines = ["a0: &a0 [x]"]
    for level in range(1, levels + 1):
        aliases = ", ".join([f"*a{level - 1}"] * each)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    return "\n".join(lines)


MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 11)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 400))
REFUSED = {
    "aliases of aliases": (laughs(), "line [0-9]+: with its aliases"),
    "in merged mappings": (MERGED, "with its aliases"),
    "a part of itself": ("a: &a [*a]", r"\*a is a part of itself"),
    "too deep": ("[" * 20_000, "nested more than 50 levels"),
    "too deep by aliases": (CHAIN, "nested more than 50 levels deep by its aliases"),
    "a number of 5,000 digits": ("seed: " + "1" * 5000, "cannot be read"),
    "a number of 40,000 bits": ("seed: 0x" + "f" * 10_000, "40,000 bits"),
    "no date": ("seed: 2001-99-99", "cannot be read"),
    "a list as a name": ("? [1, 2]\n: x", "is the name of a value"),
    "an object of Python": ("!!python/object/apply:os.system [ls]", "constructor"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_at_once(kind):
    text, message = REFUSED[kind]
    start = time.perf_counter()
    with pytest.raises(YAMLError, match=message):
        read_yaml(text)
    assert time.perf_counter() - start < 5


def test_aliases_that_stand_for_a_little_are_read():
    text = "one: &one {x: 1}\ntwo: *one\nthree:\n  <<: *one\n  y: [*one, *one]\n"
    one = {"x": 1}
    assert read_yaml(text) == {"one": one, "two": one, "three": {"x": 1, "y": [one, one]}}
    assert read_yaml(laughs(levels=3)) is not None


def test_every_place_where_yaml_is_read_refuses_it(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(laughs())
    with pytest.raises(SettingsError, match=r"params.yaml: not readable as YAML: line .*aliases"):
        load_settings(path)
    with pytest.raises(SettingsError, match=r"--experiment .* is not readable \(line .*aliases"):
        overrides_of(str(path))
    sound = tmp_path / "sound.yaml"
    sound.write_text("")
    flow = "{" + laughs().replace("\n", ", ") + "}"
    with pytest.raises(SettingsError, match="is not a YAML value .*aliases"):
        load_settings(sound, [f"seed={flow}"])
    deep = "[" * 60 + "]" * 60
    with pytest.raises(SettingsError, match="is no list of YAML values"):
        read_grid([f"head.num_neurons={deep}"])
    with pytest.raises(SettingsError, match="is not a YAML value"):
        parse_dimension(f"head.num_neurons={deep},5")


def test_an_experiment_that_is_no_text_is_told(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="is not readable"):
        overrides_of(str(path))
