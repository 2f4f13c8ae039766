"""Model access: Hugging Face's own modules, with their readers and writers in view."""
