"""DePT inside other libraries."""
