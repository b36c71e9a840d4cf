"""interp inside other projects' frameworks."""
