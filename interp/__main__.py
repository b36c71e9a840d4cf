"""`python -m interp`, for launchers that start modules."""

from interp.cli import main

if __name__ == "__main__":
    main()
