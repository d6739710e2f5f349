"""Tasks of an evaluation: files of rows, what is asked of each, and how answers are scored."""
