"""The demonstration: `python -m gnnoffload demo`."""
