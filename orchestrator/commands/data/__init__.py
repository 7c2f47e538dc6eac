"""Commands for comparisons in files: into the database, out of it, what was put aside, and checks."""
