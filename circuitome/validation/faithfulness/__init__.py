"""How much of the task a circuit keeps, in every variant."""
