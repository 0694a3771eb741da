"""What every registered family promises, and how a family is found, configured and given another grid.

A family that is registered is tested here at once; one that is slow at its default size gets small settings below.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.networks import SMALL, calibrated, prefix_of, small
from tests.helpers.user_families import TextEncoder
from trainer import DataSpec, Family, NestedModel, SubModel, TrainerError, register_family
from trainer.families import MobileNetV2, ResNet
from trainer.family import family_name, find_family, registered_families
from trainer.submodel import AxisValue, format_value

EVERY_FAMILY = pytest.mark.parametrize("name", sorted(registered_families()))
EVERY_IMAGE_FAMILY = pytest.mark.parametrize("name", ["resnet", "mobilenetv2"])


@EVERY_FAMILY
def test_parameters_of_every_sub_model_are_prefixes_of_the_full_ones(name: str) -> None:
    family = small(name)
    nested = NestedModel(family)
    full = dict(nested.full.named_parameters())
    full_blocks = family.fused_blocks(family.largest)
    for sub in family.grid():
        blocks = family.fused_blocks(sub)
        for key, parameter in nested.extract(sub).named_parameters():
            wanted = prefix_of(full[key], parameter.shape, blocks.get(key, {}), full_blocks.get(key, {}))
            assert torch.equal(parameter, wanted), (sub.id, key)


@EVERY_FAMILY
def test_the_nested_forward_equals_the_extracted_module_to_the_bit(name: str) -> None:
    family = small(name)
    nested = calibrated(family)
    inputs = family.example_inputs(5)
    with torch.no_grad():
        outputs = {sub: nested.outputs(inputs, sub)["logits"] for sub in family.grid()}
        for sub, logits in outputs.items():
            assert torch.equal(logits, nested.applied(nested.extract(sub), inputs)["logits"]), sub.id
        assert torch.equal(nested.outputs(inputs)["logits"], outputs[family.largest])
    assert len({tuple(logits.flatten().tolist()) for logits in outputs.values()}) == len(outputs)  # none is another's


@EVERY_FAMILY
def test_the_largest_sub_model_is_the_full_one_and_smaller_ones_have_fewer_parameters(name: str) -> None:
    family = small(name)
    nested = NestedModel(family)
    sizes = {sub: sum(p.numel() for p in nested.extract(sub).parameters()) for sub in family.grid()}
    assert sizes[family.largest] == sum(p.numel() for p in nested.full.parameters())
    assert (family.grid()[0], family.grid()[-1]) == (family.smallest, family.largest)
    for a, size in sizes.items():
        assert family.smallest <= a <= family.largest
        assert all(size < other for b, other in sizes.items() if a <= b and a != b)


@EVERY_FAMILY
def test_the_configuration_builds_the_same_family_again(name: str) -> None:
    family = small(name)
    again = find_family(family_name(family))(**json.loads(json.dumps(family.config())))
    assert type(again) is type(family)
    assert again.config() == family.config()
    assert again.grid() == family.grid()
    shapes = [{n: p.shape for n, p in f.build(f.smallest).named_parameters()} for f in (family, again)]
    assert shapes[0] == shapes[1]


def outside(full: AxisValue) -> list[AxisValue]:
    """Values that no axis with this largest value allows."""
    if isinstance(full, float):
        return [0.0, -0.5, full * 1.5, float("nan"), float("inf"), (1,) * 9]
    return [0, -1, 99, 1.5, (1,) * 9]


@EVERY_FAMILY
def test_a_value_outside_the_range_is_refused_with_axis_value_and_limit(name: str) -> None:
    family = small(name)
    nested = NestedModel(family)
    for axis, values in family.axes.items():
        for value in outside(values[-1]):
            sub = SubModel(**{**family.largest.axes, axis: value})
            for refuse in (family.check, nested.extract, nested.view, lambda s: family.with_grid({axis: [s[axis]]})):  # noqa: B023
                with pytest.raises(TrainerError, match=f"axis '{axis}'.*allowed") as caught:
                    refuse(sub)
                assert format_value(value) in str(caught.value)
    assert family.grid() == small(name).grid()  # a refused grid changes nothing


@EVERY_FAMILY
def test_axes_and_settings_that_a_family_does_not_have_are_refused_by_name(name: str) -> None:
    family = small(name)
    with pytest.raises(TrainerError, match="unknown axis 'girth'") as caught:
        family.with_grid({"girth": [1]})
    assert all(axis in str(caught.value) for axis in family.axes)
    with pytest.raises(TrainerError, match=r"axes .*'girth'"):
        family.check(SubModel(**family.largest.axes, girth=1))
    with pytest.raises(TrainerError, match="no parameter 'girth'; allowed are") as caught:
        small(name, girth=1)
    assert all(setting in str(caught.value) for setting in family.config())


@EVERY_IMAGE_FAMILY
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": 4}, r"blocks = 4: allowed is a list of numbers, for example \["),
        ({"channels": None}, r"channels = null: allowed is a list of numbers, for example \["),
        ({"channels": ["a", "b"]}, r"channels = \[\"a\", \"b\"\]: allowed is a list of numbers"),
        ({"channels": [8, 2.5]}, r"channels = \[8, 2\.5\]: allowed are whole numbers from 1"),
        ({"widths": 1}, r"widths = 1: allowed is a list of numbers, for example \[0\.25"),
        ({"mean": 0.5}, r"mean = 0\.5: allowed is a list"),
        ({"stem_stride": [2]}, r"stem_stride = \[2\]: allowed is a number, for example 1"),
        ({"stem_stride": 0}, "stem_stride = 0: allowed are whole numbers from 1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_setting_of_another_kind_is_refused_with_an_example(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        small(name, **settings)


@EVERY_IMAGE_FAMILY
def test_fewer_blocks_need_no_other_setting(name: str) -> None:
    """`--set blocks=[1,2]` alone: the depths that a family has by itself follow."""
    settings = {key: value for key, value in SMALL[name].items() if key != "depths"}
    assert registered_families()[name].configured(settings).axes["depth"] == (1, 2)


@EVERY_IMAGE_FAMILY
def test_a_grid_keeps_the_full_model_and_takes_whole_numbers_as_widths(name: str) -> None:
    family = small(name).with_grid({"width": [0.25, 1, 0.25], "depth": [1]})
    assert [sub.id for sub in family.grid()] == ["w0.25-d1", "w0.25-d2", "w1.00-d1", "w1.00-d2"]


@EVERY_IMAGE_FAMILY
def test_a_grid_per_stage(name: str) -> None:
    family = small(name, blocks=(3, 2)).with_grid({"width": [1.0], "depth": [(2, 1), 1]})
    assert [sub.id for sub in family.grid()] == ["w1.00-d1x1", "w1.00-d2x1", "w1.00-d3x2"]
    nested = calibrated(family)
    inputs = family.example_inputs(3)
    for sub in family.grid():
        assert torch.equal(nested(inputs, sub), nested.extract(sub)(*inputs.values()))
        assert [len(stage) for stage in nested.extract(sub).stages] == list(sub["depth"])  # type: ignore[arg-type]
    again = type(family)(**json.loads(json.dumps(family.config())))  # type: ignore[arg-type]
    assert again.grid() == family.grid()


@EVERY_IMAGE_FAMILY
def test_a_plain_depth_means_the_same_in_a_grid_per_stage(name: str) -> None:
    """A stage with fewer blocks keeps all that it has."""
    family = small(name, blocks=(1, 3)).with_grid({"depth": [(1, 1)]})
    nested = NestedModel(family)
    for plain, stages in ((1, (1, 1)), (2, (1, 2)), (3, (1, 3))):
        one, other = (nested.extract(SubModel(width=0.5, depth=depth)).state_dict() for depth in (plain, stages))
        assert one.keys() == other.keys()


@EVERY_IMAGE_FAMILY
@pytest.mark.parametrize("depth", [(1,), (1, 1, 1), (2, 1), (0, 1), (1, 3)])
def test_a_depth_per_stage_must_fit_the_stages(name: str, depth: tuple[int, ...]) -> None:
    with pytest.raises(TrainerError, match=rf"axis 'depth' = {format_value(depth)}: allowed"):
        small(name).with_grid({"depth": [depth]})


@EVERY_IMAGE_FAMILY
@pytest.mark.parametrize(
    "settings",
    [
        {"channels": (8,)},
        {"channels": (8, 16, 32)},
        {"channels": ()},
        {"blocks": ()},
        {"blocks": (0, 1)},
        {"classes": 0},
        {"classes": "ten"},
        {"input_shape": (8, 8)},
        {"input_shape": (1, 0, 8)},
        {"mean": (0.5, 0.5), "std": (1.0, 1.0)},
        {"multiple": 0},
        {"depths": (1.5,)},
        {"widths": ("half",)},
    ],
    ids=str,
)
def test_settings_that_build_no_network_are_refused_by_name(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(TrainerError) as caught:
        NestedModel(small(name, **settings))
    assert any(setting.rstrip("s") in str(caught.value) for setting in settings)


@EVERY_IMAGE_FAMILY
def test_an_image_family_takes_its_input_from_the_data_and_refuses_text(name: str) -> None:
    spec = DataSpec(input_shape=(3, 12, 10), classes=7, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    family = registered_families()[name].for_data(spec, widths=[1.0], depths=[1])
    assert NestedModel(family).eval()(torch.rand(2, 3, 12, 10), family.smallest).shape == (2, 7)
    assert family.config()["std"] == [0.4, 0.5, 0.6]
    with pytest.raises(TrainerError, match=r"takes images.*\(128,\)"):
        registered_families()[name].for_data(DataSpec(input_shape=(128,), classes=2, vocabulary=100))


def test_a_narrow_mobilenet_has_no_residual_that_the_full_one_has_not() -> None:
    """Where a residual is follows from the place: equal channels of two stages at a small width add none."""
    family = MobileNetV2(**{**SMALL["mobilenetv2"], "channels": (16, 20), "strides": (1, 1), "widths": (0.25,)})
    first_of_second_stage = NestedModel(family).eval().extract(family.smallest).stages[1][0]
    for parameter in first_of_second_stage.parameters():
        nn.init.zeros_(parameter)
    channels = next(first_of_second_stage.parameters()).shape[1]
    assert not first_of_second_stage(torch.ones(1, channels, 4, 4)).any()


def test_a_family_is_found_by_its_name_or_as_module_and_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_family("resnet") is ResNet
    source = "from trainer.families import ResNet\nclass Mine(ResNet):\n    pass\nplain = 3\n"
    (tmp_path / "a_users_families.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = find_family("a_users_families:Mine")
    assert issubclass(found, ResNet)
    assert family_name(found(**SMALL["resnet"])) == "a_users_families:Mine"
    for name, message in (
        ("plain", r"plain is not a subclass of trainer\.Family in a_users_families"),
        ("Absent", "has no Absent"),
    ):
        with pytest.raises(TrainerError, match=f"'a_users_families:{name}'.*{message}"):
            find_family(f"a_users_families:{name}")


@pytest.mark.parametrize(("name", "message"), [("resnett", "known are .*resnet"), ("no_such:X", "no_such"), (":X", "':X'")])
def test_an_unknown_family_is_refused_and_told_what_is_known(name: str, message: str) -> None:
    with pytest.raises(TrainerError, match=message) as caught:
        find_family(name)
    assert repr(name) in str(caught.value)


def test_a_family_name_is_given_once() -> None:
    register_family("resnet", ResNet)
    with pytest.raises(TrainerError, match="'resnet' is taken by ResNet"):
        register_family("resnet", TextEncoder)
    assert find_family("resnet") is ResNet


def test_a_family_without_a_constructor_has_no_settings() -> None:
    class Plain(Family):
        axes = {"width": (1, 2)}  # noqa: RUF012

        def build(self, sub: SubModel) -> nn.Module:
            return nn.Linear(4, 3)

        def example_inputs(self, batch_size: int) -> dict[str, Tensor]:
            return {"input": torch.rand(batch_size, 4)}

    assert Plain.for_data(DataSpec((4,), 3)).grid() == [SubModel(width=1), SubModel(width=2)]
    with pytest.raises(TrainerError, match="Plain has no parameter 'heads'; allowed are none"):
        Plain.for_data(DataSpec((4,), 3), heads=1)


def test_a_constructor_that_takes_any_keyword_gets_it() -> None:
    class Open(ResNet):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)

    assert Open.configured(SMALL["resnet"]).grid() == small("resnet").grid()
    with pytest.raises(TrainerError, match="girth"):
        Open.configured({"girth": 1})
