"""What single attention heads do: attention patterns, copying, retrieval, sinks, roles."""

from circuitome.heads.account import account as account
from circuitome.heads.explain import explain as explain
from circuitome.heads.explanation import Explanation as Explanation
from circuitome.heads.patterns import PATTERNS as PATTERNS
from circuitome.heads.patterns import PatternScores as PatternScores
from circuitome.heads.patterns import pattern_scores as pattern_scores
from circuitome.heads.repeated import Repeated as Repeated
from circuitome.heads.repeated import repeated_tokens as repeated_tokens
from circuitome.heads.roles import ROLES as ROLES
from circuitome.heads.roles import Facts as Facts
from circuitome.heads.roles import Verdict as Verdict
from circuitome.heads.roles import verdict as verdict
from circuitome.heads.scores import HeadScore as HeadScore
