"""Any TRL-format data set becomes validated examples, and tokenisation happens in exactly one place."""
