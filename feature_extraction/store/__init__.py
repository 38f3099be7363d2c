"""The feature store: its format, writers, reader and care."""
