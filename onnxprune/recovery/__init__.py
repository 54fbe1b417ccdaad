"""Ways to make up for what was cut, found by name: one file each, with a function ``recover``."""
