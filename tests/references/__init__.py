"""Slow references of the baselines: numpy, written from the definitions, nothing imported from interp."""
