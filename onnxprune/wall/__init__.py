"""A wall around work that can crash, hang or eat the machine."""
