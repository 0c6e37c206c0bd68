"""`python -m evenorm` is the command `evenorm`."""

from evenorm.cli import app

if __name__ == "__main__":
    app(prog_name="evenorm")
