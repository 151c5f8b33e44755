"""Pure functions of tensors: the mathematics. No I/O, no transformers, no configuration, no logging."""
