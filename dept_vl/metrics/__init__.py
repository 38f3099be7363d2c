"""Exact scores on strings and numbers, without torch."""
