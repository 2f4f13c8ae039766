"""What single attention heads do: attention patterns, copying, retrieval, sinks, roles."""
