"""The fast path of a frozen T5: fused layers, decoding, and when they stand in for the library's."""
