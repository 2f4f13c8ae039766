"""A run as data, its folder, and the job that makes it."""
