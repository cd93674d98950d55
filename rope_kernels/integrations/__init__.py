"""Integrations with other libraries. Only the ``coverage`` command imports them from elsewhere in the package."""
