"""The dense reward: a pair of models as one object."""
