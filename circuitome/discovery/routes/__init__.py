"""Information flow routes: which way did the information take, without corrupted prompts."""
