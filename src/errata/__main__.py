"""`python -m errata` is `errata`."""

from errata.cli import app

if __name__ == "__main__":
    app(prog_name="errata")
