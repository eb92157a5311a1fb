"""One module for each command. They know all the other packages, and only the command line knows them."""
