"""Members are found by name, in order; a name is taken once."""

from __future__ import annotations

import pytest

from modules.registry import Registry


def test_members_are_found_by_name_in_the_order_of_registration() -> None:
    shapes: Registry[type] = Registry("shape")

    @shapes.register("square")
    class Square:
        pass

    @shapes.register("circle")
    class Circle:
        pass

    assert list(shapes) == ["square", "circle"] and len(shapes) == 2
    assert shapes.find("circle") is Circle and shapes["square"] is Square


def test_unknown_name_lists_the_known_ones() -> None:
    shapes: Registry[int] = Registry("shape")
    shapes.register("square")(4)
    with pytest.raises(ValueError, match="unknown shape 'cube'; choose one of: square"):
        shapes.find("cube")


def test_name_is_taken_once() -> None:
    shapes: Registry[int] = Registry("shape")
    shapes.register("square")(4)
    with pytest.raises(ValueError, match="the shape 'square' is registered twice"):
        shapes.register("square")
