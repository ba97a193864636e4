"""The random numbers of Python's ``random.Random``, whose state the model continues."""

from __future__ import annotations

from replay.jit import jit
from replay.synth.kvm.state import Model

_N, _M = 624, 397
_PLACE = _N
"""Index of the place in the state: ``Model.twister`` is ``random.Random(seed).getstate()[1]``."""
_UPPER, _LOWER, _MATRIX = 0x80000000, 0x7FFFFFFF, 0x9908B0DF


@jit
def _next_word(m: Model) -> int:
    """genrand_uint32()"""
    state = m.twister
    if state[_PLACE] >= _N:
        state[_PLACE] = 0
        for i in range(_N):
            following = i + 1 if i + 1 < _N else 0
            other = i + _M if i + _M < _N else i + _M - _N
            y = state[i] & _UPPER | state[following] & _LOWER
            state[i] = state[other] ^ y >> 1 ^ (_MATRIX if y & 1 else 0)
    y = state[state[_PLACE]]
    state[_PLACE] += 1
    y ^= y >> 11
    y ^= y << 7 & 0x9D2C5680
    y ^= y << 15 & 0xEFC60000
    return y ^ y >> 18


@jit
def random_below(m: Model, n: int) -> int:
    """Random._randbelow(); ``n`` is at least 1."""
    bits, rest = 0, n
    while rest:
        bits += 1
        rest >>= 1
    value = n
    while value >= n:
        value, shift = 0, 0
        while shift < bits:
            word = _next_word(m)
            if bits - shift < 32:
                word >>= 32 - (bits - shift)
            value |= word << shift
            shift += 32
    return value


@jit
def shuffle(m: Model, count: int) -> None:
    """The numbers from 0 to ``count`` in ``Model.order``, as Random.shuffle() orders them."""
    for i in range(count):
        m.order[i] = i
    for i in range(count - 1, 0, -1):
        j = random_below(m, i + 1)
        kept = m.order[i]
        m.order[i] = m.order[j]
        m.order[j] = kept
