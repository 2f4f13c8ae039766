"""Shards of long work: which of its parts belong to which, by a fixed rule."""

from circuitome.errors import InputError

Shard = tuple[int, int]
"""The number of a shard, from 0, and how many there are."""
WHOLE: Shard = (0, 1)
"""All of the work as one shard."""


def shard_of(count: int, shard: Shard) -> range:
    """Which of `count` parts belong to a shard: a run of them, the runs of all shards about equally long.

    >>> from circuitome.engine.shards import shard_of
    >>> [list(shard_of(5, (i, 3))) for i in range(3)]
    [[0], [1, 2], [3, 4]]

    Raises `InputError` for a shard that there is not.
    """
    number, of = shard
    if not 0 <= number < of:
        raise InputError(f"There is no shard {number} of {of}; shards are numbered from 0.")
    return range(number * count // of, (number + 1) * count // of)
