"""One module for each command. They know all other packages."""
