"""What stands in for pydantic where it is missing: sections that are built and checked in Python.

`DSTSHead` needs torch alone, and its arguments are a section of settings, whose choices and ranges
hold here, too. Only what settings.py uses is here; to read settings from a file takes pydantic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

ConfigDict = dict
_RANGES: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "ge": ("greater than or equal to", lambda value, bound: value >= bound),
    "gt": ("greater than", lambda value, bound: value > bound),
    "le": ("less than or equal to", lambda value, bound: value <= bound),
    "lt": ("less than", lambda value, bound: value < bound),
}


class ValidationError(ValueError):
    """A value that a section does not take; `errors` tells it as pydantic's does."""

    def __init__(self, name: str, value: object, expected: str) -> None:
        super().__init__(f"{name}={value!r}; expected {expected}")
        self._fault = {"loc": (name,), "input": value, "msg": f"Input should be {expected}"}

    def errors(self) -> list[dict[str, Any]]:
        return [self._fault]


class Field:
    """The ranges of a value."""

    def __init__(self, **ranges: Any) -> None:
        self.ranges = ranges


def field_validator(*names: str, mode: str = "after") -> Callable[[Any], Any]:
    """Nothing: what a section says of single keys beyond types and ranges is of files."""
    return lambda function: function


def model_validator(*, mode: str) -> Callable[[Any], Any]:
    """Mark a method that is called with a section that was built."""

    def mark(method: Any) -> Any:
        method.is_validator = True
        return method

    return mark


class BaseModel:
    """A frozen record of the annotated names of a class, each with a default or given."""

    model_config: dict[str, Any] = {}
    model_fields: dict[str, Any] = {}  # name -> default, or what `Field` gave

    def __init_subclass__(cls) -> None:
        own = {name: vars(cls).get(name) for name in vars(cls).get("__annotations__", {})}
        cls.model_fields = cls.model_fields | own

    def __init__(self, **given: Any) -> None:
        for name in given.keys() - self.model_fields.keys():
            raise ValidationError(name, given[name], f"one of {', '.join(self.model_fields)}")
        hints = get_type_hints(type(self), include_extras=True)
        for name, default in self.model_fields.items():
            value = given.get(name, default)
            _check(name, value, hints[name])
            vars(self)[name] = value
        for key in dir(type(self)):
            if getattr(getattr(type(self), key), "is_validator", False):
                getattr(self, key)()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).items()))

    def model_dump(
        self, *, include: set[str] | None = None, exclude: set[str] | None = None
    ) -> dict[str, Any]:
        chosen = (self.model_fields.keys() if include is None else include) - (exclude or set())
        return {name: value for name, value in vars(self).items() if name in chosen}


def _check(name: str, value: object, hint: Any) -> None:
    """Compare a value with a type: a number with its range, a choice with its words.

    What may be None is so, or of its other type; all other types are not looked at.
    """
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValidationError(name, value, " or ".join(map(repr, get_args(hint))))
    elif get_origin(hint) is Annotated:
        kind, *limits = get_args(hint)
        _check(name, value, kind)
        for limit in limits:
            for key, bound in limit.ranges.items():
                if key in _RANGES and not _RANGES[key][1](value, bound):
                    raise ValidationError(name, value, f"{_RANGES[key][0]} {bound}")
    elif hint in (bool, int, float, type(None)):
        allowed: Any = (int, float) if hint is float else hint
        if not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool):
            raise ValidationError(name, value, f"a valid {hint.__name__}")
    elif type(None) in get_args(hint) and value is not None:
        _check(name, value, next(kind for kind in get_args(hint) if kind is not type(None)))
