"""The chat on a terminal or in a pipe."""
