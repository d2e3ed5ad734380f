"""The teacher of a distillation, and the training step that learns from it."""
