"""The ids of invocations and awakeables, and what is computed from them."""

from __future__ import annotations

import base64
import re
from typing import Final

from restate_steps.errors import ServerError

__all__ = ["FIRST_AWAKEABLE", "awakeable_id", "awakeable_of", "beginning_of", "is_invocation_id", "raw_id", "seed_of"]

FIRST_AWAKEABLE: Final = 17
"""The number of the signal that completes the first awakeable of an invocation."""

_AWAKEABLE_PREFIX: Final = "sign_1"
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ID: Final = re.compile(r"inv_1([0-9a-zA-Z]{11})([0-9a-zA-Z]{22})")
_ELLIPSIS: Final = re.compile(r"[^\w-]+\Z", re.ASCII)
_MASK: Final = 2**64 - 1


def awakeable_id(raw_id: bytes, number: int) -> str:
    """Return the id of an awakeable.

    Args:
        raw_id: The id of the invocation, as bytes.
        number: The number of the signal: :data:`FIRST_AWAKEABLE` for the first awakeable of the invocation, and so on.
    """
    return _AWAKEABLE_PREFIX + base64.urlsafe_b64encode(raw_id + number.to_bytes(4, "big")).decode().rstrip("=")


def awakeable_of(awakeable_id: str) -> tuple[bytes, int]:
    """Return the parts of an awakeable's id: the id of the invocation, and the number of the signal.

    Raises:
        ValueError: The text is not the id of an awakeable.
    """
    text = awakeable_id.removeprefix(_AWAKEABLE_PREFIX)
    try:
        if text == awakeable_id:
            raise ValueError
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raise ValueError(
            f"{awakeable_id!r} is not the id of an awakeable. An id starts with {_AWAKEABLE_PREFIX!r}."
        ) from None
    return raw[:-4], int.from_bytes(raw[-4:], "big")


def beginning_of(shown: str) -> str:
    """Return an id, or the beginning of one, without the ellipsis that a shortened id ends with.

    The ellipsis may be several other characters if the terminal's encoding is not UTF-8.

    Example:
        >>> beginning_of("inv_1hE48kUaAOCi…")
        'inv_1hE48kUaAOCi'
    """
    return _ELLIPSIS.sub("", shown)


def is_invocation_id(text: str) -> bool:
    """Return whether a text is the whole id of an invocation."""
    return _ID.fullmatch(text) is not None


def raw_id(invocation_id: str) -> bytes:
    """Return the bytes of an invocation's id: its partition key and its unique part.

    Raises:
        ServerError: The text is not the id of an invocation.

    Example:
        >>> raw_id("inv_1hE48kUaAOCi3acv1vMrexTV9iUyzGaabq").hex()
        '8ea5adc3e86089cd5ce97fe7a9f2f3791ee69ac1a016fa67'
    """
    found = _ID.fullmatch(invocation_id)
    if found is None:
        raise ServerError(
            f"{invocation_id!r} is not the id of an invocation. An id starts with 'inv_1' and has 38 characters."
        )
    return b"".join(_number(part).to_bytes(size, "little") for part, size in zip(found.groups(), (8, 16), strict=True))


def _number(digits: str) -> int:
    number = 0
    for digit in digits:
        number = number * len(_DIGITS) + _DIGITS.index(digit)
    return number


def seed_of(raw: bytes) -> int:
    """Return the random seed that a server gives to an invocation, unless ``unique_random_seeds`` is enabled.

    It is the hash that Rust's ``DefaultHasher`` computes: SipHash-1-3 of the number of the id's bytes and the bytes.

    Example:
        >>> seed_of(raw_id("inv_1hE48kUaAOCi3acv1vMrexTV9iUyzGaabq"))
        17493510548412997302
    """
    return _siphash(len(raw).to_bytes(8, "little") + raw)


def _siphash(data: bytes) -> int:
    # The four words spell "somepseudorandomlygeneratedbytes"; both keys are 0.
    words = [0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573]
    tail = len(data) % 8
    blocks = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data) - tail, 8)]
    blocks.append(int.from_bytes(data[len(data) - tail :], "little") | (len(data) & 0xFF) << 56)
    for block in blocks:
        words[3] ^= block
        _round(words)
        words[0] ^= block
    words[2] ^= 0xFF
    for _ in range(3):
        _round(words)
    return words[0] ^ words[1] ^ words[2] ^ words[3]


def _round(v: list[int]) -> None:
    v[0] = (v[0] + v[1]) & _MASK
    v[1] = _rotated(v[1], 13) ^ v[0]
    v[0] = _rotated(v[0], 32)
    v[2] = (v[2] + v[3]) & _MASK
    v[3] = _rotated(v[3], 16) ^ v[2]
    v[0] = (v[0] + v[3]) & _MASK
    v[3] = _rotated(v[3], 21) ^ v[0]
    v[2] = (v[2] + v[1]) & _MASK
    v[1] = _rotated(v[1], 17) ^ v[2]
    v[2] = _rotated(v[2], 32)


def _rotated(word: int, by: int) -> int:
    return (word << by | word >> (64 - by)) & _MASK
