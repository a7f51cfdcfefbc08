"""What the doctor looks for in a data set, and how it shows it."""
