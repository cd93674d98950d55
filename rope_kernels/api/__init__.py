"""The public calls: they check their arguments, then call one operator."""
