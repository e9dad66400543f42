"""How long the gate stays closed when Redis was restarted, with its data and without."""
