"""How circuits are acquired: training watched from the inside, onsets of sudden changes, syntax in attention."""

from circuitome.dynamics.onsets import Onset, onset, precedes

__all__ = ["Onset", "onset", "precedes"]
