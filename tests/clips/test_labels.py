"""What labels mean: class numbers as programs write them, names, and what can't be meant."""

from __future__ import annotations

import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.labels import number_labels


def number(*labels, classes=None, **options):
    places = {label: f"line {n}" for n, label in enumerate(labels, 2)}
    return number_labels(places, classes, **options)


def test_whole_numbers_with_a_zero_fraction_are_numbers():
    labels = ["0.0", "1.0", "2.0", "10.0", "3", "04", "5."]
    found = number(*labels)
    assert [found.numbers[label] for label in labels] == [0, 1, 2, 10, 3, 4, 5]
    assert found.class_names == tuple(map(str, range(11)))
    assert found.are_numbers and found.notes == ()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["0", "-1"], "line 3: the label is '-1', a negative number"),
        (["0", "-1.0"], "line 3: the label is '-1.0', a negative number"),
        (["jump", "-3"], "line 3: the label is '-3', a negative number"),
        (["0", "0.5"], "line 3: the label is '0.5', no whole number"),
        (["0", "1e3"], "line 3: the label is '1e3', no whole number"),
        (["0", "+1"], "line 3: the label is '\\+1', no whole number"),
        (["jump", "1.0"], r"line 3: the label '1.0' is a number, and 'jump' \(line 2\) is a name"),
        (["0", "nan"], "line 3: the label is 'nan', a missing value"),
        (["0", "<NA>"], "a missing value"),
        (["0", " "], "line 3: the label is empty"),
        (["0", "a\x07b"], r"line 3: label 'a\\x07b' holds a control character \(\\x07\)"),
        (["0", "a\ufffeb"], "holds a control character"),
        (["0", "100000"], "line 3: class number 100000; expected less than 100,000"),
    ],
)
def test_what_is_no_class_is_refused_by_place(labels, message):
    with pytest.raises(DataError, match=message):
        number(*labels)


def test_a_file_of_classes_may_call_them_by_any_text():
    found = number("-1", "0.5", "nan", classes=["nan", "0.5", "-1"])
    assert found.numbers == {"-1": 2, "0.5": 1, "nan": 0} and not found.are_numbers
    assert number("2.0", "fall", classes=["jump", "fall", "spin"]).numbers == {"2.0": 2, "fall": 1}
    with pytest.raises(DataError, match="line 2: label '-1' is neither one of the 2 classes"):
        number("-1", classes=["a", "b"])


def test_where_classes_are_called_by_numbers_a_label_is_never_a_place_in_the_file():
    found = number("1.0", "2", "3", classes=["1", "2", "3"])
    assert found.numbers == {"1.0": 0, "2": 1, "3": 2}
    with pytest.raises(
        DataError, match="'0' is none of the 3 classes, which are called by numbers"
    ):
        number("0", "1", classes=["1", "2", "3"])


def test_numbers_from_one_are_told_and_left_as_they_are():
    found = number("1", "2", "3.0")
    assert found.numbers == {"1": 1, "2": 2, "3.0": 3} and found.class_names == ("0", "1", "2", "3")
    assert "labels run from 1 to 3, and class 0 never occurs" in found.notes[0]
    assert number("1", "2", classes=["a", "b", "c"]).notes
    assert number("2", "3").notes == ()
    with pytest.raises(
        DataError, match="label '2' is neither .* if these count from 1, subtract 1"
    ):
        number("1", "2", classes=["a", "b"])


def test_numbers_among_names_are_names_and_told():
    found = number("10", "2", "label")
    assert found.class_names == ("10", "2", "label")
    assert "2 of 3 are numbers, but not 'label' (line 4)" in found.notes[0]


def test_letters_composed_in_two_ways_are_one_class():
    found = number("Ärger", "A\u0308rger", "b")
    assert found.class_names == ("b", "Ärger") and set(found.numbers.values()) == {0, 1}
    assert number("A\u0308rger", classes=["Ärger"]).numbers == {"A\u0308rger": 0}
