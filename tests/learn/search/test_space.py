"""What a search may vary is read as it is written, and faults quote what was found."""

from __future__ import annotations

import pytest

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.learn.search import Dimension, parse_dimension


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1e-4:1e-2:log", Dimension("a.b", low=1e-4, high=1e-2, log=True)),
        ("a.b=0:0.5", Dimension("a.b", low=0, high=0.5)),
        (" a.b = 2 : 8 : log ", Dimension("a.b", low=2, high=8, log=True)),
        ("a.b=5,10,null", Dimension("a.b", (5, 10, None))),
        ("a.b=true,false", Dimension("a.b", (True, False))),
        ("a.b=adamw, sgd", Dimension("a.b", ("adamw", "sgd"))),
    ],
)
def test_forms(text, expected):
    assert parse_dimension(text) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a.b", "a.b: expected key=low:high"),
        ("=1:2", "expected key=low:high"),
        ("a.b=", "expected key=low:high"),
        ("a.b=5", "at least two different values"),
        ("a.b=5,5", "at least two different values"),
        ("a.b=1:2:lin", "expected key=low:high"),
        ("a.b=1:2:log:3", "expected key=low:high"),
        ("a.b=x:2", "found 'x', expected a number at both ends"),
        ("a.b=false:2", "found False, expected a number"),
        ("a.b=2:1", "2 is not below 1"),
        ("a.b=0:1:log", "a logarithmic range begins above 0, found 0"),
        ("a.b=[,1", "'\\[' is not a YAML value"),
    ],
)
def test_faults(text, told):
    with pytest.raises(SettingsError, match=told):
        parse_dimension(text)


class Trial:
    """Notes what it is asked."""

    def suggest_int(self, *args, log):
        return "int", *args, log

    def suggest_float(self, *args, log):
        return "float", *args, log

    def suggest_categorical(self, *args):
        return "choice", *args


def test_kinds_of_numbers():
    def ask(text):
        return parse_dimension(text).suggest(Trial())

    assert ask("k=1:4") == ("int", "k", 1, 4, False)
    assert ask("k=1:4.0:log") == ("float", "k", 1, 4.0, True)
    assert ask("k=1,4") == ("choice", "k", [1, 4])


def test_what_a_dimension_holds():
    range_ = parse_dimension("k=1:4")
    assert range_.holds(1) and range_.holds(4) and not range_.holds(5)
    assert not range_.holds(True) and not range_.holds(None) and not range_.holds("2")
    assert parse_dimension("k=null,2").holds(None) and range_.ends == (1, 4)
