import mmap

import numpy as np
import pytest

from gpt2_from_scratch.gpt2 import crc32c as module
from gpt2_from_scratch.gpt2.crc32c import KEPT, POLYNOMIAL, SEGMENT, SHIFTS, SHORT, crc32c, masked


def bitwise(data: bytes) -> int:
    """The definition, one bit at a time: the witness for everything else."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def in_pieces(data: bytes) -> int:
    """The CRC from pieces so short that the textbook's loop takes them and nothing is folded."""
    crc = 0
    for start in range(0, len(data), SHORT):
        crc = crc32c(data[start : start + SHORT], crc)
    return crc


def random_bytes(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),  # the check value of every CRC catalogue
        (bytes(32), 0x8A9136AA),  # this one and the next three: RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_values(data, expected):
    assert crc32c(data) == expected


def test_shifts_come_from_a_multiple_of_the_polynomial():
    """P divides x^6777 + x^484 + x^100 + 1, and the same in bytes (each exponent times 8)."""
    p = 1 << 32 | int(f"{POLYNOMIAL:032b}"[::-1], 2)
    assert p == 0x11EDC6F41  # as in RFC 3720
    for unit in (1, 8):
        exponents = [SHIFTS[2] - shift for shift in (0, *SHIFTS)]
        assert exponents == [6777, 484, 100, 0]
        q = sum(1 << unit * exponent for exponent in exponents)
        while q.bit_length() > 32:
            q ^= p << q.bit_length() - 33
        assert q == 0


def test_bit_by_bit_agrees_on_random_lengths():
    rng = np.random.default_rng(1)
    lengths = [1, 2, 3, 4, 7, 8, 9, SHORT - 1, SHORT, SHORT + 1, KEPT - 1, KEPT, KEPT + 1]
    for length in [*lengths, *rng.integers(0, 20_000, 20).tolist()]:
        data = random_bytes(length, seed=length)
        assert crc32c(data) == bitwise(data), length


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("extra", [-9, -1, 0, 1, 3, 4, 8, SHIFTS[0], KEPT - 1, KEPT + 1])
def test_lengths_around_the_segments(segments, extra):
    data = random_bytes(segments * SEGMENT + extra)
    assert crc32c(data) == in_pieces(data)


@pytest.mark.parametrize("segment", [8, 1 << 10, 1 << 14, 1 << 16])
def test_segments_of_any_size_agree(monkeypatch, segment):
    data = random_bytes(60_001)
    expected = in_pieces(data)
    monkeypatch.setattr(module, "SEGMENT", segment)
    if segment == 8:
        data = data[:15_001]
        expected = in_pieces(data)
    assert crc32c(data) == expected


def test_a_crc_can_be_continued_at_any_place():
    data = random_bytes(100_000)
    for cut in (0, 1, 3, 5_000, SHORT + 1, 50_000, 99_999, 100_000):
        assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data), cut


def test_every_kind_of_buffer_is_its_bytes():
    array = np.random.default_rng(2).standard_normal((60, 70)).astype("<f4")
    expected = crc32c(array.tobytes())
    assert crc32c(array) == expected
    assert crc32c(memoryview(array)) == crc32c(bytearray(array.tobytes())) == expected
    assert crc32c(array.T) == crc32c(array.T.tobytes()) != expected
    assert crc32c(array[::2, 1:]) == crc32c(array[::2, 1:].tobytes())
    assert crc32c(np.float32(1).reshape(())) == crc32c(np.float32(1).tobytes())
    assert crc32c(np.zeros((0, 3))) == crc32c(memoryview(b"")) == crc32c(bytearray()) == 0


def test_odd_offsets_and_read_only_memory(tmp_path):
    data = random_bytes(40_000)
    (tmp_path / "data").write_bytes(data)
    with (tmp_path / "data").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        view = np.frombuffer(mapped, np.uint8)
        for offset in (1, 3, 7, 13):
            assert crc32c(view[offset:]) == in_pieces(data[offset:])
        assert view.tobytes() == data


def test_every_flipped_bit_shows():
    data = bytearray(random_bytes(30_000))
    expected = crc32c(data)
    for place in np.random.default_rng(3).integers(0, 8 * len(data), 50).tolist():
        data[place // 8] ^= 1 << place % 8
        assert crc32c(data) != expected
        data[place // 8] ^= 1 << place % 8
    assert crc32c(data) == expected


def test_mask_is_leveldbs():
    crc = crc32c(b"foo")
    assert masked(0) == 0xA282EAD8
    assert masked(crc) not in (crc, masked(masked(crc)))
    rotated = (masked(crc) - 0xA282EAD8) & 0xFFFFFFFF  # LevelDB's Unmask
    assert (rotated >> 17 | rotated << 15) & 0xFFFFFFFF == crc
