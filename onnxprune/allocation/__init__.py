"""A budget shared among groups so that it costs least."""
