"""Examples and a feature store to batches; the order of the batches is a pure function of seed, epoch and position."""
