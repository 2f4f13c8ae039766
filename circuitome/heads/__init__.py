"""What single attention heads do: attention patterns, copying, retrieval, sinks, roles."""

from circuitome.heads.atlas import Atlas as Atlas
from circuitome.heads.atlas import atlas as atlas
from circuitome.heads.copying import Copying as Copying
from circuitome.heads.copying import token_copying as token_copying
from circuitome.heads.patterns import PATTERNS as PATTERNS
from circuitome.heads.patterns import PatternScores as PatternScores
from circuitome.heads.patterns import pattern_scores as pattern_scores
from circuitome.heads.repeated import Repeated as Repeated
from circuitome.heads.repeated import repeated_tokens as repeated_tokens
from circuitome.heads.scores import HeadScore as HeadScore
from circuitome.heads.watching import watching_heads as watching_heads
