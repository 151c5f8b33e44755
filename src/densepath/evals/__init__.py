"""Evaluation: verifiers, generation, judges, pairing, win rates and intervals."""
