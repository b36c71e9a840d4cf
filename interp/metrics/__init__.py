"""Pure tensor functions of what a trace captures; they know nothing of models."""
