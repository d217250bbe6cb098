"""A first recipe: what the data looks like (`survey`), what follows from it (`choices`), and the commented file (`writing`)."""
