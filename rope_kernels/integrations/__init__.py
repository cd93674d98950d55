"""Bridges to other libraries; nothing else in the package imports them."""
