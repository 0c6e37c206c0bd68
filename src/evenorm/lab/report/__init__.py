"""The pages: the only room of the lab that knows HTML. Each is one file that loads nothing."""
