#!/bin/bash
# The cuda tests and bench/cuda.py on a machine with a GPU, nvcc, g++, Python 3.12 with PyTorch, and no network.
#
#   bash bench/offline_gpu.sh pack FOLDER              where there is a network: wheels into FOLDER (32 MB)
#   bash bench/offline_gpu.sh run FOLDER [STEP …]      there, in the project's root; a STEP is build, tests or bench
#                                                      (default: all)
#
# FOLDER/photos (any photographs) and FOLDER/task.npz (as bench/accuracy.py reads it) give bench/cuda.py its other rows;
# BENCH and TESTS are further arguments of the two. All is installed, compiled and written in WORK (/tmp/offline_gpu),
# which later runs use. numpy, SciPy, scikit-learn, Pillow and pytest are the machine's own.
set -eu

pack() {
  local python="python3 -m pip" for="--only-binary=:all: --python-version 3.12 --implementation cp"
  for="$for --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform any"
  $python wheel -q --no-deps -w "$1/ours" jittor==1.3.11.0 jittor-offline==0.0.7
  $python download -q --no-deps $for -d "$1/ours" astunparse six wheel tqdm ftfy wcwidth
  $python download -q --no-deps $for -d "$1/theirs" clip-anytorch ftfy wcwidth
  du -sh "$1"
}

install() {  # install WHEELS TARGET
  [ -d "$2" ] || "$python" -m pip install -q --no-index --no-deps --no-compile --target "$2" "$1"/*.whl
}

build() {
  for _ in 1 2 3; do  # Jittor may want to be started again when it has compiled a part of itself
    "$python" -c 'from jclip import runtime; runtime.use("cuda")' && return
  done
}

tests() { "$python" -m pytest -q -m cuda tests/test_gpu.py ${TESTS:-}; }

bench() {
  local rows=()
  [ -d "$folder/photos" ] && rows+=(--photos "$folder/photos")
  [ -e "$folder/task.npz" ] && rows+=(--features "$folder/task.npz")
  "$python" -m bench.cuda --torch "$work/torch" "${rows[@]}" ${BENCH:-}
}

run() {
  folder=$(cd "$1" && pwd) work=${WORK:-/tmp/offline_gpu} python=$(command -v python3)
  shift
  mkdir -p "$work/home"
  install "$folder/ours" "$work/ours"
  install "$folder/theirs" "$work/theirs"
  # PyTorch takes the machine's numpy
  printf '#!/bin/sh\nPYTHONPATH=%s exec %s "$@"\n' "$work/theirs" "$python" > "$work/torch"
  chmod +x "$work/torch"
  export HOME=$work/home PYTHONPATH=$work/ours:$PWD
  local step
  for step in "${@:-build tests bench}"; do
    for step in $step; do echo "== $step"; SECONDS=0; "$step"; echo "== $step: $SECONDS s"; done
  done
}

case "${1:-}" in
  pack | run) "$@" ;;
  *) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
