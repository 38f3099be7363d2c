"""What runs cost: short runs to measure it, tables of it, and its comparison with finished runs."""
