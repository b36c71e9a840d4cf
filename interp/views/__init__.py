"""One picture: its heads, and where they look."""
