"""What a circuit's heads do on its prompts: measurements, rules that name roles, and a summary in words."""
