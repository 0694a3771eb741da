"""What the sensors cost: processor time of their thread over wall time."""

from __future__ import annotations

import time

from selector.adapt.sensors import Sensors

NOTES = {
    "sensors_cpu_share": "processor time of the thread that reads all default sensors, over wall time, 30 s from its start",
    "sensors_reading": "default sensors that have a reading on this machine, of all",
}


def measure(seconds: float = 30.0) -> dict[str, float]:
    """With all default sensors. The first readings, which import and find the devices, are a part of it."""
    sensors = Sensors()
    begun, spent = time.perf_counter(), time.process_time()
    sensors.start()
    time.sleep(seconds)
    # The whole process's time, in which nothing else runs: the thread's own waiting and waking up is a part of the cost.
    share = (time.process_time() - spent) / (time.perf_counter() - begun)
    values = sensors.values()
    sensors.stop()
    return {
        "sensors_cpu_share": share,
        "sensors_reading": sum(value is not None for value in values.values()) / len(values),
    }


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name:30} {value:.4g}")
