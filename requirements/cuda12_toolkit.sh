#!/bin/sh
# Unpacks Debian's nvcc 12.4 into a folder, for `make wheels` on a machine without CUDA 12: nothing is installed, and no other
# toolkit is touched. Needs apt and dpkg-deb (Debian or Ubuntu), no root, and 1.5 GB.
#
#     requirements/cuda12_toolkit.sh FOLDER [MIRROR]
#
# MIRROR is the address of a mirror of Debian, without it the one that this machine's apt uses (on Ubuntu it must be given).
#
# PyPI's packages of CUDA 12 have ptxas but no compiler. The files are NVIDIA's own, from the non-free section.
set -eu
folder=$(mkdir -p "$1" && cd "$1" && pwd)
mirror=${2:-$(apt-get indextargets --format '$(SITE)' | grep -m 1 'debian$')} || {
  echo "no mirror of Debian among apt's sources: name one as MIRROR" >&2
  exit 1
}
cd "$folder"
mkdir -p apt/state/lists/partial apt/cache/archives/partial debs root bin lib64 nvvm/bin
keys=/usr/share/keyrings/debian-archive-keyring.gpg  # of the package debian-archive-keyring, on Ubuntu too
echo "deb [signed-by=$keys] $mirror trixie main contrib non-free" > apt/sources.list
cat > apt/apt.conf <<END
Dir::Etc::sourcelist "$folder/apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State "$folder/apt/state";
Dir::State::status "/var/lib/dpkg/status";
Dir::Cache "$folder/apt/cache";
Acquire::Languages "none";
END
export APT_CONFIG="$folder/apt/apt.conf"
apt-get -qq update
(cd debs && apt-get -qq download nvidia-cuda-toolkit nvidia-cuda-dev libnvvm4 libcu++-dev)
for package in nvidia-cuda-toolkit libnvvm4 libcu++-dev; do dpkg-deb -x debs/${package}_*.deb root; done
# Of the largest package, headers and the static runtime alone.
dpkg-deb --fsys-tarfile debs/nvidia-cuda-dev_*.deb |
  tar -x -C root --wildcards './usr/include/*' './usr/lib/*/libcudart_static.a' './usr/lib/*/libcudadevrt.a'
rm -r debs apt

# The usual layout of a toolkit.
usr="$folder/root/usr"
for program in ptxas fatbinary nvlink cudafe++ bin2c; do ln -sf "$usr/bin/$program" bin/; done
cp "$usr/lib/nvidia-cuda-toolkit/bin/nvcc" bin/
ln -sfn "$usr/lib/nvidia-cuda-toolkit/bin/crt" bin/crt
ln -sf "$usr/lib/nvidia-cuda-toolkit/bin/cicc" nvvm/bin/
ln -sfn "$usr/lib/nvidia-cuda-toolkit/libdevice" nvvm/libdevice
ln -sfn "$usr/include" include
ln -sf "$usr"/lib/*/libcudart_static.a "$usr"/lib/*/libcudadevrt.a lib64/
cat > bin/nvcc.profile <<END
TOP = \$(_HERE_)/..
CICC_PATH = \$(TOP)/nvvm/bin
NVVMIR_LIBRARY_DIR = \$(TOP)/nvvm/libdevice
LD_LIBRARY_PATH += $(echo "$usr"/lib/*-linux-gnu):
PATH += \$(CICC_PATH):\$(_HERE_):
INCLUDES += "-I\$(TOP)/include" \$(_SPACE_)
LIBRARIES =+ \$(_SPACE_) "-L\$(TOP)/lib64"
END
bin/nvcc --version | tail -2
