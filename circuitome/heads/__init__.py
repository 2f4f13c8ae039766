"""What single attention heads do: attention patterns, copying, retrieval, sinks, roles."""

from circuitome.heads.masking import MaskCheck as MaskCheck
from circuitome.heads.masking import mask_heads as mask_heads
from circuitome.heads.masking import mask_read as mask_read
from circuitome.heads.needles import Case as Case
from circuitome.heads.needles import Needle as Needle
from circuitome.heads.needles import needle_cases as needle_cases
from circuitome.heads.needles import own_text as own_text
from circuitome.heads.needles import read_needles as read_needles
from circuitome.heads.patterns import PATTERNS as PATTERNS
from circuitome.heads.patterns import PatternScores as PatternScores
from circuitome.heads.patterns import pattern_scores as pattern_scores
from circuitome.heads.repeated import Repeated as Repeated
from circuitome.heads.repeated import repeated_tokens as repeated_tokens
from circuitome.heads.retrieval import RetrievalScores as RetrievalScores
from circuitome.heads.retrieval import retrieval_scores as retrieval_scores
from circuitome.heads.scores import HeadScore as HeadScore
from circuitome.heads.sinks import SinkMass as SinkMass
from circuitome.heads.sinks import sink_mass as sink_mass
from circuitome.heads.streaming import dense_losses as dense_losses
from circuitome.heads.streaming import stream_losses as stream_losses
