#!/bin/bash
# Submit a whole experiment: train every fold, explain, explain the disagreements, evaluate.
#
#   jobs/submit.sh [--dry-run] [folds=5] [parts=1] [concurrent=N] [nodes=N] [tasks=N] [samplers=A,B] [key=value ...]
#
#   folds=5            so many folds (data.folds=)
#   parts=8            share the explanations of every fold among so many jobs; 1: the job that trains explains, too
#   parts=8,2          so many jobs for the explanations of a fold, so many for those of its disagreements
#   concurrent=2       at most so many tasks of an array at a time
#   nodes=2 tasks=4    train one fold on so many nodes, with so many GPUs (tasks) each
#   samplers=A,B       first train these samplers of every fold, for explainers that fill hidden pixels from them
#   A.key=value        an option of one sampler's training, as in patch_sampler.trainer.max_epochs=60
#   key=value          any option of the commands: name=, data=, data.root=, model=, explainer=[...], trainer.max_epochs= ...
#   --dry-run          print what would be submitted
#
# Partition, account, time, CPUs, memory, GPUs and the environment: jobs/settings.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source jobs/settings.sh

fail() { echo "error: $*" >&2; exit 1; }
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' jobs/submit.sh; }

# --------------------------------------------------------------------------------------------------------- the options

[ $# -gt 0 ] || { usage; exit 0; }
folder=() folds=5 parts=1 seconds="" concurrent="" nodes="" tasks="" name=lit_xai dry=""
samplers=() options=() measuring=()
for argument in "$@"; do
  key=${argument%%=*} value=${argument#*=}
  case $argument in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry=yes; continue ;;
    [a-z+~]*=*) ;;
    *) fail "$argument is not of the form key=value: see jobs/submit.sh --help" ;;
  esac
  case $key in
    parts) [[ $value != *,* ]] || { seconds=${value#*,}; value=${value%%,*}; } ;;&
    folds | data.folds | parts | concurrent | nodes | tasks)
      [[ $value =~ ^[1-9][0-9]{0,5}$ ]] || fail "$key must be a whole number of at least 1, found $value"
      declare "${key#data.}=$value" ;;
    samplers) IFS=, read -ra samplers <<<"$value" ;;
    fold | part | probes) fail "$key= is what the jobs set: leave it out" ;;
    definition | distance | only) measuring+=("$argument") ;;
    name) name=$value folder+=("$argument") options+=("$argument") ;;
    root | data | model) folder+=("$argument") options+=("$argument") ;;
    *) options+=("$argument") ;;
  esac
done
seconds=${seconds:-$parts}
[[ $seconds =~ ^[1-9][0-9]{0,5}$ ]] || fail "parts must be a whole number of at least 1 or two of them, as in parts=8,2"
[ "$folds" -gt 1 ] || fail "folds must be at least 2: with one fold there is nothing to train on"

# who is told what: options of one sampler are its own; samplers see the data, not the predictor's options
training=("data.folds=$folds") explaining=("data.folds=$folds") sampling=("data.folds=$folds")
measuring=("data.folds=$folds" "${measuring[@]}")
declare -A own=()
for option in "${options[@]}"; do
  key=${option%%=*}
  for sampler in "${samplers[@]}"; do
    [[ $key != "$sampler".* ]] || { own[$sampler]+=" ${option#"$sampler".}"; continue 2; }
  done
  training+=("$option")
  case $key in logger | logger.*) ;; *) explaining+=("$option") ;; esac  # parts of a fold would write one W&B run
  measuring+=("$option")
  case $key in data | data.* | root | seed | trainer | logger | logger.*) sampling+=("$option") ;; esac
done
[ "$parts" = 1 ] || training+=("explain=false")

checks=()
check() { checks+=("$1" fold=0 "${@:2}" --cfg job --); }  # COMMAND OPTION...
check train "${training[@]}"
check explain "${explaining[@]}"
check evaluate "${measuring[@]}"
for sampler in "${samplers[@]}"; do
  # shellcheck disable=SC2086
  check train model="$sampler" "${sampling[@]}" ${own[$sampler]:-}
done
( environment; python -c "import hydra, lit_xai" 2>/dev/null ) \
  || fail "no Python with lit_xai: say in jobs/settings.sh where it is (VENV=$VENV)"
