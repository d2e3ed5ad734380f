"""What is watched while training: ranges, saturation, phases, alerts."""
