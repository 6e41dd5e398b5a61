"""The command line: thin commands over the library. Importing it loads nothing heavier than typer and rich."""