# a mistyped key ends here, not in the queue; all commands in one process, since what takes time is to load torch
( environment; python - "${checks[@]}" >/dev/null <<'END'
import runpy, sys

words, command = sys.argv[1:], []
for word in words:
    if word != "--":
        command.append(word)
        continue
    sys.argv, command = command, []
    try:
        runpy.run_module(f"lit_xai.{sys.argv[0]}", run_name="__main__")
    except SystemExit as e:
        if e.code:
            raise
END
) || exit 1

# ------------------------------------------------------------------------------------------------------------ the jobs

read -ra cluster <<<"$(sbatch_options | tr '\n' ' ')"
read -ra cpus <<<"$(GPUS=0 && sbatch_options | tr '\n' ' ')"
array() { echo "--array=0-$(($1 - 1))${concurrent:+%$concurrent}"; }
jobs=()

submit() {  # WHAT LATER-NAME SBATCH-ARGUMENT... : the job's id to $id
  local what=$1 label=$2
  shift 2
  if [ -n "$dry" ]; then
    id=$label
    echo "# $id: $what"
    printf 'sbatch'; printf ' %q' --parsable --kill-on-invalid-dep=yes "$@"; echo
  else
    id=$(sbatch --parsable --kill-on-invalid-dep=yes "$@") || give_up
    id=${id%%;*}
    printf '%8s  %s\n' "$id" "$what"
  fi
  jobs+=("$id")
}

give_up() {
  [ ${#jobs[@]} = 0 ] || scancel "${jobs[@]}"
  fail "sbatch refused a job; what had been submitted is cancelled"
}

joined() { local IFS=:; echo "$*"; }

trained=()
for sampler in "${samplers[@]}"; do
  # shellcheck disable=SC2086
  submit "train $sampler, folds 0-$((folds - 1))" "$sampler" "${cluster[@]}" "$(array "$folds")" \
    --job-name="$name-$sampler" jobs/folds.sbatch model="$sampler" "${sampling[@]}" ${own[$sampler]:-}
  trained+=("$id")
done

after=() job=folds.sbatch resources=("${cluster[@]}")
# a task of the array waits for the samplers of its own fold, if it explains
if [ "$parts" = 1 ] && [ ${#trained[@]} -gt 0 ]; then after=("--dependency=aftercorr:$(joined "${trained[@]}")"); fi
if [ -n "$nodes$tasks" ]; then
  job=multi_gpu.sbatch nodes=${nodes:-1} tasks=${tasks:-1}
  read -ra resources <<<"$([ "$GPUS" = 0 ] || GPUS=$tasks; sbatch_options | tr '\n' ' ')"
  resources+=("--nodes=$nodes" "--ntasks-per-node=$tasks" --output=jobs/logs/%x-%A_%a.out)
fi
does="train"; [ "$parts" -gt 1 ] || does="train and explain"
submit "$does, folds 0-$((folds - 1))" TRAIN "${resources[@]}" "$(array "$folds")" "${after[@]}" \
  --job-name="$name-train" "jobs/$job" "${training[@]}"
predictors=$id last=("$id")

if [ "$parts" -gt 1 ]; then
  for ((fold = 0; fold < folds; fold++)); do
    needs=("${predictors}_$fold" "${trained[@]/%/_$fold}")
    submit "explain fold $fold, parts 0-$((parts - 1))" "EXPLAIN$fold" "${cluster[@]}" "$(array "$parts")" \
      --dependency=afterok:"$(joined "${needs[@]}")" --job-name="$name-explain-fold$fold" \
      jobs/explain.sbatch fold="$fold" "${explaining[@]}"
    last+=("$id")
  done
fi
for ((fold = 0; fold < folds; fold++)); do
  submit "explain the disagreements of fold $fold, parts 0-$((seconds - 1))" "DISAGREEMENTS$fold" "${cluster[@]}" \
    "$(array "$seconds")" --dependency=afterok:"$(joined "$predictors" "${trained[@]}")" \
    --job-name="$name-disagreements-fold$fold" jobs/explain.sbatch fold="$fold" probes=disagreements "${explaining[@]}"
  last+=("$id")
done
submit "evaluate" EVALUATE "${cpus[@]}" --dependency=afterok:"$(joined "${last[@]}")" --job-name="$name-evaluate" \
  jobs/evaluate.sbatch "${measuring[@]}"

[ -n "$dry" ] || cat <<END
state:   squeue --jobs=$(IFS=,; echo "${jobs[*]}")
         python -m lit_xai.evaluate --status ${folder[*]}
logs:    jobs/logs/$name-*
cancel:  scancel ${jobs[*]}
END
