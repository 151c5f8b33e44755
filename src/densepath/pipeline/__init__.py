"""From demonstrations to an improved policy: the stages of a run, which meet through files in one folder."""
