"""Items of a long JSON list come out as `json.loads` would give them, wherever blocks end."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips import ssv2 as json_items
from dsts_pipeline.clips.ssv2 import iterate_items

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(items=st.lists(values, max_size=6), block=st.integers(1, 9), indent=st.sampled_from([0, 2]))
def test_blocks_of_any_size_give_the_same_items(tmp_path_factory, items, block, indent):
    path = tmp_path_factory.getbasetemp() / "items.json"
    text = json.dumps(items, ensure_ascii=False, indent=indent)
    path.write_bytes(text.encode("utf-8-sig", "surrogatepass"))
    kept, json_items._BLOCK_BYTES = json_items._BLOCK_BYTES, block
    try:
        assert list(iterate_items(path)) == items
    finally:
        json_items._BLOCK_BYTES = kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "not a JSON file"),
        ("[1 2]", "Expecting ',' delimiter"),
        ("[1, {]", "not a JSON file"),
        ("[1,]", "not a JSON file"),
        ("[1] 2", "Extra data"),
        ("", "not a JSON file"),
        ('{"a": 1}', "found dict, expected a list"),
        ("7", "found int, expected a list"),
        (b"[\xff]", "not a JSON file"),
    ],
)
def test_what_is_no_list_is_named(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=f"bad.json: .*{message}"):
        list(iterate_items(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="none.json: no such file"):
        list(iterate_items(tmp_path / "none.json"))
