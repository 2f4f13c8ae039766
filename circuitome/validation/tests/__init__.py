"""Completeness, minimality, hypothesis tests and null circuits."""
