"""What every kernel is given: the frequencies, the geometry of a head, and the text that encodes both."""
