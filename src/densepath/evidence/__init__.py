"""What the results of arms show: cells of a setting, comparisons over seeds, statements in words."""
