"""What several rooms need and none owns: nested structures, example inputs, atomic writes, C++ builds."""
