"""Is a circuit real? Faithfulness, hypothesis tests, robustness, and models whose truth is known."""

from circuitome.validation import ground_truth as ground_truth
