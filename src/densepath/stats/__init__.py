"""Intervals, paired differences and corrections: numbers in, records out. No torch here."""
