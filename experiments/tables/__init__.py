"""Tables of the paper, and tables about its claims."""
