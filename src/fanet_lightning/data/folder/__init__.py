"""Label formats, each read tolerantly: what a file holds, and what in it is no label."""
