"""From a transformers config object, or the dict of a config.json, to the fields of a RopeConfig."""
