"""How fast or small a model can be for what it may lose: levers, tried and measured, and the frontier of results."""
