"""Channels that go: the journey, the decision and what is told of them."""
