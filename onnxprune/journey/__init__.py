"""What every run has: options, model, clock and notes, and how its result is saved."""
