"""The flat arguments of each command, one file per family, and how text becomes their values. No torch."""
