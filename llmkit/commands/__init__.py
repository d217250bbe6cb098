"""What each command does, as values: text for a person, data for a machine. Prints nothing; `cli.py` does."""
