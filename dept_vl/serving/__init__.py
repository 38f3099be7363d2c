"""Many adapters on one backbone: mixed in a batch, and served over HTTP."""
