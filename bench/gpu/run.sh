#!/bin/sh
# Runs the GPU suite where it lies: the packed `gpu`, then PyTorch on the same card, then one table.
#
#   PYTHON=python3     the interpreter that has PyTorch
#   DEVICE=cuda        cuda, or wgpu and host for a dry run
#   MAX_BATCH=128      most sequences of a batch of the 124M model in bf16; the largest power of two below it that fits both sides is taken
#   QUICK=             1 for a dry run at small sizes
#   PARTS=             parts of `gpu` to run, in order, separated by blanks; all if empty
#   PEER=1             0 leaves PyTorch out
set -u
cd "$(dirname "$0")" || exit 2
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
MAX_BATCH=${MAX_BATCH:-128}
QUICK=${QUICK:-}
PARTS=${PARTS:-}
PEER=${PEER:-1}
OUT=${OUT:-results}
mkdir -p "$OUT"
export KILN_KERNEL_CACHE="${KILN_KERNEL_CACHE:-$PWD/kernels}"

# NVRTC and its headers lie in PyTorch's own wheels: nvidia/cu13 since CUDA 13, nvidia/cuda_nvrtc and nvidia/cuda_runtime before.
SITE=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null)
for folder in "$SITE"/nvidia/cu[0-9]*; do
    if [ -d "$folder/include" ]; then
        export CUDA_PATH="${CUDA_PATH:-$folder}"
        export LD_LIBRARY_PATH="$folder/lib:${LD_LIBRARY_PATH:-}"
    fi
done
if [ -d "$SITE/nvidia/cuda_nvrtc/lib" ]; then
    export LD_LIBRARY_PATH="$SITE/nvidia/cuda_nvrtc/lib:${LD_LIBRARY_PATH:-}"
    if [ -d "$SITE/nvidia/cuda_runtime/include" ]; then
        export CUDA_PATH="${CUDA_PATH:-$SITE/nvidia/cuda_runtime}"
    fi
fi

flags=""
[ -n "$QUICK" ] && flags="--quick"
case $DEVICE in cuda) peer_device=cuda ;; *) peer_device=cpu ;; esac
if [ "$PEER" = 1 ] && ! "$PYTHON" -c 'import torch' 2>/dev/null; then
    echo "$PYTHON has no PyTorch: Kiln runs alone" >&2
    PEER=0
fi

batch=$MAX_BATCH
if [ -z "$QUICK" ] && [ "$DEVICE" = cuda ]; then
    if [ "$PEER" = 1 ]; then
        batch=$("$PYTHON" torch_step.py --device "$peer_device" --probe --batch "$batch" | tail -n 1)
    fi
    while [ "$batch" -gt 1 ] && ! ./gpu --device "$DEVICE" --batch "$batch" --probe; do
        batch=$((batch / 2))
    done
    echo "batch of the 124M model: $batch"
fi

# Compilers first, and beside the checks, which are not timed: PyTorch's takes as long as all the rest.
run() {
    parts=""
    for part in $2; do parts="$parts --part $part"; done
    # shellcheck disable=SC2086
    ./gpu --device "$DEVICE" --out "$OUT/$1" --weights "$OUT/weights" --batch "$batch" $flags $parts
}
warm() {
    until [ -f "$OUT/weights/models.json" ]; do sleep 1; done
    # The largest beside the smallest: both must fit with the checks.
    "$PYTHON" torch_step.py --device "$peer_device" --weights "$OUT/weights" --warm 0 &
    "$PYTHON" torch_step.py --device "$peer_device" --weights "$OUT/weights" --warm 2 3 1
    wait
}
rm -rf "$OUT/kiln.json" "$OUT/weights"
if [ -z "$PARTS" ] && [ "$PEER" = 1 ] && [ "$DEVICE" = cuda ]; then
    warm >"$OUT/warm.log" 2>&1 &
    run kiln.json "check train"
    status=$?
    wait
    run kiln.json "kernels step-124m-bf16 step-124m-f32 step-s-bf16 step-s-f32" || status=1
else
    run kiln.json "$PARTS"
    status=$?
fi
[ -f "$OUT/kiln.json" ] || exit "$status"
if [ "$PEER" = 1 ]; then
    # shellcheck disable=SC2086
    "$PYTHON" torch_step.py --device "$peer_device" --weights "$OUT/weights" --out "$OUT/torch.json" $flags || status=1
fi
"$PYTHON" table.py "$OUT/kiln.json" "$OUT/torch.json" --out "$OUT/table.md" || status=1
exit "$status"
