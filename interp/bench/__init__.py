"""Speed and memory, each figure beside its reference, measured in one process in alternating repetitions."""
