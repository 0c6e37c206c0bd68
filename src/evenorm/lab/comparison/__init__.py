"""One network trained with every normalizer: the rows, the advice, the command `evenorm compare`."""
