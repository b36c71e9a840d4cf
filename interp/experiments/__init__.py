"""What runs over a data set: one engine, and an experiment a module."""
