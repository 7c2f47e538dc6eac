"""Random numbers that depend on nothing but what they are for: a seed, and counters.

The same numbers come out on every machine, in every order and batch. Sampling, shuffling and initialisation of every
job draw from here.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: a bijection of 64-bit words whose output bits look independent.

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA.
    """
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers, such as (job seed, iteration, reply); the order matters."""
    word = np.zeros(1, dtype=np.uint64)
    for part in parts:
        word = _mix(word + _GOLDEN + np.array([part % 2**64], dtype=np.uint64))
        word = _mix(word + _GOLDEN)
    return int(word[0] >> np.uint64(1))


def uniforms(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Uniform float32 numbers in [0, 1) with 24 bits, one for each (seed, position).

    Args:
        seeds: (B,) non-negative integers below 2^64.
        positions: (B,) how many tokens the reply already has.
    """
    words = _mix(seeds.astype(np.uint64) + _GOLDEN)
    words = _mix(words + _GOLDEN * (positions.astype(np.uint64) + np.uint64(1)))
    return ((words >> np.uint64(40)).astype(np.float32)) * np.float32(2**-24)


def permutation(seed: int, n: int) -> np.ndarray:
    """The numbers 0 .. n-1 in an order that depends on the seed alone, (n,)."""
    words = _mix(_mix(np.array([seed], dtype=np.uint64) + _GOLDEN) + _GOLDEN * np.arange(1, n + 1, dtype=np.uint64))
    return np.argsort(words, kind="stable")
