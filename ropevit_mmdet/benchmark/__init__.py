"""Time, memory and operations of backbones."""
