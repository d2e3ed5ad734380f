"""LiteRT's ``.tflite`` files, for phones, boards and microcontrollers."""
