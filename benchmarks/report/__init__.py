"""The report of a run: its data file read, its tables and plots, and the comparison with a baseline."""
