"""A package, so that no other package called `tests`, as some distributions install one, is found in its place."""
