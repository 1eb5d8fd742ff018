"""A task, a model and preference pairs small enough to ship, so that a first run shows DPO learning within seconds."""
