"""How close the device runtime comes to what the hardware can do: `make bench-device`."""
