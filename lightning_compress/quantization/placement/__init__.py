"""Where activation quantizers go, by the rules of a backend."""
