"""From run folders to a report: what was found, the paper's table, intervals, speed, figures, the page."""
