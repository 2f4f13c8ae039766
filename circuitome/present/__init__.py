"""What a study says, as blocks, and the three places that show them: terminal, page, notebook."""
