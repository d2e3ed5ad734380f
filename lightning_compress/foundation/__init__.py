"""What several rooms share: nested structures, example inputs, atomic writes, C++ builds."""
