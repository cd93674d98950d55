"""One signature, several implementations."""
