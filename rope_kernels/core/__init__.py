"""What a kernel needs to know: frequencies, the geometry of a head, and both as the operator's text."""
