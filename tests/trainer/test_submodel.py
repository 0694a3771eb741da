"""`SubModel`: names, nesting order, immutability, and the text form of axis values."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trainer import SubModel, TrainerError
from trainer.submodel import AxisValue, format_value, parse_value

counts = st.integers(min_value=0, max_value=10**6)
stages = st.lists(counts, min_size=2, max_size=6).map(tuple)
widths = st.integers(min_value=0, max_value=4 * 10**6).map(lambda millionths: millionths / 10**6)
values = st.one_of(counts, widths, stages)
# Small ranges, so that equal and comparable pairs are common.
points = st.builds(
    SubModel,
    width=st.sampled_from([0.25, 0.5, 1.0]),
    depth=st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))),
)


@pytest.mark.parametrize(
    ("axes", "identifier"),
    [
        ({"width": 0.5, "depth": 2}, "w0.50-d2"),
        ({"depth": 2, "width": 0.5}, "d2-w0.50"),
        ({"width": 1.0, "depth": (1, 2, 3)}, "w1.00-d1x2x3"),
        ({"width": 0.375}, "w0.375"),
        ({"width": 0.125, "window": 7}, "wid0.125-win7"),
        ({"heads": 4, "head_size": 16, "layers": 2}, "heads4-head_16-l2"),
        ({"head": 4, "heads": 16}, "head4-heads16"),
    ],
)
def test_the_id_tells_axes_and_values(axes: dict[str, AxisValue], identifier: str) -> None:
    assert SubModel(**axes).id == identifier


def test_a_list_counts_as_a_tuple() -> None:
    assert SubModel(depth=[1, 2]) == SubModel(depth=(1, 2))  # type: ignore[arg-type]
    assert SubModel(depth=[1, 2])["depth"] == (1, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [True, "0.5", None, (), (1, 0.5), (True, 2), [[1]], 1j])
def test_what_is_no_axis_value_is_refused_by_name(value: object) -> None:
    with pytest.raises(TrainerError, match=r"'depth'.*is not a number or a tuple of whole numbers") as caught:
        SubModel(depth=value)  # type: ignore[arg-type]
    assert repr(value) in str(caught.value)


def test_a_sub_model_without_axes_is_refused() -> None:
    with pytest.raises(TrainerError, match="at least one axis"):
        SubModel()


def test_equality_is_by_value() -> None:
    assert SubModel(width=0.5, depth=2) == SubModel(width=0.5, depth=2)
    assert SubModel(width=0.5, depth=2) != SubModel(width=0.5, depth=3)
    assert SubModel(width=0.5, depth=2) != SubModel(width=0.5, layers=2)
    assert SubModel(width=0.5) != "w0.50"


@given(points, points)
def test_equal_sub_models_have_equal_hashes(a: SubModel, b: SubModel) -> None:
    assert (a == b) == (len({a, b}) == 1)


def test_the_order_of_the_axes_does_not_matter_to_a_look_up() -> None:
    """`nested.calibration` is such a dictionary: a miss would mean an uncalibrated network."""
    a, b = SubModel(width=0.5, depth=2), SubModel(depth=2, width=0.5)
    assert a == b
    assert {a: "found"}.get(b) == "found"


@given(st.floats(0.001, 1.0), st.floats(-1e-6, 1e-6))
@example(1 / 3, 3e-7)
def test_different_sub_models_have_different_ids(width: float, difference: float) -> None:
    """Ids name the graphs of a bundle and the statistics of a run."""
    a, b = SubModel(width=width, depth=1), SubModel(width=width + difference, depth=1)
    assert (a.id == b.id) == (a == b)


@given(points, points, points)
def test_nesting_is_a_partial_order(a: SubModel, b: SubModel, c: SubModel) -> None:
    assert a <= a
    if a <= b and b <= c:
        assert a <= c
    if a <= b and b <= a and type(a["depth"]) is type(b["depth"]):
        assert a == b


@given(points, points)
def test_nesting_means_that_no_axis_is_larger(a: SubModel, b: SubModel) -> None:
    def per_stage(depth: AxisValue) -> tuple[int, ...]:
        return depth if isinstance(depth, tuple) else (int(depth),) * 2

    no_larger = a["width"] <= b["width"]  # type: ignore[operator]
    no_larger &= all(x <= y for x, y in zip(per_stage(a["depth"]), per_stage(b["depth"]), strict=True))
    assert (a <= b) == no_larger
    assert (b >= a) == no_larger


def test_some_sub_models_cannot_be_compared() -> None:
    narrow_and_deep, wide_and_shallow = SubModel(width=0.5, depth=2), SubModel(width=1.0, depth=1)
    assert not narrow_and_deep <= wide_and_shallow
    assert not wide_and_shallow <= narrow_and_deep
    assert not SubModel(depth=(1, 1)) <= SubModel(depth=(1, 1, 1))


def test_comparing_sub_models_of_different_families_is_an_error() -> None:
    with pytest.raises(TrainerError, match=r"w0\.50 and h2 belong to different families"):
        _ = SubModel(width=0.5) <= SubModel(heads=2)


CHANGES: dict[str, Callable[[SubModel], object]] = {
    "set attribute": lambda s: setattr(s, "id", "w1.00"),
    "delete attribute": lambda s: delattr(s, "id"),
    "new attribute": lambda s: setattr(s, "note", 1),
    "set item": lambda s: s.axes.__setitem__("width", 1.0),  # type: ignore[attr-defined]
    "delete item": lambda s: s.axes.__delitem__("width"),  # type: ignore[attr-defined]
    "update": lambda s: s.axes.update(width=1.0),  # type: ignore[attr-defined]
    "setdefault": lambda s: s.axes.setdefault("depth", 1),  # type: ignore[attr-defined]
    "in-place or": lambda s: s.axes.__ior__({"width": 1.0}),  # type: ignore[attr-defined]
    "pop": lambda s: s.axes.pop("width"),  # type: ignore[attr-defined]
    "popitem": lambda s: s.axes.popitem(),  # type: ignore[attr-defined]
    "clear": lambda s: s.axes.clear(),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_sub_model_is_frozen(change: Callable[[SubModel], object]) -> None:
    sub = SubModel(width=0.5)
    with pytest.raises((TypeError, AttributeError)):
        change(sub)
    assert (dict(sub.axes), sub.id) == ({"width": 0.5}, "w0.50")


def test_a_sub_model_survives_a_copy_and_a_trip_to_another_process() -> None:
    sub = SubModel(width=0.5, depth=(1, 2))
    assert copy.copy(sub) == copy.deepcopy(sub) == pickle.loads(pickle.dumps(sub)) == sub


@given(values)
def test_parse_is_the_inverse_of_format(value: AxisValue) -> None:
    parsed = parse_value("axis", format_value(value))
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("1", 1), ("2.0", 2.0), ("1x2x3", (1, 2, 3)), ("1e-1", 0.1)])
def test_parse_reads_what_people_write(text: str, value: AxisValue) -> None:
    parsed = parse_value("axis", text)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize("text", ["", "half", "1x", "x2", "1x2.5", "0,5", "1 2"])
def test_text_that_is_no_value_is_refused_by_name(text: str) -> None:
    with pytest.raises(TrainerError, match=r"axis 'width'.*write 0\.5, 2 or, per stage, 1x2x3") as caught:
        parse_value("width", text)
    assert repr(text) in str(caught.value)


def test_the_representation_can_be_evaluated() -> None:
    sub = SubModel(width=0.5, depth=(1, 2))
    assert eval(repr(sub)) == sub
