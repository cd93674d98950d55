"""The public calls: each checks its arguments, then calls one operator."""
