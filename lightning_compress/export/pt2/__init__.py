"""PyTorch's own archives: `.pt2` programs and AOTInductor packages."""
