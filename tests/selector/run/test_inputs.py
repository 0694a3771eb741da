"""Inputs: what does not fit is refused with what it is and must be, whatever the file."""

from __future__ import annotations

import io
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from exporter.bundle import Bundle
from exporter.bundle.manifest import TensorSpec
from selector import InputError, Runtime
from selector.run.files import read_inputs
from selector.run.inputs import check_inputs
from tests.helpers.runtimes import INPUT, OUTPUT, SHAPE, images, runtime_of, text_bundle


def test_one_array_stands_for_the_only_input_and_batches_equal_single_runs(ranked: Path) -> None:
    runtime, inputs = runtime_of(ranked), images(33)
    whole = runtime.run(inputs).outputs[OUTPUT]
    singles = [runtime.run({INPUT: inputs[i : i + 1]}).outputs[OUTPUT][0] for i in range(33)]
    np.testing.assert_allclose(whole, singles, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "same",
    [np.asfortranarray, lambda x: np.repeat(x, 2, axis=3)[..., ::2], lambda x: x.astype(">f4")],
    ids=["fortran order", "strided", "big-endian"],
)
def test_the_layout_of_an_array_in_memory_does_not_change_the_numbers(ranked: Path, same: Any) -> None:
    """Equal arrays give equal outputs, or are refused."""
    runtime, inputs = runtime_of(ranked), images(2)
    assert (same(inputs) == inputs).all()
    try:
        outputs = runtime.run(same(inputs)).outputs[OUTPUT]
    except InputError:
        return
    np.testing.assert_array_equal(outputs, runtime.run(inputs).outputs[OUTPUT])


def with_one(value: float) -> NDArray[np.float32]:
    inputs = images(2)
    inputs[1, 0, 3, 4] = value
    return inputs


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        (images(2)[:, :, :7], ["'input'", "(2, 1, 7, 8)", "(batch, 1, 8, 8)"]),
        (images(2)[0], ["'input'", "(1, 8, 8)", "(batch, 1, 8, 8)"]),
        (images(0), ["'input'", "(0, 1, 8, 8)", "(batch, 1, 8, 8)"]),
        (images(2).astype(np.float64), ["'input'", "float64", "float32"]),
        (images(2).astype(object), ["'input'", "object", "float32"]),
        (with_one(np.nan), ["'input'", "NaN", "finite"]),
        (with_one(-np.inf), ["'input'", "infinite", "finite"]),
        (images(2).tolist(), ["'input'", "list", "float32"]),
        ({INPUT: images(2).tolist()}, ["'input'", "list", "float32"]),
        ({}, ["nothing", "'input'"]),
        ({"image": images(2)}, ["'image'", "'input'"]),
        ({INPUT: images(2), "mask": images(2)}, ["'input', 'mask'", "allowed is 'input'"]),
    ],
    ids=["size", "rank", "no example", "float64", "object", "nan", "inf", "list", "list by name", "none", "name", "extra"],
)
def test_an_input_that_does_not_fit_is_refused_with_what_it_is_and_must_be(
    bundle_path: Path, inputs: Any, named: list[str]
) -> None:
    with pytest.raises(InputError) as refused:
        Runtime(bundle_path).run(inputs)
    assert [part for part in named if part not in str(refused.value)] == []


def test_inputs_must_agree_on_their_free_axes(bundle: Bundle) -> None:
    free = TensorSpec(name="mask", dtype="float32", shape=("batch", 3))
    two = SimpleNamespace(decoder=None, manifest=SimpleNamespace(inputs=(*bundle.manifest.inputs, free)))
    mask = np.zeros((2, 3), np.float32)
    assert set(check_inputs(two, {INPUT: images(2), "mask": mask})) == {INPUT, "mask"}  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"'mask': shape \(2, 3\); allowed is \(batch = 5, 3\)"):
        check_inputs(two, {INPUT: images(5), "mask": mask})  # type: ignore[arg-type]


def test_what_only_the_graph_can_refuse_is_an_input_error(tmp_path: Path) -> None:
    """A token id that the embedding does not have."""
    bundle = text_bundle(tmp_path / "text")
    runtime = Runtime(bundle)
    tokens = np.full((1, 6), 49, np.int64)
    assert runtime.run(tokens).outputs[OUTPUT].shape == (1, 3)
    with pytest.raises(InputError, match="cannot compute it"):
        runtime.run(tokens + 1000)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["npy", "npz"]), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3)), max_size=3), st.floats(0.2, 2)
)
def test_a_damaged_input_file_is_refused_or_read(kind: str, edits: list[tuple[float, bytes]], kept: float) -> None:
    """Whatever happened to the file: arrays, or an error of one line that names it; nothing that only numpy knows."""
    whole = io.BytesIO()
    if kind == "npy":
        np.save(whole, images(2))
    else:
        np.savez_compressed(whole, input=images(2))
    content = bytearray(whole.getvalue())
    for place, new in edits:  # the header is a small part of the file: every other edit hits it
        start = int(place * (150 if len(new) % 2 else len(content)))
        content[start : start + len(new)] = new
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"damaged.{kind}"
        path.write_bytes(content[: int(len(content) * kept)])
        said = f"damaged.{kind}"
        try:
            read_inputs(path)
        except InputError as error:
            said = str(error)
        assert f"damaged.{kind}" in said
        assert "\n" not in said


@pytest.mark.parametrize("shape", [(10**15,), (10**30,), (-5,), (2**62, 4)])
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_file_that_claims_to_be_larger_than_memory_is_refused(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    path = tmp_path / f"large.{kind}"
    if kind == "npy":
        path.write_bytes(header.getvalue() + bytes(64))
    else:
        with ZipFile(path, "w") as archive:
            archive.writestr("input.npy", header.getvalue() + bytes(64))
    with pytest.raises(InputError, match="large"):
        read_inputs(path)


def test_large_numbers_are_no_infinite_ones(ranked: Path) -> None:
    """Their sum is, and numpy would warn of it."""
    runtime, inputs = runtime_of(ranked), np.full((2, *SHAPE), 3e38, np.float32)
    for _ in range(3):  # the second time the inputs are known
        assert runtime.run({INPUT: inputs}).outputs[OUTPUT].shape == (2, 10)
    inputs[0, 0, 0, :2] = np.inf, -np.inf
    with pytest.raises(InputError, match="infinite"):
        runtime.run({INPUT: inputs})
