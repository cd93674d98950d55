"""How results and times are measured: exact references, shipped models, peers, and calls timed in turn."""
