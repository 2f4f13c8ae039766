"""What single attention heads do: attention patterns, copying, retrieval, sinks, roles."""

from circuitome.heads.patterns import PATTERNS as PATTERNS
from circuitome.heads.patterns import PatternScores as PatternScores
from circuitome.heads.patterns import pattern_scores as pattern_scores
from circuitome.heads.repeated import Repeated as Repeated
from circuitome.heads.repeated import repeated_tokens as repeated_tokens
from circuitome.heads.scores import HeadScore as HeadScore
