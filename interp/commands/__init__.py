"""One module for each command. Commands know all other packages; only the command line knows them."""
