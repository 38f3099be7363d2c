"""Features of other tools into a store, and a store into VL-T5's file."""
