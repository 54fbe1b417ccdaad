"""Many models and targets: a queue of jobs that can be stopped, one table of what came of them, and any executor."""
