"""The claims of three papers as measurements: what each says, what decides it, and what this model shows."""
