"""Methods x seeds x settings from one recipe to one table."""
