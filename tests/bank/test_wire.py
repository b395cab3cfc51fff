from __future__ import annotations

import itertools
import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from carls_jax.bank import knowledge_bank_pb2 as pb
from carls_jax.bank import wire
from carls_jax.bank.specs import DTYPES
from carls_jax.errors import BankOverloadedError, DtypeError, InvalidInputError, ShapeError

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
ARRAYS = st.dictionaries(
    st.text(max_size=8),
    st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)),
    max_size=5,
)


def assembled(headers: list[pb.ArrayHeader], *frames: bytes) -> dict[str, np.ndarray]:
    assembly = wire.Assembly(headers, max_bytes=10**6)
    for frame in frames:
        assembly.add([memoryview(frame)])
    return assembly.arrays()


def cut(arrays: dict[str, np.ndarray], **how: int) -> list[bytes]:
    return [b"".join(pieces) for pieces in wire.cut(arrays, **how)]


@given(arrays=ARRAYS, frame_bytes=st.integers(1, 100))
def test_arrays_come_back_as_they_were(arrays: dict[str, np.ndarray], frame_bytes: int) -> None:
    back = assembled(wire.describe(arrays), *cut(arrays, frame_bytes=frame_bytes))

    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()


@given(arrays=ARRAYS, sizes=st.lists(st.integers(0, 20)))
def test_any_cut_of_the_bytes_is_understood(
    arrays: dict[str, np.ndarray], sizes: list[int]
) -> None:
    data = b"".join(array.tobytes() for array in arrays.values())
    bounds = np.minimum(np.cumsum([0, *sizes, len(data)]), len(data))
    frames = [data[start:stop] for start, stop in itertools.pairwise(bounds)]

    back = assembled(wire.describe(arrays), *frames)

    for name, array in arrays.items():
        assert back[name].tobytes() == array.tobytes()


def test_bytes_are_little_endian_c_ordered_and_unpadded() -> None:
    arrays = {
        "mask": np.array([True, False, True]),
        "big": np.array([[1, 2], [3, 4]], ">i2").T,
    }

    (frame,) = cut(arrays)

    assert frame == bytes([1, 0, 1, 1, 0, 3, 0, 2, 0, 4, 0])
    assert_array_equal(assembled(wire.describe(arrays), frame)["big"], [[1, 3], [2, 4]])


def test_frames_are_full_but_for_the_last() -> None:
    arrays = {str(size): np.zeros(size, np.uint8) for size in (5, 4, 0)}

    assert [len(frame) for frame in cut(arrays, frame_bytes=4)] == [4, 4, 1]
    assert [len(frame) for frame in cut(arrays, frame_bytes=9)] == [9]
    assert cut({}) == [b""]


def test_the_pieces_of_a_frame_are_not_copied() -> None:
    array = np.zeros(4, np.uint8)
    ((piece,),) = wire.cut({"x": array})

    array[:] = 7

    assert bytes(piece) == bytes([7, 7, 7, 7])


def test_arrays_are_the_readers_own_to_write() -> None:
    arrays = {"x": np.arange(3), "y": np.arange(3)}
    back = assembled(wire.describe(arrays), *cut(arrays))

    back["x"][:] = 7

    assert_array_equal(back["y"], [0, 1, 2])
    assert_array_equal(arrays["x"], [0, 1, 2])
    assert back["y"].flags.aligned


@given(missing=st.integers(1, 24))
def test_truncated_bytes_are_refused(missing: int) -> None:
    headers = wire.describe({"x": np.zeros(3)})

    with pytest.raises(InvalidInputError, match=rf"^{24 - missing} bytes came: .* say 24$"):
        assembled(headers, bytes(24 - missing))


@given(extra=st.integers(1, 100))
def test_bytes_too_many_are_refused(extra: int) -> None:
    headers = wire.describe({"x": np.zeros(3)})

    with pytest.raises(InvalidInputError, match=rf"^{24 + extra} bytes came: .* say 24$"):
        assembled(headers, bytes(10), bytes(14 + extra))


@pytest.mark.parametrize("dtype", ["object", "O", "float16", "<f4", "U5", "", "complex64"])
def test_a_forged_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(DtypeError, match=r"'x' has dtype .* allowed are float32"):
        assembled([pb.ArrayHeader(name="x", dtype=dtype, shape=[1])])


@pytest.mark.parametrize("shape", [[-1], [2, -3], [1] * 17])
def test_a_forged_shape_is_refused(shape: list[int]) -> None:
    with pytest.raises(ShapeError, match="'x' has shape"):
        assembled([pb.ArrayHeader(name="x", dtype="int8", shape=shape)])


@given(shape=st.lists(st.integers(1, 2**63 - 1), min_size=1, max_size=8))
def test_forged_sizes_are_refused_before_memory_is_taken(shape: list[int]) -> None:
    num_bytes = 8 * math.prod(shape)
    headers = [pb.ArrayHeader(name="x", dtype="int64", shape=shape)]

    with pytest.raises(BankOverloadedError, match=f"arrays of {num_bytes} bytes"):
        wire.Assembly(headers, max_bytes=num_bytes - 1)


def test_the_bound_is_on_all_arrays_together() -> None:
    headers = wire.describe({"x": np.zeros(3), "y": np.zeros(3)})

    assert wire.Assembly(headers, max_bytes=48).num_bytes == 48
    with pytest.raises(BankOverloadedError, match="send fewer rows"):
        wire.Assembly(headers, max_bytes=47)


def test_repeated_names_are_refused() -> None:
    header = pb.ArrayHeader(name="x", dtype="int8", shape=[1])

    with pytest.raises(InvalidInputError, match="names repeat"):
        assembled([header, header], b"ab")


def test_too_many_arrays_are_refused() -> None:
    headers = [pb.ArrayHeader(name=str(i), dtype="int8", shape=[0]) for i in range(2049)]

    with pytest.raises(InvalidInputError, match="2049 arrays: allowed are 2048"):
        assembled(headers)


def test_objects_are_not_sent() -> None:
    with pytest.raises(DtypeError, match="'x' has dtype 'object'"):
        wire.describe({"x": np.array(["a"], object)})
