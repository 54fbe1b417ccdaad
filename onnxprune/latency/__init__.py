"""How long a model takes, measured and predicted on the user's own machine."""
