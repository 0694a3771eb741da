#!/bin/sh
# The device's side on 64-bit ARM, on a PC: every wheel of the base install resolved for aarch64, then the command line and
# the runtime's tests in an emulated processor (user-mode emulation: a check of correctness, its times mean nothing).
#
#   apt-get install debootstrap qemu-user-static
#   tests/aarch64.sh [FOLDER]
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mkdir -p "${1:-$here/build/aarch64}" && cd "${1:-$here/build/aarch64}" && pwd)
python="${PYTHON:-$here/.venv/bin/python}"

# 1. Wheels: nothing may have to be compiled on the device.
platforms="--platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64"
needed=$("$python" -c "import tomllib; print('\n'.join(tomllib.load(open('$here/pyproject.toml', 'rb'))['project']['dependencies']))")
for version in 3.11 3.12 3.13; do
    # shellcheck disable=SC2086
    echo "$needed" | "$python" -m pip install --quiet --dry-run --ignore-installed --only-binary=:all: --python-version $version \
        $platforms --platform manylinux2014_aarch64 --target "$work/none" -c "$here/constraints.txt" -r /dev/stdin
    echo "Python $version: all wheels are to be had for aarch64"
done

# 2. A Debian for ARM, unpacked only, with what a Raspberry Pi 4 tells about its processor: ONNX Runtime reads it. Of as many
#    cores as there are here, because it binds a thread to each.
root="$work/root"
if [ ! -x "$root/usr/bin/python3.11" ]; then
    debootstrap --arch=arm64 --foreign --variant=minbase --include=python3,libstdc++6,libgomp1 bookworm "$root" >"$work/debootstrap.log"
    for package in "$root"/var/cache/apt/archives/*.deb; do dpkg -x "$package" "$root"; done
fi
mkdir -p "$root/proc" "$root/sys/devices/system/cpu"
last=$(($(nproc) - 1))
for number in $(seq 0 $last); do
    printf 'processor\t: %s\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n' $number
    printf 'CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n\n'
done >"$root/proc/cpuinfo"
printf 'Model\t\t: Raspberry Pi 4 Model B\n' >>"$root/proc/cpuinfo"
for list in possible present; do echo 0-$last >"$root/sys/devices/system/cpu/$list"; done

# 3. The base install and the test runner; the bundle of the tests is made here.
# shellcheck disable=SC2086
echo "$needed" | "$python" -m pip install --quiet --upgrade --only-binary=:all: --python-version 3.11 $platforms \
    --platform manylinux2014_aarch64 --target "$work/site" -c "$here/constraints.txt" -r /dev/stdin pytest pytest-timeout hypothesis
arm() {
    QEMU_CPU=cortex-a72 qemu-aarch64-static -L "$root" -E PYTHONHOME="$root/usr" -E PYTHONPATH="$work/site:$here" \
        -E SORTEDNET_CACHE="$work/cache" -E SORTEDNET_TEST_BUNDLE="$work/bundle" "$root/usr/bin/python3.11" "$@"
}

# 4. What a device does.
cd "$work"
rm -rf bundle cache
OMP_NUM_THREADS=1 PYTHONPATH="$here" "$python" -c "
from pathlib import Path
from tests.conftest import exported, family_for
from tests.test_export import calibrated
from trainer.data import load_data
digits = load_data('digits')
exported(calibrated(family_for(digits)), digits, Path('bundle'))"
rm -r bundle/profiles
arm -m sortednet verify bundle
arm -m sortednet profile bundle --threads 1 --measure 6 --repeats 5 --watts 2 --device emulated
arm -m sortednet inspect bundle --device emulated
arm -m sortednet select bundle --device emulated --latency-ms 1000
"$python" -c "import numpy; numpy.save('image.npy', numpy.zeros((1, 1, 8, 8), 'float32'))"
arm -m sortednet run bundle --device emulated --input image.npy --latency-ms 1000

# 5. The runtime's tests; without those that start further processes or need torch.
rm -r bundle/profiles
cd "$here"
arm -m pytest -p no:cacheprovider -q --timeout 900 tests/selector/choose/test_selector.py tests/device_profiles/test_energy.py \
    tests/selector/run/test_runtime.py tests/selector/run/test_pool.py tests/selector/run/test_cache.py \
    -k "not process and not kill and not full_disk and not only_the_graph and not without_accuracies"
