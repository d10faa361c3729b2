#!/usr/bin/env bash
# The chain on nano, into one folder: R1-Zero → cold-start data → SFT, rejection sampling → SFT from the base →
# a smaller student distilled, and the controls. What is there already is not run again.
#   SEED=0 DEVICE=cpu bash benchmarks/chain_runs.sh runs/chain/0        # hours on two cores
#   SEED=0 DEVICE=gpu ROWS=4096 bash benchmarks/chain_runs.sh runs/chain/0
# SIDE_BY_SIDE=1 runs the two branches after R1-Zero at once, with a thread each.
# ZERO=folder takes an R1-Zero run that is there (such as runs/demo); SMALL=model another student than nano:small. Several chains on
# one machine need ports of their own: PORT=29611, PORT=29621 …
set -euo pipefail
OUT=$1
SEED=${SEED:-0} ROWS=${ROWS:-2048} DEVICE=${DEVICE:-cpu} SMALL=${SMALL:-nano:small}
BY_VLLM='--heldout_sampler {"backend":"vllm"}'  # several times quicker than by transformers
HELDOUT=${HELDOUT-$BY_VLLM}
# A lower rate over more passes than nano_cpu's: at 1e-3 a sixth of the answers after the cold start are cut off.
SFT=${SFT:-"--num_train_epochs 4 --learning_rate 3e-4 --rows_per_step 8 $HELDOUT"}  # of rejection sampling and distillation
# Of the cold start and its control. Right answers hardly hold a search that gives up, so SFT on them unlearns giving up: with 256
# tokens one search in thirty is cut off, most of which would end by 512, half of nano's context.
COLD=${COLD:-"--num_train_epochs 6 --learning_rate 3e-4 --rows_per_step 8 --heldout_max_tokens 512 $HELDOUT"}
PY=${PY:-python} PORT=${PORT:-29611}
if [ "$DEVICE" = gpu ]; then ON="--use_cpu false"; else ON="--use_cpu true"; fi
mkdir -p "$OUT"
run() { # folder, what must be in it at the end, command
  local folder=$1 last=$2; shift 2
  if [ -e "$OUT/$folder/$last" ]; then echo "== $folder is there"; return; fi
  echo "== $folder: $*"
  "$@" --output_dir "$OUT/$folder" --seed "$SEED"
}
if [ -n "${ZERO:-}" ] && [ ! -e "$OUT/zero" ]; then ln -s "$(realpath "$ZERO")" "$OUT/zero"; fi
run zero report.json $PY recipes/r1_zero.py --config nano_cpu $ON --heldout_every_steps 0 --resume_from_checkpoint auto

cold_start() {
  # 1. R1-Zero's readable answers, SFT on them from the base, and on as many traces as pretraining holds them.
  run cold_start cold_start_report.json $PY recipes/cold_start.py --config nano_cpu --model_name_or_path "$OUT/zero"
  run sft_cold report.json $PY recipes/sft.py --config nano_cpu $ON $COLD --traces "$OUT/cold_start/cold_start.jsonl" \
    --stage_name "Cold start" --resume_from_checkpoint auto
  [ -e "$OUT/control.jsonl" ] || $PY benchmarks/chain.py control --like "$OUT/cold_start/cold_start.jsonl" --out "$OUT/control.jsonl" --seed "$SEED"
  STEPS=$($PY -c "import json; print(json.load(open('$OUT/sft_cold/report.json'))['steps'])")
  run sft_control report.json $PY recipes/sft.py --config nano_cpu $ON $COLD --traces "$OUT/control.jsonl" --max_steps "$STEPS" \
    --without_thinking allow --stage_name "SFT on pretraining traces" --resume_from_checkpoint auto
}

rejection() {
  # 2. Rejection sampling from the RL model, SFT from the base again (trap 34).
  run rejection candidates.parquet $PY recipes/rejection_sampling.py --config nano_cpu --model_name_or_path "$OUT/zero" --max_rows "$ROWS"
  run sft_rejection report.json $PY recipes/sft.py --config nano_cpu $ON $SFT --traces "$OUT/rejection/candidates.parquet" \
    --stage_name "Rejection-sampling SFT" --resume_from_checkpoint auto

  # 3. A smaller student on the same data, and the same student by RL for as long.
  run distill_small report.json $PY recipes/distill.py --config nano_cpu $ON $SFT --teacher "" --model_name_or_path "$SMALL" \
    --traces "$OUT/rejection/candidates.parquet" --resume_from_checkpoint auto
  run calibration report.json $PY recipes/r1_zero.py --config nano_cpu $ON --model_name_or_path "$SMALL" --max_steps 4 \
    --save_steps 4 --heldout_every_steps 0 --heldout_questions 2 --heldout_samples 2 --resume_from_checkpoint auto
  STEPS=$($PY benchmarks/chain.py rl-steps --distilled "$OUT/distill_small" --sampled "$OUT/rejection" --calibration "$OUT/calibration")
  echo "== the student by RL: $STEPS steps take as long as the distillation"
  run zero_small report.json $PY recipes/r1_zero.py --config nano_cpu $ON --model_name_or_path "$SMALL" --max_steps "$STEPS" \
    --heldout_every_steps 0 --resume_from_checkpoint auto
}

# Neither branch needs the other. On two cores they take one each: nano is too small for two threads.
if [ "${SIDE_BY_SIDE:-0}" = 1 ]; then
  (OMP_NUM_THREADS=1 MASTER_PORT=$PORT cold_start) & first=$!
  (OMP_NUM_THREADS=1 MASTER_PORT=$((PORT + 1)) rejection) & second=$!
  wait $first; wait $second
else
  cold_start; rejection
fi
$PY benchmarks/chain.py report "$OUT" --output "$OUT/chain.json"
