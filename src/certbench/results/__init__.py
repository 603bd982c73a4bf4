"""Files of the project: rows, atomic writes, progress."""
