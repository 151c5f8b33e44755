"""How much memory a recipe needs, computed from a model's configuration without its weights."""
