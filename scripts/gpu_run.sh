#!/usr/bin/env bash
# The list of docs/gpu-runs.md on a machine with an accelerator, most valuable first; one log per item under OUT.
#   scripts/gpu_run.sh OUT [WIDER_FACE_FOLDER TRAIN_LIST VAL_LIST [MINUTES]]
# LITE0=FILE: EfficientNet-lite0's weights under timm's names, where timm cannot download them.
# A failed item does not stop the next one. Without the folder items 4, 5, 5b, 6b and 7 are left out.
set -u
out=${1:?give a folder for the logs}
root=${2:-} train_list=${3:-} val_list=${4:-} minutes=${5:-8}
python=${PYTHON:-python}
mkdir -p "$out"

item() {
  local name=$1
  shift
  echo "== $name: $*"
  "$@" >"$out/$name.log" 2>&1 && tail -n 12 "$out/$name.log" || echo "failed, see $out/$name.log"
}

nvidia-smi >"$out/device.log" 2>&1
item 1_parity "$python" benchmarks/device_parity.py --device cuda --width 1 --size 640 --batch 2
item 2_matching "$python" benchmarks/matching.py --device cuda
item 2_loss "$python" benchmarks/loss.py --device cuda
item 2_assignment "$python" benchmarks/assignment.py --device cuda
item 2_cuda_tests "$python" -m pytest -q -p no:cacheprovider tests/ops/test_matching.py -k accelerator
item 3_training_step "$python" benchmarks/network.py --device cuda --train --batch 12 --size 640x640
item 3_training_step_compiled "$python" benchmarks/network.py --device cuda --train --batch 12 --size 640x640 --compile
for level in 1 2 3; do
  item "6_vga_level$level" "$python" benchmarks/network.py --device cuda --level "$level" --size 640x480 --repeats 50
done
if [ -n "$root" ]; then
  data=(data.root="$root" data.train.split=val data.train.images="$train_list" data.val.images="$val_list")
  item 4_with_loading "$python" -m fanet_lightning.train experiment=wider_face_scratch level=3 "${data[@]}" \
    epochs=2 workers=14 evaluate_at_end=false out="$out/loading"
  item 4_with_loading_cached "$python" -m fanet_lightning.train experiment=wider_face_scratch level=3 "${data[@]}" \
    epochs=2 workers=14 cache=memory evaluate_at_end=false out="$out/loading_cached"
  item 6b_use "$python" -m fanet_lightning.detect source="$root/WIDER_val/images" device=cuda save=txt,json threshold=0.01 \
    out="$out/detect_cuda"
  item 7_profile "$python" -m fanet_lightning.train experiment=wider_face_scratch level=3 "${data[@]}" \
    epochs=1 evaluate_at_end=false profile=true +trainer.max_time=00:00:01:00 out="$out/profile"
  item 5b_lite0 "$python" -m fanet_lightning.train experiment=wider_face_lite0 "${data[@]}" workers=14 \
    weights="${LITE0:-imagenet}" \
    "+trainer.max_time=00:00:$minutes:00" out="$out/lite0"
  item 5_real_sample "$python" -m fanet_lightning.train experiment=wider_face_scratch level=3 "${data[@]}" \
    "+trainer.max_time=00:00:$minutes:00" out="$out/real_sample"
fi
