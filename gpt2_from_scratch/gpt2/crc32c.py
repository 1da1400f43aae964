"""CRC-32C (Castagnoli), the checksum in LevelDB and TensorFlow files, with numpy alone.

A CRC is a remainder. Read a message as one long polynomial whose coefficients are its bits, 0 or 1,
the first bit being the highest power of x. Adding is XOR. Its CRC is what is left after division
by a fixed polynomial P of degree 32 (Castagnoli's), with the first and the last 32 bits inverted.

The textbook takes one byte at a time, and each step waits for the one before it: half a minute for
498 MB in Python. Here they take a tenth of a second, because a remainder does not change when a
multiple of P is added. Now P divides

    Q(x) = x^6777 + x^484 + x^100 + 1        (found by search; a test divides it)

Adding a multiple of Q that cancels one bit of the message flips three bits, 6777 - 484 = 6293, 6677
and 6777 places further on. So a bit at the front may be *moved* to these three places, and neither
has to wait for its neighbours: 6293 of them move in one XOR. In arithmetic modulo 2 the square of a
sum is the sum of the squares, so Q(x)^8 = x^(6777*8) + x^(484*8) + x^(100*8) + 1 is a multiple of P
as well, and Q(x)^64 too: the same shifts hold in whole bytes and in whole 8-byte words. Folding
the message forward again and again by words leaves 6777 words with the same remainder, folding
these by bytes leaves 6777 bytes, and the textbook's loop does the rest.

Source: RFC 3720 (iSCSI) section 12.1 and B.4; the mask is from LevelDB, util/crc32c.h.
"""

import numpy as np

POLYNOMIAL = 0x82F63B78  # P without x^32; CRC-32C sends the lowest bit first, so x^31 is bit 0
SHIFTS = (6777 - 484, 6777 - 100, 6777)  # where Q moves a bit (byte, word) to

KEPT = 8 * SHIFTS[-1]  # bytes that folding by words leaves
SEGMENT = 1 << 19  # bytes taken at a time: the work then stays in the processor's cache
SHORT = 2 * SHIFTS[-1]  # up to this many bytes the textbook's loop is as quick


def crc32c(data: bytes | memoryview | np.ndarray, crc: int = 0) -> int:
    """CRC-32C of the bytes of `data`; pass the CRC of what came before as `crc` to continue it.

    An array counts as its bytes in C order and is not copied if it lies so in memory.
    """
    if isinstance(data, np.ndarray):
        message = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    else:
        message = np.frombuffer(data, np.uint8)
    register = crc ^ 0xFFFFFFFF
    if len(message) > SHORT:
        message, register = _shorten(message, register), 0
    for byte in message.tobytes():
        register = TABLE[(register ^ byte) & 0xFF] ^ (register >> 8)
    return register ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """The form in which LevelDB and TensorFlow store a CRC beside the data that it covers.

    The CRC of bytes that contain their own CRC is a constant; the mask breaks that.
    """
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _shorten(message: np.ndarray, register: int) -> np.ndarray:
    """6777 bytes that a zero register takes to the same CRC as `register` takes `message`."""
    work = np.zeros(KEPT + SEGMENT, np.uint8)
    for start in range(0, len(message), SEGMENT):
        piece = message[start : start + SEGMENT]
        # [zeros, what was kept, the next piece]: zeros in front do not change a remainder, so a
        # last piece of any length can stand at the end of the same buffer.
        free = SEGMENT - len(piece)
        work[free : free + KEPT] = work[SEGMENT:]
        work[:free] = 0
        work[free + KEPT :] = piece
        if start == 0:  # a register that is not zero stands for an XOR into the first four bytes
            work[free + KEPT :][:4] ^= np.frombuffer(register.to_bytes(4, "little"), np.uint8)
        _fold(work.view(np.uint64))
    kept = work[SEGMENT:]
    _fold(kept)
    return kept[-SHIFTS[-1] :]


def _fold(units: np.ndarray) -> None:
    """Moves all but the last 6777 units (bytes or words) forward into these, in place.

    The moved ones should become zero; nobody reads them again, so they are left as they are.
    """
    stop = len(units) - SHIFTS[-1]
    for start in range(0, stop, SHIFTS[0]):
        front = units[start : min(start + SHIFTS[0], stop)]
        for shift in SHIFTS:
            units[start + shift : start + shift + len(front)] ^= front


def _table() -> list[int]:
    """For each value of one byte, its remainder: eight steps of long division."""
    table = list(range(256))
    for _ in range(8):
        table = [(value >> 1) ^ (POLYNOMIAL if value & 1 else 0) for value in table]
    return table


TABLE = _table()
