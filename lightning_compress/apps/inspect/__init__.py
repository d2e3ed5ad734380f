"""What a checkpoint or an exported file holds, layer by layer."""
