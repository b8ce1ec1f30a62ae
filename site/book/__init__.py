"""The parts of the site's build: where its pages come from, and what they get beside Sphinx."""
