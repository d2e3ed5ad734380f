"""What `QuantizationAwareTraining` is made of."""
