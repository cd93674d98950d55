"""Read a transformers config object, or the dict of a config.json, into the fields of a RopeConfig."""
