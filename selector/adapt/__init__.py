"""What holds on this device now, and what follows for the choice: sensors, the memory that is free, how far runs are off their
profile, and a battery that must last. `controller` puts them together; it is told the time and what was run, and runs nothing.
"""

from selector.adapt.battery_reader import read_battery

__all__ = ["read_battery"]
