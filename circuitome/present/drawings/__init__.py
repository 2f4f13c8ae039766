"""What no chart library draws: circuits on the model's grid, classes of heads, routes, attention over tokens."""
