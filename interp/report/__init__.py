"""A run as one HTML file that needs nothing else: tables, figures, and its captions to look through."""
