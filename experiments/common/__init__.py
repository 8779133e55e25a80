"""What the experiments share: command lines, run selection, query points, tables, pictures."""
